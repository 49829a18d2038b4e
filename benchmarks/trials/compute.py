"""The compute account: measures what a step of each phase costs, once, and charges every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from methods.quantization.convert import macs_of_call
from methods.quantization.macs import MacCounter


def measure_macs(run: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions and matrix products that `run` executes, backward passes included."""
    counter = MacCounter()
    with counter:
        run()
    return counter.macs


class UnpaidWorkError(Exception):
    """A method ran the network outside of a charged step, or a step's work differed from its price."""


@dataclass
class ForwardMeter:
    """Forward MACs of a network's layers, counted while they run; running them outside a step is an error.

    layers: their names. A copy of the network that a method makes counts as well.
    """

    layers: tuple[str, ...]
    macs: int = 0
    stepping: bool = False
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        def permit(name: str) -> Any:
            def hook(_layer: nn.Module, _inputs: Any) -> None:
                if not self.stepping:
                    raise UnpaidWorkError(f"the method ran {name} outside its step, where nothing is charged")

            return hook

        def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.macs += macs_of_call(layer, output)

        layers = {name: model.get_submodule(name) for name in self.layers}
        handles = [layer.register_forward_pre_hook(permit(name)) for name, layer in layers.items()]
        handles += [layer.register_forward_hook(count) for layer in layers.values()]
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

    epoch_macs: what one recipe epoch of fine-tuning costs, the unit of tables. free_search: what the search
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
        """Raises ValueError, or any other error that a state of another shape causes."""
        for part in ("phases", "shown"):
            entries = {}
            for name, numbers in state[part].items():
                macs_per_image, steps, images, teacher = map(int, numbers)
                entries[name] = Entry(macs_per_image, steps, images, teacher)
            setattr(self, part, entries)

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
