"""Which files of a folder are images: by suffix, whatever else their names are, and what is left out is counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.data.comparing import require_unchanged
from benchmarks.data.folders import DataError
from benchmarks.data.listing import MANIFEST, SUFFIXES, left_out_of, left_out_text, read_manifest, scan
from benchmarks.data.opening import load_dataset
from benchmarks.data.preparing import look_through, make_cache
from tests.harness import cli
from tests.test_data_preparing import CLASSES, FOLDER, jpeg, make_tree, quiet

CONTENT = jpeg(3)


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "images")


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".pfm"}))
def test_every_suffix_that_is_read_is_read(tmp_path, suffix):
    tree = make_tree(tmp_path / "images")
    kind = Image.registered_extensions().get(suffix, "PPM")
    for name in (f"x{suffix}", f"Y{suffix.upper()}"):
        Image.new("1" if suffix == ".pbm" else "L", (9, 9), 1).save(tree / "val" / CLASSES[0] / name, kind)
    listing = look_through(tree, quiet)
    assert (listing.count("val"), listing.unreadable, listing.left_out) == (8, {}, {})
    assert load_dataset(FOLDER, tree).test.load(np.arange(8), None)[0].shape == (8, 3, 16, 16)


def litter(tree: Path) -> None:
    """What is not read: other suffixes, none, folders, and files beside the classes."""
    place = tree / "train" / CLASSES[0]
    for name in ("a.avif", "B.AVIF", "c.txt", "README", ".hidden", "d.jpeg.gz", "e.jp\x1b2\n"):
        (place / name).write_bytes(b"")
    (place / "more").mkdir()
    (place / "more" / "inside.JPEG").write_bytes(CONTENT)
    (tree / "val" / "astray.JPEG").write_bytes(CONTENT)


LEFT_OUT = {".avif": 2, ".txt": 1, "without a suffix": 2, ".gz": 1, ".jp\x1b2\n": 1, "folders": 1, ".jpeg": 1}
SAID = "left out: 2 .avif, 2 without a suffix, 1 .gz, 1 .jp\\x1b2\\n, 1 .jpeg, 1 .txt, 1 folders; only files ending in "


def test_what_is_left_out_is_said_by_prepare_by_the_doctor_and_in_the_manifest(tree, tmp_path):
    litter(tree)
    doctor = ("doctor", "--suite", "imagenet-full", "--data", tree, "--set", "weights=none", "--out", tmp_path)
    before = cli(*doctor).out
    said = cli("prepare", "--data", tree)
    assert said.code == 0
    after = cli(*doctor).out
    assert [SAID in text for text in (before, said.out, after)] == [True] * 3
    assert json.loads((tree / MANIFEST).read_text())["left_out"] == LEFT_OUT == read_manifest(tree).left_out
    assert LEFT_OUT == scan(tree).left_out == left_out_of(tree)


def test_a_run_over_a_folder_that_nobody_looked_through_says_what_is_left_out(tree):
    litter(tree)
    said: list[str] = []
    require_unchanged(FOLDER, tree, allow_bad_images=0, progress=quiet, warn=said.append)
    assert len(said) == 1
    assert SAID in said[0]


def test_nothing_is_said_where_nothing_is_left_out(tree):
    assert left_out_text(scan(tree).left_out) == ""
    assert "left out" not in cli("prepare", "--data", tree).out


def test_of_many_suffixes_a_few_are_named():
    said = left_out_text({f".{k:02}": k for k in range(1, 21)})
    assert said.startswith("left out: 20 .20, 19 .19, 18 .18, 17 .17, 16 .16, 15 .15, 14 .14, 13 .13, 78 others; ")


def test_a_class_of_other_files_alone_names_what_is_expected(tree):
    for path in (tree / "val" / CLASSES[1]).iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DataError, match=rf"no images in .*{CLASSES[1]}; expected files ending in .*\.webp"):
        look_through(tree, quiet)


# Names: whatever a folder holds, the manifest says and a run reads.

ODD = {
    *(b"a\\b", b"..\\..\\x", b"C:\\x", b"a:b", b"a*?[b]", b'"quoted"', b"%00", b"-rf"),
    *(b"a\nb", b"\n", b" ", b" a ", b"a ", b"\x1b[31m", b"\x7f"),
    *(b"..", b".", b".a", b"..."),
    *(b"\xff\xfe", b"\xed\xa0\x80", "\u00e4\u0301".encode(), b"x" * 250),
}

names = st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))


@settings(max_examples=12, deadline=None)
@given(st.sets(names, min_size=1, max_size=6), names.filter(lambda name: name not in (b".", b"..")))
@example(ODD, b"a\\b")
@example({b"x"}, b" \n.\xff\\")
def test_whatever_the_manifest_s_writer_accepts_its_reader_accepts(tmp_path_factory, found, of_class):
    tree = tmp_path_factory.mktemp("x")
    classes = [os.fsdecode(of_class), "zzz"]
    for part in ("train", "val"):
        for label in classes:
            (tree / part / label).mkdir(parents=True)
            for k in range(9):
                (tree / part / label / f"{k}.JPEG").write_bytes(CONTENT)
        for name in found:
            (tree / part / classes[0] / os.fsdecode(name + b".jpg")).write_bytes(CONTENT)
    without = load_dataset(FOLDER, tree)
    listing = look_through(tree, quiet)
    assert listing.unreadable == {}
    assert read_manifest(tree) == listing
    require_unchanged(FOLDER, tree, allow_bad_images=0, progress=quiet, warn=pytest.fail)
    data = load_dataset(FOLDER, tree)
    assert data.digest == without.digest
    assert len(data.test) == 18 + len(found)
    images, labels = data.test.load(np.arange(len(data.test)), None)
    assert (images == images[0]).all()
    assert labels.bincount().tolist() in ([9 + len(found), 9], [9, 9 + len(found)])
    copies = make_cache(tree, listing, 16, tree / "cache-16", quiet)
    assert copies.count("val") == 18 + len(found)
    assert len(load_dataset(FOLDER.model_copy(update={"short_side": 16}), tree).test.load(np.arange(18), None)[1]) == 18


def test_names_that_together_look_like_other_names_are_other_data(tmp_path):
    """Entries are told apart by what no name can have."""
    digests = set()
    for names in (("a.jpg", "b.jpg"), (f"a.jpg\0{len(CONTENT)}\0b.jpg".replace("\0", "\n"),)):
        tree = make_tree(tmp_path / str(len(names)))
        for name in names:
            (tree / "val" / CLASSES[1] / name).write_bytes(CONTENT)
        digests.add(scan(tree).digest)
    assert len(digests) == 2


def test_odd_names_are_said_on_one_line_as_escapes(tree):
    for name in (b"a\nb.JPEG", b"\x1b]0;x\x07.JPEG", b"\xff.JPEG"):
        (tree / "val" / CLASSES[0] / os.fsdecode(name)).write_bytes(b"no image")
    ran = cli("prepare", "--data", tree)
    assert ran.code == 1
    said = [line for line in ran.out.splitlines() if line.startswith("unreadable")]
    assert [line.split("/")[2].split(": ")[0] for line in said] == ["\\x1b]0;x\\x07.JPEG", "a\\nb.JPEG", "\\udcff.JPEG"]
    with pytest.raises(DataError) as caught:
        load_dataset(FOLDER, tree)
    assert str(caught.value).isprintable()
