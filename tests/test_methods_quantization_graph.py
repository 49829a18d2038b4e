"""Networks that are refused before anything runs, by the layer's name, and unusual ones that work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from methods.quantization.convert import ledger_of, replace_activations
from methods.quantization.graph import NetworkError
from methods.quantization.modules import QuantConv2d, QuantLinear, apply_policy, quant_layers
from methods.quantization.policy import LayerBits
from tests.strategies import quantizable, randn, start_steps

SHAPE = (4, 6, 6)
Forward = Callable[["Net", Tensor], object]


def as_usual(net: Net, x: Tensor) -> object:
    return net.head(net.inner(F.relu(net.stem(x))).mean((2, 3)))


class Net(nn.Module):
    """A stem, an inner convolution and a head, run by the forward that is given."""

    def __init__(self, forward: Forward = as_usual) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.act = nn.ReLU(inplace=True)
        self.run = forward

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def refusal(net: nn.Module, stays_float: tuple[str, ...] = ()) -> str:
    with pytest.raises(NetworkError) as error:
        ledger_of(replace_activations(net), SHAPE, stays_float)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_layer_that_is_called_twice_is_refused_by_name() -> None:
    def forward(net: Net, x: Tensor) -> object:
        for _ in range(3):
            x = net.inner(x)
        return net.head(net.stem(x).mean((2, 3)))

    assert refusal(Net(forward)).startswith("layer inner is called 3 times in one forward")


@pytest.mark.parametrize("alias", ["before", "inside"])
def test_a_layer_under_two_names_is_refused_with_both(alias: str) -> None:
    net = Net()
    if alias == "before":
        net.again = net.head
    else:
        net.body = nn.Sequential(nn.Identity(), net.inner)
    expected = "head and again" if alias == "before" else "inner and body.1"
    assert refusal(net).startswith(f"{expected} are one layer under two names")


def test_layers_that_share_a_weight_are_refused_with_both_names() -> None:
    net = Net(lambda net, x: net.head(net.other(net.inner(net.stem(x))).mean((2, 3))))
    net.other = nn.Conv2d(4, 4, 1)
    net.other.weight = net.inner.weight
    assert refusal(net).startswith("inner and other share one weight")


def test_a_weight_that_something_else_owns_as_well_is_refused() -> None:
    net = Net()
    net.embedding = nn.Embedding(3, 4)
    net.embedding.weight = net.head.weight
    assert refusal(net).startswith("head and embedding share one weight")


@pytest.mark.parametrize("share", [lambda weight: weight.data, lambda weight: weight.detach().t()])
def test_two_parameters_of_one_memory_are_one_weight(share: Callable[[nn.Parameter], Tensor]) -> None:
    net = Net()
    net.other = nn.Linear(3, 3)
    net.other.weight = nn.Parameter(share(net.head.weight))
    assert refusal(net).startswith("head and other share one weight")


def test_the_network_itself_may_own_a_layer_s_weight_as_well() -> None:
    net = Net()
    net.prototypes = net.head.weight
    assert refusal(net).startswith("the network itself and head share one weight")


@pytest.mark.parametrize(
    "parametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.parametrize("name", ["inner", "head"])
def test_a_computed_weight_is_refused(parametrize: Callable[[nn.Module], nn.Module], name: str) -> None:
    net = Net()
    parametrize(net.get_submodule(name))
    assert refusal(net).startswith(f"layer {name} computes its weight from others")


def test_a_computed_bias_is_refused() -> None:
    net = Net()
    nn.utils.parametrize.register_parametrization(net.head, "bias", nn.Tanh())
    assert refusal(net).startswith("layer head computes its bias from others")


def test_a_watched_layer_is_refused() -> None:
    net = Net()
    net.inner.register_forward_hook(lambda _m, _i, out: 2 * out)
    assert refusal(net).startswith("layer inner has forward hooks")


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if float(x.mean()) > 0 else x


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.head(net.picky(net.stem(x)).mean((2, 3))),
        lambda net, x: net.head(net.stem(x).mean((2, 3))) if x.shape[0] > 1 else net.head(x.mean((2, 3))),
        lambda net, x: net.head(net.stem(x)[[i for i in range(len(x))]].mean((2, 3))),
    ],
    ids=["values", "number", "len"],
)
def test_a_branch_on_data_is_refused_with_its_place(forward: Forward) -> None:
    net = Net(forward)
    net.picky = Picky()
    text = refusal(net)
    assert "cannot be followed by torch.fx (test_methods_quantization_graph.py:" in text
    assert text.startswith(("layer picky (Picky)", "it cannot"))


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (lambda net, x: (as_usual(net, x), x), "tuple"),
        (lambda net, x: [as_usual(net, x)], "list"),
        (lambda net, x: {"logits": as_usual(net, x)}, "dict"),
    ],
)
def test_an_output_that_is_no_tensor_is_refused(forward: Forward, what: str) -> None:
    assert refusal(Net(forward)).startswith(f"it puts out a {what}; logits")


class Logits(NamedTuple):
    main: object
    auxiliary: object


@pytest.mark.filterwarnings("ignore:operation 'Logits' is unknown here")
def test_an_output_with_names_is_refused() -> None:
    net = Net(lambda net, x: Logits(as_usual(net, x), None))
    assert refusal(net).startswith("it puts out Logits; logits")


def test_a_layer_of_one_mode_alone_is_refused() -> None:
    net = Net(lambda net, x: net.head((net.inner(net.stem(x)) if net.training else net.stem(x)).mean((2, 3))))
    assert refusal(net).startswith("layer inner runs in training or in evaluation alone")


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: x.sub_(1),
        lambda net, x: F.relu(x, True),
        lambda net, x: x.flatten(2).mul_(2).unflatten(2, (6, 6)),
        lambda net, x: torch.add(x, 1, out=x),
    ],
)
def test_changing_the_images_is_refused(change: Callable[[Net, Tensor], Tensor]) -> None:
    net = Net(lambda net, x: as_usual(net, change(net, x)))
    assert "changes the images in place" in refusal(net)


def test_a_network_without_layers_is_refused() -> None:
    assert refusal(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144))).startswith("it calls no convolution")


# Work outside of layers


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


def through(module: nn.Module, forward: Forward) -> Net:
    net = Net(forward)
    net.extra = module
    return net


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def images(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (6, 6))


OUTSIDE: dict[str, tuple[Callable[[], nn.Module], Forward, str, int]] = {
    # module, what is done behind the stem, who is blamed, and its MACs of one image of 36 pixels
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda net, x: images(net.extra(*[tokens(x)] * 3)[0]),
        "multi_head_attention_forward of extra",
        4 * 36 * 16 + 2 * 36 * 36 * 4,
    ),
    "Conv1d": (
        lambda: nn.Conv1d(4, 4, 1),
        lambda net, x: net.extra(x.flatten(2)).unflatten(2, (6, 6)),
        "conv1d of extra",
        576,
    ),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 1), lambda net, x: net.extra(x[:, :, None])[:, :, 0], "conv3d of extra", 576),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 1), lambda net, x: net.extra(x), "conv_transpose2d of extra", 576),
    "GRU": (
        lambda: nn.GRU(4, 4, batch_first=True),
        lambda net, x: images(net.extra(tokens(x))[0]),
        "gru of extra",
        36 * 12 * 8,
    ),
    "LSTM": (
        lambda: nn.LSTM(4, 4, batch_first=True),
        lambda net, x: images(net.extra(tokens(x))[0]),
        "lstm of extra",
        36 * 16 * 8,
    ),
    "F.conv2d": (nn.Identity, lambda net, x: F.conv2d(x, net.inner.weight), "conv2d", 576),
    "F.linear": (nn.Identity, lambda net, x: images(F.linear(tokens(x), net.inner.weight.flatten(1))), "linear", 576),
    "matmul": (nn.Identity, lambda net, x: images(tokens(x) @ net.inner.weight.flatten(1)), "matmul", 576),
    "einsum": (
        nn.Identity,
        lambda net, x: torch.einsum("nchw,dc->ndhw", x, net.inner.weight.flatten(1)),
        "einsum",
        576,
    ),
    "bmm": (nn.Identity, lambda net, x: images(torch.bmm(tokens(x) @ x.flatten(2), tokens(x))), "matmul", 36 * 36 * 4),
    "vector": (nn.Identity, lambda net, x: x * (tokens(x)[0] @ net.inner.bias).reshape(6, 6), "matmul", 144),
    "sdpa": (
        nn.Identity,
        lambda net, x: images(F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x))),
        "scaled_dot_product_attention",
        2 * 36 * 36 * 4,
    ),
    "bilinear": (
        lambda: nn.Bilinear(4, 4, 4),
        lambda net, x: images(net.extra(tokens(x), tokens(x))),
        "bilinear of extra",
        36 * 64,
    ),
    "subclass": (lambda: Standardised(4, 4, 1), lambda net, x: net.extra(x), "conv2d of extra", 576),
    "in place": (
        nn.Identity,
        lambda net, x: images(tokens(x).clone().baddbmm_(tokens(x), net.inner.weight.flatten(1)[None])),
        "baddbmm_",
        576,
    ),
    "distances": (
        nn.Identity,
        lambda net, x: images(torch.cdist(tokens(x), net.inner.weight[..., 0, 0])),
        "cdist",
        576,
    ),
    "time first": (
        nn.Identity,
        lambda net, x: images(torch.conv_tbc(tokens(x), net.inner.weight[None, ..., 0, 0], net.inner.bias)),
        "conv_tbc",
        576,
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.filterwarnings("ignore:.* is unknown here", "ignore:.* of either sign")
def test_work_outside_of_layers_is_named_with_its_macs_unless_it_is_declared(name: str) -> None:
    module, behind, blamed, macs = OUTSIDE[name]
    net = through(module(), lambda net, x: net.head(net.inner(behind(net, net.stem(x))).mean((2, 3))))
    text = refusal(net)
    assert re.search(rf"layers: {re.escape(blamed)} \(\w+\.py:\d+\): {macs:,} MACs", text), text
    declared = "extra" if "of extra" in blamed else blamed
    assert f"stays_float: [{declared}" in text
    if name != "bmm":  # which is two operations
        assert len(ledger_of(net, SHAPE, (declared,))) == 3
        assert len(ledger_of(net, SHAPE, (blamed.partition(" ")[0],))) == 3


@pytest.mark.filterwarnings("ignore:.* is unknown here", "ignore:.* of either sign")
def test_a_stem_in_front_of_the_first_layer_is_not_free() -> None:
    net = Net(lambda net, x: as_usual(net, F.conv2d(x, net.stem.weight, padding=1)))
    assert "conv2d (test_methods_quantization_graph.py" in refusal(net)


def test_what_is_declared_must_be_there() -> None:
    assert refusal(Net(), ("attention",)) == (
        "stays_float names 'attention', which does no work outside of layers; what does: there is none"
    )


# MACs come from what runs


def test_tokens_in_the_batch_dimension_count_each() -> None:
    def forward(net: Net, x: Tensor) -> object:
        folded = tokens(net.stem(x)).reshape(-1, 4)
        return net.head(net.extra(folded).reshape(-1, 36, 4).mean(1))

    net = through(nn.Linear(4, 4), forward)
    assert {layer.name: layer.macs for layer in ledger_of(net, SHAPE)} == {
        "stem": 36 * 144,
        "extra": 36 * 16,
        "head": 12,
    }


# What just works


class Plain(nn.Conv2d):
    """Inherits its forward, so it is a convolution like any other."""


def test_a_subclass_that_inherits_its_forward_is_a_layer() -> None:
    net = Net()
    net.inner = Plain(4, 4, 1)
    assert isinstance(quantizable(net, SHAPE).inner, QuantConv2d)


def finish(net: nn.Module) -> nn.Module:
    net = start_steps(quantizable(net, SHAPE, [LayerBits(4, 4)]), randn((4, *SHAPE), 0))
    layers = quant_layers(net)
    apply_policy(net, {n: LayerBits(*[min(layer.weight_quantizer.widths)] * 2) for n, layer in layers.items()})
    return net


def test_layers_may_be_called_by_keyword() -> None:
    by_place, by_keyword = (
        Net(),
        Net(lambda net, x: net.head(input=net.inner(input=F.relu(net.stem(input=x))).mean((2, 3)))),
    )
    by_keyword.load_state_dict(by_place.state_dict())
    assert ledger_of(by_keyword, SHAPE) == ledger_of(by_place, SHAPE)
    found = [finish(net).train()(randn((4, *SHAPE), 1)) for net in (by_place, by_keyword)]
    assert torch.equal(*found)
    assert {type(layer) for layer in quant_layers(by_keyword).values()} == {QuantConv2d, QuantLinear}


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid])
def test_activations_may_be_called_by_keyword(kind: type[nn.Module]) -> None:
    by_place = Net(lambda net, x: net.head(net.inner(net.act(net.stem(x))).mean((2, 3))))
    by_keyword = Net(lambda net, x: net.head(net.inner(net.act(input=net.stem(x))).mean((2, 3))))
    by_keyword.load_state_dict(by_place.state_dict())
    for net in (by_place, by_keyword):
        net.act = kind(inplace=True)
        replace_activations(net)
    assert ledger_of(by_keyword, SHAPE) == ledger_of(by_place, SHAPE)
    found = [finish(net).train()(randn((4, *SHAPE), 1)) for net in (by_place, by_keyword)]
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore:.* is unknown here", "ignore:.* of either sign")
def test_a_buffer_may_take_its_shape_from_the_images() -> None:
    net = Net(lambda net, x: as_usual(net, x + net.position.expand(x.shape[0], -1, x.size(2), x.size(3))))
    net.register_buffer("position", torch.ones(1, 4, 1, 1))
    assert ledger_of(net, SHAPE) == ledger_of(Net(), SHAPE)


def test_arguments_with_defaults_stand_at_them() -> None:
    class Choosy(Net):
        def forward(self, x: Tensor, features: bool = False, scale: float | None = None) -> object:
            return x if features else as_usual(self, x if scale is None else x * scale)

    assert ledger_of(Choosy(), SHAPE) == ledger_of(Net(), SHAPE)


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "+=": lambda x: _increased(x),
    "relu_": lambda x: x.relu_(),
    "relu": lambda x: F.relu(x, inplace=True),
    "relu6": lambda x: F.relu6(x, True),
    "hardswish": lambda x: F.hardswish(x, True),
    "mul_ of a view": lambda x: x.flatten(1).mul_(2).reshape(x.shape),
    "clamp_ twice": lambda x: x.clamp_(0, 4).add_(1),
    "setitem": lambda x: _zeroed(x),
}


def _increased(x: Tensor) -> Tensor:
    x += 1
    x *= 2
    return x


def _zeroed(x: Tensor) -> Tensor:
    x[:, 0] = 0.0
    return x


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("layer", ["stem", "inner", "head"])
def test_what_works_in_place_behind_a_layer_gives_what_a_copy_gives(name: str, layer: str) -> None:
    def forward(change: Callable[[Tensor], Tensor]) -> Forward:
        def run(net: Net, x: Tensor) -> object:
            for each in ("stem", "inner"):
                x = net.get_submodule(each)(x)
                x = change(x) if each == layer else x
            x = net.head(x.mean((2, 3)))
            return change(x) if layer == "head" else x

        return run

    in_place, copied = Net(forward(IN_PLACE[name])), Net(forward(lambda x: IN_PLACE[name](x.clone())))
    copied.load_state_dict(in_place.state_dict())
    results = []
    for net in (finish(in_place), finish(copied)):
        out = net.train()(randn((4, *SHAPE), 1))
        out.square().sum().backward()
        results.append([out, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 6
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_activation_is_not_handed_on_where_what_it_read_is_changed_before_it_is_used() -> None:
    """relu(x), then x is halved, then a layer reads relu(x): that of the x of then."""

    def forward(net: Net, x: Tensor, *, copy: bool = False) -> object:
        x = net.stem(x) + 1
        y = net.act(x.clone() if copy else x)
        x.mul_(-1)
        return net.head((net.inner(y) + x).mean((2, 3)))

    changed, copied = Net(forward), Net(lambda net, x: forward(net, x, copy=True))
    copied.load_state_dict(changed.state_dict())
    with torch.no_grad():
        assert torch.equal(*(finish(net).eval()(randn((4, *SHAPE), 1)) for net in (changed, copied)))


def test_layers_that_read_one_tensor_before_and_after_it_is_changed_are_not_tied() -> None:
    def forward(net: Net, x: Tensor) -> object:
        x = torch.relu(net.stem(x)).clone()
        first = net.inner(x)
        x.neg_()
        return net.head((first + net.other(x)).mean((2, 3)))

    net = Net(forward)
    net.other = nn.Conv2d(4, 4, 1)
    ledger = {layer.name: layer for layer in ledger_of(net, SHAPE)}
    assert (ledger["inner"].kind, ledger["other"].kind) == ("unsigned", "signed")
    assert ledger["inner"].tie is ledger["other"].tie is None
