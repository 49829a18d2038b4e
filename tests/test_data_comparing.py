"""Images that changed after they were prepared: noticed by a run, by `doctor` and by `prepare --check`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.data import comparing, digests
from benchmarks.data.comparing import changed_error, compared, digests_of, require_unchanged, sampled
from benchmarks.data.digests import DIGESTS, hash_file, read_digests, time_of, write_digests
from benchmarks.data.folders import DataError
from benchmarks.data.listing import COPIES, MANIFEST, Listing, read_manifest, scan
from benchmarks.data.opening import load_dataset
from benchmarks.data.preparing import look_through, make_cache
from tests.harness import Ran, cli
from tests.test_data_preparing import CLASSES, FOLDER, jpeg, make_tree, prepare, quiet

SMALL = FOLDER.model_copy(update={"short_side": 28})
IMAGE = f"val/{CLASSES[0]}/1.JPEG"


@pytest.fixture
def tree(tmp_path):
    """Prepared, with copies at a short side of 28."""
    folder = make_tree(tmp_path / "images")
    prepare(folder, "--cache", 28)
    return folder


def overwrite(path: Path, *, keep_time: bool = False) -> None:
    """Other bytes of the same size, which can be decoded still."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[content.index(b"\xff\xdb") + 8] ^= 1  # in a table of quantization
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def require(folder: Path, *, small: bool = False, allow: int = 0) -> list[str]:
    """What a run asks once; returns what it was told."""
    said: list[str] = []
    spec = SMALL if small else FOLDER
    require_unchanged(spec, folder, allow_bad_images=allow, progress=quiet, warn=said.append)
    return said


def run(folder: Path, out: Path, *more: object) -> Ran:
    return cli("--suite", "imagenet-full", "--data", folder, "--set", "weights=none", "--out", out, *more)


def test_what_has_not_changed_is_told_nothing_of(tree):
    assert require(tree) == []
    assert require(tree, small=True) == []
    assert "all 30 images are as they were prepared" in cli("prepare", "--data", tree, "--check").out


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (overwrite, "it holds other bytes"),
        (lambda path: path.unlink(), "it is gone"),
        (lambda path: path.write_bytes(b"short"), "it has 5 bytes instead of "),
        (lambda path: (path.unlink(), path.mkdir()), "it has .* bytes instead of |it cannot be read any more"),
        (lambda path: (path.unlink(), path.symlink_to(path.with_name("2.JPEG"))), "it has .* bytes instead of "),
    ],
    ids=["overwritten", "deleted", "shortened", "a folder now", "a link to another"],
)
def test_an_image_that_changed_is_refused_by_name_before_a_run(tree, tmp_path, harm, why):
    harm(tree / IMAGE)
    with pytest.raises(DataError, match=rf"1 images in .* \({IMAGE}: ({why}).*prepare --suite imagenet-full"):
        require(tree)
    ran = run(tree, tmp_path / "out", "--engine", "local")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert IMAGE in ran.err
    assert list((tmp_path / "out").rglob("*.json")) == []
    checked = cli("prepare", "--data", tree, "--check")
    assert checked.code == 1
    assert f"changed: {IMAGE}: " in checked.out


def test_one_trial_alone_refuses_changed_images_too(tree, tmp_path):
    ids = cli("plan", "--suite", "imagenet-full", "--data", tree, "--set", "weights=none", "--ids").out.split()
    overwrite(tree / IMAGE)
    named = ("--suite", "imagenet-full", "--data", tree, "--set", "weights=none", "--out", tmp_path / "out")
    ran = cli("trial", ids[0], *named)
    assert ran.code == 2
    assert IMAGE in ran.err


def test_changed_bytes_are_other_data(tree):
    before = load_dataset(FOLDER, tree).digest
    overwrite(tree / IMAGE)
    prepare(tree)
    assert load_dataset(FOLDER, tree).digest != before


def test_changed_bytes_are_other_data_without_a_manifest_too(tmp_path):
    tree = make_tree(tmp_path / "images")
    before = load_dataset(FOLDER, tree).digest
    overwrite(tree / IMAGE, keep_time=True)
    assert load_dataset(FOLDER, tree).digest != before


def test_a_folder_that_was_copied_is_hashed_once_and_is_the_same_data(tree, monkeypatch):
    copy = Path(shutil.copytree(tree, tree.with_name("copy"), copy_function=shutil.copyfile))
    hashed: list[str] = []
    monkeypatch.setattr(comparing, "hash_file", lambda path: (hashed.append(str(path)), hash_file(path))[1])
    assert require(copy) == []
    assert len(hashed) == 30
    assert require(copy) == []
    assert len(hashed) == 30
    assert load_dataset(FOLDER, copy).digest == load_dataset(FOLDER, tree).digest


def test_only_files_of_another_time_are_hashed(tree, monkeypatch):
    hashed: list[str] = []
    monkeypatch.setattr(comparing, "hash_file", lambda path: (hashed.append(str(path)), hash_file(path))[1])
    os.utime(tree / IMAGE, (9, 9))
    require(tree)
    assert hashed == [str(tree / IMAGE)]


def test_only_check_proves_what_kept_size_and_time(tree):
    """The limit that the documents state."""
    overwrite(tree / IMAGE, keep_time=True)
    assert require(tree) == []
    assert cli("prepare", "--data", tree, "--check").code == 1


def test_a_folder_that_cannot_be_written_to_is_compared_all_the_same(tree, monkeypatch):
    def refuse(*_arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    os.utime(tree / IMAGE, (9, 9))
    monkeypatch.setattr(comparing, "write_digests", refuse)
    assert require(tree) == []


def test_images_that_are_left_out_may_change(tree):
    (tree / IMAGE).write_bytes(b"no image")
    assert cli("prepare", "--data", tree).code == 1
    (tree / IMAGE).write_bytes(b"no image either")
    assert require(tree, allow=1) == []
    assert cli("prepare", "--data", tree, "--check").code == 1


def test_images_of_which_nothing_is_known_are_said_to_be_hashed_by_every_trial(tmp_path):
    (said,) = require(make_tree(tmp_path / "images"))
    assert "every trial hashes all of them first" in said
    assert "prepare --suite imagenet-full" in said


def test_check_names_what_came_later_and_writes_nothing(tree):
    (tree / "val" / CLASSES[0] / "later.JPEG").write_bytes(jpeg(7))
    before = (tree / MANIFEST).read_bytes(), (tree / DIGESTS).read_bytes()
    ran = cli("prepare", "--data", tree, "--check")
    assert ran.code == 1
    assert f"changed: val/{CLASSES[0]}/later.JPEG: it is not in the manifest" in ran.out
    assert ((tree / MANIFEST).read_bytes(), (tree / DIGESTS).read_bytes()) == before


def test_check_looks_at_copies_where_they_are_named(tree):
    overwrite(tree / "cache-28" / IMAGE, keep_time=True)
    assert cli("prepare", "--data", tree, "--check").code == 0
    small = ("--data", tree, "--set", "data.short_side=28")
    for named in (("--data", tree, "--cache", 28), ("--data", tree, "--to", tree / "cache-28"), small):
        ran = cli("prepare", *named, "--check")
        assert ran.code == 1
        assert f"changed: {IMAGE}: it holds other bytes" in ran.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--suite", "quick"), "--check are for folders"), (("--archives", "."), "use one after the other")],
)
def test_check_has_nothing_to_do_elsewhere(tree, arguments, named):
    data = () if "--suite" in arguments else ("--data", tree)
    ran = cli("prepare", "--check", *arguments, *data)
    assert ran.code == 2
    assert named in ran.err


def test_check_of_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    ran = cli("prepare", "--check", "--data", make_tree(tmp_path / "images"))
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "run: python runner.py prepare" in ran.err


def test_a_manifest_made_before_there_were_digests_says_what_to_do(tree, tmp_path):
    body = json.loads((tree / MANIFEST).read_text())
    body["schema"] = 1
    (tree / MANIFEST).write_text(json.dumps(body))
    ran = run(tree, tmp_path / "out")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "an earlier version" in ran.err
    assert f"run: python runner.py prepare --suite imagenet-full --data {tree}" in ran.err
    assert "earlier version" in cli("doctor", "--suite", "imagenet-full", "--data", tree, "--out", tmp_path).out


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\1" + path.read_bytes()[1:]),
        lambda path: path.write_bytes(b""),
    ],
)
def test_digests_that_are_lost_or_damaged_are_refused_and_say_what_to_do(tree, harm):
    harm(tree / DIGESTS)
    with pytest.raises(DataError, match=rf"{DIGESTS} cannot be used .*; run: python runner.py prepare"):
        require(tree)
    prepare(tree)
    assert require(tree) == []


def test_digests_are_written_and_read_back_on_machines_of_either_byte_order(tmp_path, monkeypatch):
    listing = look_through(make_tree(tmp_path / "images"), quiet)
    there = digests_of(tmp_path / "images", listing)
    body = (tmp_path / "images" / DIGESTS).read_bytes()
    assert int.from_bytes(body[-8:], "little") == there.times[-1]
    monkeypatch.setattr(digests.sys, "byteorder", "big")
    write_digests(tmp_path, there)
    assert read_digests(tmp_path, listing.content) == there
    assert int.from_bytes((tmp_path / DIGESTS).read_bytes()[-8:], "big") == there.times[-1]


def test_many_changed_images_are_counted_and_a_few_named():
    said = str(changed_error(Path("x"), {f"train/a/{k}": "it is gone" for k in range(8)}))
    assert "8 images in x" in said
    assert said.count("it is gone") == 5
    assert "and 3 more" in said


@pytest.mark.parametrize(("time", "kept"), [(2**70, 2**63 - 1), (-(2**70), -(2**63)), (-5, -5)])
def test_times_that_do_not_fit_are_cut(time, kept):
    assert time_of(cast("os.stat_result", SimpleNamespace(st_mtime_ns=time))) == kept


# The doctor.


def test_the_doctor_hashes_a_sample_which_differs_from_time_to_time(tree):
    listing = read_manifest(tree)
    overwrite(tree / IMAGE, keep_time=True)
    found = [sampled(tree, listing, 10) for _ in range(60)]
    assert {one.hashed for one in found} == {10}
    # Of 30 images 10 are looked at: 60 samples all miss it, or all have it, once in (3/2)^60 = 4e10 times at most.
    assert {tuple(one.changed) for one in found} == {(), (IMAGE,)}


def test_the_doctor_names_a_changed_image(tree, tmp_path):
    overwrite(tree / IMAGE, keep_time=True)
    said = cli("doctor", "--suite", "imagenet-full", "--data", tree, "--set", "weights=none", "--out", tmp_path).out
    assert [IMAGE in line for line in said.splitlines() if line.startswith("PROBLEM") and "images" in line] == [True]


def test_the_doctor_says_how_much_it_hashed(tree, tmp_path):
    said = cli("doctor", "--suite", "imagenet-full", "--data", tree, "--set", "weights=none", "--out", tmp_path).out
    assert "ok       images looked through; 30 of 30 hashed, as they were prepared" in said


# Copies.


def test_a_damaged_copy_is_made_again_with_a_word_before_a_run(tree):
    path = tree / "cache-28" / IMAGE
    whole = path.read_bytes()
    for harm in (overwrite, Path.unlink, lambda path: path.write_bytes(b"")):
        harm(path)
        (said,) = require(tree, small=True)
        assert f"the copy {path} was damaged; it is made again from {tree / IMAGE}" in said
        assert path.read_bytes() == whole
        assert require(tree, small=True) == []


@pytest.mark.parametrize(
    "harm",
    [lambda path: overwrite(path, keep_time=True), Path.unlink, os.truncate],
    ids=["overwritten", "gone", "truncated"],
)
def test_a_copy_s_digest_is_checked_whenever_it_is_read(tree, capfd, harm):
    data, path = load_dataset(SMALL, tree), tree / "cache-28" / IMAGE
    whole, expected = path.read_bytes(), data.test.load(np.arange(6), None)[0]
    harm(path) if harm is not os.truncate else os.truncate(path, 100)
    assert torch.equal(data.test.load(np.arange(6), None)[0], expected)
    assert path.read_bytes() == whole
    assert capfd.readouterr().err.count("was damaged; it is made again") == 1


def test_a_copy_that_cannot_be_made_again_is_refused_by_name(tree, tmp_path):
    away = Path(shutil.move(tree / "cache-28", tmp_path / "away"))
    overwrite(away / IMAGE)
    assert len(require(away, small=True)) == 1  # its images are where they were
    overwrite(away / IMAGE)
    overwrite(tree / IMAGE)
    with pytest.raises(DataError, match=rf"the copy {away / IMAGE} is damaged, and its image .* has changed; run: "):
        require(away, small=True)
    shutil.rmtree(tree)
    with pytest.raises(DataError, match=f"{IMAGE} is damaged, and its image is not there"):
        load_dataset(SMALL, away).test.load(np.arange(6), None)


@pytest.mark.parametrize("held", ["", "[]", "{}", '{"short_side": "28"}', '{"short_side": 0, "folder": 3}'])
def test_copies_that_do_not_say_whose_they_are_are_refused_where_one_is_damaged(tree, held):
    (tree / "cache-28" / COPIES).write_text(held)
    overwrite(tree / "cache-28" / IMAGE)
    with pytest.raises(DataError, match=f"{IMAGE} is damaged"):
        require(tree, small=True)


def test_copies_of_other_suffixes_are_made_again_from_them(tmp_path):
    tree = make_tree(tmp_path / "images")
    image = tree / IMAGE
    image.rename(image.with_suffix(".png"))
    prepare(tree, "--cache", 28)
    copy = tree / "cache-28" / f"val/{CLASSES[0]}/1.png.jpg"
    overwrite(copy)
    (said,) = require(tree, small=True)
    assert f"{copy} was damaged; it is made again from {image.with_suffix('.png')}" in said


def test_making_copies_again_replaces_those_that_are_damaged(tree, capfd):
    listing, place = look_through(tree, quiet), tree / "cache-28"
    whole = {path: path.read_bytes() for path in place.rglob("*.JPEG")}
    overwrite(place / IMAGE, keep_time=True)
    said: list[str] = []
    make_cache(tree, listing, 28, place, quiet, said.append)
    assert said == [f"the copy {place / IMAGE} was damaged; it is made again"]
    (place / MANIFEST).unlink()  # as if it had been interrupted, by a power failure
    (place / IMAGE).write_bytes(b"")
    make_cache(tree, listing, 28, place, quiet, said.append)
    assert said[1:] == [f"the copy {place / IMAGE} was damaged; it is made again"]
    assert {path: path.read_bytes() for path in place.rglob("*.JPEG")} == whole


def test_copies_of_images_that_changed_are_not_taken_for_theirs(tree):
    overwrite(tree / IMAGE)
    ran = cli("prepare", "--data", tree, "--cache", 28)
    assert ran.code == 2
    assert "something else than copies of these images as they are now" in ran.err


def test_two_images_whose_copies_would_have_one_name_are_refused(tmp_path):
    tree = make_tree(tmp_path / "images")
    for name in ("a.png", "a.png.jpg"):
        (tree / "val" / CLASSES[0] / name).write_bytes(jpeg(7))
    ran = cli("prepare", "--data", tree, "--cache", 28)
    assert ran.code == 2
    assert "a.png and " in ran.err
    assert not (tree / "cache-28").exists()


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)))
def test_exactly_what_was_changed_is_found(tmp_path_factory, changed, touched):
    folder = make_tree(tmp_path_factory.mktemp("x") / "images")
    listing = look_through(folder, quiet)
    paths = [f"{place}/{name}" for place, rows in listing.files.items() for name, _ in rows]
    for index in touched:
        os.utime(folder / paths[index], (5, 5))
    for index in changed:
        overwrite(folder / paths[index])
    found = compared(folder, listing, digests_of(folder, listing), quiet)
    assert set(found.changed) == {paths[index] for index in changed}
    assert scan(folder).files == listing.files
    assert isinstance(listing, Listing)
