"""Archives of records: equal to their folder, the same bytes every time, and refused if they hold anything else."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile

import pytest

from benchmarks.records import members as reading
from benchmarks.records.archive import Archive, archives_in, join, open_records, pack, table, with_parts, write_archive
from benchmarks.records.members import members
from benchmarks.records.record import LARGEST_RECORD, RecordError, Records
from reports.verification.reference import REFERENCE, shipped
from tests.fabricated import make_plan, make_suite, write_records
from tests.harness import ROOT, cli, copy_finished, finished

PLAN = make_plan(make_suite(["float", "uniform-lsq", "hawq"], seeds=(0, 1)))


@pytest.fixture
def folder(tmp_path):
    """Six records, and one more result of the last trial's."""
    records = write_records(PLAN, tmp_path / "fabricated" / "records")
    records.dispute(next(iter(write_records(PLAN, tmp_path / "b", lambda _, result, __: result.update(more=1)))))
    return records.folder


def packed(path, files, **info):
    """A tar archive of these files; `info` are attributes of every member."""
    mode = "w" if path.suffix == ".tar" else f"w:{path.suffix.removeprefix('.')}"
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in info.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))
    return path


def by_id(records):
    return [record.id for record in records]


def test_an_archive_reads_as_its_folder(folder, tmp_path):
    path = pack(folder, tmp_path / "to")
    assert path == tmp_path / "to" / "fabricated.tar.xz"
    archive, there = open_records(path), Records(folder)
    assert list(archive) == list(there)
    assert len(list(archive)) == 6
    assert list(archive.disputed()) == list(there.disputed())
    assert len(list(archive.disputed())) == 1
    first = next(iter(there))
    assert archive.get(first.id) == first
    assert archive.get("0" * 16) is None
    assert by_id(archive.others({first.id})) == by_id(there.others({first.id}))


def test_files_keep_their_bytes_and_unpack_as_their_folder(folder, tmp_path):
    path = pack(folder, tmp_path / "to", "quick")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    files = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.json")}
    out = tmp_path / "out" / "quick"
    assert {file.relative_to(out): file.read_bytes() for file in out.rglob("*.json")} == files


def test_the_same_records_make_the_same_bytes(folder, tmp_path):
    first = pack(folder, tmp_path / "a").read_bytes()
    for file in sorted(folder.glob("*.json"), reverse=True):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        file.chmod(0o600)
    assert pack(folder, tmp_path / "b").read_bytes() == first


def test_the_table_has_a_line_per_trial(folder, tmp_path):
    pack(folder, tmp_path)
    text = (tmp_path / "fabricated.csv").read_text()
    head, *lines = text.splitlines()
    assert head == "id,network,method,version,options,ceiling,seed,draw,status,accuracy,bops,checksum,commit"
    assert sorted(line.partition(",")[0] for line in lines) == by_id(Records(folder))
    assert table(Records(folder)) == table(reversed(list(Records(folder)))) == text
    record = next(record for record in Records(folder) if record.spec["method"]["name"] == "hawq")
    (line,) = (line for line in lines if line.startswith(record.id))
    assert record.result_digest in line
    assert f",{record.result['metrics']['test_accuracy']:.6f},{record.result['cost']['bops']['edges8']}," in line


def test_new_records_come_as_parts_and_are_joined(folder, tmp_path):
    held = {path: path.read_bytes() for path in sorted(folder.glob("*.json"))[3:]}
    for path in held:
        path.unlink()
    whole = pack(folder, tmp_path)
    before = whole.read_bytes()
    for number, (path, content) in enumerate(held.items(), 1):
        path.write_bytes(content)
        assert pack(folder, tmp_path) == tmp_path / f"fabricated.part-{number}.tar.xz"
        assert by_id(open_records(whole)) == by_id(Records(folder))
    assert whole.read_bytes() == before
    assert pack(folder, tmp_path) is None
    part = tmp_path / "fabricated.part-2.tar.xz"
    assert by_id(open_records(part)) == [list(held)[1].stem]
    listed = (tmp_path / "fabricated.csv").read_text()
    assert join(whole) == 4
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["fabricated.csv", "fabricated.tar.xz"]
    assert whole.read_bytes() == pack(folder, tmp_path / "at-once").read_bytes()
    assert (tmp_path / "fabricated.csv").read_text() == listed == table(Records(folder))


def test_parts_alone_are_an_archive_and_are_in_the_order_of_their_numbers(folder, tmp_path):
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.json"))[:2]}
    for number, (name, content) in zip((10, 9), files.items(), strict=True):
        write_archive(tmp_path / f"new.part-{number}.tar.xz", {name: content})
    place = tmp_path / "new.tar.xz"
    assert [path.name for path in with_parts(place)] == ["new.part-9.tar.xz", "new.part-10.tar.xz"]
    assert len(list(open_records(place))) == 2
    assert join(place) == 2
    assert with_parts(place) == [place]


def test_another_result_of_a_trial_is_no_part(folder, tmp_path):
    archive = pack(folder, tmp_path)
    before = archive.read_bytes()
    write_records(PLAN, folder, lambda _, result, __: result.update(more=1))
    with pytest.raises(RecordError, match=r"fabricated.tar.xz: has another .*json; leave it out, or give --replace"):
        pack(folder, tmp_path)
    assert [path.read_bytes() for path in with_parts(archive)] == [before]
    assert pack(folder, tmp_path, replace=True) == archive
    assert list(open_records(archive)) == list(Records(folder))
    write_archive(tmp_path / "fabricated.part-1.tar.xz", {f"{PLAN.trials[0].id}.json": b"{}"})
    with pytest.raises(RecordError, match=r"part-1.tar.xz:fabricated/.*: there is another such record"):
        open_records(archive)


def test_a_damaged_record_is_not_packed_and_not_read(folder, tmp_path):
    path = next(folder.glob("*.json"))
    archive = pack(folder, tmp_path / "to")
    data = json.loads(path.read_text())
    data["result"]["search_stopped"] = "maybe"
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=f"{path.name}: altered"):
        pack(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    files = dict(open_records(archive).files)  # type: ignore[attr-defined]
    write_archive(archive, files | {path.name: path.read_bytes()})
    damaged = open_records(archive)
    with pytest.raises(RecordError, match=f"fabricated.tar.xz:{path.name}: altered"):
        damaged.get(path.stem)
    assert len(list(damaged.others(()))) == 5
    renamed = Archive(archive, {f"{'0' * 16}.json": files[f"{PLAN.trials[0].id}.json"]})
    with pytest.raises(RecordError, match=f"holds the record of trial {PLAN.trials[0].id}"):
        renamed.get("0" * 16)


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "/x.json",
        "/etc/x.json",
        "a/../x.json",
        "a/b/x.json",
        "x.txt",
        "a/.x.json",
        "a/x.json\n",
        "a\\..\\x.json",
        "a/disputed/../x.json",
        "a/disputed/b/x.json",
        ".",
        "a/\x1b[31mx.json",
    ],
)
def test_names_of_no_record_are_refused(name, tmp_path):
    path = packed(tmp_path / "x.tar.xz", {name: b"{}"})
    with pytest.raises(RecordError, match=r"x.tar.xz:.*: an archive of records holds files NAME/ID.json") as refused:
        open_records(path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    path = packed(tmp_path / "x.tar.xz", {"a/x.json": b""}, type=kind, linkname="/etc/passwd")
    with pytest.raises(RecordError, match="an archive of records holds files"):
        open_records(path)


def test_a_link_in_a_zip_is_no_file(tmp_path):
    path = tmp_path / "x.zip"
    info = zipfile.ZipInfo("a/x.json")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, "/etc/passwd")
        file.writestr("a/y.json", "{}")
    assert [member.regular for member in members(path)] == [False, True]


def test_limits_hold_per_file_on_number_and_in_total(tmp_path, monkeypatch):
    big = packed(tmp_path / "big.tar.xz", {"a/x.json": bytes(LARGEST_RECORD + 1)})
    with pytest.raises(RecordError, match=r"big.tar.xz:a/x.json: 8,388,609 bytes; a record has at most 8,388,608"):
        open_records(big)
    monkeypatch.setattr(reading, "MOST_FILES", 3)
    many = packed(tmp_path / "many.tar.xz", {f"a/{number}.json": b"{}" for number in range(4)})
    with pytest.raises(RecordError, match=r"many.tar.xz: more than 3 files"):
        open_records(many)
    monkeypatch.setattr(reading, "MOST_BYTES", 5)
    three = packed(tmp_path / "three.tar.xz", {f"a/{number}.json": b"{}" for number in range(3)})
    with pytest.raises(RecordError, match=r"three.tar.xz: its records have more than 5 bytes"):
        open_records(three)


def test_a_header_of_gigabytes_takes_no_memory(tmp_path):
    """A pax header is read whole by tarfile, whatever its size."""
    path, size = tmp_path / "x.tar.gz", 2**28
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, size
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(RecordError, match=r"x.tar.gz: a header of more than 1,048,576 bytes"):
        list(members(path))
    assert tracemalloc.get_traced_memory()[1] < 2**24  # the header's limit, a few times over
    tracemalloc.stop()


def test_what_expands_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SMALL", 2**20)
    path = packed(tmp_path / "x.tar.xz", {"networks/x.pt": bytes(2**22)})
    with pytest.raises(RecordError, match=r"x.tar.xz: holds more than 500 times its size"):
        list(members(path))


def test_an_xz_that_asks_for_much_memory_is_refused(tmp_path):
    content = packed(tmp_path / "x.tar", {"a/x.json": b"{}"}).read_bytes()
    path = tmp_path / "x.tar.xz"
    path.write_bytes(
        lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**29, "mode": lzma.MODE_FAST}])
    )
    with pytest.raises(RecordError, match=r"a damaged archive \(Memory usage limit exceeded"):
        list(members(path))


@pytest.mark.parametrize("suffix", [".tar", ".gz", ".bz2", ".xz"])
def test_what_is_cut_or_altered_anywhere_is_refused(suffix, tmp_path, folder):
    path = tmp_path / f"them{suffix}"
    files = {f"a/{file.name}": file.read_bytes() for file in list(folder.glob("*.json"))[:2]}
    text = packed(path, files).read_bytes()
    assert [member.read() for member in members(path)] == list(files.values())
    ends = {".tar": (len(text) // 2, 10 * 512, 512)}.get(suffix, (len(text) // 2, len(text) - 1, len(text) - 8))
    for end in ends:
        path.write_bytes(text[:end])
        with pytest.raises(RecordError, match=r"them.*damaged archive"):
            [member.read() for member in members(path)]


def test_a_gzip_with_a_wrong_trailer_is_refused(tmp_path):
    path = packed(tmp_path / "them.gz", {"a/x.json": b"{}"})
    text = path.read_bytes()
    for place in (-1, -8):  # of its length and of its CRC
        wrong = bytearray(text)
        wrong[place] ^= 1
        path.write_bytes(wrong)
        with pytest.raises(RecordError, match="damaged archive"):
            list(members(path))


def test_a_header_lost_in_the_middle_is_no_end(tmp_path):
    path = packed(tmp_path / "them.tar", {"a/x.json": b"{}", "a/y.json": b"{}"})
    text = path.read_bytes()
    path.write_bytes(text[:1024] + bytes(512) + text[1536:])
    with pytest.raises(RecordError, match="there is more behind its end"):
        list(members(path))


def zip_whose_name_is_no_text(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("\u00fc/x.json", "{}")
    path.write_bytes(path.read_bytes().replace("\u00fc".encode(), b"\xfc\xfc"))


def tar_whose_header_has_no_number(path):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a/x.json")
        info.pax_headers = {"GNU.sparse.map": "0,one"}
        tar.addfile(info)


@pytest.mark.parametrize("damaged", [zip_whose_name_is_no_text, tar_whose_header_has_no_number])
def test_what_tarfile_and_zipfile_do_not_take_for_damage_is_damage(damaged, tmp_path):
    path = tmp_path / "them"
    damaged(path)
    with pytest.raises(RecordError, match=r"them: a damaged archive \(.*\); fetch it again"):
        list(members(path))


def test_archives_packed_in_pieces_are_read_whole(tmp_path):
    text = packed(tmp_path / "x.tar", {"a/x.json": b"{}" * 10**5}).read_bytes()
    path = tmp_path / "x.tar.xz"
    path.write_bytes(lzma.compress(text[:70_000]) + bytes(8) + lzma.compress(text[70_000:]))
    assert [member.read() for member in members(path)] == [b"{}" * 10**5]


def test_what_is_not_there_or_no_archive_is_refused(folder, tmp_path):
    archive = pack(folder, tmp_path / "to")
    with pytest.raises(RecordError, match=f"no such folder or archive; did you mean {archive}"):
        open_records(tmp_path / "to" / "fabricated")
    with pytest.raises(RecordError, match=r"nothing: no such folder or archive; give a folder of records, or"):
        open_records(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="holds no records; give"):
        open_records(tmp_path / "empty")
    (tmp_path / "x.tar.xz").write_text("no archive at all")
    with pytest.raises(RecordError, match=r"x.tar.xz: a damaged archive"):
        open_records(tmp_path / "x.tar.xz")


def command(*arguments):
    line = [sys.executable, "-m", "benchmarks.records.archive", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def test_packing_as_a_command(folder, tmp_path):
    ran = command("pack", folder, "--to", tmp_path)
    assert (ran.returncode, ran.stdout) == (0, f"written: {tmp_path / 'fabricated.tar.xz'}\n"), ran.stderr
    ran = command("join", tmp_path / "fabricated.tar.xz")
    assert (ran.returncode, ran.stdout) == (0, f"{tmp_path / 'fabricated.tar.xz'}: 1 archives in one\n"), ran.stderr
    ran = command("join", tmp_path / "other.tar.xz")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no such archive" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_report_of_an_archive_leaves_the_records_in_the_output_folder_alone(tmp_path):
    suite, out = finished().suite, copy_finished(tmp_path / "out")
    packed_one = pack(out / "tiny" / "records", tmp_path / "to")
    command = ("report", "--suite", suite, "--out", tmp_path / "other")
    ran = cli(*command, "--records", packed_one)
    assert ran.code == 0, ran.err
    assert f"records: {packed_one}" in ran.out.splitlines()
    report = tmp_path / "other" / "tiny" / "report" / "report.md"
    shown = report.read_text()
    assert "metamix" in shown
    assert not (tmp_path / "other" / "tiny" / "records").exists()
    ran = cli(*command)  # of what is in the output folder: nothing
    assert "warning: no trial of tiny has a record" in ran.err
    assert report.read_text() != shown
    assert cli(*command, "--records", tmp_path / "none.tar.xz").code == 2
    assert cli(*command, "--records", packed_one, "--storage", tmp_path / "s").code == 2
    other = cli("report", "--suite", "smoke", "--out", tmp_path / "smoke", "--records", packed_one)
    assert (other.code, "no trial of smoke has a record in" in other.err) == (0, True)


SHIPPED = archives_in(REFERENCE)


def test_every_shipped_table_has_its_archive():
    names = {path.name.removesuffix(".tar.xz") for path in SHIPPED}
    assert names == {path.stem for path in REFERENCE.glob("*.csv")}
    assert {"quick", "digits-full", "procedural-quick"} <= names


@pytest.mark.parametrize("archive", SHIPPED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def test_a_shipped_table_says_what_its_archive_holds(archive):
    assert archive.with_name(archive.name.replace(".tar.xz", ".csv")).read_text() == table(open_records(archive))


def test_what_is_not_shipped_has_no_records():
    assert list(shipped("nobody-s")) == []
    assert len(list(shipped("quick"))) == 18
