"""Pages of results: committed pages are what the records give, hand-written text stays, and faults are named."""

from __future__ import annotations

import shlex
import shutil

import pytest

from benchmarks.commands.session import assignment
from benchmarks.records.record import Records
from reports.results.__main__ import main
from reports.results.making import DOCUMENTS, PAGES, RECORDS, ROOT, Maker, digest_of, made_from
from reports.results.measured import ResultsError
from reports.results.page import ours_of
from reports.results.shipped import SHIPPED, Shipped

AGAIN = "make results"


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


def named(name: str) -> Shipped:
    return Maker.named(name)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_a_committed_page_is_what_the_records_give(maker, shipped):
    path = PAGES / f"{shipped.name}.md"
    assert path.read_text(encoding="utf-8") == maker.page(shipped), AGAIN
    if picture := maker.sections(shipped).picture:
        assert made_from(path.with_suffix(".png")) == digest_of(picture), AGAIN


def test_the_list_of_pages_and_the_answers_in_other_documents_are_what_the_records_give(maker):
    assert (PAGES / "README.md").read_text(encoding="utf-8") == maker.index(), AGAIN
    for path in DOCUMENTS:
        assert path.read_text(encoding="utf-8") == maker.document(path), AGAIN


def test_every_shipped_set_of_records_has_a_page_and_every_page_is_of_one():
    places = {path.name.partition(".")[0] for path in (ROOT / "reports/reference").iterdir()}
    assert places == {shipped.name for shipped in SHIPPED}
    assert {path.stem for path in PAGES.iterdir()} == places | {"README"}


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_the_command_on_a_page_asks_for_what_the_page_shows(shipped):
    words = shlex.split(shipped.commands[-1])
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert dict(map(assignment, sets)) == dict(shipped.overrides)


def run(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_without_records_the_suite_and_its_command_are_named(tmp_path, capsys):
    assert run("digits-metamix-rate", "--records", tmp_path, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "no records of digits-metamix-rate" in said
    assert named("digits-metamix-rate").commands[0] in said
    assert not (tmp_path / "out").exists()


def test_records_of_another_suite_and_damaged_ones_are_refused(tmp_path, capsys):
    shutil.copy(RECORDS / "w8a8.tar.xz", tmp_path / "quick.tar.xz")
    assert run("quick", "--records", tmp_path, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "answers none of its trials" in said
    assert "python runner.py --suite quick" in said
    whole = (RECORDS / "quick.tar.xz").read_bytes()
    (tmp_path / "quick.tar.xz").write_bytes(whole[: len(whole) // 2])
    assert run("quick", "--records", tmp_path, "--out", tmp_path / "out") == 2
    assert "quick.tar.xz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_records_gives_the_page_of_their_archive(tmp_path, maker):
    folder = Records(tmp_path / "quick")
    for record in maker.records("quick"):
        folder.put(record)
    assert Maker(tmp_path).page(named("quick")) == maker.page(named("quick"))


def test_an_unknown_page_is_named_with_the_known(capsys):
    assert run("digits") == 2
    assert "no page digits; known: quick, digits-full" in capsys.readouterr().err


def test_our_own_words_stay_when_a_page_is_made_again(tmp_path):
    main(["quick", "--out", str(tmp_path)])
    path = tmp_path / "quick.md"
    path.write_text(
        path.read_text()
        .replace("<!-- ours: reading -->\n", "<!-- ours: reading -->\nSeen.\n")
        .replace("65.33", "99.99")
    )
    main(["quick", "--out", str(tmp_path)])
    assert "<!-- ours: reading -->\nSeen.\n<!-- end -->" in path.read_text()
    assert "99.99" not in path.read_text()
    assert "65.33" in path.read_text()


def test_a_changed_number_and_a_figure_of_other_numbers_are_found(tmp_path, capsys):
    main(["quick", "--out", str(tmp_path)])
    assert run("quick", "--out", tmp_path, "--check") == 0
    path, figure = tmp_path / "quick.md", tmp_path / "quick.png"
    path.write_text(path.read_text().replace("65.33", "71.18"))
    figure.write_bytes(figure.read_bytes().replace(b"made from ", b"made for_ "))
    assert run("quick", "--out", tmp_path, "--check") == 1
    said = capsys.readouterr().out
    assert f"{path}: not what the records give" in said
    assert f"{figure}: not what the records give" in said


@pytest.mark.parametrize(
    "text",
    [
        "<!-- ours: reading -->\nno end",
        "<!-- ours: about -->\n<!-- ours: reading -->\n<!-- end -->",
        "<!-- ours: aside -->\nwords\n<!-- end -->",
        "<!-- ours: about -->\n<!-- end -->\n<!-- ours: about -->\n<!-- end -->",
    ],
)
def test_marks_that_would_lose_our_words_are_refused_and_nothing_is_written(tmp_path, capsys, text):
    with pytest.raises(ResultsError):
        ours_of(text, "page.md")
    path = tmp_path / "quick.md"
    path.write_text(text)
    assert run("quick", "--out", tmp_path) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == text


def test_an_answer_of_a_page_that_is_not_there_is_refused(tmp_path, maker):
    path = tmp_path / "README.md"
    path.write_text("<!-- answer: digits -->\n<!-- end -->\n")
    with pytest.raises(ResultsError, match="no page digits"):
        maker.document(path)
