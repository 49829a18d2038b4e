"""Scores a kept network again, from its file and its record alone."""

from __future__ import annotations

import torch

from benchmarks.commands.exits import Exit
from benchmarks.commands.options import Options
from benchmarks.commands.run import compare_images
from benchmarks.commands.session import open_session
from benchmarks.ledgers import ledger_for
from benchmarks.messages import SuiteError
from benchmarks.models import build_model
from benchmarks.records.record import Record
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.terminal import console
from benchmarks.trials.checkpoint import CheckpointError, load_network, network_digest
from benchmarks.trials.environment import configure_torch
from benchmarks.trials.evaluation import Score, evaluate
from benchmarks.trials.setting import quantizer_options
from methods.quantization.convert import convert
from methods.quantization.cost import PINNED_BITS, with_pins
from methods.quantization.modules import apply_policy
from methods.quantization.policy import Policy


def execute(options: Options, trial_id: str) -> Exit:
    """Print the score of the trial whose id begins with `trial_id`, and whether its record says the same."""
    session = open_session(options)
    chosen = session.find(trial_id)
    record = session.workspace.records.get(chosen.id)
    if record is None or record.status != "ok":
        raise SuiteError(f"trial {chosen.id} ({chosen.label}) has no finished network; run the suite first")
    compare_images(session)
    try:
        score = rescore(record, session.workspace, session.placed())
    except CheckpointError as error:
        raise SuiteError(str(error)) from error
    recorded = record.result["metrics"]["test_accuracy"]
    same = score.accuracy == recorded
    console.print(f"{chosen.label}: test accuracy {100 * score.accuracy:.2f} % of {score.images} images")
    console.print(f"its record says {100 * recorded:.2f} %: {'the same' if same else 'DIFFERENT'}")
    return Exit.WELL if same else Exit.FAILED


def rescore(record: Record, workspace: Workspace, runtime: Runtime) -> Score:
    """Score a kept network on test. Raises CheckpointError if it was not kept, or is not the record's."""
    spec, path = record.trial_spec, workspace.network(record.id)
    configure_torch(runtime.threads, runtime.device)
    try:
        state = load_network(path)
    except FileNotFoundError:
        raise CheckpointError(f"no network {path}; networks are kept for small suites only") from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete it and its record, and run the suite again") from error
    if network_digest(state) != record.result["network_digest"]:
        raise CheckpointError(f"{path}: not the network of record {record.id}; delete both and run the suite again")
    policy = None if record.result["policy"] is None else Policy.from_dict(record.result["policy"])
    model, ledger = build_model(spec.model, spec.data), ledger_for(spec.model, spec.data)
    bits = policy or {layer.name: PINNED_BITS for layer in ledger if not layer.pinned}
    convert(model, ledger, {name: [chosen] for name, chosen in bits.items()}, quantizer_options(spec))
    model.load_state_dict(state)
    if policy is not None:
        apply_policy(model, with_pins(ledger, policy))
    device = torch.device(runtime.device)
    test = runtime.load_data(spec.data).test
    return evaluate(model.to(device), test, device, runtime.loaders)
