"""What a step costs, counted; and what trials are charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import build_model
from benchmarks.records.record import Records
from benchmarks.suites.spec import DataSpec, ModelSpec
from benchmarks.trials.compute import Account, measure_macs
from benchmarks.trials.trial import _require_share
from methods.contract import InapplicableError, MicroBatch
from methods.quantization.modules import quant_layers
from methods.sensitivity import hessian_samples
from tests.harness import cli, comparable, finished, tiny_suite, write_suite
from tests.problems import make_method, make_problem

IMAGENET = DataSpec(dataset="imagefolder", image_size=224, classes=1000)

# Forward MACs of one image at 224, in millions, and forward + backward over forward, measured for this project.
NETWORKS = [
    ("mobilenet_v2", 300.774, 2.96),
    ("mobilenet_v3_large", 216.590, 2.98),
    ("resnet18", 1814.073, 2.94),
]


def without_data(name: str) -> tuple[nn.Module, Tensor]:
    """A network and an image of shapes only: operations are counted, nothing is computed."""
    with torch.device("meta"):
        model = build_model(ModelSpec(name=name), IMAGENET)  # type: ignore[arg-type]
        return model.train(), torch.empty(2, 3, 224, 224)


@pytest.mark.parametrize(("name", "millions", "ratio"), NETWORKS)
def test_published_networks_cost_what_is_known_of_them(name, millions, ratio):
    model, images = without_data(name)
    forward = measure_macs(lambda: model(images))
    assert forward / 2 / 1e6 == pytest.approx(millions, abs=0.0005)  # given to three decimals
    both = measure_macs(lambda: model(images).sum().backward())
    assert both / forward == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("name", [name for name, _, _ in NETWORKS])
def test_a_hessian_product_costs_almost_eight_forwards_for_weights_and_four_for_inputs(name):
    # Three products per layer forward and five back for weights, two and two for inputs; less for first and last layer,
    # which are pinned and not probed, more for a linear layer within. 96 px are fast, and those are a small share.
    model = build_model(ModelSpec(name=name), IMAGENET.model_copy(update={"image_size": 96})).eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    inner = dict(list(layers.items())[1:-1])
    readers = {name: [layer] for name, layer in inner.items()}
    batch = MicroBatch(torch.randn(1, 3, 96, 96), torch.zeros(1, dtype=torch.int64))
    weights = {n: layer.weight for n, layer in inner.items()}
    probe = torch.Generator().manual_seed(0)
    forward = measure_macs(lambda: model(batch.images))
    of_weights = measure_macs(lambda: hessian_samples(model, {}, batch, weights, probe))
    of_inputs = measure_macs(lambda: hessian_samples(model, readers, batch, {}, probe))
    assert 7.2 <= of_weights / forward < 8.0
    assert 3.6 <= of_inputs / forward < 4.1
    assert measure_macs(lambda: hessian_samples(model, readers, batch, weights, probe)) == of_weights + of_inputs


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_a_grouped_convolutions_backward_is_twice_its_forward(groups, stride, padding):
    layer = nn.Conv2d(8, 16, 3, stride, padding, groups=groups)
    images = torch.randn(3, 8, 9, 9, requires_grad=True)
    size = (9 + 2 * padding - 3) // stride + 1
    forward = 3 * 16 * size**2 * (8 // groups) * 9
    assert measure_macs(lambda: layer(images)) == forward
    assert measure_macs(lambda: layer(images).sum().backward()) == 3 * forward
    assert measure_macs(lambda: layer(images.detach()).sum().backward()) == 2 * forward  # no input gradient


def test_a_linear_layer_counts_its_three_products():
    layer, images = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    assert measure_macs(lambda: F.relu(layer(images)).sum().backward()) == 3 * (3 * 5 * 7)


def test_elementwise_work_has_no_macs():
    x = torch.randn(4, 4, requires_grad=True)
    run: Callable[[], object] = lambda: (x.sigmoid() * x + x).mean().backward()  # noqa: E731
    assert measure_macs(run) == 0


def test_a_quantized_step_costs_what_a_float_step_costs():
    # Quantizers are elementwise; but the first layer's weight and input are no leaves, as weights pass a quantizer.
    problem = make_problem()
    layers = list(quant_layers(problem.model).values())
    images = problem.train.load(torch.arange(4).numpy(), None)[0]
    plain = measure_macs(lambda: problem.model(images))
    for layer in layers:
        layer.weight_quantizer.select(layer.weight_quantizer.widths[0])
        layer.input_quantizer.select(layer.input_quantizer.widths[0])
    assert measure_macs(lambda: problem.model(images)) == plain
    assert plain == 4 * sum(layer.macs for layer in problem.ledger)


def test_an_account_adds_up_and_survives_a_restart():
    account = Account(granted_macs=1000, epoch_macs=100, search_share=0.25)
    account.charge("search/a", 4, 10)
    account.charge("search/a", 4, 10)
    account.charge("finetune", 2, 30)
    account.show("evaluation", 50, 7)
    assert (account.spent_macs, account.searched_macs, account.search_macs) == (140, 80, 250)
    assert (account.finetune_macs, replace(account, free_search=True).finetune_macs) == (920, 1000)
    other = Account(granted_macs=1000, epoch_macs=100, search_share=0.25)
    other.load_state_dict(account.state_dict())
    assert other == account
    assert [phase["macs"] for phase in account.to_dict()["phases"]] == [80, 60]
    assert account.to_dict()["shown"] == [{"name": "evaluation", "images": 50, "macs": 350}]


def test_uniform_lsq_trains_exactly_the_epochs_granted():
    account = comparable(finished().out / "tiny" / "records")["uniform-lsq 0"][1]["account"]
    suite = tiny_suite()
    steps = round(suite.compute.epochs * (960 // suite.recipe.batch_size))
    (phase,) = account["phases"]
    assert (phase["name"], phase["steps"], phase["images"]) == ("finetune", steps, steps * suite.recipe.batch_size)
    assert phase["macs"] == account["granted_macs"] == pytest.approx(suite.compute.epochs * account["epoch_macs"])


def test_what_float_training_took_is_known_and_a_step_of_it_costs_what_the_float_control_s_does():
    suite = tiny_suite()
    batch = suite.pretraining.recipe.batch_size
    images = round(suite.pretraining.epochs * (960 // batch)) * batch
    records = {r.spec["method"]["name"]: r for r in Records(finished().out / "tiny" / "records")}
    (control,) = records["float"].result["account"]["phases"]
    taken = {(r.observed["start_images"], r.observed["start_macs"]) for r in records.values()}
    assert taken == {(images, images * control["macs_per_image"])}


def test_no_trial_is_charged_more_than_its_grant_and_the_searches_have_used_theirs():
    records = comparable(finished().out / "tiny" / "records")
    granted = {result["account"]["granted_macs"] for _, result in records.values()}
    assert len(granted) == 1  # everyone gets the same
    for name, (spec, result) in records.items():
        account = result["account"]
        searched = sum(phase["macs"] for phase in account["phases"] if phase["name"].startswith("search/"))
        spent = sum(phase["macs"] for phase in account["phases"])
        assert spent <= account["granted_macs"], name
        assert searched <= account["granted_macs"] * spec["compute"]["search_share"], name
        (finetune,) = [phase for phase in account["phases"] if phase["name"] == "finetune"]
        left = account["granted_macs"] - spent
        step = finetune["macs_per_image"] * spec["recipe"]["batch_size"]
        assert left < step or spec["method"]["name"] == "float", name  # float steps are cheaper; their number is capped


@pytest.mark.parametrize(
    ("name", "options", "paid"),
    [
        ("hawq", {}, "0 steps of hessian, it needs 10"),
        ("differentiable", {}, "0 steps, it needs 2"),
        ("differentiable", {"alternate": True}, "0 steps, it needs 2"),
        ("metamix", {}, "0 steps of bit-selection, it needs 2"),
    ],
)
def test_a_search_whose_share_pays_no_step_is_refused(name, options, paid):
    problem = make_problem(steps=1, share=0.5)
    method = make_method(name, problem, options)
    with pytest.raises(InapplicableError, match=f"its search share pays {paid}"):
        _require_share(problem, method, method.min_steps)
    fixed = make_method("random", problem)
    _require_share(problem, fixed, fixed.min_steps)


def test_where_searches_are_free_fine_tuning_gets_the_whole_grant(tmp_path):
    compute = {"epochs": 0.3, "search_share": 0.9, "protocol": "free-search"}
    suite = write_suite(tmp_path, methods=["uniform-lsq", "metamix"], compute=compute)
    ran = cli("--suite", suite, "--engine", "local", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "spent more compute" not in ran.err
    charged = comparable(finished().out / "tiny" / "records")
    free = comparable(tmp_path / "out" / "tiny" / "records")
    assert free["uniform-lsq 0"] == charged["uniform-lsq 0"]  # nothing to search: the same trial
    (spec, result), (charged_spec, charged_result) = free["metamix 0"], charged["metamix 0"]
    assert spec["compute"] == {**charged_spec["compute"], "free_search": True}
    assert result["policy"] == charged_result["policy"]
    *searched, tuned = result["account"]["phases"]
    assert searched == charged_result["account"]["phases"][:-1]
    assert tuned["macs"] == result["account"]["granted_macs"]
    page = (tmp_path / "out" / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Searches are free here" in page
