"""Suites: what they expand to, what is refused, and the ledgers that they count with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.commands.options import Options
from benchmarks.commands.session import assignment, open_session
from benchmarks.ledgers import FOLDER, ledger_for, ledger_path
from benchmarks.messages import SuiteError
from benchmarks.models import measure_ledger
from benchmarks.planning import plan
from benchmarks.suites.suite import SUITES, Suite, load_suite, select, suite_names
from methods import load_method
from methods.quantization.cost import bops, ledger_from_json, ledger_to_json, uniform_bits
from tests.harness import TINY, cli, tiny_suite, write_suite


@pytest.mark.parametrize("name", suite_names())
def test_every_shipped_suite_loads_and_plans(name):
    suite = load_suite(name)
    found = plan(suite)
    quantizing = sum(entry.draws for entry in suite.methods if entry.name != "float")
    floats = sum(entry.name == "float" for entry in suite.methods)
    cells = len(suite.models) * len(suite.seeds)
    assert len(found.trials) == cells * (quantizing * len(suite.ceilings) + floats)
    assert len({trial.id for trial in found.trials}) == len(found.trials)
    assert len({trial.label for trial in found.trials}) == len(found.trials)
    assert (suite.suite, found.warnings) == (name, ())
    assert suite.description


@pytest.mark.parametrize("name", suite_names())
def test_every_shipped_suite_has_the_baselines_and_a_uniform_ceiling(name):
    suite = load_suite(name)
    entered = {entry.name for entry in suite.methods}
    assert {"float", "uniform-lsq"} <= entered
    assert "random" in entered or not any(load_method(method).chooses for method in entered)
    assert any(str(ceiling).startswith("uniform:") for ceiling in suite.ceilings)


def committed() -> list[tuple[str, str]]:
    found = {
        ledger_path(model, load_suite(name).data).name: name
        for name in suite_names()
        for model in load_suite(name).models
    }
    return sorted(found.items())


@pytest.mark.parametrize(("file", "suite_name"), committed())
def test_a_committed_ledger_is_what_the_network_gives(file, suite_name):
    suite = load_suite(suite_name)
    (model,) = [model for model in suite.models if ledger_path(model, suite.data).name == file]
    measured = measure_ledger(model, suite.data)
    assert ledger_for(model, suite.data) == measured
    assert (FOLDER / file).read_text(encoding="utf-8") == ledger_to_json(measured)


def test_no_committed_ledger_is_left_over():
    assert {path.name for path in FOLDER.glob("*.json")} == {file for file, _ in committed()}


# MACs x bits x bits of the published networks at 224, from METHODS: GBOPs of W3A3, W4A4 and W8A8.
@pytest.mark.parametrize(
    ("name", "gbops"),
    [
        ("mobilenet_v2", (3.373, 5.394, 19.250)),
        ("mobilenet_v3_large", (2.318, 3.787, 13.862)),
        ("resnet18", (22.846, 34.714, 116.101)),
    ],
)
def test_uniform_costs_of_the_published_networks(name, gbops):
    suite = load_suite("imagenet-full")
    (model,) = [model for model in suite.models if model.name == name]
    ledger = ledger_for(model, suite.data)
    found = [bops(ledger, uniform_bits(ledger, bits, bits)) / 1e9 for bits in (3, 4, 8)]
    assert found == pytest.approx(gbops, abs=0.0005)  # printed to three decimals


def test_a_ceiling_per_model_must_name_every_model():
    with pytest.raises(SuiteError, match="no BOPs for resnet18"):
        tiny_suite(ceilings=[{"mobilenet_v2": 5}])


@pytest.mark.parametrize("text", ["5e6", "5.0e6", "0.005e9"])
def test_numbers_that_yaml_reads_as_text_are_ceilings_as_well(text):
    for written, read in ((text, 5_000_000), (f"{{resnet18: {text}}}", {"resnet18": 5_000_000})):
        assert tiny_suite({"ceilings": yaml.safe_load(f"[{written}]")}).ceilings == (read,)


def test_a_share_for_nobody_is_refused():
    with pytest.raises(SuiteError, match=r"search_share: unknown method 'metamx'; .*did you mean 'metamix'\?"):
        tiny_suite(compute={"epochs": 2, "search_share": {"metamx": 0.05, "default": 0.3}})


@pytest.mark.parametrize("name", suite_names())
def test_controls_and_extensions_have_the_share_of_what_they_stand_beside(name):
    beside = {"reversed": "hawq", "shuffled": "hawq", "metamix-joint": "metamix"}
    suite = select(load_suite(name), methods=[*beside, *beside.values()], models=[], seeds=[])
    shares = {trial.row: trial.spec.compute.search_share for trial in plan(suite).trials}
    assert [shares[row] for row in beside] == [shares[row] for row in beside.values()]


def test_select_judges_pairs_as_among_all_of_the_suite():
    suite = load_suite("quick")
    chosen = select(suite, methods=["uniform-lsq", "hawq", "reversed"], models=[], seeds=[])
    assert chosen.contrasts == (("hawq", "uniform-lsq"), ("reversed", "uniform-lsq"))
    assert len(suite.contrasts) == 7
    assert chosen.cut_pairs == 7 - 1 + 1  # of the suite's seven one is left; that of `reversed` and `random` is new
    again = select(chosen, methods=["hawq"], models=[], seeds=[])
    assert (again.contrasts, again.cut_pairs) == ((), 9)
    assert Suite.model_validate(chosen.model_dump()) == chosen  # a report's suite.yaml


def test_select_keeps_what_is_asked_for_and_adds_known_methods():
    suite = load_suite("quick")
    chosen = select(suite, methods=["random", "given"], models=["resnet18"], seeds=[3, 4])
    assert [entry.row for entry in chosen.methods] == ["random", "given"]
    assert ([model.name for model in chosen.models], chosen.seeds) == (["resnet18"], (3, 4))
    assert select(suite, methods=[], models=[], seeds=[]) == suite


def test_a_suite_is_what_its_file_says():
    suite = tiny_suite({"recipe.optimizer.lr": 0.5, "seeds": [7]}, description="mine")
    assert (suite.recipe.optimizer.lr, suite.seeds, suite.description) == (0.5, (7,), "mine")
    assert suite.recipe.batch_size == TINY["recipe"]["batch_size"]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_ledger_survives_its_file(path: Path):
    text = path.read_text(encoding="utf-8")
    assert ledger_to_json(ledger_from_json(text)) == text


@pytest.mark.parametrize("value", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.mkdir"])
def test_a_suite_s_file_and_set_run_nothing(tmp_path, value):
    harm = value.format(tmp_path / "harmed")
    file = tmp_path / "hostile.yaml"
    file.write_text(f"{write_suite(tmp_path).read_text()}\ndescription: {harm}\n", encoding="utf-8")
    for arguments in (["--suite", file], ["--suite", "smoke", "--set", f"description={harm}"]):
        ran = cli("plan", *arguments)
        assert (ran.code, "could not determine a constructor" in ran.err) == (2, True)
    assert not (tmp_path / "harmed").exists()


def test_a_suite_nested_too_deeply_is_refused(tmp_path):
    file = tmp_path / "deep.yaml"
    file.write_text("description: " + "[" * 5000, encoding="utf-8")
    for arguments in (["--suite", file], ["--suite", "smoke", "--set", "description=" + "[" * 5000]):
        ran = cli("plan", *arguments)
        assert (ran.code, ran.err.startswith("error: ")) == (2, True)


def test_how_often_a_trial_saves_itself_is_no_part_of_it(tmp_path):
    every, usual = (
        open_session(Options(suite=str(write_suite(tmp_path)), out=tmp_path, overrides=overrides))
        for overrides in (["resources.checkpoint_seconds=0"], [])
    )
    assert (every.runtime.checkpoint_seconds, usual.runtime.checkpoint_seconds) == (0, 10)
    assert [trial.id for trial in every.plan.trials] == [trial.id for trial in usual.plan.trials]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"seeds: [{'9' * 5001}]", "cannot read the suite"),
        (f"compute: {{epochs: {'1' * 5001}}}", "cannot read the suite"),
        (f"ceilings: [{'1' * 400}]", r"BOPs binds no network"),
        (f"seeds: [{2**63}]", "seeds"),
        (f"seeds: {list(range(1001))}", "at most 1000 items"),
    ],
)
def test_numbers_of_thousands_of_digits_and_a_million_seeds_are_one_line(line, message, tmp_path):
    name = line.partition(":")[0]
    shipped = yaml.safe_load((SUITES / "smoke.yaml").read_text())
    rest = yaml.safe_dump({key: value for key, value in shipped.items() if key != name})
    (tmp_path / "s.yaml").write_text(f"{rest}\n{line}\n")
    with pytest.raises(SuiteError, match=message) as refused:
        load_suite(str(tmp_path / "s.yaml"))
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 700


KEYS = range(10)
BOMB = "\n".join(
    ["a0: &a0 {b: 1}", *(f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in KEYS)}}}" for n in range(1, 7))]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "it has more than 100,000 values, its aliases written out"),
        ("a: &a {b: [*a]}", "line ., column 4: an alias stands in what it names"),
        ("a: !!bool maybe", "a value does not fit its tag"),
        ("a: !!int ''", "a value does not fit its tag"),
        ("a: !!timestamp soon", "a value does not fit its tag"),
        ("a: !!map [[b], c]", "expected a mapping node"),
    ],
)
def test_yaml_that_is_a_trap_is_refused_in_one_line(text, message, tmp_path):
    path = tmp_path / "trap.yaml"
    path.write_text(text)
    with pytest.raises(SuiteError, match=f"cannot read the suite .*trap.yaml: .*{message}") as caught:
        load_suite(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(SuiteError, match=message):
        assignment(f"recipe=\n{text}")


def test_aliases_of_a_suite_may_be_used(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((SUITES / "smoke.yaml").read_text().replace("seeds: [0]", "cut_pairs: &five 5\nseeds: [*five]"))
    assert load_suite(str(path)).seeds == (5,)


@pytest.mark.parametrize("key", ["compute.epochs", "ceilings", "seeds", "methods", "suite", "recipe.schedule", "space"])
@pytest.mark.parametrize("value", [10**4000, "x" * 5000, [10**4000] * 3, {"a": "y" * 5000}])
def test_a_message_repeats_little_of_what_is_long(key, value):
    with pytest.raises(SuiteError) as caught:
        load_suite("smoke", {key: value})
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_draws_and_trials_have_bounds():
    with pytest.raises(SuiteError, match="less than or equal to 1000"):
        load_suite("smoke", {"methods": [{"name": "random", "draws": 10**9}]})
    many = {"methods": [{"name": "random", "draws": 1000}], "seeds": list(range(1000))}
    with pytest.raises(SuiteError, match="trials, of networks, ceilings, seeds and draws; at most 100,000"):
        load_suite("smoke", many)
