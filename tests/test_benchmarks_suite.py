"""Suites: what they expand to, what is refused, and the ledgers that they count with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ledgers import FOLDER, ledger_for, ledger_path
from benchmarks.messages import SuiteError
from benchmarks.models import measure_ledger
from benchmarks.session import open_session
from benchmarks.suite import Suite, candidates_of, ceiling_name, load_suite, plan, select, suite_names
from methods import load_method
from methods.quantization.cost import bops, ledger_from_json, ledger_to_json, uniform_bits
from methods.quantization.policy import LayerBits
from tests.harness import TINY, tiny_suite, write_suite


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


def test_ceilings_become_bops():
    suite = tiny_suite(ceilings=["uniform:w4a5", 2_500_000.0, {"resnet18": 2_600_000}], methods=["random"])
    trials = plan(suite).trials
    ledger = trials[0].ledger
    assert [trial.spec.ceiling_bops for trial in trials] == [
        bops(ledger, uniform_bits(ledger, 4, 5)),
        2_500_000,
        2_600_000,
    ]
    assert [ceiling_name(ceiling) for ceiling in suite.ceilings] == ["uniform:w4a5", "0.0025 GBOPs", "0.0026 GBOPs"]


def test_a_ceiling_per_model_must_name_every_model():
    with pytest.raises(SuiteError, match="no BOPs for resnet18"):
        tiny_suite(ceilings=[{"mobilenet_v2": 5}])


def test_a_ceiling_that_binds_nothing_is_a_warning():
    (warning,) = plan(tiny_suite(ceilings=["uniform:w8a8"], methods=["random"])).warnings
    assert "binds nothing" in warning


def test_a_ceiling_that_few_policies_fit_is_a_warning_with_their_number():
    trials = plan(tiny_suite(ceilings=["uniform:w4a3"], methods=["random"])).trials
    ledger, cheapest = trials[0].ledger, trials[0].spec.ceiling_bops
    assert cheapest is not None
    (warning,) = plan(tiny_suite(ceilings=["uniform:w4a3"], methods=["random"])).warnings
    assert "only 1 policy fits" in warning
    # One layer, or one pair of tied ones, can be raised to 4 bits if its increment of 4 x MACs fits.
    sizes: dict[str, int] = {}
    for layer in ledger:
        if not layer.pinned:
            sizes[layer.tie or layer.name] = sizes.get(layer.tie or layer.name, 0) + layer.macs
    least = min(sizes.values())
    (warning,) = plan(tiny_suite(ceilings=[cheapest + 4 * least], methods=["random"])).warnings
    assert f"only {1 + sum(size == least for size in sizes.values())} policies fit" in warning


@pytest.mark.parametrize("ceiling", ["uniform:w4a3", "uniform:w8a8"], ids=["few", "unbound"])
def test_how_many_policies_fit_is_no_warning_where_nothing_chooses_among_them(ceiling):
    assert plan(tiny_suite(ceilings=[ceiling], methods=["float", "uniform-lsq"])).warnings == ()


def test_a_search_share_is_for_those_who_search():
    suite = tiny_suite(compute={"epochs": 2, "search_share": {"hawq": 0.02, "default": 0.3}})
    shares = {trial.row: trial.spec.compute.search_share for trial in plan(suite).trials}
    assert shares == {"float": 0, "uniform-lsq": 0, "random": 0, "hawq": 0.02, "metamix": 0.3, "differentiable": 0.3}


def test_a_row_may_have_a_share_of_its_own():
    rows = ["hawq", {"name": "hawq", "label": "hawq mean", "options": {"error": "mean"}}]
    suite = tiny_suite(methods=rows, compute={"epochs": 2, "search_share": {"hawq": 0.02, "hawq mean": 0.3}})
    assert [trial.spec.compute.search_share for trial in plan(suite).trials] == [0.02, 0.3]


def test_a_share_for_nobody_is_refused():
    with pytest.raises(SuiteError, match=r"search_share: unknown method 'metamx'; .*did you mean 'metamix'\?"):
        tiny_suite(compute={"epochs": 2, "search_share": {"metamx": 0.05, "default": 0.3}})


def test_a_search_without_a_share_is_refused():
    suite = tiny_suite(methods=["random", "hawq"], compute={"epochs": 2, "search_share": {"metamix": 0.05}})
    with pytest.raises(SuiteError, match="search_share has no share for hawq; name hawq in it, or `default`"):
        plan(suite)
    assert plan(select(suite, methods=["random"], models=[], seeds=[])).trials


@pytest.mark.parametrize("name", suite_names())
def test_controls_and_extensions_have_the_share_of_what_they_stand_beside(name):
    beside = {"reversed": "hawq", "shuffled": "hawq", "metamix-joint": "metamix"}
    suite = select(load_suite(name), methods=[*beside, *beside.values()], models=[], seeds=[])
    shares = {trial.row: trial.spec.compute.search_share for trial in plan(suite).trials}
    assert [shares[row] for row in beside] == [shares[row] for row in beside.values()]


def test_the_float_control_is_one_trial_for_all_ceilings():
    trials = plan(tiny_suite(ceilings=["uniform:w4a4", "uniform:w4a5"], methods=["float", "random"])).trials
    assert [trial.row for trial in trials] == ["float", "random", "random"]
    assert trials[0].spec.ceiling_bops is None


def test_candidates_are_the_space_for_every_searchable_layer():
    suite = tiny_suite(space={"weights": [4, 2], "activations": [8, 3]})
    ledger = plan(tiny_suite(methods=["random"])).trials[0].ledger
    candidates = candidates_of(suite.space, ledger)
    assert set(candidates) == {layer.name for layer in ledger if not layer.pinned}
    pairs = [LayerBits(2, 3), LayerBits(4, 3), LayerBits(2, 8), LayerBits(4, 8)]
    assert all(list(bits) == pairs for bits in candidates.values())


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


def test_how_often_a_trial_saves_itself_is_no_part_of_it(tmp_path):
    every, usual = (
        open_session(str(write_suite(tmp_path)), tmp_path, None, overrides=overrides)
        for overrides in (["resources.checkpoint_seconds=0"], [])
    )
    assert (every.workspace.checkpoint_seconds, usual.workspace.checkpoint_seconds) == (0, 10)
    assert [trial.id for trial in every.plan.trials] == [trial.id for trial in usual.plan.trials]
