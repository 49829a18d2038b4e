"""What a network does, read from its graph: its layers' calls, the ranges of their inputs, and what is refused."""

from __future__ import annotations

import inspect
import operator
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.quantization.activations import Activation, HardSigmoid
from methods.quantization.modules import QuantConv2d, QuantLinear
from methods.quantization.ranges import (
    ANY,
    VIEW_MODULES,
    VIEWS,
    Call,
    Range,
    UnknownError,
    changed_in_place,
    of_module,
    of_operation,
    operation,
)

LOGITS_ALONE = "logits of shape (n, classes), and nothing else, are expected"


class NetworkError(ValueError):
    """A network that cannot be counted or quantized as it is; says which layer, why, and what to do."""


def is_layer(module: nn.Module | None) -> bool:
    """Whether it is a convolution or linear layer that quantizers fit: torch's own forward, or ours.

    A subclass with a forward of its own may do anything with its weight, so it does not count as one.
    """
    if isinstance(module, (QuantConv2d, QuantLinear)):
        return True
    return any(
        isinstance(module, kind) and all(_inherits(module, kind, name) for name in names)
        for kind, names in ((nn.Conv2d, ("forward", "_conv_forward", "__call__")), (nn.Linear, ("forward", "__call__")))
    )


def _inherits(module: nn.Module, kind: type[nn.Module], name: str) -> bool:
    """Whether the attribute `name` is `kind`'s own, neither overridden by a subclass nor set on the object."""
    return getattr(type(module), name) is getattr(kind, name) and name not in vars(module)


class _InPlaceProxy(fx.Proxy):
    """Records `x += y` and `x[i] = y` as in-place: unlike x + y, they change what other operations read from x."""

    __array_ufunc__ = None  # NumPy's numbers leave `number * proxy` to the proxy

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _recording(function: Any) -> Any:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow"):
    setattr(_InPlaceProxy, f"__{_name}__", _recording(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """path: the module whose forward was entered last; where tracing fails, the one that it fails in."""

    path = ""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlaceProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        if isinstance(module, (Activation, HardSigmoid, QuantConv2d, QuantLinear, _BatchNorm)):
            return True
        if "forward" in vars(module) or isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        return str(type(module).forward.__module__).startswith("torch.nn")

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        outer, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = outer
        return result


@dataclass(frozen=True)
class Site:
    """One layer's call in the graph.

    source: the tensor that it reads, as a node and how often that was changed in place before; by_keyword: whether
    the call names its argument.
    """

    name: str
    range: Range
    source: tuple[fx.Node, int]
    by_keyword: bool


@dataclass
class Walk:
    """A graph, walked in the order in which it runs, with the range of every node's output.

    changes: each overwriting node's position in that order, with the node whose memory it overwrites.
    """

    nodes: list[fx.Node]
    modules: dict[str, nn.Module]
    ranges: dict[fx.Node, Range] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)
    changes: list[tuple[int, fx.Node]] = field(default_factory=list)
    memory: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """For each node, the first node that shares its memory."""
    perhaps: dict[fx.Node, set[fx.Node]] = field(default_factory=dict)
    """For what an unknown operation puts out, the nodes whose memory it may share."""

    def __post_init__(self) -> None:
        for place, node in enumerate(self.nodes):
            module = self.module_of(node)
            if is_layer(module):
                self._visit_layer(node)
            self.ranges[node] = self._range(node, module)
            self.memory[node] = self._memory(node, module)
            if (target := changed_in_place(node, module)) is not None:
                self._overwrite(place, node, target)

    def module_of(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _visit_layer(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(source, fx.Node):
            raise NetworkError(f"layer {node.target} reads no tensor that the graph shows")
        version = sum(self.memory[target] is self.memory[source] for _, target in self.changes)
        self.sites.append(Site(str(node.target), self.ranges[source], (source, version), not node.args))

    def _range(self, node: fx.Node, module: nn.Module | None) -> Range:
        if node.op in ("placeholder", "get_attr", "output"):
            return ANY
        if is_layer(module):
            return ANY
        call = Call(node, self.ranges)
        try:
            found = of_operation(call) if module is None else of_module(module, call)
        except UnknownError:
            self._warn_of_unknown(node, module)
            self.perhaps[node] = self._memories(node)
            return ANY
        if module is None and found.low == ANY.low:
            self._warn_of_tensors(node)
        return found

    def _warn_of_unknown(self, node: fx.Node, module: nn.Module | None) -> None:
        if module is not None:
            what = f"layer {str(node.target)!r} ({type(module).__name__}) is unknown here: taken as signed"
        else:
            what = f"operation {operation(node)!r} is unknown here: its output is taken as signed"
        if node.all_input_nodes:
            self.unknown[what] = None

    def _warn_of_tensors(self, node: fx.Node) -> None:
        """Parameters and buffers may become negative in training, whatever they are now."""
        names = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
        if names:
            self.unknown[
                f"operation {operation(node)!r} reads {', '.join(names)}, of either sign for all that is known: its "
                "output is taken as signed"
            ] = None

    def _memory(self, node: fx.Node, module: nn.Module | None) -> fx.Node:
        """The first node with the same memory: a view and an in-place operation share that of their input."""
        target = changed_in_place(node, module)
        if target is None and (
            isinstance(module, VIEW_MODULES)
            if module is not None
            else operation(node) in VIEWS or node.target is getattr
        ):
            target = node.all_input_nodes[0] if node.all_input_nodes else None
        return node if target is None else self.memory[target]

    def _overwrite(self, place: int, node: fx.Node, target: fx.Node) -> None:
        """Note that from here on every node which shares its target's memory may hold what `node` writes."""
        root = self.memory[target]
        if root.op == "placeholder":
            name = getattr(node.target, "__name__", node.target)
            raise NetworkError(
                f"{name} changes the images in place, and a batch is used more than once; work on a copy of them"
            )
        self.changes.append((place, target))
        reached = {root, *self.perhaps.get(root, ())}
        for other, found in list(self.ranges.items()):
            if self.memory[other] in reached and other is not node:
                self.ranges[other] = found.hull(self.ranges[node])

    def _memories(self, node: fx.Node) -> set[fx.Node]:
        """All that `node` reads, and that this may be a view of."""
        roots = {self.memory[source] for source in node.all_input_nodes}
        return roots.union(*(self.perhaps.get(root, ()) for root in roots))

    def overwritten_after(self, node: fx.Node) -> bool:
        """Whether something that `node` reads is changed in place once it has run."""
        read, place = self._memories(node), self.nodes.index(node)
        changed = {self.memory[target] for later, target in self.changes if later > place}
        return not read.isdisjoint(changed.union(*(self.perhaps.get(root, ()) for root in changed)))


def warn_of_unknown(walks: tuple[Walk, Walk]) -> None:
    """Warn once of each operation whose output's range is unknown."""
    for what in walks[0].unknown | walks[1].unknown:
        warnings.warn(what, stacklevel=3)


def walks_of(model: nn.Module) -> tuple[Walk, Walk]:
    """The network's graph in training and in evaluation. Raises NetworkError if it has none, or two."""
    modules = dict(model.named_modules())
    with training_flags_kept(model):
        walks = Walk(_trace(model.train()), modules), Walk(_trace(model.eval()), modules)
    names = [[site.name for site in walk.sites] for walk in walks]
    if names[0] != names[1]:
        only = sorted(set(names[0]).symmetric_difference(names[1])) or names[0]
        raise NetworkError(f"layer {only[0]} runs in training or in evaluation alone; both must run the same layers")
    return walks


def walk_in_evaluation(model: nn.Module) -> Walk:
    """The network's graph in evaluation alone. Raises NetworkError if it has none."""
    with training_flags_kept(model):
        return Walk(_trace(model.eval()), dict(model.named_modules()))


@contextmanager
def training_flags_kept(model: nn.Module) -> Iterator[None]:
    """Restores every module's training flag at the end."""
    flags = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _trace(model: nn.Module) -> list[fx.Node]:
    """The nodes of its graph. Buffers stand in it as they are, or else as tensors whose values are not known."""
    try:
        return _traced(model, _Tracer())
    except NetworkError:
        tracer = _Tracer()
        tracer.proxy_buffer_attributes = True  # as `buffer.expand(len(x), -1)` needs it
        try:
            return _traced(model, tracer)
        except NetworkError:
            pass
        raise


def _traced(model: nn.Module, tracer: _Tracer) -> list[fx.Node]:
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    before = set(vars(model))
    try:
        graph = tracer.trace(model, defaults or None)
    except Exception as error:  # whatever a network's own code raises where it meets no real tensor
        where = f"layer {tracer.path} ({type(model.get_submodule(tracer.path)).__name__})" if tracer.path else "it"
        raise NetworkError(
            f"{where} cannot be followed by torch.fx{_place(error)}: {one_line(error)}; what runs must not "
            "depend on the images"
        ) from error
    finally:
        for name in set(vars(model)) - before:
            if name.startswith("_tensor_constant"):
                delattr(model, name)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    if not isinstance(output.args[0], fx.Node):
        what = type(output.args[0]).__name__.removeprefix("immutable_")
        raise NetworkError(f"it puts out a {what}; {LOGITS_ALONE}")
    return list(graph.nodes)


def _place(error: Exception) -> str:
    """Where in the network's own code tracing stopped."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    return f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""


def _is_foreign(filename: str) -> bool:
    return "/torch/" not in filename and filename != __file__ and not filename.startswith("<")


def one_line(error: Exception) -> str:
    """The error in one line, without torch's hints, which are for authors of operations."""
    text = " ".join(str(error).partition(" Hint:")[0].partition(". See the torch.fx docs")[0].split())
    return f"{type(error).__name__}: {text}"


def require_own_layers(model: nn.Module, sites: list[Site]) -> None:
    """Raises NetworkError for a layer that is called twice, has two names, or shares its weight with another.

    A weight is also shared where two parameters are one piece of memory.
    """
    if not sites:
        raise NetworkError("it calls no convolution and no linear layer that could be quantized")
    for name, calls in Counter(site.name for site in sites).items():
        if calls > 1:
            raise NetworkError(
                f"layer {name} is called {calls} times in one forward, with one weight; give each call a "
                "layer of its own"
            )
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    owners: dict[int, list[str]] = {}
    for module, (name, *_) in names.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(_address(parameter), []).append(name or "the network itself")
    modules = dict(model.named_modules())
    for site in sites:
        layer = modules[site.name]
        if len(names[layer]) > 1:
            raise NetworkError(f"{' and '.join(names[layer])} are one layer under two names; keep one of them")
        weight = _plain_weight(site.name, layer)
        if len(sharing := owners[_address(weight)]) > 1:
            raise NetworkError(f"{' and '.join(sharing)} share one weight; give each layer a weight of its own")


def _address(parameter: nn.Parameter) -> int:
    """Where its values are; without memory, as on the meta device or with no values, the object's own."""
    return parameter.data_ptr() or id(parameter)


def _plain_weight(name: str, layer: nn.Module) -> nn.Parameter:
    """The layer's weight. Raises NetworkError if it is made of others, or watched."""
    for what in ("weight", "bias"):
        if getattr(layer, what) is not None and layer._parameters.get(what) is None:
            raise NetworkError(
                f"layer {name} computes its {what} from others (weight norm, pruning or another parametrization), "
                "which quantization would undo; remove the parametrization"
            )
    if not isinstance(layer, (QuantConv2d, QuantLinear)) and (layer._forward_hooks or layer._forward_pre_hooks):
        raise NetworkError(f"layer {name} has forward hooks, which a quantized layer would not have; do without them")
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight
