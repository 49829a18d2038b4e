"""What a record's file holds, and what has to agree in it: one schema for all who read or write records.

Parts that are not named here are accepted: later versions may have more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.records.result import cost_of, layer_rows
from methods.quantization.cost import Layer, Ledger
from methods.quantization.policy import Policy, PolicyError

Status = Literal["ok", "refused", "over_ceiling", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)

Count = Annotated[int, Field(ge=0, le=10**24)]
"""MACs of a whole training of the largest network come to 10**18."""
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Bits = Annotated[int, Field(ge=1, le=32)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


class _Part(BaseModel):
    """Base of the schema's parts. Strict: neither text nor a bool counts as a number."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _Method(_Part):
    name: Name
    version: Count
    options: dict[str, Any]


class _Model(_Part):
    name: Name
    width: Number


class _Spec(_Part):
    """The parts of a specification that every version has; the trial's id is a digest of all of it."""

    protocol: Count
    method: _Method
    model: _Model
    data: dict[str, Any]
    ceiling_bops: Count | None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]
    draw: Count


class _Reason(_Part):
    type: Name
    message: str


class _Phase(_Part):
    name: Name
    steps: Count
    images: Count
    macs: Count


class _Shown(_Part):
    name: Name
    images: Count
    macs: Count


class _Account(_Part):
    granted_macs: Count
    epoch_macs: Annotated[int, Field(gt=0, le=10**24)]
    phases: list[_Phase]
    shown: list[_Shown]


class _Metrics(_Part):
    test_accuracy: Share
    test_loss: Number
    test_images: Annotated[int, Field(ge=1, le=10**12)]
    start_test_accuracy: Share
    validation_accuracy: Share
    validation_loss: Number
    validation_images: Count
    best_validation_accuracy: Share | None = None
    best_validation_step: Count | None = None
    test_top5_accuracy: Share | None = None
    validation_top5_accuracy: Share | None = None


class _Cost(_Part):
    bops: dict[str, Count]
    weight_bytes: Count
    ceiling_bops: Count
    unused_share: Number


class _LayerRow(_Part):
    name: Name
    type: Name
    macs: Count
    weights: Count
    kind: Name
    pinned: bool
    weight_bits: Bits | None
    activation_bits: Bits | None
    bops: Count | None
    weight_bytes: Count | None


class _Code(_Part):
    layer: Name
    tensor: Name
    bits: Bits
    levels: Count
    low: Annotated[int, Field(ge=-(2**32), le=2**32)]
    high: Annotated[int, Field(ge=-(2**32), le=2**32)]


class _Result(_Part):
    """The result of every trial."""

    status: Status
    reason: _Reason | None
    search_stopped: bool
    account: _Account | None
    curves: dict[str, list[dict[str, Number | str | bool | None]]]
    policy: dict[str, Any] | None = None
    layers: list[_LayerRow] = []
    cost: _Cost | None = None
    metrics: _Metrics | None = None
    search: dict[str, Any] = {}
    audit: list[_Code] = []
    network_digest: Name | None = None


class _Environment(_Part):
    """Every other part is a text, a number, a bool or null."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | Number | bool | None]

    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    dirty: bool | None = None
    device: Name | None = None
    processor: Name | None = None


class _Observed(_Part):
    environment: _Environment
    seconds: dict[str, Seconds]
    phase_seconds: dict[str, Seconds] = {}
    data_digest: Name | None = None
    weights_digest: Name | None = None
    teacher_digest: Name | None = None
    peak_memory_bytes: Count | None = None
    peak_gpu_memory_bytes: Count | None = None
    start_seconds: Seconds | None = None
    start_images: Count | None = None
    start_macs: Count | None = None
    restarts: Count | None = None
    ranks: Count | None = None
    engine: Name | None = None
    started: Name | None = None
    finished: Name | None = None
    traceback: str | None = None


class _Compared(_Part):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    spec: _Spec
    result: _Result


class _Body(_Compared):
    observed: _Observed


def problem(body: Mapping[str, Any], *, observed: bool = True) -> str | None:
    """What is wrong with a record's `id`, `spec`, `result` and `observed`, in one line; None for a sound one."""
    try:
        read = (_Body if observed else _Compared).model_validate(body)
    except ValidationError as error:
        return _explained(error)
    result, ceiling = read.result, read.spec.ceiling_bops
    if result.status != "ok":
        return None if result.reason else f"result.reason is missing, of a trial that ended as {result.status}"
    if result.reason or not (result.metrics and result.account and result.network_digest):
        return "result: one that is ok has metrics, account and network_digest, and no reason"
    return _cost_problem(body["result"], ceiling)


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=True)[0]
    place = ".".join(str(part) for part in first["loc"])
    given = repr(first["input"]) if isinstance(first["input"], str | float | bool | None) else type(first["input"])
    got = "" if first["type"] == "missing" else f" (it is {given if len(str(given)) < 80 else 'long'})"
    return f"{place}: {first['msg']}{got}"


def _cost_problem(result: Mapping[str, Any], ceiling: int | None) -> str | None:
    """Whether bits and costs are those of the policy, counted again from the record's own ledger."""
    if (result.get("policy") is None) != (ceiling is None):
        return "result.policy: there is one exactly where there is a ceiling"
    try:
        policy = None if ceiling is None else Policy.from_dict(result["policy"])
        ledger = ledger_of(result["layers"])
        return _difference(result, ledger, policy, ceiling)
    except PolicyError as error:
        return f"result.policy: {error}"
    except (KeyError, ZeroDivisionError) as error:
        return f"result.policy: it does not fit the record's layers ({error!r})"


def _difference(result: Mapping[str, Any], ledger: Ledger, policy: Policy | None, ceiling: int | None) -> str | None:
    if policy is not None and policy.keys() != {layer.name for layer in ledger if not layer.pinned}:
        return "result.policy: it names other layers than the record has"
    for found, expected in zip(result["layers"], layer_rows(ledger, policy), strict=True):
        if differing := [key for key, value in expected.items() if found[key] != value]:
            return f"result.layers: {found['name']} has another {', '.join(differing)} than its policy gives"
    expected_cost = None if policy is None or ceiling is None else cost_of(ledger, policy, ceiling)
    return None if result["cost"] == expected_cost else "result.cost: it is not what policy and layers come to"


def ledger_of(rows: list[Mapping[str, Any]]) -> Ledger:
    """The layers that a record's rows describe, without their ties."""
    return tuple(
        Layer(row["name"], row["type"], row["macs"], row["weights"], row["kind"], row["pinned"]) for row in rows
    )
