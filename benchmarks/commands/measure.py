"""What `plan --measure` prints: hours and disk that the missing trials take here, and whether compiling pays."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.commands.run import draw_images
from benchmarks.commands.session import Session
from benchmarks.terminal import console, print_columns
from benchmarks.trials.timing import Compiling, compiling, estimate


def show_estimate(session: Session) -> None:
    """Print hours and disk that the missing trials take here, and whether compiling pays."""
    draw_images(session)
    runtime = session.placed()
    found = estimate(session.plan, session.missing(), session.workspace, runtime)
    cells: list[Sequence[str]] = [
        ("network", "method", "to run", "seconds each", "searching", "fine-tuning", "evaluation")
    ]
    for row in found.rows:
        parts = (row.time.total, row.time.search, row.time.finetune, row.time.evaluation)
        texts = [f"refused: {row.refused}"] + [""] * 3 if row.refused else [f"{seconds:.1f}" for seconds in parts]
        cells.append((row.trial.model, row.trial.row, str(row.count), *texts))
    print_columns(cells)
    unit = "GPU" if runtime.gpu else "core"
    threads = runtime.ranks * (session.suite.resources.cpus if not runtime.gpu else 1)
    console.print(
        f"timed here, one trial at a time: {found.seconds * threads / 3600:.2f} {unit}-hours, of which float starts "
        f"{found.starts_seconds * threads / 3600:.2f}; {found.elapsed / 60:.0f} minutes with "
        f"{found.slots} trials at a time; about {found.kept_bytes / 2**20:.0f} MiB of disk, and "
        f"{found.saved_bytes / 2**20:.0f} MiB of checkpoints while it runs"
    )
    console.print(
        "left out: drawing and downloading, compiling, saving, what processes of a trial tell each other, and that "
        "trials at a time share disk and memory"
    )
    if not session.suite.resources.compile and found.rows:
        console.print(_advice(compiling(max(found.rows, key=lambda row: row.time.finetune), runtime)))


def _advice(outcome: Compiling | str) -> str:
    if isinstance(outcome, str):
        return f"resources.compile: no; {outcome}"
    verdict = "yes, --set resources.compile=true" if outcome.saved > 0 else "no"
    return (
        f"resources.compile: {verdict}; of {outcome.eager:.0f} s of fine-tuning in the longest trial "
        f"{outcome.compiled:.0f} would be left, after {outcome.wait:.0f} s of compiling"
    )
