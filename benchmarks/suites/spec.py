"""What a trial is: everything that its result depends on, frozen, validated and hashed.

A trial's identity is the hash of its `TrialSpec`; everything in a spec changes results, nothing else does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from benchmarks.drawing.presets import MAX_CLASSES, PRESETS, SPLITS
from benchmarks.messages import unknown
from benchmarks.suites.plugins import DATASETS, MODELS, plugged

PROTOCOL = 1
"""Raised when a change of the harness changes results; part of every trial's id."""


class Config(BaseModel):
    """Base of every part of a suite: keyword-only, frozen; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Bits = Annotated[int, Field(ge=1, le=8)]


def _one_of(own: Iterable[str], group: str) -> AfterValidator:
    """Accepts our own names and those that plug-ins bring."""

    def check(name: str) -> str:
        known = sorted({*own, *plugged(group)})
        if name not in known:
            raise ValueError(unknown("value", name, known))
        return name

    return AfterValidator(check)


OWN_MODELS = {
    "mobilenet_v2": "MobileNetV2 (Sandler et al. 2018), torchvision's; any width.",
    "mobilenet_v3_small": "MobileNetV3-Small (Howard et al. 2019), torchvision's; any width.",
    "mobilenet_v3_large": "MobileNetV3-Large (Howard et al. 2019), torchvision's; any width.",
    "resnet18": "ResNet-18 (He et al. 2016), torchvision's; any width.",
    "resnet101": "ResNet-101 (He et al. 2016), torchvision's; as a teacher.",
}
OWN_DATASETS = {
    "digits": "Handwritten digits of 8 pixels, which come with scikit-learn; ten classes.",
    "cifar10": "CIFAR-10: photographs of 32 pixels, downloaded by `prepare`; ten classes.",
    "cifar100": "CIFAR-100: photographs of 32 pixels, downloaded by `prepare`; a hundred classes.",
    "imagefolder": "A folder of image files, train/<class>/ and val/<class>/, such as ImageNet's.",
    "procedural": "Images drawn by this project from a preset, anywhere the same to the bit.",
}
ModelName = Annotated[str, _one_of(OWN_MODELS, MODELS)]
DatasetName = Annotated[str, _one_of(OWN_DATASETS, DATASETS)]


class ModelSpec(Config):
    """A network's construction. width: multiplier of a MobileNet's channels, or a ResNet's first width over 64.

    form: `imagenet` as published; `small` for small images: stride-1 stem, no max-pooling.
    weights: a torchvision weights enum to start from; none: the suite's float pretraining.
    stays_float: modules or operations of a network of one's own that may do work outside of convolution and linear
    layers; such work is in no BOPs, and listed.
    """

    name: ModelName
    width: float = Field(1.0, gt=0, le=4)
    form: Literal["imagenet", "small"] = "imagenet"
    weights: str | None = None
    stays_float: tuple[str, ...] = Field((), exclude_if=lambda names: not names)

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.name == "resnet101" and (self.width != 1.0 or self.form != "imagenet"):
            raise ValueError("resnet101 is a teacher, at width 1 and form imagenet")
        return self


class _Made(NamedTuple):
    """A dataset of fixed size. image_size: None where images are resized."""

    classes: int
    image_size: int | None
    train: int


_MADE = {"digits": _Made(10, None, 960), "cifar10": _Made(10, 32, 45_000), "cifar100": _Made(100, 32, 45_000)}


class DataSpec(Config):
    """Dataset and image pipeline.

    short_side: use copies of image files brought to this short side, in pixels, which `prepare --cache` makes.
    share: train on this part of the training images alone, the same for every seed.
    """

    dataset: DatasetName
    image_size: int = Field(ge=8, le=1024)
    classes: int = Field(ge=2)
    augment: Literal["none", "affine", "crop-flip", "randaugment"] = "none"
    short_side: int | None = Field(None, ge=16, exclude_if=lambda side: side is None)
    share: float | None = Field(None, gt=0, lt=1, exclude_if=lambda share: share is None)

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.dataset != "imagefolder" and (self.short_side or self.share):
            raise ValueError(f"short_side and share are for folders of image files, not for {self.dataset}")
        if self.dataset == "digits" and self.augment == "randaugment":
            raise ValueError("randaugment is for photographs, not for digits; it has affine")
        if made := _MADE.get(self.dataset):
            if self.classes != made.classes:
                raise ValueError(f"{self.dataset} has {made.classes} classes, not {self.classes}")
            if made.image_size not in (None, self.image_size):
                raise ValueError(f"{self.dataset} has images of {made.image_size} pixels, not {self.image_size}")
        return self

    @property
    def train_images(self) -> int | None:
        """How many training images there are; None if that is unknown before they are read."""
        made = _MADE.get(self.dataset)
        return made and made.train


class ProceduralSpec(DataSpec):
    """Generated images. Keys that are not given come from the preset, which also has the seed and the difficulty."""

    dataset: Literal["procedural"]
    preset: str
    image_size: int = Field(ge=16, le=512)
    classes: int = Field(ge=2, le=MAX_CLASSES)
    train: int = Field(ge=2, le=10**7)
    validation: int = Field(ge=2, le=10**7)
    test: int = Field(ge=2, le=10**7)
    augment: Literal["none", "crop-flip"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if (preset := PRESETS.get(name := str(given.get("preset")))) is None:
            raise ValueError(unknown("preset", name, sorted(PRESETS)))
        return {name: getattr(preset, name) for name in ("image_size", "classes", *SPLITS)} | given

    @property
    def train_images(self) -> int:
        return self.train


def _kind_of_data(given: Any) -> str:
    dataset = given.get("dataset") if isinstance(given, dict) else getattr(given, "dataset", None)
    return "ProceduralSpec" if dataset == "procedural" else "DataSpec"


AnyData = Annotated[
    Annotated[DataSpec, Tag("DataSpec")] | Annotated[ProceduralSpec, Tag("ProceduralSpec")],
    Discriminator(_kind_of_data),
]


class Space(Config):
    """Candidate widths of the searchable layers; first and last layer are 8x8 and shared input grids are tied."""

    weights: tuple[Bits, ...] = Field(min_length=1)
    activations: tuple[Bits, ...] = Field(min_length=1)

    @field_validator("weights", "activations")
    @classmethod
    def _ascending(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(widths)) != len(widths):
            raise ValueError(f"widths must differ, got {list(widths)}")
        return tuple(sorted(widths))

    @field_validator("weights")
    @classmethod
    def _signed(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if 1 in widths:
            raise ValueError("weights are signed and need at least 2 bits")
        return widths


class QuantizerSpec(Config):
    """How every method's quantizer is built; see methods/quantization. `quantizer: lsq+` is short for its first key.

    parameterisation: what activation quantizers learn: `lsq` the step, `lsq+` step and offset, `min-max` the ends of
    the range, `beta-gamma` shares of the first batch's range, through a `sigmoid` or not. offset: `real`-valued,
    or a whole number of steps (`integer`), as integer arithmetic needs it; `lsq` has none.
    """

    parameterisation: Literal["lsq", "lsq+", "min-max", "beta-gamma"] = "lsq"
    sigmoid: bool = Field(False, exclude_if=lambda sigmoid: not sigmoid)
    offset: Literal["real", "integer"] = Field("real", exclude_if=lambda offset: offset == "real")
    gradient_scale: Literal["shared", "tensor", "batch", "none"] = "shared"
    signed: Literal["narrow", "full"] = "narrow"
    padding: Literal["zero-code", "zero"] = "zero-code"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"parameterisation": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.sigmoid and self.parameterisation != "beta-gamma":
            raise ValueError(f"sigmoid is an option of beta-gamma, not of {self.parameterisation}")
        if self.offset == "integer" and self.parameterisation == "lsq":
            raise ValueError("lsq has no offset; offset: integer needs lsq+, min-max or beta-gamma")
        return self


class OptimizerSpec(Config):
    name: Literal["adam", "sgd"] = "adam"
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class Recipe(Config):
    """How weights are trained, alike for every method.

    step_lr_scale: learning rate of quantizer steps over that of weights. activation_first: share of the fine-tuning
    with quantized activations and float weights. validate_epochs: score validation whenever this many recipe epochs of
    fine-tuning are done, for the best epoch, which stands beside the last one and is never ranked.
    """

    optimizer: OptimizerSpec
    batch_size: int = Field(64, ge=2)
    micro_batch: int = Field(64, ge=2)
    warmup_share: float = Field(0.0, ge=0, lt=1)
    step_lr_scale: float = Field(1.0, gt=0)
    activation_first: float = Field(0.0, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    max_norm: float | None = Field(None, gt=0)
    validate_epochs: float | None = Field(None, gt=0, exclude_if=lambda epochs: epochs is None)
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        return self


class Pretraining(Config):
    """Float training that trials of one model and seed share, cached by the hash of its specification."""

    epochs: int = Field(ge=1)
    recipe: Recipe


class ComputeSpec(Config):
    """epochs: recipe epochs granted to every trial; search_share: the part of them that a search may spend.

    free_search: what a search spends is not taken from its fine-tuning, as in most papers.
    """

    epochs: float = Field(gt=0)
    search_share: float = Field(0.0, ge=0, lt=1)
    free_search: bool = Field(False, exclude_if=lambda free: not free)


class MethodSpec(Config):
    name: str
    version: int
    options: dict[str, Any]


class StartSpec(Config):
    """Everything that a trial's float start depends on; its hash is the start's key in the cache.

    pretraining: None for published weights, which are alike for every seed.
    """

    protocol: int = PROTOCOL
    model: ModelSpec
    data: AnyData
    pretraining: Pretraining | None
    seed: int

    @property
    def key(self) -> str:
        return digest(self.model_dump(mode="json"))


class TrialSpec(Config):
    """Everything that a trial's result depends on.

    ceiling_bops: None for the float control, which has no BOPs. teacher: the float network whose soft labels take the
    place of the labels in every training loss; without one, the identity is that of a trial from before teachers.
    kinds: a digest of the kinds and ties of the network's layers, which decide its grids; None for networks whose kinds
    and ties have not changed since before this was part of a trial.
    """

    protocol: int = PROTOCOL
    method: MethodSpec
    model: ModelSpec
    data: AnyData
    pretraining: Pretraining | None
    teacher: StartSpec | None = Field(None, exclude_if=lambda teacher: teacher is None)
    space: Space
    ceiling_bops: int | None
    quantizer: QuantizerSpec
    recipe: Recipe
    compute: ComputeSpec
    kinds: str | None = Field(None, exclude_if=lambda kinds: kinds is None)
    seed: int
    draw: int = 0

    @property  # not cached: model_copy would carry the old id along
    def id(self) -> str:
        return digest(self.model_dump(mode="json"))

    @property
    def start(self) -> StartSpec:
        """The float network that this trial starts from."""
        seed = 0 if self.pretraining is None else self.seed
        return StartSpec(model=self.model, data=self.data, pretraining=self.pretraining, seed=seed)

    @property
    def starts(self) -> tuple[StartSpec, ...]:
        """Every float network that this trial needs."""
        return (self.start,) if self.teacher is None else (self.start, self.teacher)


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `value`'s canonical JSON."""
    return full_digest(value)[:16]


def full_digest(value: Any) -> str:
    """The SHA-256 of `value`'s canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
