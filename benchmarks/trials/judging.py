"""What the harness, and not the method, says about a trial: that the policy is allowed, and how good the network is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from benchmarks.suites.spec import TrialSpec
from benchmarks.trials.audit import audit_codes
from benchmarks.trials.checkpoint import network_digest
from benchmarks.trials.compute import Account
from benchmarks.trials.evaluation import Score, evaluate, recalibrate_bn
from benchmarks.trials.float_start import Start
from benchmarks.trials.setting import Setting
from methods.quantization.cost import Ledger, bops
from methods.quantization.policy import Candidates, Policy, PolicyError

_AUDITED_IMAGES = 64


class CeilingExceededError(Exception):
    """A method returned a policy above the ceiling."""


def check_policy(spec: TrialSpec, ledger: Ledger, policy: Policy | None, candidates: Candidates | None) -> None:
    """Raises PolicyError unless exactly the searchable layers get bits, CeilingExceededError if they cost too much.

    candidates: the bits that may be given; None where any are allowed, for methods that do not choose among them:
    uniform LSQ's activations have any width, and a given policy's bits are those that were given.
    """
    ceiling = spec.ceiling_bops
    if (policy is None) != (ceiling is None):
        raise PolicyError("a quantizing method must return a policy, and only such a method may")
    if policy is None or ceiling is None:
        return
    searchable = {layer.name for layer in ledger if not layer.pinned}
    if wrong := sorted(searchable.symmetric_difference(policy)):
        raise PolicyError(f"the policy must name exactly the searchable layers; differing: {', '.join(wrong)}")
    for name, choices in (candidates or {}).items():
        if policy[name] not in choices:
            known = ", ".join(f"w{bits.weight}a{bits.activation}" for bits in choices)
            raise PolicyError(
                f"the policy gives {name} w{policy[name].weight}a{policy[name].activation}, the space has {known}"
            )
    cost = bops(ledger, policy)
    if cost > ceiling:
        raise CeilingExceededError(f"the policy costs {cost:,} BOPs, above the ceiling of {ceiling:,}")


def validate(setting: Setting, account: Account, model: nn.Module) -> dict[str, float]:
    """The score on validation as if training ended now; batch norm is recalibrated for it and put back."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _recalibrate(setting, account, model)
    score = evaluate(model, setting.data.validation, setting.device, setting.loaders)
    account.show("evaluation", score.images, _forward_macs(setting))
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    return {"accuracy": score.accuracy, "loss": score.loss}


def judge(setting: Setting, account: Account, model: nn.Module, policy: Policy | None, start: Start) -> dict[str, Any]:
    """Audit a finished network's codes, recalibrate its batch norm, and score it. Only here does it see test images."""
    _recalibrate(setting, account, model)
    audit = _audit(setting, model, policy)
    validation = evaluate(model, setting.data.validation, setting.device, setting.loaders)
    test = evaluate(model, setting.data.test, setting.device, setting.loaders)
    account.show("evaluation", validation.images + test.images, _forward_macs(setting))
    digest = network_digest(model.state_dict())
    return {"metrics": _metrics(validation, test, start), "audit": audit, "network_digest": digest}


def best_of(validations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best score on validation during fine-tuning, the first of equals; never used for ranking."""
    if not validations:
        return {}
    best = max(validations, key=lambda row: row["accuracy"])
    return {"best_validation_accuracy": best["accuracy"], "best_validation_step": best["step"]}


def _forward_macs(setting: Setting) -> int:
    return sum(layer.macs for layer in setting.ledger)


def _recalibrate(setting: Setting, account: Account, model: nn.Module) -> None:
    images = recalibrate_bn(model, setting.data.train, setting.device, setting.loaders)
    account.show("recalibration", images, _forward_macs(setting))


def _audit(setting: Setting, model: nn.Module, policy: Policy | None) -> list[dict[str, Any]]:
    if policy is None:
        return []
    count = min(_AUDITED_IMAGES, len(setting.data.validation))
    images = setting.data.validation.load(np.arange(count), None)[0].to(setting.device)
    spec = setting.spec
    narrow, stays_float = spec.quantizer.signed == "narrow", spec.model.stays_float
    return audit_codes(model, setting.ledger, policy, images, narrow=narrow, stays_float=stays_float)


def _metrics(validation: Score, test: Score, start: Start) -> dict[str, Any]:
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_images": test.images,
        "validation_accuracy": validation.accuracy,
        "validation_loss": validation.loss,
        "validation_images": validation.images,
        "start_test_accuracy": start.test_accuracy,
        **({} if test.top5 is None else {"test_top5_accuracy": test.top5, "validation_top5_accuracy": validation.top5}),
    }
