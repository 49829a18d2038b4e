"""`prepare`: ImageNet's archives, the manifest of a folder, copies at a short side, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from benchmarks.data import preparing
from benchmarks.data.archives import DEVKIT, TRAIN, VAL
from benchmarks.data.folders import DataError
from benchmarks.data.listing import MANIFEST, Listing, listing_of, read_manifest, scan, write_manifest
from benchmarks.data.opening import load_dataset
from benchmarks.data.preparing import IMAGENET, cache_size, look_through, make_cache, remarks
from benchmarks.data.tree import write_tree
from benchmarks.suites.spec import DataSpec
from tests.harness import ROOT, cli

FOLDER = DataSpec(dataset="imagefolder", image_size=16, classes=2)
CLASSES = ("n01440764", "n01443537")
SIZES = [(40, 30), (30, 90), (24, 24), (100, 35)]
"""Wide, tall, below a cache's short side, and wide again."""


def quiet(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody sees."""


def jpeg(number: int, mode: str = "RGB") -> bytes:
    """A smooth picture of its number, so that no two are alike."""
    noise = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def make_tree(folder: Path, *, train: int = 12, val: int = 3) -> Path:
    """Two classes of JPEGs of several sizes, grey and CMYK ones among them."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            place = folder / part / name
            place.mkdir(parents=True)
            for k in range(count):
                mode = ("RGB", "L", "CMYK")[k % 3]
                (place / f"{k}.JPEG").write_bytes(jpeg(100 * label + k, mode))
    return folder


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "images")


def prepare(folder: Path, *more: object) -> str:
    ran = cli("prepare", "--data", folder, *more)
    assert ran.code == 0, ran.err
    return ran.out


def spoil(folder: Path, path: str) -> None:
    """Cut a file in half: it begins as an image and ends too soon."""
    content = (folder / path).read_bytes()
    (folder / path).write_bytes(content[: len(content) // 2])


def test_a_folder_means_the_same_with_and_without_its_manifest(tree):
    before = load_dataset(FOLDER, tree)
    assert "2 classes, 24 in train and 6 in val" in prepare(tree)
    after = load_dataset(FOLDER, tree)
    assert after.digest == before.digest
    everything = np.arange(6)
    for here, there in zip(after.test.load(everything, None), before.test.load(everything, None), strict=True):
        assert torch.equal(here, there)


def test_a_tree_to_try_things_on_is_whole_of_several_modes_and_always_the_same(tmp_path):
    for name in ("one", "two"):
        write_tree(tmp_path / name, classes=2, train=13, val=2)
    listing = look_through(tmp_path / "one", quiet)
    assert (listing.count("train"), listing.count("val"), listing.unreadable) == (26, 4, {})
    assert listing.content == look_through(tmp_path / "two", quiet).content
    modes = set()
    for path in listing.paths("train"):
        with Image.open(tmp_path / "one" / path) as image:
            modes.add(image.mode)
    assert modes == {"RGB", "L", "CMYK"}
    assert len(load_dataset(FOLDER, tmp_path / "one").train) == 24
    with pytest.raises(FileExistsError):
        write_tree(tmp_path / "one", classes=2, train=1, val=1)


def test_a_manifest_is_read_and_the_folder_is_not_walked_through(tree):
    prepare(tree)
    (tree / "val" / CLASSES[0] / "later.JPEG").write_bytes(jpeg(7))
    assert len(load_dataset(FOLDER, tree).test) == 6


def test_an_unreadable_image_is_named_counted_and_refused_unless_allowed(tree):
    bad = f"train/{CLASSES[1]}/4.JPEG"
    spoil(tree, bad)
    ran = cli("prepare", "--data", tree)
    assert ran.code == 1
    assert f"unreadable: {bad}" in ran.out
    assert "1 images cannot be read" in ran.out
    with pytest.raises(DataError, match=f"1 images in .*{bad}; .*--allow-bad-images 1"):
        load_dataset(FOLDER, tree)
    without = load_dataset(FOLDER, tree, allow_bad_images=1)
    assert len(without.train) + len(without.validation) == 23
    labels = without.train.load(np.arange(len(without.train)), None)[1]
    held_out = without.validation.load(np.arange(len(without.validation)), None)[1]
    assert sorted(torch.cat([labels, held_out]).tolist()) == [0] * 12 + [1] * 11
    assert without.digest != Listing(scan(tree).files).digest  # that it was left out is part of the data's digest


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: path.write_bytes(b"no image"), "it is no image of a known kind"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "it is no file, or a link to none"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is no file, or a link to none"),
    ],
)
def test_whatever_else_lies_among_images_is_named_and_counted(tree, harm, why):
    bad = f"train/{CLASSES[1]}/4.JPEG"
    harm(tree / bad)
    assert look_through(tree, quiet).unreadable == {bad: why}
    assert len(load_dataset(FOLDER, tree, allow_bad_images=1).train) == 21


def test_names_need_not_be_utf_8(tree):
    name = os.fsdecode(b"\xff.JPEG")
    (tree / "train" / CLASSES[0] / name).write_bytes(jpeg(7))
    (tree / "train" / CLASSES[1] / name).write_bytes(b"no image")
    ran = subprocess.run([sys.executable, "runner.py", "prepare", "--data", tree], cwd=ROOT, capture_output=True)
    assert (ran.returncode, ran.stderr) == (1, b"")
    assert f"unreadable: train/{CLASSES[1]}/\\udcff.JPEG".encode() in ran.stdout
    data = load_dataset(FOLDER, tree, allow_bad_images=1)
    assert len(data.train) + len(data.validation) == 25
    assert load_dataset(FOLDER, shutil.move(tree, tree.with_name("moved")), allow_bad_images=1).digest == data.digest


def test_what_is_prepared_is_seen_by_the_doctor_next(tree):
    following = prepare(tree, "--set", "weights=none").splitlines()[-1]
    assert following == f"next: python runner.py doctor --suite imagenet-full --data {tree} --set weights=none"


def test_bad_images_are_allowed_only_where_somebody_has_looked(tree):
    with pytest.raises(DataError, match="has not been looked through"):
        load_dataset(FOLDER, tree, allow_bad_images=1)


def test_a_run_refuses_bad_images_before_anything_starts(tree, tmp_path):
    spoil(tree, f"val/{CLASSES[0]}/0.JPEG")
    cli("prepare", "--data", tree)
    ran = cli("--suite", "imagenet-full", "--data", tree, "--set", "weights=none", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "--allow-bad-images 1" in ran.err
    assert not (tmp_path / "out").exists()


def pixels_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_copies_have_the_short_side_in_the_same_layout_and_smaller_images_stay(tree):
    said = prepare(tree, "--cache", 28)
    place = tree / "cache-28"
    assert f"into {place}" in said
    assert read_manifest(place).short_side == 28
    for part in ("train", "val"):
        for path in (tree / part).rglob("*.JPEG"):
            width, height = pixels_of(path)
            scale = min(1.0, 28 / min(width, height))
            copy = place / path.relative_to(tree)
            assert pixels_of(copy) == (round(width * scale), round(height * scale))
            with Image.open(copy) as image:
                assert image.mode == "RGB"


def test_copies_are_announced_as_large_as_they_are(tree, tmp_path):
    listing = look_through(tree, quiet)
    size = cache_size(tree, listing, 28, tmp_path / "not" / "there")
    make_cache(tree, listing, 28, tmp_path / "copies", quiet)
    written = sum(path.stat().st_size for path in (tmp_path / "copies").rglob("*.JPEG"))
    assert size.needed == written  # of 30 images all are in the sample


def test_making_copies_goes_on_where_it_was(tree, tmp_path):
    listing = look_through(tree, quiet)
    place = tmp_path / "copies"
    make_cache(tree, listing, 28, place, quiet)
    kept = place / "train" / CLASSES[0] / "0.JPEG"
    os.utime(kept, (7, 7))
    (place / "train" / CLASSES[0] / "1.JPEG").unlink()
    assert cache_size(tree, listing, 28, place).needed < cache_size(tree, listing, 28, tmp_path / "none").needed / 20
    make_cache(tree, listing, 28, place, quiet)
    assert kept.stat().st_mtime == 7  # it was not written again
    assert (place / "train" / CLASSES[0] / "1.JPEG").exists()


def test_copies_of_other_images_or_sizes_are_not_mixed(tree, tmp_path):
    listing = look_through(tree, quiet)
    make_cache(tree, listing, 28, tmp_path / "copies", quiet)
    for place, side in ((tmp_path / "copies", 20), (tree, 28)):
        with pytest.raises(DataError, match="something else than copies"):
            make_cache(tree, listing, side, place, quiet)
    (tree / "val" / CLASSES[0] / "later.JPEG").write_bytes(jpeg(7))
    with pytest.raises(DataError, match="something else than copies"):
        make_cache(tree, look_through(tree, quiet), 28, tmp_path / "copies", quiet)


def test_copies_say_what_their_source_could_not_give_and_are_refused_unless_that_is_allowed(tree):
    small = FOLDER.model_copy(update={"short_side": 28})
    assert cli("prepare", "--data", tree, "--cache", 28).code == 0
    whole = load_dataset(small, tree).digest
    shutil.rmtree(tree / "cache-28")
    bad = f"train/{CLASSES[1]}/4.JPEG"
    spoil(tree, bad)
    assert cli("prepare", "--data", tree, "--cache", 28).code == 1
    assert list(read_manifest(tree / "cache-28").unreadable or {}) == [bad]
    with pytest.raises(DataError, match=f"1 images in .*cache-28 .*{bad}; .*--allow-bad-images 1"):
        load_dataset(small, tree)
    assert load_dataset(small, tree, allow_bad_images=1).digest != whole
    files = read_manifest(tree / "cache-28").files
    assert read_manifest(tree / "cache-28").digest != Listing(files, {}).digest  # not as if it had never been


def test_an_image_that_is_found_bad_only_when_it_is_copied_is_left_out_and_named(tree, tmp_path):
    listing = look_through(tree, quiet)
    bad = f"val/{CLASSES[0]}/1.JPEG"
    spoil(tree, bad)
    assert cache_size(tree, listing, 28, tmp_path / "copies").needed > 0
    assert list(make_cache(tree, listing, 28, tmp_path / "copies", quiet).unreadable or {}) == [bad]


def kill_on_1(path: str) -> str:
    if path == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def test_a_worker_that_is_killed_is_said_in_one_line():
    with pytest.raises(DataError, match=r"was killed.*run the same command again"):
        preparing._everywhere(kill_on_1, [str(number) for number in range(200)], lambda _done, _total: None)


def test_several_processes_find_what_one_does(tree, monkeypatch):
    spoil(tree, f"val/{CLASSES[0]}/1.JPEG")
    alone = look_through(tree, quiet)
    monkeypatch.setattr(preparing, "_FEW", 0)
    assert look_through(tree, quiet) == alone


def test_a_suite_says_which_copies_it_wants(tree, tmp_path):
    small = FOLDER.model_copy(update={"short_side": 28})
    with pytest.raises(DataError, match=r"no copies .*prepare .*--cache 28"):
        load_dataset(small, tree)
    prepare(tree, "--cache", 28)
    assert len(load_dataset(small, tree).test) == 6
    assert load_dataset(small, tree).digest == load_dataset(small, tree / "cache-28").digest
    assert load_dataset(small, tree).digest != load_dataset(FOLDER, tree).digest
    with pytest.raises(DataError, match=r"short side of 28, the suite wants them as they came; .*short_side=28"):
        load_dataset(FOLDER, tree / "cache-28")
    with pytest.raises(DataError, match=r"as they came, the suite wants them with a short side of 30; .*--cache 30"):
        load_dataset(FOLDER.model_copy(update={"short_side": 30}), tree)


def test_the_short_side_is_part_of_what_a_suite_compares():
    ran = cli("plan", "--suite", "imagenet-full", "--json", "--models", "resnet18", "--seeds", "0")
    small = cli("plan", "--suite", "imagenet-full", "--json", "--models", "resnet18", "--seeds", "0",
                "--set", "data.short_side=256")  # fmt: skip
    ids, others = ({row["id"] for row in json.loads(found.out)} for found in (ran, small))
    assert ids.isdisjoint(others)
    wrong = cli("plan", "--suite", "quick", "--set", "data.short_side=256")
    assert wrong.code == 2
    assert "short_side and share are for folders of image files" in wrong.err


@pytest.mark.parametrize(
    "place", ["train/../../etc", "train/..", "train/", "elsewhere/a", "train/a/b", "/etc", "train/a\0b"]
)
def test_a_manifest_cannot_lead_out_of_its_folder(tree, place):
    prepare(tree)
    body = json.loads((tree / MANIFEST).read_text())
    body["files"] = {place: [["0.JPEG", 1]]}
    body["digest"] = Listing(body["files"], {}).digest
    (tree / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(DataError, match="no sound manifest"):
        read_manifest(tree)


@pytest.mark.parametrize(
    "harm",
    [
        lambda body: body["files"][f"val/{CLASSES[0]}"].pop(),
        lambda body: body.update(schema=1),
        lambda body: body.update(schema=3),
        lambda body: body.pop("unreadable"),
        lambda body: body.update(files=[]),
        lambda body: body["unreadable"].update({f"val/{CLASSES[0]}/0.JPEG": "edited by hand"}),
        lambda body: body["files"].update({f"val/{CLASSES[0]}": [["../0.JPEG", 1]]}),
    ],
)
def test_an_edited_manifest_is_refused_and_says_how_to_make_a_new_one(tree, harm):
    prepare(tree)
    body = json.loads((tree / MANIFEST).read_text())
    harm(body)
    (tree / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"no sound manifest .*prepare"):
        load_dataset(FOLDER, tree)
    prepare(tree)
    load_dataset(FOLDER, tree)


@pytest.mark.parametrize("given", ["", "cache-28"])
def test_what_a_damaged_manifest_of_copies_advises_makes_it_whole_again(tree, given):
    small = FOLDER.model_copy(update={"short_side": 28})
    prepare(tree, "--cache", 28)
    before = load_dataset(small, tree).digest
    (tree / "cache-28" / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="no sound manifest") as caught:
        load_dataset(small, tree / given)
    assert cli(*str(caught.value).partition("run: python runner.py ")[2].split()).code == 0
    assert load_dataset(small, tree / given).digest == before
    assert not (tree / "cache-28" / "cache-28").exists()


def test_a_damaged_manifest_of_copies_elsewhere_is_not_made_by_looking_at_the_copies(tree, tmp_path):
    prepare(tree, "--cache", 28, "--to", tmp_path / "small")
    (tmp_path / "small" / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"the folder that these are copies of, with --cache .* --to .*small"):
        read_manifest(tmp_path / "small")


def test_a_manifest_of_other_classes_is_refused(tree):
    prepare(tree)
    (tree / "train" / "n09999999").mkdir()
    with pytest.raises(DataError, match="other classes"):
        load_dataset(FOLDER.model_copy(update={"classes": 3}), tree)


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.lists(st.tuples(st.text("xyz", min_size=1, max_size=3), st.integers(1, 99)), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    )
)
def test_counts_and_paths_leave_out_exactly_what_is_unreadable(found: Mapping[str, list[tuple[str, int]]]):
    files = {f"train/{name}": sorted(dict(rows).items()) for name, rows in found.items()}
    paths = [f"{place}/{name}" for place, rows in files.items() for name, _ in rows]
    bad = {path: "why" for path in paths[::2]}
    listing = Listing(files, bad)
    assert list(listing.paths("train")) == [path for path in paths if path not in bad]
    assert listing.count("train") == len(paths)
    assert listing.digest != Listing(files, {}).digest
    lines = [f"{place}/{name}\0{size}" for place, rows in files.items() for name, size in rows]
    lines += [f"without\0{path}" for path in sorted(bad)]
    assert listing.digest == hashlib.sha256("\0".join(lines).encode()).hexdigest()
    lines += ["content\0c0ffee"]
    assert replace(listing, content="c0ffee").digest == hashlib.sha256("\0".join(lines).encode()).hexdigest()


def test_what_is_not_imagenet_although_it_looks_like_it_is_said():
    names = [f"n{k:08d}" for k in range(1000)]
    files = {f"{part}/{name}": [("a.JPEG", 1)] for part in ("train", "val") for name in names}
    files["val/n00000003"] = [(f"{k}.JPEG", 1) for k in range(IMAGENET["val"] - 999)]
    assert list(remarks(Listing(files))) == [
        f"train has 1,000 images, ImageNet (ILSVRC 2012) has {IMAGENET['train']:,}"
    ]
    few = {"train/a": [("x", 1)], "train/b": [(str(k), 1) for k in range(99)], "val/a": [("x", 1)], "val/b": [("y", 1)]}
    assert list(remarks(Listing(few))) == ["train/a has 1 images, a class has 50 on average"]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return out.getvalue()


def write_kit(folder: Path, wnid: str = CLASSES[1], truth: bytes = b"2\n1\n1\n2\n", table: str = "synsets") -> None:
    """A development kit: class 1 is `wnid`, and the lines of `truth` are val's classes."""
    meta = io.BytesIO()
    kinds = [("ILSVRC2012_ID", int), ("WNID", object), ("num_children", int)]
    savemat(meta, {table: np.array([(1, wnid, 0), (2, CLASSES[0], 0), (3, "n00000001", 2)], dtype=kinds)})
    with tarfile.open(folder / DEVKIT, "w:gz") as kit:
        add(kit, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(kit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


@pytest.fixture
def archives(tmp_path):
    """ImageNet's three archives in miniature: 12 images a class, four of val, whose classes only the kit knows."""
    folder = tmp_path / "archives"
    folder.mkdir()
    classes = {f"{name}.tar": tar_of({f"{name}_{k}.JPEG": jpeg(100 * c + k) for k in range(12)})
               for c, name in enumerate(CLASSES)}  # fmt: skip
    (folder / TRAIN).write_bytes(tar_of(classes))
    (folder / VAL).write_bytes(tar_of({f"ILSVRC2012_val_{k:08d}.JPEG": jpeg(500 + k) for k in (1, 2, 3, 4)}))
    write_kit(folder)
    return folder


def test_the_official_archives_become_folders_of_classes(archives, tmp_path):
    folder = tmp_path / "imagenet"
    assert "2 classes, 24 in train and 4 in val" in prepare(folder, "--archives", archives)
    assert sorted(path.name for path in (folder / "val" / CLASSES[0]).iterdir()) == [
        "ILSVRC2012_val_00000001.JPEG",
        "ILSVRC2012_val_00000004.JPEG",
    ]
    image = folder / "train" / CLASSES[1] / f"{CLASSES[1]}_3.JPEG"
    assert image.read_bytes() == jpeg(103)
    assert len(load_dataset(FOLDER, folder).test) == 4


def test_unpacking_goes_on_with_the_classes_that_are_missing(archives, tmp_path):
    folder = tmp_path / "imagenet"
    (folder / "train" / f".{CLASSES[0]}.part").mkdir(parents=True)
    (folder / "train" / f".{CLASSES[0]}.part" / "half.JPEG").write_bytes(b"half")
    prepare(folder, "--archives", archives)
    assert len(list((folder / "train" / CLASSES[0]).iterdir())) == 12
    untouched = folder / "train" / CLASSES[1] / f"{CLASSES[1]}_0.JPEG"
    untouched.write_bytes(jpeg(9))
    prepare(folder, "--archives", archives)
    assert untouched.read_bytes() == jpeg(9)


def test_nothing_in_an_archive_escapes_the_folder(archives, tmp_path):
    hostile = io.BytesIO()
    with tarfile.open(fileobj=hostile, mode="w") as archive:
        add(archive, f"../../{CLASSES[0]}_0.JPEG", jpeg(1))
        add(archive, "/tmp/absolute.JPEG", jpeg(2))
        link = tarfile.TarInfo("link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (archives / TRAIN).write_bytes(tar_of({f"../{CLASSES[0]}.tar": hostile.getvalue(), f"{CLASSES[1]}.tar": tar_of(
        {f"{k}.JPEG": jpeg(k) for k in range(9)})}))  # fmt: skip
    folder = tmp_path / "deep" / "imagenet"
    prepare(folder, "--archives", archives)
    inside = sorted(path.name for path in (folder / "train" / CLASSES[0]).iterdir())
    assert inside == ["absolute.JPEG", f"{CLASSES[0]}_0.JPEG"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["imagenet"]


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", "n0144076", "n01440764\n"])
def test_no_class_of_a_kit_escapes_the_folder(archives, tmp_path, name):
    write_kit(archives, wnid=name)
    ran = cli("prepare", "--archives", archives, "--data", tmp_path / "deep" / "imagenet")
    assert ran.code == 2
    assert "is no class; expected n and eight digits" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]


def images_of_val(*numbers: int) -> bytes:
    return tar_of({f"{at}/ILSVRC2012_val_{k:08d}.JPEG": jpeg(500 + k) for at, k in enumerate(numbers)})


def cut_after(name: str) -> Callable[[Path], object]:
    """Ends an archive where its second member would begin."""

    def cut(folder: Path) -> None:
        with tarfile.open(folder / name) as archive:
            end = archive.getmembers()[1].offset
        (folder / name).write_bytes((folder / name).read_bytes()[:end])

    return cut


def add_member(name: str) -> Callable[[Path], object]:
    """Puts a member of that name, whatever it has in it, at an archive's end."""

    def put(folder: Path) -> None:
        with tarfile.open(folder / TRAIN, "a", format=tarfile.PAX_FORMAT) as archive:
            add(archive, name, tar_of({"0.JPEG": jpeg(1)}))

    return put


def name_with_nothing(folder: Path) -> None:
    """A PAX header can say names that no file can have."""
    image = tarfile.TarInfo("a.JPEG")
    image.pax_headers = {"path": "a\0b.JPEG"}
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(image, io.BytesIO())
    (folder / TRAIN).write_bytes(tar_of({f"{CLASSES[0]}.tar": inner.getvalue()}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / VAL).unlink(), "no ILSVRC2012_img_val.tar"),
        (lambda folder: (folder / TRAIN).write_bytes(b"no tar at all" * 99), f"{TRAIN}: file could not be opened"),
        (lambda folder: (folder / VAL).write_bytes(b"no tar at all" * 99), f"{VAL}: file could not be opened"),
        (lambda folder: (folder / TRAIN).write_bytes(tar_of({"a.JPEG": jpeg(1)})), "no tar of a class"),
        (lambda folder: (folder / VAL).write_bytes(tar_of({"cat.JPEG": jpeg(1)})), "holds 'cat.JPEG'"),
        (lambda folder: (folder / VAL).write_bytes(images_of_val(1, 2, 4)), "lacks 1 of 4 images; fetch it again"),
        (lambda folder: (folder / VAL).write_bytes(images_of_val(1, 2, 3, 4, 4)), "two images with the number"),
        (cut_after(VAL), "lacks 3 of 4 images; fetch it again"),
        (cut_after(TRAIN), f"lacks 1 of 2 classes, such as {CLASSES[1]}; fetch it again"),
        (add_member(".tar"), "holds '.tar', which is no tar of a class"),
        (add_member("..tar"), "holds '..tar', which is no tar of a class"),
        (add_member("n00000009.tar"), "holds 'n00000009.tar', which is no tar of a class"),
        (name_with_nothing, "null byte; fetch it again"),
        (lambda folder: (folder / DEVKIT).write_bytes(b"\x1f\x8b half"), f"{DEVKIT}: "),
        (lambda folder: write_kit(folder, truth=b"9\n1\n1\n2\n"), "does not say val's classes"),
        (lambda folder: write_kit(folder, truth=b"cat\n1\n1\n2\n"), "does not say val's classes"),
        (lambda folder: write_kit(folder, table="elsewhere"), "does not say val's classes"),
    ],
)
def test_archives_that_are_not_imagenet_s_are_refused(archives, tmp_path, harm, message):
    harm(archives)
    ran = cli("prepare", "--archives", archives, "--data", tmp_path / "imagenet")
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "imagenet" / "val").exists()
    assert list((tmp_path / "imagenet").rglob(".*")) == []


def test_an_archive_that_is_none_leaves_no_folder_behind(archives, tmp_path):
    (archives / TRAIN).write_bytes(b"no tar at all" * 99)
    assert cli("prepare", "--archives", archives, "--data", tmp_path / "imagenet").code == 2
    assert not (tmp_path / "imagenet").exists()


def test_other_datasets_have_no_archives_and_no_copies():
    ran = cli("prepare", "--suite", "quick", "--cache", 28)
    assert ran.code == 2
    assert "--cache" in ran.err
    assert cli("prepare", "--suite", "quick").code == 0


def test_a_cache_that_does_not_fit_is_refused_before_it_is_written(tree, monkeypatch, tmp_path):
    listing = look_through(tree, quiet)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(DataError, match=r"needs 0\.00 GB.*--to"):
        cache_size(tree, listing, 28, tmp_path / "copies")


def test_a_manifest_is_written_and_read_back_as_it_was(tmp_path):
    make_tree(tmp_path)
    listing = look_through(tmp_path, quiet)
    write_manifest(tmp_path, listing)
    assert read_manifest(tmp_path) == listing
    assert listing_of(tmp_path, short_side=None, allow_bad_images=0) == listing


def test_randaugment_hangs_on_the_image_s_own_draws(tree):
    spec = FOLDER.model_copy(update={"augment": "randaugment"})
    split, plain = load_dataset(spec, tree).test, load_dataset(FOLDER, tree).test
    draws = np.random.default_rng(0).random((6, 8))
    torch.manual_seed(1)
    first = split.load(np.arange(6), draws)[0]
    torch.manual_seed(2)
    assert torch.equal(split.load(np.arange(6), draws)[0], first)
    assert torch.equal(split.load(np.array([4]), draws[4:5])[0][0], first[4])
    assert not torch.equal(plain.load(np.arange(6), draws)[0], first)
    assert torch.equal(plain.load(np.arange(6), None)[0], split.load(np.arange(6), None)[0])


def test_randaugment_leaves_every_generator_as_it_was(tree, monkeypatch):
    """Those of GPUs too, which no fork puts back."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    split = load_dataset(FOLDER.model_copy(update={"augment": "randaugment"}), tree).test
    before = torch.get_rng_state()
    split.load(np.arange(2), np.random.default_rng(0).random((2, 8)))
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded == []


def test_randaugment_is_for_image_files():
    with pytest.raises(ValueError, match="randaugment is for photographs"):
        DataSpec(dataset="digits", image_size=8, classes=10, augment="randaugment")
