"""Scores over all networks and ceilings, pairs of rows, agreement of policies: what counts, and what forms a block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planning import plan
from benchmarks.suites.suite import load_suite, select
from methods.quantization.policy import LayerBits
from reports.findings.across import RowScores, across_tables, pairs, row_scores
from reports.findings.agreement import agreement, agreement_rows, agreement_table, by_chance, by_layer
from reports.findings.comparison import gather
from reports.numbers.display import NOTHING
from reports.numbers.resampling import FEWEST_BLOCKS, sign_flip_p
from reports.results.measured import as_measured
from reports.verification.reference import shipped
from tests.fabricated import fail, make_plan, make_suite, set_policy, shuffled, with_label, write_records

METHODS = ["float", "uniform-lsq", "hawq", "random"]
MODELS = ("mobilenet_v2", "resnet18")
CEILINGS = ("uniform:w4a3", "uniform:w4a4")
GAIN = {"uniform-lsq": 0.0, "hawq": 0.02, "random": -0.03}


def accuracies(trial, result, _observed):
    """Rows differ by their gain, give or take a seed's own; a float control is at 0.9 plus a seed's own."""
    seed = trial.spec.seed
    if trial.spec.ceiling_bops is None:
        result["metrics"]["test_accuracy"] = 0.9 + 0.001 * seed
    else:
        row = 0.8 + 0.001 * seed + GAIN.get(trial.spec.method.name, 0.0)
        result["metrics"]["test_accuracy"] = row + 0.0001 * ((seed * 7 + len(trial.model)) % 5)


def compared(
    tmp_path, change=accuracies, methods=METHODS, leave_out=lambda trial: False, order=None, pairs=(), **suite
):
    chosen = {"models": MODELS, "ceilings": CEILINGS, "seeds": (0, 1, 2)} | suite
    made = make_suite(methods, **chosen).model_copy(update={"pairs": tuple(pairs)})
    plan = make_plan(made)
    plan = plan if order is None else shuffled(plan, order)
    return gather(plan, write_records(plan, tmp_path / "records", change, leave_out=leave_out))


def test_scores_are_paired_with_the_float_control_of_the_seed(tmp_path):
    rows = {row.row: row for row in row_scores(compared(tmp_path))}
    assert set(rows) == {"uniform-lsq", "hawq", "random"}
    scores = rows["hawq"].scores["resnet18"]
    assert scores.shape == (3, 2)
    extra = [0.0001 * ((seed * 7 + len("resnet18")) % 5) for seed in range(3)]
    assert scores[:, 0] == pytest.approx(np.array([-0.08] * 3) + extra)
    assert rows["hawq"].trials == 12


@pytest.mark.parametrize(("networks", "seeds", "ceilings"), [(1, 2, 1), (1, 3, 3), (3, 3, 3), (3, 5, 3)])
def test_the_interval_of_a_score_covers_it(networks, seeds, ceilings):
    generator, hits, trials = np.random.default_rng(3), 0, 1500
    for _ in range(trials):
        # Symmetric about 0 within every block, so a seed's interquartile mean is; ceilings of a block are correlated.
        blocks = {str(m): generator.normal(size=(seeds, 1)) for m in range(networks)}
        scores = {m: own + 0.3 * generator.normal(size=(seeds, ceilings)) for m, own in blocks.items()}
        hits += 0.0 in RowScores("row", scores, 0, 0).score.interval
    # Four standard errors of a binomial share about 95 %, and a point for means of seeds that are not quite normal.
    assert abs(hits / trials - 0.95) < 0.01 + 4 * (0.95 * 0.05 / trials) ** 0.5


def test_rows_are_set_against_uniform_and_searches_against_random(tmp_path):
    comparison = compared(tmp_path)
    found = pairs(comparison, row_scores(comparison))
    names = [(pair.ours, pair.theirs) for pair in found]
    assert names == [("hawq", "uniform-lsq"), ("random", "uniform-lsq"), ("hawq", "random")]
    assert [pair.difference.value for pair in found] == pytest.approx([0.02, -0.03, 0.05])
    assert all(pair.difference.n == 6 for pair in found)
    assert [pair.p for pair in found] == [2 / 64] * 3
    assert [pair.adjusted for pair in found] == [6 / 64] * 3
    # Three pairs at six blocks: the smallest p there is, 2 / 64, times 3 is above 0.05.
    assert {pair.verdict for pair in found} == {"too few blocks to show one among so many pairs"}
    assert [pair.better for pair in found] == [1.0, 0.0, 1.0]


def test_declared_pairs_replace_the_usual_ones_and_holm_counts_them_alone(tmp_path):
    comparison = compared(tmp_path, pairs=[("hawq", "random")])
    (pair,) = pairs(comparison, row_scores(comparison))
    assert (pair.ours, pair.theirs, pair.adjusted) == ("hawq", "random", 2 / 64)
    assert pair.verdict == "hawq higher"


@pytest.mark.parametrize("declared", [(), (("hawq", "uniform-lsq"), ("random", "uniform-lsq"), ("hawq", "random"))])
def test_choosing_rows_makes_no_difference_significant(tmp_path, declared):
    whole = make_suite(METHODS, models=MODELS, ceilings=CEILINGS, seeds=(0, 1, 2)).model_copy(
        update={"pairs": declared}
    )
    plan = make_plan(select(whole, methods=["float", "hawq", "random"], models=(), seeds=()))
    comparison = gather(plan, write_records(plan, tmp_path, accuracies))
    (pair,) = pairs(comparison, row_scores(comparison))
    assert (pair.ours, pair.theirs, pair.p, pair.adjusted) == ("hawq", "random", 2 / 64, 6 / 64)


def test_all_ceilings_of_a_block_have_one_sign(tmp_path):
    """Four ceilings of three seeds on one network are three blocks, not twelve, and three are too few."""
    ceilings = ("uniform:w4a2", "uniform:w4a3", "uniform:w4a4", "uniform:w4a8")
    comparison = compared(tmp_path, models=MODELS[:1], ceilings=ceilings)
    found = pairs(comparison, row_scores(comparison))
    assert {pair.difference.n for pair in found} == {3}
    assert {pair.p for pair in found} == {None}
    assert all("no p-value" in pair.verdict for pair in found)


THREE = ("mobilenet_v2", "resnet18", "mobilenet_v3_small")


def test_below_three_seeds_nothing_is_called(tmp_path):
    """Two seeds on three networks are six blocks, which could give p = 0.031."""
    two = compared(tmp_path / "two", models=THREE, seeds=(0, 1), pairs=[("hawq", "random")])
    (pair,) = pairs(two, row_scores(two))
    assert pair.difference.n == FEWEST_BLOCKS
    assert pair.difference.interval is not None
    assert (pair.p, pair.adjusted, pair.called) == (None, None, False)
    assert pair.verdict == "fewer than 3 seeds: no p-value"


def test_of_one_seed_there_is_neither_interval_nor_chance_to_be_better(tmp_path):
    one = compared(tmp_path, models=THREE, ceilings=(*CEILINGS, "uniform:w4a8"), seeds=(0,), pairs=[("hawq", "random")])
    tables = across_tables(one)
    assert tables["Pairs"].rows[0].cells[2:] == ("+5.00", *[NOTHING] * 3, "fewer than 3 seeds: no p-value")
    assert all("[" not in cell for row in tables["Scores"].rows for cell in row.cells)


@pytest.mark.parametrize(("models", "ceilings", "name"), [(3, 1, "Mean"), (2, 2, "IQM")])
def test_a_score_that_trims_nothing_is_called_the_mean(tmp_path, models, ceilings, name):
    comparison = compared(tmp_path, models=THREE[:models], ceilings=CEILINGS[:ceilings])
    assert across_tables(comparison)["Scores"].header[2] == f"{name} minus float control, points"
    row = row_scores(comparison)[1]
    by_seed = np.sort(np.concatenate(list(row.scores.values()), axis=1), axis=1)
    assert row.cells == by_seed.shape[1]
    kept = by_seed if name == "Mean" else by_seed[:, 1:-1]
    assert row.score.value == pytest.approx(kept.mean(), abs=1e-12)


def test_a_failed_run_counts_as_the_worst_there_is(tmp_path):
    def change(trial, result, observed):
        accuracies(trial, result, observed)
        if trial.row == "hawq" and trial.spec.seed == 1 and trial.model == "resnet18" and trial.ceiling == CEILINGS[0]:
            fail(result, observed)

    comparison = compared(tmp_path, change)
    rows = {row.row: row for row in row_scores(comparison)}
    assert rows["hawq"].failed == 1
    assert rows["hawq"].scores["resnet18"][1, 0] == pytest.approx(-0.901)
    found = {pair.theirs: pair for pair in pairs(comparison, list(rows.values())) if pair.ours == "hawq"}
    assert found["uniform-lsq"].difference.value < 0
    assert "1 of 12 trials failed or over the ceiling" in str(across_tables(comparison)["Scores"].rows)


def test_a_missing_run_blocks_the_claims_of_its_row_and_of_no_other(tmp_path):
    def missing(trial):
        return trial.row == "hawq" and trial.spec.seed == 2 and trial.ceiling == CEILINGS[1]

    comparison = compared(tmp_path, leave_out=missing)
    found = pairs(comparison, row_scores(comparison))
    assert [pair.p is None for pair in found] == [True, False, True]
    assert found[0].verdict == "hawq: 2 of 12 runs not there: not judged"
    assert found[1].adjusted == 3 * found[1].p  # Holm counts all pairs that are wanted


def test_without_float_controls_there_are_no_scores(tmp_path):
    assert across_tables(compared(tmp_path, methods=METHODS[1:])) == {}
    some = compared(tmp_path / "some", leave_out=lambda trial: trial.row == "float" and trial.spec.seed == 0)
    assert all("float controls of 1 seed" in row.absent for row in row_scores(some))


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_the_order_of_trials_changes_nothing(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("order")
    small = {"models": MODELS[:1], "ceilings": CEILINGS[:1]}
    assert across_tables(compared(folder, order=order, **small)) == across_tables(compared(folder, **small))


def test_draws_are_averaged_within_their_seed(tmp_path):
    def change(trial, result, observed):
        accuracies(trial, result, observed)
        result["metrics"]["test_accuracy"] += 0.01 * trial.spec.draw

    methods = [*METHODS[:3], with_label("random", "random", draws=3)]
    rows = {row.row: row for row in row_scores(compared(tmp_path, change, methods))}
    assert rows["random"].scores["resnet18"].shape == (3, 2)
    plain = {row.row: row for row in row_scores(compared(tmp_path / "plain"))}
    assert rows["random"].pooled == pytest.approx(plain["random"].pooled + 0.01)


def test_flips_of_blocks_do_not_call_noise(tmp_path):
    """Under the null the p of a pair is that of its blocks' means."""

    def change(trial, result, observed):
        accuracies(trial, result, observed)
        if trial.row == "hawq":
            result["metrics"]["test_accuracy"] -= GAIN["hawq"] + 0.01 * (-1) ** trial.spec.seed

    comparison = compared(tmp_path, change, seeds=(0, 1, 2, 3))
    assert 3 * 2 / 2**8 < 0.05  # here a difference could be shown
    pair = pairs(comparison, row_scores(comparison))[0]
    expected = sign_flip_p([-0.01, 0.01] * 4)
    assert pair.p == expected == 1.0
    assert pair.verdict == "no difference shown"


POLICIES = [{"a": (4, 3), "b": (4, 4)}, {"a": (4, 3), "b": (4, 8)}, {"a": (4, 3), "b": (4, 8)}]


def test_agreement_is_the_share_of_layers_alike_over_pairs():
    # a agrees in 3 of 3 pairs, b in 1 of 3
    assert agreement(POLICIES) == pytest.approx(4 / 6)
    # widths 3, 4, 8 have shares 1/2, 1/6, 1/3
    assert by_chance(POLICIES) == pytest.approx(1 / 4 + 1 / 36 + 1 / 9)
    assert by_layer(POLICIES) == {"a": 1.0, "b": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match="two policies"):
        agreement(POLICIES[:1])


def test_the_table_of_agreement_leaves_out_what_cannot_differ(tmp_path):
    table = agreement_table(compared(tmp_path))
    assert {row.cells[2] for row in table.rows} == {"hawq", "random"}  # uniform and float have no choice
    assert {row.cells[3] for row in table.rows} == {"3"}
    assert agreement_table(compared(tmp_path / "one", seeds=(0,))).rows == ()


def test_every_layer_of_a_cell_has_its_share_and_its_widths(tmp_path):
    def change(trial, result, _observed):
        if trial.row == "hawq":
            names = list(result["policy"]["layers"])
            wide = names[0] if trial.spec.seed == 1 else None
            set_policy(trial, result, {name: LayerBits(4, 8 if name == wide else 3) for name in names})

    comparison = compared(tmp_path, change, models=MODELS[:1], ceilings=CEILINGS[:1])
    rows = [row for row in agreement_rows(comparison) if row["row"] == "hawq"]
    assert len(rows) == sum(not layer.pinned for layer in comparison.plan.trials[0].ledger)
    assert (rows[0]["alike_share"], rows[0]["bits"], rows[0]["policies"]) == (pytest.approx(1 / 3), "w4a3:2 w4a8:1", 3)
    assert {(row["alike_share"], row["bits"]) for row in rows[1:]} == {(1.0, "w4a3:3")}
    (line,) = (row.cells for row in agreement_table(comparison).rows if row.cells[2] == "hawq")
    assert line[-1] == f"{len(rows) - 1} of {len(rows)}"


@pytest.mark.parametrize("name", ["metamix-ablation", "digits-metamix-ablation"])
def test_the_ablations_set_every_variant_against_metamix(name):
    suite = load_suite(name)
    variants = [entry.row for entry in suite.methods if entry.name == "metamix" and entry.row != "metamix"]
    comparison = as_measured(plan(suite), list(shipped(name))).comparison
    found = pairs(comparison, row_scores(comparison))
    assert [(pair.ours, pair.theirs) for pair in found] == [(row, "metamix") for row in variants]
    differences = [pair.difference for pair in found]
    assert all(difference.n == 5 and difference.interval for difference in differences)
    assert {pair.verdict for pair in found} == {"fewer than 6 blocks: no p-value"}  # five seeds of one network
