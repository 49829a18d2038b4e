"""Ray clusters that others started, joined by their address: of this machine, and of two with a cable between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.data.tree import write_tree
from benchmarks.planning import plan
from benchmarks.records.record import Records
from benchmarks.suites.suite import load_suite
from benchmarks.trials import environment
from benchmarks.trials.environment import SENT_FROM, source_state
from tests.harness import (
    ROOT,
    cli,
    comparable,
    copy_float_starts,
    descendants,
    finished,
    run_with_ray,
    start,
    write_suite,
)

DEADLINE_SECONDS = 600.0


def answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def cluster() -> Iterator[str]:
    with started() as address:
        yield address


@contextmanager
def started(*before: str) -> Iterator[str]:
    """The address of a cluster with two cores, which ends with the test. before: what its command is started by."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address: tuple[str, int] = server.getsockname()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets in it may not have long names
    options = ["--head", "--block", "--num-cpus=2", "--include-dashboard=false"]
    options += [f"--port={address[1]}", f"--temp-dir={folder}", "--object-store-memory=100000000"]
    command = [*before, sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        until = time.monotonic() + DEADLINE_SECONDS
        while not answers(address):
            assert process.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield f"{address[0]}:{address[1]}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def listening(pid: int) -> set[str]:
    """Addresses, in hexadecimal as the kernel has them, on which a process and its descendants accept connections."""
    held = set()
    for one in descendants(pid):
        with suppress(OSError):
            held |= {str(file.readlink()) for file in Path(f"/proc/{one}/fd").iterdir() if file.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held}


@pytest.mark.complete
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_cluster_of_one_s_own_listens_on_this_machine_alone(ranks, tmp_path):
    shared = {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 8, "micro_batch": 4}
    suite = write_suite(
        tmp_path,
        methods=["uniform-lsq"],
        recipe=shared,
        pretraining={"epochs": 1, "recipe": shared},
        resources={"workers_per_trial": ranks},
    )
    process, seen = start(run_with_ray, suite, tmp_path / "out"), set()
    while process.is_alive():
        seen |= listening(process.pid or 0)
        process.join(1.0)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert seen
    # 127.0.0.1, and the same written as an address of IPv6, in the order of this kind of processor's bytes.
    assert seen <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.complete
def test_both_engines_agree_on_image_files_loaded_ahead_in_bfloat16(tmp_path):
    write_tree(tmp_path / "tree", classes=3, train=30, val=4)
    recipe = {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 8, "micro_batch": 4, "precision": "bfloat16"}
    suite = write_suite(
        tmp_path,
        data={"dataset": "imagefolder", "image_size": 32, "classes": 3, "augment": "crop-flip"},
        methods=["metamix"],
        recipe=recipe,
        pretraining={"epochs": 1, "recipe": recipe},
        compute={"epochs": 10, "search_share": 0.6},
        resources={"loaders": 1},
    )
    there, here = tmp_path / "there", tmp_path / "here"
    process = start(run_with_ray, suite, there, "--data", tmp_path / "tree")
    ran = cli("--suite", suite, "--engine", "local", "--out", here, "--data", tmp_path / "tree")
    assert ran.code == 0, ran.err
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert comparable(here / "tiny" / "records").keys() == {"metamix 0"}
    assert comparable(here / "tiny" / "records") == comparable(there / "tiny" / "records")


@pytest.mark.complete
def test_a_cluster_is_joined_by_its_address_and_sent_the_code(tmp_path, cluster):
    out = copy_float_starts(tmp_path)
    process = start(run_with_ray, finished().suite, out, "--methods", "uniform-lsq,metamix", "--address", cluster)
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    reference = comparable(finished().out / "tiny" / "records")
    names = ("uniform-lsq 0", "metamix 0")
    assert comparable(out / "tiny" / "records") == {name: reference[name] for name in names}
    commits = {record.observed["environment"]["commit"] for record in Records(out / "tiny" / "records")}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commits == {head.stdout.strip()}


@pytest.mark.complete
def test_a_node_without_the_output_folder_s_file_system_hands_over_by_the_storage(tmp_path):
    out, url = tmp_path / "out", f"file://{tmp_path}/kept"
    out.mkdir()
    own = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {out} && exec "$@"', "sh")
    if subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system that others do not see")
    arguments = (finished().suite, out, "--methods", "uniform-lsq,metamix", "--storage", url)
    with started(*own) as address:
        process = start(run_with_ray, *arguments, "--address", address)
        process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    reference = comparable(finished().out / "tiny" / "records")
    assert comparable(out / "tiny" / "records") == {name: reference[name] for name in ("uniform-lsq 0", "metamix 0")}


@dataclass(frozen=True)
class Machine:
    """What another machine is to Ray: a network, a name and, if need be, a folder of its own.

    before: what a command begins with that runs on it.
    """

    namespace: str
    before: list[str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, log: Path, *command: object) -> subprocess.Popen[bytes]:
        known = os.environ | {"RAY_AUTH_MODE": "token"}
        with log.open("a") as said:
            command = (*self.before, *map(str, command))
            self.running.append(subprocess.Popen(command, cwd=ROOT, env=known, stdout=said, stderr=said))
        return self.running[-1]

    def processes(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]

    def switch_off(self) -> None:
        while running := self.processes():
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for process in self.running:
            process.wait()


def ip(*command: str) -> str:
    return subprocess.run(["ip", *command], capture_output=True, text=True, check=True).stdout


ADDRESSES = ("10.77.0.1", "10.77.0.2")
TOGETHER = f"{ADDRESSES[0]}:6379"


@pytest.fixture
def machines(tmp_path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a core each and a cable between them, which make a cluster; `own` is each one's own folder."""
    names = [f"machine-{os.getpid()}-{k}" for k in (1, 2)]
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to make a network")
    ip("netns", "add", names[1])
    (tmp_path / "own").mkdir()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    first, second = lay_cable(names, tmp_path / "own")
    try:
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1")
        memory = "--object-store-memory=100000000"
        head = ("--head", f"--temp-dir={folder}", "--include-dashboard=false", "--port=6379")
        first.run(tmp_path / "first", *ray, memory, *head, f"--node-ip-address={ADDRESSES[0]}")
        status = (sys.executable, "-m", "ray.scripts.scripts", "status", "--address", TOGETHER)
        wait_for(lambda: first.run(tmp_path / "up", *status).wait() == 0)
        second.run(tmp_path / "second", *ray, memory, f"--address={TOGETHER}", f"--node-ip-address={ADDRESSES[1]}")
        wait_for(lambda: first.run(tmp_path / "up", *status).wait() == 0 and "/2.0 CPU" in said(tmp_path / "up"))
        yield first, second
    finally:
        for machine in (first, second):
            machine.switch_off()
            ip("netns", "del", machine.namespace)
            shutil.rmtree(Path("/etc/netns", machine.namespace))
        shutil.rmtree(folder, ignore_errors=True)


def lay_cable(names: Sequence[str], own: Path) -> list[Machine]:
    ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
    machines = []
    for name, address in zip(names, ADDRESSES, strict=True):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
        for device in ("lo", "cable"):
            ip("-n", name, "link", "set", device, "up")
        hosts = Path("/etc/netns", name, "hosts")  # which `ip netns exec` shows as /etc/hosts
        hosts.parent.mkdir(parents=True)
        known = zip(ADDRESSES, names, strict=True)
        hosts.write_text("\n".join(["127.0.0.1 localhost", *map(" ".join, known)]) + "\n")
        hide = f"mount -t tmpfs none {own} && " if address == ADDRESSES[1] else ""
        alone = ["unshare", "--uts", "--mount", "sh", "-c", f'hostname {name} && {hide}exec "$@"', "sh"]
        machines.append(Machine(name, ["ip", "netns", "exec", name, *alone]))
    return machines


def said(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def wait_for(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.complete
def test_processes_of_a_trial_on_two_machines_are_those_of_one(machines, tmp_path):
    shared = {"optimizer": {"name": "adam", "lr": 0.001}, "batch_size": 8, "micro_batch": 4}
    pretraining = {"epochs": 1, "recipe": {**shared, "batch_size": 64, "micro_batch": 32}}
    ranks = {"workers_per_trial": 2}
    suite = write_suite(tmp_path, methods=["metamix"], recipe=shared, pretraining=pretraining, resources=ranks)
    there, here = tmp_path / "there", tmp_path / "here"
    command = (sys.executable, "runner.py", "--suite", suite)
    process = machines[0].run(tmp_path / "log", *command, "--out", there, "--address", TOGETHER)
    assert cli(*command[2:], "--out", here, "--engine", "local").code == 0
    assert process.wait(DEADLINE_SECONDS) == 0, said(tmp_path / "log")
    assert comparable(here / "tiny" / "records").keys() == {"metamix 0"}
    assert comparable(there / "tiny" / "records") == comparable(here / "tiny" / "records")


@pytest.mark.complete
def test_what_a_machine_takes_with_it_is_done_by_the_other(machines, tmp_path):
    first, second = machines
    compute, resources = {"epochs": 3, "search_share": 0.9}, {"checkpoint_seconds": 0}
    suite = write_suite(tmp_path, methods=["hawq", "metamix"], compute=compute, resources=resources)
    there, here = tmp_path / "own" / "there", tmp_path / "here"
    saved = [f"{there}/tiny/checkpoints/{trial.id}.pt" for trial in plan(load_suite(str(suite))).trials]
    command = (sys.executable, "runner.py", "--suite", suite)
    among = ("--address", TOGETHER, "--storage", f"file://{tmp_path}/kept")
    process = first.run(tmp_path / "log", *command, "--out", there, *among)

    def at_work() -> bool:
        """Whether a trial has saved itself on the second machine, in the folder that only it has."""
        assert process.poll() is None, said(tmp_path / "log")
        return any(Path(f"/proc/{pid}/root{file}").exists() for pid in second.processes() for file in saved)

    wait_for(at_work)
    second.switch_off()
    assert process.wait(DEADLINE_SECONDS) == 0, said(tmp_path / "log")
    assert "its worker has gone; it goes on in another" in said(tmp_path / "log")
    assert cli(*command[2:], "--out", here, "--engine", "local").code == 0
    assert comparable(here / "tiny" / "records").keys() == {"hawq 0", "metamix 0"}
    assert comparable(there / "tiny" / "records") == comparable(here / "tiny" / "records")


def test_sent_code_is_in_the_state_that_its_sender_found(monkeypatch):
    sent = {"commit": "abc", "dirty": False}
    monkeypatch.setenv(SENT_FROM, json.dumps(sent))
    environment.source_state.cache_clear()
    try:
        assert source_state() == sent
    finally:
        monkeypatch.delenv(SENT_FROM)
        environment.source_state.cache_clear()
