"""The training loop's promises to a method: fresh weights in low precision, generators left alone, a cheap price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.suites.spec import OptimizerSpec
from benchmarks.trials.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from benchmarks.trials.faults import machine_s_fault
from benchmarks.trials.training import Loop, WeightTraining
from methods.contract import Batch, Phase
from methods.quantization.cost import uniform_bits, with_pins
from methods.quantization.modules import quant_layers
from tests.problems import RECIPE, MemorySplit, make_problem

CPU = torch.device("cpu")


@dataclass
class Twice:
    """A trainee that asks the network, changes a weight as an optimizer does, and asks again in the same step."""

    problem: Any
    answers: list[Tensor] = field(default_factory=list)

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        self.answers = [self.ask(batch)]
        with torch.no_grad():
            for parameter in self.problem.model.parameters():
                parameter.mul_(0.5)
        self.answers.append(self.ask(batch))
        return {}

    def ask(self, batch: Batch) -> Tensor:
        logits: Tensor = self.problem.model(batch[0].images)
        return logits.detach()


def test_a_step_in_bfloat16_sees_the_weights_that_it_has_changed():
    problem = make_problem(recipe=RECIPE.model_copy(update={"precision": "bfloat16"}))
    problem.model.eval()
    trainee, batch = Twice(problem), problem.batches(WeightTraining.PHASE, "finetune").next()
    problem.run(trainee, batch, WeightTraining.PHASE)  # type: ignore[arg-type]
    before, after = trainee.answers
    with torch.autocast("cpu", torch.bfloat16):
        expected = trainee.ask(batch)
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


def test_pricing_a_phase_loads_no_more_images_than_it_uses():
    @dataclass(frozen=True)
    class Counting(MemorySplit):
        loaded: list[int] = field(default_factory=list)

        def load(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor]:
            self.loaded.extend(indices.tolist())
            return super().load(indices, draws)

    problem = make_problem(recipe=RECIPE.model_copy(update={"batch_size": 32, "micro_batch": 16}))
    first = problem.batches(WeightTraining.PHASE, "price").next()[0]
    split = Counting(problem.train.images, problem.train.labels)  # type: ignore[attr-defined]
    problem.train = split
    assert problem.price_of(WeightTraining(problem, None, total=1), WeightTraining.PHASE).macs > 0
    assert len(split.loaded) == 8
    assert torch.equal(split.labels[split.loaded], first.labels[:8])  # those that the whole batch begins with


def test_a_checkpoint_s_generators_go_on_where_they_were(tmp_path):
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "c.pt", "id", {"rng": random_state(CPU)})
    expected = torch.rand(4)
    torch.manual_seed(4)
    saved = load_checkpoint(tmp_path / "c.pt", "id")
    assert saved is not None
    set_random_state(saved["rng"], CPU)
    assert torch.equal(torch.rand(4), expected)


def test_a_checkpoint_of_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:7")
        save_checkpoint(tmp_path / "c.pt", "id", {"a": torch.ones(2)})
    saved = load_checkpoint(tmp_path / "c.pt", "id")
    assert saved is not None
    assert saved["a"].device == CPU


@pytest.mark.parametrize(
    ("message", "machine"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("CUDNN_BACKEND_OPERATION: cudnnFinalize Failed cudnn_status: CUDNN_STATUS_NOT_SUPPORTED", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA driver error: unknown error", True),
        ("No CUDA GPUs are available", True),
        ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("could not create a primitive", True),
        ("could not create a memory object", True),
        ("FIND was unable to find an engine to execute this computation", True),
        ("Pin memory thread exited unexpectedly", True),
        ("unable to open shared memory object </torch_1_2> in read-write mode: No such file (2)", True),
        ("unable to mmap 64 bytes: Too many open files (24)", True),
        ("NCCL communicator was aborted on rank 1", True),
        ("mat1 and mat2 shapes cannot be multiplied (8x3 and 4x5)", False),
        ("element 0 of tensors does not require grad and does not have a grad_fn", False),
    ],
)
def test_what_a_machine_says_is_told_from_what_a_method_did(message, machine):
    assert machine_s_fault(RuntimeError(message)) is machine
    assert not machine_s_fault(ValueError(message))


def test_a_search_s_phase_cannot_have_fine_tuning_s_price():
    problem = make_problem()
    training = WeightTraining(problem, with_pins(problem.ledger, uniform_bits(problem.ledger, 4, 4)), total=1)
    with pytest.raises(ValueError, match="cannot be called finetune"):
        next(Loop(problem, training, "search", problem.account, problem.account.search_macs).run())


@pytest.mark.parametrize(("share", "total", "first"), [(0.0, 4, 0), (0.5, 4, 2), (0.9, 3, 2), (0.9, 1, 0)])
def test_weights_are_quantized_from_the_second_stage_on_which_is_never_left_out(share, total, first):
    recipe = RECIPE.model_copy(update={"activation_first": share})
    problem = make_problem(steps=total, share=0.0, recipe=recipe)
    training = WeightTraining(problem, with_pins(problem.ledger, uniform_bits(problem.ledger, 4, 3)), total=total)
    seen = []
    for _ in Loop(problem, training, "finetune", problem.account, problem.account.granted_macs).run():
        layers = [layer for name, layer in quant_layers(problem.model).items() if name in problem.candidates]
        seen.append({(layer.weight_quantizer.bits, layer.input_quantizer.bits) for layer in layers})
    assert seen == [{(None, 3)}] * first + [{(4, 3)}] * (total - first)


def test_what_a_compiler_says_is_no_fault_of_the_method():
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported
    from torch._inductor.exc import InductorError

    assert machine_s_fault(BackendCompilerFailed(None, OSError("no g++"), None))
    assert machine_s_fault(InductorError(OSError("no g++"), None))
    assert not machine_s_fault(Unsupported("a method's own code"))


def trained(compiled: bool) -> dict[str, Tensor]:
    """Weights and steps after ten steps at W4A4 in float64, in which no code is near enough a border to flip."""
    torch.manual_seed(0)
    problem = make_problem(
        steps=12, share=0.0, recipe=RECIPE.model_copy(update={"optimizer": OptimizerSpec(name="sgd", lr=0.02)})
    )
    problem.model.double()
    assert isinstance(problem.train, MemorySplit)
    problem.train = replace(problem.train, images=problem.train.images.double())
    if compiled:
        problem.compile()
    bits = with_pins(problem.ledger, uniform_bits(problem.ledger, 4, 4))
    training = WeightTraining(problem, bits, total=10)
    for _ in Loop(problem, training, "finetune", problem.account, problem.account.granted_macs, total=10).run():
        pass
    return {name: parameter.detach().clone() for name, parameter in problem.model.named_parameters()}


@pytest.mark.complete
def test_compiled_training_steps_are_eager_ones_to_rounding():
    expected, found = trained(False), trained(True)
    assert expected.keys() == found.keys()
    # The loss alone is taken in float32: its gradients are rounded by 2^-24 of themselves, in ten steps of 0.02.
    for name, values in expected.items():
        assert float((found[name] - values).abs().max()) <= 10 * 2.0**-24 * float(values.abs().max()), name
    start = make_problem(steps=12, share=0.0).model.state_dict()
    moved = max(float((values - start[name]).abs().max() / values.abs().max()) for name, values in expected.items())
    assert moved > 1e-3  # a thousand times what is allowed
