"""Networks that other packages bring: what is refused at `plan`, in one line, and which warnings the others get."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import ledgers, models
from benchmarks.messages import SuiteError
from benchmarks.planning import Plan, plan
from benchmarks.trials.compute import ForwardMeter
from tests.harness import tiny_suite

CLASSES = 10
Forward = Callable[["Own", Tensor], Tensor]


def as_usual(net: Own, x: Tensor) -> Tensor:
    return net.fc(net.c(F.relu(net.b(F.relu(net.a(x))))).mean((2, 3)))


class Own(nn.Module):
    def __init__(self, forward: Forward = as_usual) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)
        self.fc, self.act = nn.Linear(4, CLASSES), nn.ReLU(inplace=True)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plans a suite of one network of one's own."""
    point = importlib.metadata.EntryPoint("own", "own:own", models.MODELS)
    monkeypatch.setattr("benchmarks.suites.spec.plugged", lambda _group: {"own": point})
    for cached in (ledgers._ledger, ledgers.notes_for):
        cached.cache_clear()

    def run(build: Callable[[], nn.Module], stays_float: tuple[str, ...] = ()) -> Plan:
        monkeypatch.setattr(models, "load_plugin", lambda *_: lambda _spec, _classes: build())
        network = {"name": "own", "stays_float": stays_float}
        return plan(tiny_suite(models=[network], methods=["uniform-lsq"], ceilings=["uniform:w4a4"]))

    return run


def test_an_ordinary_network_is_planned_without_a_word(planned):
    assert planned(Own).warnings == ()


def ignores_what_it_returns(net: Own, x: Tensor) -> Tensor:
    x = net.a(x)
    net.act(x)
    return net.fc(net.c(net.b(x)).mean((2, 3)))


def twice(net: Own, x: Tensor) -> Tensor:
    return net.fc(net.b(net.b(net.a(x))).mean((2, 3)))


def choosy(net: Own, x: Tensor) -> Tensor:
    return as_usual(net, x if x.sum() > 0 else -x)


def cut(net: Own, x: Tensor) -> Tensor:
    return as_usual(net, x)[:, :7]


def kept_by_autograd(net: Own, x: Tensor) -> Tensor:
    return net.fc(net.c(net.b(torch.relu(net.a(x)).mul_(2))).mean((2, 3)))


def unfit(net: Own, x: Tensor) -> Tensor:
    return as_usual(net, x.unflatten(2, (7, 32)).flatten(2, 3))


def for_one_image(net: Own, x: Tensor) -> Tensor:
    return as_usual(net, x).view(1, CLASSES)


def torn() -> nn.Module:
    raise LookupError("no such\nblock")


def lazy() -> nn.Module:
    net = Own()
    net.b = nn.LazyConv2d(4, 1)
    return net


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Own(twice), "own: layer b is called 2 times"),
        (lambda: Own(choosy), "own: it cannot be followed"),
        (lambda: Own(cut), r"own: it puts out a tensor of shape \(2, 7\), not \(2, 10\)"),
        (lambda: Own(ignores_what_it_returns), "own: it computes something else once its activations do not work in"),
        (lambda: Own(unfit), r"own: it does not run on an image of shape \(3, 8, 8\): RuntimeError"),
        (
            lambda: Own(for_one_image),
            r"own: it runs on one image and not on a batch of shape \(2, 3, 8, 8\): RuntimeEr",
        ),
        (torn, "own: it cannot be built: LookupError: no such block"),
        (lambda: as_usual, "own: its plug-in builds a function, not a torch.nn.Module"),
        (lazy, "own: b.weight has no shape before the first forward"),
    ],
)
def test_what_cannot_be_quantized_is_refused_before_anything_runs(planned, build, message):
    with pytest.raises(SuiteError, match=message) as error:
        planned(build)
    assert "\n" not in str(error.value)


def test_a_network_that_does_not_train_is_its_trials_failure_and_said_at_plan(planned):
    (warning,) = planned(lambda: Own(kept_by_autograd)).warnings
    assert warning.startswith(
        "own: it does not train as a float network, so its trials will fail: RuntimeError: one of"
    )


def evaluated_alone(net: Own, x: Tensor) -> Tensor:
    if net.training:
        raise LookupError("out of season")
    return as_usual(net, x)


def test_a_network_that_raises_in_training_is_its_trials_failure_and_said_at_plan(planned):
    found = planned(lambda: Own(evaluated_alone))
    assert found.warnings == (
        "own: it does not train as a float network, so its trials will fail: LookupError: out of season",
    )
    assert [layer.kind for layer in found.trials[0].ledger] == [layer.kind for layer in planned(Own).trials[0].ledger]


def choosy_in_training(net: Own, x: Tensor) -> Tensor:
    return choosy(net, x) if net.training else as_usual(net, x)


def test_a_branch_on_data_in_training_alone_is_refused(planned):
    with pytest.raises(SuiteError, match="own: it cannot be followed"):
        planned(lambda: Own(choosy_in_training))


def attending(net: Own, x: Tensor) -> Tensor:
    tokens = net.a(x).flatten(2).transpose(1, 2)
    tokens = tokens + net.attention(tokens, tokens, tokens, need_weights=False)[0]
    return net.fc(net.c(net.b(tokens.transpose(1, 2).unflatten(2, (6, 6)))).mean((2, 3)))


def with_attention() -> nn.Module:
    net = Own(attending)
    net.attention = nn.MultiheadAttention(4, 2, batch_first=True)
    return net


def test_work_that_stays_float_is_refused_or_listed_with_its_macs(planned):
    macs = 4 * 36 * 16 + 2 * 36 * 36 * 4
    with pytest.raises(SuiteError, match=rf"own: .*of attention .*: {macs:,} MACs .*stays_float: \[attention\]"):
        planned(with_attention)
    found = planned(with_attention, ("attention",))
    assert any("of attention (test_benchmarks_models.py" in w and f"{macs:,} MACs" in w for w in found.warnings)
    assert "'attention' (MultiheadAttention) is unknown here" in " ".join(found.warnings)
    assert {layer.name for layer in found.trials[0].ledger} == {"a", "b", "c", "fc"}
    assert found.trials[0].spec.model.stays_float == ("attention",)


def test_weights_of_five_dimensions_do_not_hinder_the_others(planned):
    def build() -> nn.Module:
        net = Own(lambda net, x: as_usual(net, net.deep(x[:, :, None])[:, :, 0]))
        net.deep = nn.Conv3d(3, 3, 1)
        return net

    assert "conv3d of deep" in " ".join(planned(build, ("deep",)).warnings)


def test_a_meter_counts_tokens_in_the_batch_dimension_each():
    layer = nn.Linear(4, 3)
    model = nn.Sequential(layer)
    meter = ForwardMeter(("0",), stepping=True)
    with meter.watching(model):
        model(torch.zeros(2 * 36, 4))  # two images of 36 tokens
    assert meter.macs == 2 * 36 * 12
