"""What a method is given, what it does and what it returns. Free of torch, so that planning is fast.

The harness owns the loop: it asks a method for its phase, feeds it batches, charges them, and stops it when the
method is done or its share of the compute is spent. A method is written against `Problem` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from methods.quantization.cost import Ledger
from methods.quantization.policy import Candidates, Policy

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from torch.optim import Optimizer


class MethodOptions(BaseModel):
    """Base of every method's options: frozen; unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def check(self, ledger: Ledger) -> None:
        """Raises ValueError if these options do not fit the network, such as a policy of another one."""


class MicroBatch(NamedTuple):
    """images: (n, channels, height, width) float32; labels: (n,) int64.

    place: its number in the global batch, from 0. seed: its own, for draws that do not depend on which process has it.
    """

    images: Tensor
    labels: Tensor
    place: int = 0
    seed: int = 0


Batch = Sequence[MicroBatch]
"""One global batch, or this process's part of it, as micro-batches in fixed order.

Batch statistics are those of one micro-batch. Dropout draws the same whichever process has a micro-batch.
"""


@dataclass(frozen=True)
class Phase:
    """A stretch of search steps that all cost the same.

    name: its name in the account; `finetune` is reserved for the harness. split: `train`, all training images;
    `search`, a fifth of them set aside for the search; `rest`, the others.
    """

    name: str
    split: Literal["train", "search", "rest"] = "train"
    augment: bool = True
    train_mode: bool = True


class InapplicableError(Exception):
    """Raised by a method that does not apply to this network or space; its trial is `refused`, shown, not ranked."""


@dataclass(frozen=True)
class Searched:
    """What a search returns.

    policy: bits of exactly the searchable layers, or None for a network that stays float. state: a state dict to go
    on from (weights, batch normalization, activation steps), or None to start from the float weights.
    report: what the record keeps of the search; JSON types only. Its `note`, if any, is shown in the trial's row.
    """

    policy: Policy | None
    state: Mapping[str, Any] | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


class Problem(Protocol):
    """One trial as a method sees it. There is no test split in it."""

    @property
    def model(self) -> nn.Module:
        """The quantizable network with float weights and initialised steps; quantizers are off."""

    @property
    def ledger(self) -> Ledger:
        """All layers in graph order, pinned ones included."""

    @property
    def candidates(self) -> Candidates:
        """Searchable layer -> the bits it may get."""

    @property
    def ceiling(self) -> int:
        """Most BOPs (convention edges8) that the returned policy may cost."""

    def price(self, phase: Phase) -> int:
        """MACs of one step of `phase`, measured by running one; hence not available in a method's `__init__`."""

    def affordable(self, phase: Phase) -> int:
        """Steps of `phase` that the unspent part of the search share pays."""

    def loss(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """The suite's training loss of one micro-batch, shape ()."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients, divided by the number of micro-batches; may be called several times."""

    def grad(self, loss: Tensor, params: Sequence[Tensor]) -> None:
        """As `backward`, for `params` only: gradients of everything else are left alone."""

    def step(self, optimizer: Optimizer, max_norm: float | None = None) -> None:
        """Average gradients over ranks, clip their norm, step, project quantizer steps, clear those gradients."""

    def weight_optimizer(self, params: Iterable[nn.Parameter], lr_scale: float = 1.0) -> Optimizer:
        """The recipe's optimizer over `params`; weight decay falls on weights of layers only."""

    def stream(self, name: str) -> Generator:
        """The named random generator of this trial's seed and draw; the same name gives the same numbers."""

    def draws(self, stream: Generator, micro: MicroBatch) -> Generator:
        """The generator for one micro-batch's draws: `stream` for a batch's first, for each other one of its own.

        So several processes draw the same numbers as one.
        """

    def average(self, values: Tensor) -> Tensor:
        """The mean of `values` over the processes of this trial; with one process, `values` itself."""

    def common(self, values: Tensor) -> Tensor:
        """The `values` of the process that has the first micro-batch, in all processes of this trial."""


class Method(Protocol):
    """How bits are chosen. One instance lives through one trial's search.

    version: raised when results change; part of the trial's id. searches: whether it spends a search share.
    chooses: whether it picks among the policies that the ceiling and the space allow. Then few such policies are worth
    a warning, and bits outside the space fail the trial.
    min_steps: the fewest steps of its phases that give a result. Options must be importable without torch,
    so a method's module imports torch where it is used.
    """

    version: ClassVar[int]
    searches: ClassVar[bool]
    chooses: ClassVar[bool]
    quantizes: ClassVar[bool]
    min_steps: ClassVar[int]
    Options: ClassVar[type[MethodOptions]]

    def __init__(self, problem: Problem, options: Any) -> None: ...

    def phase(self) -> Phase | None:
        """The phase of the next step; None when the search is done."""

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        """One step of `phase`; returns what to log. Also run once per phase, and undone, to measure its price."""

    def result(self) -> Searched: ...

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the model that a restart needs: optimizers, counters, search parameters."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; its tensors are now on the CPU."""


class FixedChoice:
    """Base of methods that choose without training: no phases, no state. Subclasses write `result`."""

    version: ClassVar[int] = 1
    searches: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    quantizes: ClassVar[bool] = True
    min_steps: ClassVar[int] = 0
    Options: ClassVar[type[MethodOptions]] = MethodOptions

    def __init__(self, problem: Problem, options: Any) -> None:
        self.problem, self.options = problem, options

    def phase(self) -> Phase | None:
        return None

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        raise AssertionError(f"{type(self).__name__} has no search steps")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state
