"""A Ray cluster that others started, joined by its address: one node, on this machine."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks import environment
from benchmarks.data.tree import write_tree
from benchmarks.environment import SENT_FROM, source_state
from benchmarks.record import Records
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


def test_sent_code_is_in_the_state_that_its_sender_found(monkeypatch):
    sent = {"commit": "abc", "dirty": False}
    monkeypatch.setenv(SENT_FROM, json.dumps(sent))
    environment.source_state.cache_clear()
    try:
        assert source_state() == sent
    finally:
        monkeypatch.delenv(SENT_FROM)
        environment.source_state.cache_clear()
