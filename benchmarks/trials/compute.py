"""The compute account: measures what a step of each phase costs, once, and charges every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper


def _convolution_backward(
    grad_out_shape: list[int],
    x_shape: list[int],
    w_shape: list[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: list[bool],
    out_shape: Any = None,
) -> int:
    """FLOPs of a convolution's backward: as many as its forward for the input's gradient, again for the weight's.

    Deviation: torch's own formula forgets groups and counts a depthwise backward as a dense one (20x on MobileNetV2).
    """
    positions = x_shape[2:] if transposed else grad_out_shape[2:]
    forward = 2 * x_shape[0] * prod(positions) * prod(w_shape)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


def measure_macs(run: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions and matrix products that `run` executes, backward passes included."""
    counter = MacCounter()
    with counter:
        run()
    return counter.macs


class MacCounter(TorchDispatchMode):
    """Multiply-accumulates of what runs inside: torch's own FLOP formulas, summed and halved. May be nested.

    Deviation: not torch's FlopCounterMode, whose module tracker refuses autograd.grad with respect to parameters that
    pass through a module, as quantized weights do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.formulas = {**flop_registry, torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward)}

    @property
    def macs(self) -> int:
        macs: int = self.flops // 2
        return macs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # composite operations count as what they are made of
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        return out


class UnpaidWorkError(Exception):
    """A method ran the network where nobody charges it, or for more than the price of its step."""


@dataclass
class ForwardMeter:
    """Forward MACs of a network's layers, counted while they run; running them outside a step is an error.

    macs_of: layer -> MACs of one image. A copy of the network that a method makes counts as well.
    """

    macs_of: dict[str, int]
    macs: int = 0
    stepping: bool = False
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        def count(name: str) -> Any:
            def hook(_layer: nn.Module, inputs: Any) -> None:
                if not self.stepping:
                    raise UnpaidWorkError(f"the method ran {name} outside its step, where nothing is charged")
                self.macs += len(inputs[0]) * self.macs_of[name]

            return hook

        handles = [model.get_submodule(name).register_forward_pre_hook(count(name)) for name in self.macs_of]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def step(self, phase: str, images: int) -> Iterator[None]:
        """One step of `phase`. Raises UnpaidWorkError if it runs more or less per image than the phase's first."""
        before, outer, self.stepping = self.macs, self.stepping, True
        try:
            yield
        finally:
            self.stepping = outer
        spent = self.macs - before
        priced, priced_images = self.seen.setdefault(phase, (spent, images))
        if spent * priced_images != priced * images:
            raise UnpaidWorkError(
                f"a step of {phase} ran {spent // images:,} forward MACs per image, {priced // priced_images:,} when "
                "its price was taken; give work that differs a phase of its own"
            )


@dataclass
class Entry:
    """What one phase has cost so far. teacher_macs_per_image: the teacher's part of `macs_per_image`."""

    macs_per_image: int
    steps: int = 0
    images: int = 0
    teacher_macs_per_image: int = 0

    @property
    def macs(self) -> int:
        return self.images * self.macs_per_image


@dataclass
class Account:
    """MACs granted to a trial and what has been charged, by phase; `shown` is counted but not charged.

    epoch_macs: what one recipe epoch of fine-tuning costs, the unit in which tables speak. free_search: what the search
    spends is counted, and fine-tuning gets the whole grant all the same.
    """

    granted_macs: int
    epoch_macs: int
    search_share: float
    free_search: bool = False
    phases: dict[str, Entry] = field(default_factory=dict)
    shown: dict[str, Entry] = field(default_factory=dict)

    @property
    def spent_macs(self) -> int:
        return sum(entry.macs for entry in self.phases.values())

    @property
    def searched_macs(self) -> int:
        """What the search has spent."""
        return sum(entry.macs for name, entry in self.phases.items() if name.startswith("search/"))

    @property
    def finetune_macs(self) -> int:
        """What fine-tuning may spend after the search."""
        return self.granted_macs - (0 if self.free_search else self.searched_macs)

    @property
    def search_macs(self) -> int:
        """What a search may spend in all."""
        return int(self.granted_macs * self.search_share)

    def charge(self, phase: str, images: int, macs_per_image: int, teacher_macs_per_image: int = 0) -> None:
        entry = self.phases.setdefault(phase, Entry(macs_per_image, teacher_macs_per_image=teacher_macs_per_image))
        entry.steps += 1
        entry.images += images

    def show(self, what: str, images: int, macs_per_image: int) -> None:
        self.shown.setdefault(what, Entry(macs_per_image)).images += images

    def state_dict(self) -> dict[str, Any]:
        return {
            part: {
                name: [e.macs_per_image, e.steps, e.images, e.teacher_macs_per_image]
                for name, e in getattr(self, part).items()
            }
            for part in ("phases", "shown")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in ("phases", "shown"):
            setattr(self, part, {name: Entry(*numbers) for name, numbers in state[part].items()})

    def to_dict(self) -> dict[str, Any]:
        """The account as a record keeps it."""
        charged = [
            {
                "name": name,
                "steps": entry.steps,
                "images": entry.images,
                "macs": entry.macs,
                "macs_per_image": entry.macs_per_image,
                **({"teacher_macs": teacher} if (teacher := entry.images * entry.teacher_macs_per_image) else {}),
            }
            for name, entry in self.phases.items()
        ]
        shown = [{"name": n, "images": e.images, "macs": e.macs} for n, e in self.shown.items()]
        return {
            "granted_macs": self.granted_macs,
            "epoch_macs": self.epoch_macs,
            "search_share": self.search_share,
            **({"free_search": True} if self.free_search else {}),
            "phases": charged,
            "shown": shown,
        }
