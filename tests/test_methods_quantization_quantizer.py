"""Learned offsets, ends of ranges and shares of ranges: values, gradients from formulas, starts and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.models import build_model
from benchmarks.suites.spec import DataSpec, ModelSpec
from benchmarks.trials.audit import AuditError, audit_codes
from methods.quantization.convert import QuantizerOptions, ledger_of
from methods.quantization.cost import bops, with_pins
from methods.quantization.fake_quant import MIN_STEP, StepError
from methods.quantization.modules import QuantConv2d, apply_policy, project_steps, quant_layers
from methods.quantization.policy import LayerBits
from methods.quantization.quantizer import BetaGamma, LearnedOffset, MinMax, OffsetQuantizer, StepQuantizer
from tests.harness import cli, comparable, copy_float_starts, write_suite
from tests.problems import make_method, make_problem, run_search, search
from tests.strategies import quantizable, randn, seeds, start_steps

WIDTHS = (2, 3, 4, 8)

OPTIONS = [
    QuantizerOptions(parameterisation="lsq+"),
    QuantizerOptions(parameterisation="min-max"),
    QuantizerOptions(parameterisation="beta-gamma"),
    QuantizerOptions(parameterisation="beta-gamma", sigmoid=True),
]
NAMES = ["lsq+", "min-max", "beta-gamma", "beta-gamma sigmoid"]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
offsets_too = pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])


def built(options: QuantizerOptions, low: float, high: float, widths: Sequence[int] = WIDTHS) -> OffsetQuantizer:
    """A quantizer that started from the range low..high."""
    quantizer = options.of_input("signed", widths)
    assert isinstance(quantizer, OffsetQuantizer)
    quantizer.initialise(torch.tensor(1.0), (torch.tensor(low), torch.tensor(high)))
    return quantizer


def ends(quantizer: OffsetQuantizer, bits: int) -> tuple[float, float, float]:
    """Step, and the real values of the lowest and highest code."""
    step, offset = (value.item() for value in quantizer.scale_and_offset(bits))
    return step, offset, offset + step * (2**bits - 1)


@st.composite
def exact_ranges(draw: st.DrawFn) -> tuple[int, float, float]:
    """Bits, step and offset that float32 computes with exactly: the step a power of two, the offset eighths of it."""
    bits = draw(st.sampled_from(WIDTHS))
    step = 2.0 ** draw(st.integers(-8, 3))
    return bits, step, -step * draw(st.integers(0, 8 * (2**bits - 1))) / 8


def places(bits: int) -> st.SearchStrategy[list[float]]:
    """u in eighths, up to two codes beyond either end, but for half-way ones, which 1 / 8 keeps clear of."""
    eighths = st.integers(-16, 8 * (2**bits + 1)).filter(lambda k: k % 8 != 4)
    return st.lists(eighths.map(lambda k: k / 8), min_size=1, max_size=12)


@given(exact_ranges(), st.data())
def test_every_code_stays_where_it_is_and_all_else_goes_to_the_nearest(ranged, data):
    bits, step, offset = ranged
    top = 2**bits - 1
    quantizer = built(OPTIONS[1], offset, offset + step * top, [bits])
    quantizer.select(bits)
    codes = torch.arange(top + 1, dtype=torch.float32)
    assert torch.equal(quantizer(codes * step + offset), codes * step + offset)
    u = torch.tensor(data.draw(places(bits)))
    assert torch.equal(quantizer.codes(u * step + offset), u.round().clamp(0, top))
    assert torch.equal(quantizer(u * step + offset), u.round().clamp(0, top) * step + offset)


def expected_ends(u: Tensor, g: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Gradients of the range's ends: -(r - u) / P and (r - u) / P inside, whole at their own end outside."""
    inside, r = (u >= 0) & (u <= top), u.round()
    low = torch.where(inside, -(r - u) / top, (u < 0).double())
    high = torch.where(inside, (r - u) / top, (u > top).double())
    return (g * low).sum(), (g * high).sum()


def expected_step_and_offset(u: Tensor, g: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """LSQ+: r - u inside, 0 below, P above for the step; 0 inside, 1 outside for the offset."""
    inside = (u >= 0) & (u <= top)
    step = torch.where(inside, u.round() - u, torch.where(u < 0, 0.0, float(top)))
    return (g * step).sum(), (g * (~inside).double()).sum()


@every_option
@given(ranged=exact_ranges(), data=st.data())
def test_gradients_are_those_of_the_formulas(options, ranged, data):
    bits, step, offset = ranged
    top = 2**bits - 1
    quantizer = built(options, offset, offset + step * top, [bits])
    first, second = quantizer.pair(bits)
    if options.sigmoid:  # move the shares to where sigmoids are exact: sigmoid(0) = 1/2 of a range twice as large
        quantizer.initialise(torch.tensor(1.0), (torch.tensor(2 * offset), torch.tensor(2 * (offset + step * top))))
        with torch.no_grad():
            first.zero_(), second.zero_()
    quantizer.select(bits)
    u = torch.tensor(data.draw(places(bits)))
    g = torch.tensor(data.draw(st.lists(st.integers(-8, 8), min_size=len(u), max_size=len(u)))).float()
    x = (u * step + offset).requires_grad_()
    quantizer(x).backward(g)
    inside = (u >= 0) & (u <= top)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(inside, g, 0.0))
    scale = quantizer.gradient_scale(x, bits)
    if options.parameterisation == "lsq+":
        expected = expected_step_and_offset(u.double(), g.double(), top)
    else:
        low, high = expected_ends(u.double(), g.double(), top)
        slope = 0.25 if options.sigmoid else 1.0
        reach = 2.0 if options.sigmoid else 1.0
        shares = (offset * reach * slope, (offset + step * top) * reach * slope)
        expected = (low * shares[0], high * shares[1]) if options.parameterisation == "beta-gamma" else (low, high)
        assert scale == 1.0
    # The kernel sums up to 12 products of |g| <= 8 and |slope| <= P in float32, and the chain rule subtracts two such
    # sums over P: 16 roundings of 2^-24 relative to the sum of magnitudes.
    size = float((g.abs() * max(top, 1)).sum())
    for parameter, wanted in zip((first, second), expected, strict=True):
        assert parameter.grad is not None
        reach = abs(offset) + step * top if options.parameterisation == "beta-gamma" else 1.0
        assert abs(float(parameter.grad) - float(wanted) * scale) <= 16 * 2.0**-24 * size * max(reach, 1e-9) * 2


@given(seeds(), st.sampled_from(["unsigned", "signed", "shifted"]))
def test_all_start_alike_from_the_first_batch_s_range(seed, kind):
    x = randn((64,), seed) if kind == "signed" else randn((64,), seed).abs() - (0.375 if kind == "shifted" else 0.0)
    outputs = []
    for options in OPTIONS[:3]:
        quantizer = options.of_input(kind, WIDTHS)
        quantizer.initialise(x.abs().mean(), tuple(x.aminmax()))
        for bits in WIDTHS:
            quantizer.select(bits)
            _, low, high = ends(quantizer, bits)
            # Ends to three roundings of float32: the difference, the division, the product.
            assert low == pytest.approx(min(x.min().item(), 0.0), abs=1e-6)
            assert high == pytest.approx(x.max().item(), rel=4e-7, abs=1e-6)
        quantizer.select(4)
        outputs.append(quantizer(x))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[1], outputs[2], rtol=0, atol=1e-5)


def test_through_the_sigmoid_the_range_starts_a_little_smaller_and_cannot_grow():
    quantizer = built(OPTIONS[3], -1.0, 3.0)
    share = torch.tensor(4.0).sigmoid().item()
    assert ends(quantizer, 4)[1:] == pytest.approx((-share, 3.0 * share), rel=1e-6)
    with torch.no_grad():
        for parameter in quantizer.pair(4):
            parameter.fill_(50.0)
    assert ends(quantizer, 4)[1:] == pytest.approx((-1.0, 3.0), rel=1e-6)


@every_option
def test_zero_lies_in_the_range_whatever_the_first_batch_holds(options):
    for low, high in ((0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)):
        quantizer = built(options, low, high)
        for bits in WIDTHS:
            _, lowest, highest = ends(quantizer, bits)
            assert lowest <= 0.0 <= highest + 1e-6
            quantizer.select(bits)  # steps are positive


@every_option
def test_an_integer_offset_is_a_whole_number_of_steps_and_zero_is_exact(options):
    quantizer = built(options, -0.7, 1.9)
    quantizer.integer_offset = True
    for bits in WIDTHS:
        quantizer.select(bits)
        step, offset, _ = ends(quantizer, bits)
        assert offset / step == pytest.approx(round(offset / step), abs=1e-4)
        assert abs(quantizer.range_of(bits)[1].item() - offset) <= 0.5 * step * (1 + 1e-5)
        assert torch.equal(quantizer(torch.zeros(3)), torch.zeros(3))


def test_rounding_the_zero_point_lets_the_offset_s_gradient_through():
    quantizer = built(OPTIONS[0], -0.7, 1.9, [4])
    quantizer.integer_offset = True
    step, offset = quantizer.scale_and_offset(4)
    by_step, by_offset = torch.autograd.grad(offset.sum(), quantizer.pair(4))
    assert by_offset.item() == pytest.approx(1.0, rel=1e-6)
    # offset = -s * round(-o / s): minus the zero point itself, plus s times the slope o / s^2 of what is rounded.
    real_step, real_offset = (value.item() for value in quantizer.range_of(4))
    rounded = (-offset / step).item()
    assert by_step.item() == pytest.approx(-rounded - real_offset / real_step, abs=1e-5)


@every_option
@given(updates=st.lists(st.floats(-50, 50), min_size=2, max_size=2))
def test_whatever_an_optimizer_does_the_step_stays_positive(options, updates):
    quantizer = built(options, -1.0, 2.0)
    with torch.no_grad():
        for parameter, update in zip(quantizer.pair(4), updates, strict=True):
            parameter.add_(update)
    others = {name: p.clone() for name, p in quantizer.named_parameters() if not name.endswith(".4")}
    quantizer.project()
    step, lowest, highest = ends(quantizer, 4)
    assert math.isfinite(lowest)
    assert math.isfinite(highest)
    # high - low may round MIN_STEP * 15 away beside ends of 50: one ulp of 50 over 15.
    assert step >= MIN_STEP - 50 * 2.0**-23 / 15
    assert all(torch.equal(p, others[name]) for name, p in quantizer.named_parameters() if name in others)


@every_option
def test_a_range_that_was_never_set_cannot_be_used(options):
    quantizer = options.of_input("signed", WIDTHS)
    with pytest.raises(StepError, match="never set"):
        quantizer.select(4)
    with pytest.raises(StepError, match="never set"):
        quantizer.mix(torch.full((4,), 0.25))
    with pytest.raises(ValueError, match="give the extent"):
        quantizer.initialise(torch.tensor(1.0))


@every_option
@offsets_too
def test_a_one_hot_mixture_is_that_width_exactly_and_others_get_no_gradient(options, integer):
    quantizer, x = built(options, -1.0, 2.0), randn((5, 7), 3)
    quantizer.integer_offset = integer
    for index, bits in enumerate(WIDTHS):
        quantizer.select(bits)
        expected = quantizer(x)
        weights = F.one_hot(torch.tensor(index), len(WIDTHS)).float().requires_grad_()
        quantizer.mix(weights)
        quantizer.zero_grad()
        mixed = quantizer(x)
        assert torch.equal(mixed, expected)
        mixed.sum().backward()
        assert weights.grad is not None
        for other in WIDTHS:
            moved = [p.grad.abs().item() for p in quantizer.pair(other) if p.grad is not None]
            assert (sum(moved) > 0) == (other == bits)


def network(options: QuantizerOptions) -> nn.Module:
    """MobileNetV3-small for 32 px: every kind of input, squeeze-and-excitation, depthwise convolutions, padding."""
    data = DataSpec(dataset="digits", image_size=16, classes=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(ModelSpec(name="mobilenet_v3_small", width=0.35, form="small"), data)
    return start_steps(quantizable(model, (3, 16, 16), options=options), randn((8, 3, 16, 16), 0))


@every_option
def test_a_network_trains_with_it_and_survives_a_state_dict(options):
    model = network(options)
    layers = quant_layers(model)
    assert all(type(layer.weight_quantizer) is StepQuantizer for layer in layers.values())
    kinds = {LearnedOffset: "lsq+", MinMax: "min-max", BetaGamma: "beta-gamma"}
    assert {kinds[type(layer.input_quantizer)] for layer in layers.values()} == {options.parameterisation}
    policy = dict.fromkeys(layers, LayerBits(4, 4))
    policy |= {name: LayerBits(8, 8) for name in (next(iter(layers)), list(layers)[-1])}
    apply_policy(model, policy)
    model.train()
    images = randn((8, 3, 16, 16), 1)
    F.cross_entropy(model(images), torch.arange(8)).backward()
    for name, layer in layers.items():
        quantizer = layer.input_quantizer
        assert isinstance(quantizer, OffsetQuantizer)
        for bits in quantizer.widths:
            learned = [p.grad for p in quantizer.pair(bits)]
            if bits == policy[name].activation:
                assert all(grad is not None and bool(torch.isfinite(grad).all()) for grad in learned), name
                assert any(grad.abs().item() > 0 for grad in learned), name
            else:
                assert learned == [None, None], name
    project_steps(model)
    other = network(options)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    apply_policy(other, policy)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), other.eval()(images))


@every_option
@offsets_too
def test_the_audit_finds_the_promised_codes_and_a_tampered_one(options, integer):
    options = QuantizerOptions(
        parameterisation=options.parameterisation, sigmoid=options.sigmoid, integer_offset=integer
    )
    model, images = network(options), randn((8, 3, 16, 16), 2)
    ledger = ledger_of(model, (3, 16, 16))
    policy = {layer.name: LayerBits(4, 3) for layer in ledger if not layer.pinned}
    apply_policy(model, with_pins(ledger, policy))
    rows = audit_codes(model, ledger, policy, images, narrow=True)
    inputs = [row for row in rows if row["tensor"] == "input"]
    assert all(0 <= row["low"] <= row["high"] < 2 ** row["bits"] for row in inputs)
    assert max(row["levels"] for row in inputs if row["bits"] == 3) > 4  # eight are promised
    layer = quant_layers(model)[list(policy)[2]]
    layer.input_quantizer.register_forward_hook(lambda _m, _i, out: out + 0.3 * layer.input_quantizer.range_of(3)[0])
    with pytest.raises(AuditError, match="off the grid"):
        audit_codes(model, ledger, policy, images, narrow=True)


@every_option
@pytest.mark.parametrize("pad_with_zero", [False, True])
def test_padding_is_the_quantizer_s_image_of_zero(options, pad_with_zero):
    layer = QuantConv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(1, 1, 3, 3))
        layer.weight[0, 0, 0, 0] = 1.0  # output (0, 0) is the padding's corner alone
    layer.pad_with_zero = pad_with_zero
    layer.weight_quantizer = QuantizerOptions().of_weight(1, [8])
    layer.input_quantizer = built(options, -0.7, 1.9)
    layer.input_quantizer.select(3)
    corner = layer(randn((1, 1, 4, 4), 0))[0, 0, 0, 0]
    image_of_zero = layer.input_quantizer(torch.zeros(()))
    assert image_of_zero.item() != 0.0
    expected = torch.zeros(()) if pad_with_zero else image_of_zero
    assert torch.allclose(corner, expected, rtol=1e-5, atol=0.0)  # Q(0) times the sum of 8-bit weights 0 and 1


@pytest.mark.parametrize(("options", "integer"), list(product(OPTIONS, [False, True])))
def test_the_memory_of_an_input_is_kept(options, integer):
    quantizer = built(options, -1.0, 1.0)
    quantizer.integer_offset = integer
    quantizer.select(4)
    x = randn((2, 3, 4, 4), 0).to(memory_format=torch.channels_last)
    out = quantizer(x)
    assert out.shape == x.shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == x.dtype


@every_option
@pytest.mark.parametrize("name", ["hawq", "differentiable", "metamix"])
def test_every_search_runs_over_it_and_learns_its_ranges(options, name):
    problem = make_problem(quantizer=options, share=0.5)
    method = make_method(name, problem)
    ranges = {n: p.clone() for n, p in problem.model.named_parameters() if "input_quantizer" in n}
    run_search(search(problem, method))
    policy = method.result().policy
    assert policy is not None
    assert bops(problem.ledger, policy) <= problem.ceiling
    moved = [n for n, p in problem.model.named_parameters() if n in ranges and not torch.equal(p, ranges[n])]
    assert bool(moved) == (name != "hawq")


def test_a_trial_goes_on_from_the_ranges_that_its_search_learned(tmp_path):
    suite = write_suite(
        tmp_path,
        methods=["float", "uniform-lsq", "metamix"],
        quantizer={"parameterisation": "beta-gamma", "sigmoid": True, "offset": "integer"},
    )
    assert cli("--suite", suite, "--engine", "local", "--out", copy_float_starts(tmp_path)).code == 0
    for _, (spec, result) in comparable(tmp_path / "out" / "tiny" / "records").items():
        assert result["status"] == "ok"
        assert spec["quantizer"]["offset"] == "integer"
        inputs = [row for row in result["audit"] or [] if row["tensor"] == "input"]
        assert all(0 <= row["low"] <= row["high"] < 2 ** row["bits"] for row in inputs)
