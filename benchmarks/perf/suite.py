"""How long a suite takes, how much of the machine does trial work, and how fast the command line answers.

`python -m benchmarks.perf.suite [--suite quick] [--engine ray] [--json]`, in the installed environment; further
options, such as --seeds, are the runner's. Runs the suite into a temporary folder; memory is the proportional set size
of the runner and everything it starts, sampled, and so is the time that they had a core. Work is seconds that trials
took, waiting for a core included. --first 20 stops once 20 trials have ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_SAMPLE_SECONDS = 1.0
_REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--engine", default="ray")
    parser.add_argument("--first", type=int, help="stop after this many trials; by default the suite is run in full")
    parser.add_argument("--json", action="store_true")
    options, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run = ["--suite", options.suite, "--engine", options.engine, "--out", folder, *further]
        figures = measure_suite(run, Path(folder) / options.suite / "records", options.first)
        if options.first is None:
            figures["finished suite again, seconds"] = repeated(run)
    for command in (["--help"], ["list"], ["plan", "--suite", options.suite]):
        figures[f"{' '.join(command)}, seconds"] = repeated(command)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:42s} {value:.2f}")


def measure_suite(arguments: Sequence[str], records: Path, first: int | None) -> dict[str, float]:
    """Wall time, shares of wall time x cores that had a core and that is trial work, and peak memory of one run."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "runner.py", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    peak, on_cores, wall = 0, dict[int, float](), 0.0
    while process.poll() is None:
        wall, running = time.monotonic() - begun, family(process.pid)
        peak = max(peak, sum(proportional_set_bytes(pid) for pid in running))
        on_cores |= {pid: seconds for pid in running if (seconds := core_seconds(pid))}
        if first is not None and len(list(records.glob("*.json"))) >= first:
            process.send_signal(signal.SIGINT)
            process.wait()
        else:
            time.sleep(_SAMPLE_SECONDS)
    if process.returncode != 0 and first is None:
        raise SystemExit(f"the suite ended with exit code {process.returncode}")
    observed = [json.loads(path.read_bytes())["observed"] for path in records.glob("*.json")]
    work, cores = sum(trial_seconds(observed)), wall * (os.cpu_count() or 1)
    return {
        "trials": len(observed),
        "wall time, seconds": wall,
        "cores busy": sum(on_cores.values()) / cores,
        "trial work, core-seconds": work,
        "trial work / (wall time x cores)": work / cores,  # under --first, that of trials under way is not in it
        "other core-seconds, per trial": (cores - work) / max(len(observed), 1),
        "peak memory, GB": peak / 1e9,
    }


def trial_seconds(observed: Sequence[dict[str, Any]]) -> Iterator[float]:
    """Seconds of every trial and, once, of every float start."""
    yield from {row["weights_digest"]: row["start_seconds"] for row in observed}.values()
    yield from (row["seconds"]["total"] for row in observed)


def family(pid: int) -> set[int]:
    """A process and all that it started, directly or not."""
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            parents[int(path.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def core_seconds(pid: int) -> float:
    """Seconds for which a process has had a core; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_set_bytes(pid: int) -> int:
    """Memory of a process, pages that it shares counted in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def repeated(arguments: Sequence[str]) -> float:
    """Median seconds of a command as a whole process, after one run that is not counted."""
    seconds = []
    for _ in range(_REPEATS + 1):
        begun = time.monotonic()
        subprocess.run([sys.executable, "runner.py", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - begun)
    return median(seconds[1:])


if __name__ == "__main__":
    main()
