"""Which values an operation can return, given the ranges of its inputs: the kinds of grids follow from that.

A range holds in training and in evaluation alike. The tables below have a rule for each known operation; the output of
any other may be anything.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from methods.quantization.activations import HardSigmoid, HardSwish, ReLU, ReLU6
from methods.quantization.grid import HSWISH_SHIFT, GridKind


class Range(NamedTuple):
    """All values lie in low..high; either may be infinite."""

    low: float
    high: float

    @property
    def kind(self) -> GridKind:
        """The grid for such values.

        Shifted if none lies below h-swish's minimum and they reach at least as far above zero, so that the shift does
        not take most of the grid.

        >>> Range(0.0, 6.0).kind, Range(-0.375, math.inf).kind, Range(-0.75, math.inf).kind, Range(-0.1, 0.1).kind
        ('unsigned', 'shifted', 'signed', 'signed')
        """
        if self.low >= 0.0:
            return "unsigned"
        return "shifted" if self.low >= -HSWISH_SHIFT and self.high >= HSWISH_SHIFT else "signed"

    def hull(self, *others: Range) -> Range:
        """The smallest range that holds this one and the others."""
        ranges = (self, *others)
        return Range(min(r.low for r in ranges), max(r.high for r in ranges))

    def mapped(self, function: Callable[[float], float]) -> Range:
        """The range of an increasing function's values."""
        return Range(function(self.low), function(self.high))

    def __add__(self, other: object) -> Range:
        assert isinstance(other, Range)
        return Range(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Range:
        return Range(-self.high, -self.low)

    def __mul__(self, other: object) -> Range:
        assert isinstance(other, Range)
        ends = [0.0 if 0.0 in (a, b) else a * b for a in self for b in other]
        return Range(min(ends), max(ends))


ANY = Range(-math.inf, math.inf)
UNSIGNED = Range(0.0, math.inf)
SHARE = Range(0.0, 1.0)
ZERO = Range(0.0, 0.0)


class UnknownError(Exception):
    """An operation without a rule here."""


class Call:
    """The arguments of one operation: tensors as ranges, everything else as it stands in the graph."""

    def __init__(self, node: fx.Node, ranges: Mapping[fx.Node, Range]) -> None:
        self.node = node
        self.args: tuple[Any, ...] = fx.map_arg(node.args, lambda n: ranges[n])
        self.kwargs: dict[str, Any] = fx.map_arg(node.kwargs, lambda n: ranges[n])

    def get(self, place: int, name: str, default: Any = None) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[place] if 0 <= place < len(self.args) else default

    def range(self, place: int, name: str, default: float | None = None) -> Range:
        """A tensor's range, or a number's; UnknownError where it is neither."""
        value = self.get(place, name, default)
        if isinstance(value, Range):
            return value
        if isinstance(value, int | float) and not math.isnan(value):
            return Range(float(value), float(value))
        raise UnknownError

    @property
    def first(self) -> Range:
        return self.range(0, "input" if "input" in self.kwargs else "self")

    def ranges(self) -> list[Range]:
        """The ranges of all tensors in the first argument, which is one tensor or a list."""
        given = self.get(0, "tensors" if "tensors" in self.kwargs else "input")
        found = [given] if isinstance(given, Range) else list(given or [])
        if not found or not all(isinstance(each, Range) for each in found):
            raise UnknownError
        return found

    @property
    def of_one_tensor(self) -> bool:
        """Whether both operands are the same tensor."""
        return len(self.node.args) == 2 and self.node.args[0] is self.node.args[1]


Rule = Callable[[Call], Range]


def _add(call: Call) -> Range:
    return call.first + call.range(1, "other") * call.range(-1, "alpha", 1)


def _subtract(call: Call) -> Range:
    return call.first + -(call.range(1, "other") * call.range(-1, "alpha", 1))


def _subtract_reversed(call: Call) -> Range:
    return call.range(1, "other") + -(call.first * call.range(-1, "alpha", 1))


def _multiply(call: Call) -> Range:
    return _squared(call.first) if call.of_one_tensor else call.first * call.range(1, "other")


def _squared(x: Range) -> Range:
    return _raised(x, 2)


def _raised(x: Range, exponent: float) -> Range:
    """The range of `x` raised to a whole power; an even power drops the sign."""
    return (_absolute(x) if exponent % 2 == 0 else x).mapped(lambda end: _power_of(end, exponent))


def _power_of(end: float, exponent: float) -> float:
    try:
        return math.pow(end, exponent)
    except OverflowError:
        return math.copysign(math.inf, end)


def _reciprocal(x: Range) -> Range:
    """The range of 1 / x: anything if zero lies inside; zero at an end is approached from inside the range."""
    if x.low < 0.0 < x.high or x == ZERO:
        return ANY
    return Range(-math.inf if x.high == 0.0 else 1.0 / x.high, math.inf if x.low == 0.0 else 1.0 / x.low)


def _divide(call: Call) -> Range:
    quotient = call.first * _reciprocal(call.range(1, "other"))
    return quotient if call.get(2, "rounding_mode") is None else quotient.mapped(_floored)


def _floored(end: float) -> float:
    return end if math.isinf(end) else math.floor(end)


def _power(call: Call) -> Range:
    base, exponent = call.first, call.get(1, "exponent")
    if base.low >= 0.0:
        return UNSIGNED
    if not isinstance(exponent, int | float) or exponent != int(exponent) or exponent < 1:
        raise UnknownError
    return _raised(base, exponent)


def _summed(x: Range) -> Range:
    """The range of a sum of any number of elements."""
    low, high = x
    return Range(0.0 if low >= 0.0 else -math.inf, 0.0 if high <= 0.0 else math.inf)


def _between(x: Range, low: float | Range | None, high: float | Range | None) -> Range:
    """`x` clamped; an end may be None, a number or a tensor."""
    for bound, rule in ((low, _largest), (high, _smallest)):
        if bound is not None:
            x = rule(x, bound if isinstance(bound, Range) else Range(float(bound), float(bound)))
    return x


def _largest(a: Range, b: Range) -> Range:
    return Range(max(a.low, b.low), max(a.high, b.high))


def _smallest(a: Range, b: Range) -> Range:
    return Range(min(a.low, b.low), min(a.high, b.high))


def _clamp(call: Call) -> Range:
    return _between(call.first, call.get(1, "min"), call.get(2, "max"))


def _hardtanh(call: Call) -> Range:
    low, high = call.get(1, "min_val", -1.0), call.get(2, "max_val", 1.0)
    if not isinstance(low, int | float) or low < 0.0:
        raise UnknownError  # warns that the grid is signed, as for other functions of both signs
    return _between(call.first, low, high)


def _extreme(rule: Callable[[Range, Range], Range]) -> Rule:
    """The rule for the extreme of two tensors, or along a dimension of one."""

    def of(call: Call) -> Range:
        other = call.get(1, "other")
        return rule(call.first, other) if isinstance(other, Range) else call.first

    return of


def _hardswish(x: Range) -> Range:
    def value(end: float) -> float:
        return 0.0 if end <= -3.0 else end if end >= 3.0 else end * (end + 3.0) / 6.0

    ends = sorted(map(value, x))
    return Range(-HSWISH_SHIFT if x.low <= -1.5 <= x.high else ends[0], ends[1])


def _absolute(x: Range) -> Range:
    ends = sorted(map(abs, x))
    return Range(0.0 if x.low <= 0.0 <= x.high else ends[0], ends[1])


def _where(call: Call) -> Range:
    """The rule of `where`, whose condition comes first as a function, second as a method."""
    chosen = call.first if call.node.op == "call_method" else call.range(1, "input")
    return chosen.hull(call.range(2, "other"))


def _filled(call: Call) -> Range:
    return call.first.hull(call.range(2, "value"))


def _padded(call: Call) -> Range:
    if call.get(2, "mode", "constant") != "constant":
        return call.first
    return call.first.hull(call.range(3, "value", 0.0) if call.get(3, "value") is not None else ZERO)


def _average_pool(call: Call) -> Range:
    return _pooled(call.first, call.get(6, "divisor_override"))


def _pooled(x: Range, divisor: Any) -> Range:
    """The mean of a window; padding counts as zeros. With a divisor of one's own a sum of any number of values."""
    if divisor is None:
        return x.hull(ZERO)
    if not isinstance(divisor, int):
        raise UnknownError
    return _summed(x) * Range(1.0 / divisor, 1.0 / divisor)


def _softplus(beta: Any) -> Range:
    """log(1 + exp(beta x)) / beta."""
    if not isinstance(beta, int | float) or beta <= 0.0:
        raise UnknownError
    return UNSIGNED


def _resized(mode: Any, x: Range) -> Range:
    """Cubic interpolation overshoots."""
    if mode not in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area"):
        raise UnknownError
    return x


def _dropped(x: Range, share: Any) -> Range:
    """In training dropout zeroes this share of the values and divides the others by 1 - share."""
    if not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        raise UnknownError
    if share == 0.0:
        return x
    return x.hull(ZERO) if share == 1.0 else x.hull(ZERO, x * Range(1.0 / (1.0 - share), 1.0 / (1.0 - share)))


def _constant(found: Range) -> Rule:
    return lambda _call: found


def _of_first(rule: Callable[[Range], Range]) -> Rule:
    return lambda call: rule(call.first)


def _keep(call: Call) -> Range:
    return call.first


def _together(call: Call) -> Range:
    first, *others = call.ranges()
    return first.hull(*others)


def _taken(call: Call) -> Range:
    """`x[index]`. Of what also puts out places, as `topk` does, it may be those, which count from 0."""
    source, index = call.node.args[0], call.get(1, "index")
    of_places = isinstance(source, fx.Node) and isinstance(index, int) and index != 0 and operation(source) in _PLACING
    return call.first.hull(UNSIGNED) if of_places else call.first


def _attribute(call: Call) -> Range:
    name = str(call.node.args[1])
    if name in _SAME_VALUES:
        return call.first
    if name in _NO_VALUES:
        return UNSIGNED
    raise UnknownError


_SAME_VALUES = {"T", "mT", "H", "mH", "data", "real", "values"}
_NO_VALUES = {
    *("shape", "ndim", "itemsize", "nbytes", "dtype", "device", "layout", "names", "requires_grad", "indices"),
    *("is_cuda", "is_cpu", "is_mps", "is_sparse", "is_quantized", "is_leaf", "is_meta"),
}
"""Attributes of tensors, and of what `sort` and its like put out, that are places, sizes, or no numbers at all."""

_DROPPING = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}

VIEWS = {
    *("flatten", "unflatten", "ravel", "view", "view_as", "reshape", "reshape_as", "unfold", "as_strided", "diagonal"),
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint"),
    *("squeeze", "unsqueeze", "atleast_1d", "atleast_2d", "atleast_3d"),
    *("expand", "expand_as", "broadcast_to", "broadcast_tensors"),
    *("chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind"),
    *("getitem", "narrow", "select", "detach", "contiguous", "positive", "pos", "requires_grad"),
    *("to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "pin_memory"),
    *("real", "conj", "resolve_conj", "resolve_neg"),
    *("alpha_dropout", "feature_alpha_dropout", *_DROPPING),
}
"""Operations whose output may be the memory of their input, so that changing one changes the other."""

_KEEPING = {
    *(f"{kind}_pool{rank}d" for kind in ("adaptive_avg", "adaptive_max", "max") for rank in (1, 2, 3)),
    *("mean", "amax", "amin", "median", "sort", "topk", "gather", "index_select", "clone"),
    *("repeat", "repeat_interleave", "tile", "roll", "flip", "rot90"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
}

_PLACING = {
    *("max", "min", "median", "sort", "topk"),
    *(f"{kind}max_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3)),
}

_OTHER_VALUES = {"alpha_dropout", "feature_alpha_dropout", "unfold", "broadcast_tensors", "getitem", *_DROPPING}
"""Views with values that their input has not, or not alone."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(sorted((VIEWS - _OTHER_VALUES) | _KEEPING), _keep),
    **dict.fromkeys(sorted(_DROPPING), lambda call: _dropped(call.first, call.get(1, "p", 0.5))),
    **dict.fromkeys(["cat", "concat", "concatenate", "stack", "hstack", "vstack"], _together),
    **dict.fromkeys(["avg_pool1d", "avg_pool2d", "avg_pool3d"], _average_pool),
    **dict.fromkeys(["sub", "subtract"], _subtract),
    **dict.fromkeys(["mul", "multiply"], _multiply),
    **dict.fromkeys(["div", "divide", "true_divide", "truediv"], _divide),
    **dict.fromkeys(["floordiv", "floor_divide"], lambda call: _divide(call).mapped(_floored)),
    **dict.fromkeys(["neg", "negative"], _of_first(Range.__neg__)),
    **dict.fromkeys(["abs", "absolute"], _of_first(_absolute)),
    **dict.fromkeys(["clamp", "clip"], _clamp),
    **dict.fromkeys(["gt", "ge", "lt", "le", "eq", "ne", "softmax", "sigmoid"], _constant(SHARE)),
    **dict.fromkeys(["size", "dim", "numel", "ndimension", "exp", "rsqrt"], _constant(UNSIGNED)),
    "softplus": lambda call: _softplus(call.get(1, "beta", 1.0)),
    "tanh": _of_first(lambda x: x.mapped(math.tanh)),
    **dict.fromkeys(["sign", "sgn"], _of_first(lambda x: x.mapped(lambda end: (end > 0.0) - (end < 0.0)))),
    "getitem": _taken,
    "unfold": lambda call: call.first.hull(ZERO),  # as a function it pads with zeros
    "add": _add,
    "rsub": _subtract_reversed,
    "reciprocal": _of_first(_reciprocal),
    "pow": _power,
    "square": _of_first(_squared),
    "sqrt": _of_first(lambda x: _between(x, 0.0, None).mapped(math.sqrt)),
    "sum": _of_first(_summed),
    "floor": _of_first(lambda x: x.mapped(_floored)),
    "relu": _of_first(lambda x: _between(x, 0.0, None)),
    "relu6": _of_first(lambda x: _between(x, 0.0, 6.0)),
    "hardswish": _of_first(_hardswish),
    "hardsigmoid": _of_first(lambda x: _between(x.mapped(lambda end: end / 6.0 + 0.5), 0.0, 1.0)),
    "hardtanh": _hardtanh,
    "clamp_min": lambda call: _between(call.first, call.get(1, "min"), None),
    "clamp_max": lambda call: _between(call.first, None, call.get(1, "max")),
    "maximum": _extreme(_largest),
    "max": _extreme(_largest),
    "minimum": _extreme(_smallest),
    "min": _extreme(_smallest),
    "where": _where,
    "masked_fill": _filled,
    "setitem": _filled,
    "pad": _padded,
    "interpolate": lambda call: _resized(call.get(3, "mode", "nearest"), call.first),
    "fill": lambda call: call.range(1, "value"),
    "zero": _constant(ZERO),
    "zeros_like": _constant(ZERO),
    "ones_like": _constant(Range(1.0, 1.0)),
    **dict.fromkeys(["conv2d", "linear", "batch_norm", "layer_norm", "group_norm", "instance_norm"], _constant(ANY)),
}

_IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow")


def _names() -> dict[Any, str]:
    """Every function of torch, torch.nn.functional and operator that a rule is for, with the rule's name."""
    found: dict[Any, str] = {}
    for name in RULES:
        for home in (torch, F, operator, math):
            for spelled in (name, f"{name}_", f"i{name}" if f"i{name}" in _IN_PLACE_OPERATORS else name):
                if callable(function := getattr(home, spelled, None)):
                    found.setdefault(function, name)
    return found


_NAMES = _names()


def operation(node: fx.Node) -> str:
    """The name under which `node`'s operation is known here; its own name where it is not."""
    if node.op == "call_method":
        return str(node.target).removesuffix("_")
    if node.target is getattr:
        return f".{node.args[1]}"
    return _NAMES.get(node.target, getattr(node.target, "__name__", str(node.target)))


def of_operation(call: Call) -> Range:
    """The range of a function's or method's output; UnknownError if there is no rule for it."""
    node = call.node
    if node.target is getattr:  # of a tensor
        return _attribute(call)
    if operation(node).startswith("_assert"):  # fx's own, of arguments with defaults
        return ANY
    known = node.op == "call_method" or node.target in _NAMES
    if not known or (rule := RULES.get(operation(node))) is None:
        raise UnknownError
    return rule(call)


def changed_in_place(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """The tensor that `node` overwrites, if it does."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if isinstance(out := node.kwargs.get("out"), fx.Node):
        return out
    works = (
        getattr(module, "inplace", False) is True
        if module is not None
        else (name.endswith("_") and not name.endswith("__"))
        or name in _IN_PLACE_OPERATORS
        or name == "setitem"
        or _asks_in_place(node)
    )
    target = node.args[0] if node.args else node.kwargs.get("input")
    return target if works and isinstance(target, fx.Node) else None


def _asks_in_place(node: fx.Node) -> bool:
    """Whether a function is called with inplace=True, by keyword or by place."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return False
    try:
        given = inspect.signature(node.target).bind_partial(*node.args, **node.kwargs).arguments
    except TypeError:
        return False
    return given.get("inplace", False) is True


def _hardtanh_module(module: Any, x: Range) -> Range:
    if module.min_val < 0.0:
        raise UnknownError
    return _between(x, module.min_val, module.max_val)


_MODULES: dict[type[nn.Module], Callable[[Any, Range], Range]] = {
    **dict.fromkeys((nn.ReLU, ReLU), lambda _m, x: _between(x, 0.0, None)),
    ReLU6: lambda _m, x: _between(x, 0.0, 6.0),
    **dict.fromkeys((nn.Hardswish, HardSwish), lambda _m, x: _hardswish(x)),
    **dict.fromkeys((nn.Hardsigmoid, HardSigmoid, nn.Sigmoid, nn.Softmax, nn.Softmax2d), lambda _m, _x: SHARE),
    nn.Softplus: lambda module, _x: _softplus(module.beta),
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh), _hardtanh_module),  # the former has the latter's ends and forward
    **dict.fromkeys(
        (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), lambda m, x: _pooled(x, getattr(m, "divisor_override", None))
    ),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), lambda _m, x: x.hull(ZERO)),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda module, x: _dropped(x, module.p)),
    nn.Upsample: lambda module, x: _resized(module.mode, x),
    **dict.fromkeys(
        (
            *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
            *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Flatten, nn.Unflatten, nn.Identity),
            *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ReflectionPad2d, nn.ReplicationPad2d),
            nn.UpsamplingNearest2d,
        ),
        lambda _m, x: x,
    ),
    **dict.fromkeys(
        (
            nn.BatchNorm1d,
            nn.BatchNorm2d,
            nn.BatchNorm3d,
            nn.SyncBatchNorm,
            nn.GroupNorm,
            nn.LayerNorm,
            nn.InstanceNorm2d,
        ),
        lambda _m, _x: ANY,
    ),
}

VIEW_MODULES = (
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


def of_module(module: nn.Module, call: Call) -> Range:
    """The range of a module's output; UnknownError if it may be anything.

    A subclass is treated as the class whose forward it inherits; one with a forward of its own may compute anything.
    """
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise UnknownError
    for kind in type(module).__mro__:
        if kind in _MODULES and type(module).forward is kind.forward:
            return _MODULES[kind](module, call.first)
    raise UnknownError
