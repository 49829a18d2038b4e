"""The numbers behind the report as rows for CSV: one per trial, one per cell, and one per layer of each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from methods.quantization.cost import CONVENTIONS
from reports.findings.account import account_of
from reports.findings.comparison import Comparison, Outcome
from reports.findings.summary import Summary
from reports.findings.tables import BESIDE
from reports.numbers.statistics import Mean, sampling_error

METRICS = (
    "test_accuracy",
    "test_loss",
    "validation_accuracy",
    "validation_loss",
    "start_test_accuracy",
    "test_images",
    "validation_images",
    *BESIDE,
)
LAYER = (
    "name",
    "type",
    "kind",
    "pinned",
    "macs",
    "weights",
    "weight_bits",
    "activation_bits",
    "bops",
    "weight_bytes",
)
COMPUTE = (
    "granted_macs",
    "epoch_macs",
    "spent_macs",
    "search_epochs",
    "search_teacher_epochs",
    "finetune_epochs",
    "finetune_teacher_epochs",
)
SECONDS = ("search", "finetune", "evaluation", "total")


def trial_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Every trial of the plan, with what its record holds; None where it holds nothing."""
    return [_trial_row(outcome) for outcome in comparison.outcomes]


def _trial_row(outcome: Outcome) -> dict[str, Any]:
    spec, trial = outcome.trial.spec, outcome.trial
    identity = {"id": trial.id, "model": trial.model, "row": trial.row, "method": spec.method.name}
    asked = {"ceiling": trial.ceiling, "ceiling_bops": spec.ceiling_bops, "seed": spec.seed, "draw": spec.draw}
    state = {"status": outcome.state, "reason": outcome.reason, "search_stopped": outcome.search_stopped}
    metrics = {name: outcome.metrics.get(name) for name in METRICS}
    error = sampling_error(outcome.accuracy, int(outcome.metrics["test_images"])) if outcome.ok else None
    more = {"test_sampling_error": error, "network_digest": outcome.result.get("network_digest")}
    return {**identity, **asked, **state, **metrics, **more, **_cost(outcome), **_compute(outcome), **_seen(outcome)}


def _cost(outcome: Outcome) -> dict[str, Any]:
    counted: Mapping[str, Any] = outcome.cost.get("bops") or {}
    bops = {f"bops_{name}": counted.get(name) for name in CONVENTIONS}
    return {**bops, **{name: outcome.cost.get(name) for name in ("unused_share", "weight_bytes")}}


def _compute(outcome: Outcome) -> dict[str, Any]:
    account = account_of(outcome)
    if account is None:
        return dict.fromkeys(COMPUTE)
    return {
        "granted_macs": account.granted_macs,
        "epoch_macs": account.epoch_macs,
        "spent_macs": account.spent_macs,
        "search_epochs": account.epochs_of("search"),
        "search_teacher_epochs": account.teacher_epochs_of("search"),
        "finetune_epochs": account.epochs_of("finetune"),
        "finetune_teacher_epochs": account.teacher_epochs_of("finetune"),
    }


def _seen(outcome: Outcome) -> dict[str, Any]:
    seconds: Mapping[str, Any] = outcome.observed.get("seconds") or {}
    environment: Mapping[str, Any] = outcome.observed.get("environment") or {}
    return {
        **{f"{name}_seconds": seconds.get(name) for name in SECONDS},
        "peak_memory_bytes": outcome.observed.get("peak_memory_bytes"),
        "peak_gpu_memory_bytes": outcome.observed.get("peak_gpu_memory_bytes"),
        "device": environment.get("device"),
        "commit": environment.get("commit"),
        "data_digest": outcome.observed.get("data_digest"),
        "weights_digest": outcome.observed.get("weights_digest"),
    }


def layer_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Every layer of every trial with a result: MACs, weights, bits, BOPs and bytes, for tables of latencies."""
    rows = []
    for outcome in comparison.outcomes:
        trial, spec = outcome.trial, outcome.trial.spec
        identity = {"id": trial.id, "model": trial.model, "row": trial.row, "ceiling": trial.ceiling}
        for layer in outcome.result.get("layers") or ():
            rows.append({**identity, "seed": spec.seed, "draw": spec.draw, **{name: layer.get(name) for name in LAYER}})
    return rows


def cell_rows(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Every cell: accuracies as shares, intervals at 95 %, differences paired by seed."""
    return [_cell_row(summary) for summary in summaries]


def _cell_row(summary: Summary) -> dict[str, Any]:
    cell = summary.cell
    return {
        "model": cell.model,
        "ceiling": cell.ceiling,
        "row": cell.row,
        "method": cell.method,
        "trials": len(cell.outcomes),
        "trials_ok": len(cell.ok),
        "seeds": len(cell.accuracies),
        "ceiling_bops": cell.outcomes[0].trial.spec.ceiling_bops,
        "bops": summary.bops,
        "unused_share": cell.mean(lambda outcome: outcome.cost.get("unused_share")),
        "weight_bytes": cell.mean(lambda outcome: outcome.cost.get("weight_bytes")),
        **_mean("test_accuracy", summary.accuracy),
        "test_images": summary.test_images,
        "test_sampling_error": summary.sampling_error,
        **_mean("difference_uniform_lsq", summary.to_uniform),
        **_mean("difference_random", summary.to_random),
        **_mean("difference_float_control", summary.to_float),
        **{name: cell.mean(lambda outcome, name=name: outcome.metrics.get(name)) for name in BESIDE},  # type: ignore[misc]
        "total_seconds": cell.mean(lambda outcome: (outcome.observed.get("seconds") or {}).get("total")),
        "verdict": summary.verdict.text,
        "notes": "; ".join(summary.notes),
    }


def _mean(name: str, mean: Mean | None) -> dict[str, Any]:
    bounds = mean.interval if mean else None
    return {
        name: mean.value if mean else None,
        f"{name}_low": bounds.low if bounds else None,
        f"{name}_high": bounds.high if bounds else None,
        f"{name}_n": mean.n if mean else 0,
    }
