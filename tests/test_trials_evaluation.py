"""Recalibration and evaluation, the audit of codes, checkpoints, networks and the environment."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
from dataclasses import replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import files
from benchmarks.engines import run_jobs
from benchmarks.engines.jobs import jobs_of
from benchmarks.engines.local import LocalEngine
from benchmarks.messages import SuiteError
from benchmarks.models import build_model, published_weights, weights_file
from benchmarks.planning import plan
from benchmarks.records.workspace import Workspace
from benchmarks.runtime import Runtime
from benchmarks.seals import sealed
from benchmarks.suites.spec import DataSpec, ModelSpec
from benchmarks.trials import checkpoint, environment
from benchmarks.trials.audit import AuditError, audit_codes
from benchmarks.trials.checkpoint import (
    CheckpointError,
    Saver,
    load_checkpoint,
    load_network,
    network_digest,
    save_checkpoint,
    save_network,
)
from benchmarks.trials.environment import describe
from benchmarks.trials.evaluation import evaluate, recalibrate_bn
from methods.quantization.cost import uniform_bits, with_pins
from methods.quantization.modules import apply_policy, quant_layers
from tests.harness import Silent, copy_float_starts, tiny_suite
from tests.problems import MemorySplit, differing, make_problem, split

CPU = torch.device("cpu")
SMALL = DataSpec(dataset="digits", image_size=8, classes=10)


def norm_network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(80, 3)
        )


def test_recalibrated_statistics_are_the_mean_over_batches():
    model, train = norm_network(), split(430, 5)
    assert recalibrate_bn(model, train, CPU) == 400  # whole batches of 200
    with torch.no_grad():
        outputs = [model[0](train.images[start : start + 200]) for start in (0, 200)]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variance = torch.stack([out.var((0, 2, 3), unbiased=True) for out in outputs]).mean(0)
    # Cumulative averages in float32, each a few ulps.
    assert torch.allclose(model[1].running_mean, mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(model[1].running_var, variance, rtol=1e-5)


def test_recalibration_forgets_what_was_there_and_touches_nothing_else():
    one, other = norm_network(), norm_network()
    with torch.no_grad():
        other[1].running_mean.fill_(float("nan"))
        other[1].running_var.fill_(1e9)
        other[1].num_batches_tracked.fill_(77)
    before = {name: p.clone() for name, p in one.named_parameters()}
    for model in (one.train(), other.train()):
        recalibrate_bn(model, split(60, 5), CPU)
    assert differing(one.state_dict(), other.state_dict()) == []
    assert differing(before, dict(one.named_parameters())) == []
    assert (one[1].momentum, one.training, one[1].training) == (0.1, True, True)


def test_evaluation_is_accuracy_and_mean_loss_in_eval_mode():
    model, test = norm_network().train(), split(230, 6)
    recalibrate_bn(model, test, CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score = evaluate(model, test, CPU)
    assert model.training
    assert differing(before, model.state_dict()) == []
    with torch.no_grad():
        logits = model.eval()(test.images)
    assert score.images == 230
    assert score.accuracy == float((logits.argmax(1) == test.labels).sum()) / 230
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, test.labels)), rel=1e-5)


def quantized():
    problem = make_problem()
    policy = uniform_bits(problem.ledger, 4, 3)
    apply_policy(problem.model, with_pins(problem.ledger, policy))
    return problem, policy, split(16, 2).images


def audit(problem, policy, images):
    return audit_codes(problem.model, problem.ledger, policy, images, narrow=True)


def test_an_honest_network_passes_and_its_levels_are_counted():
    problem, policy, images = quantized()
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    rows = audit(problem, policy, images)
    assert len(rows) == 2 * len(problem.ledger)
    assert differing(before, problem.model.state_dict()) == []
    for row in rows:
        layer = quant_layers(problem.model)[row["layer"]]
        if row["tensor"] == "weight":
            codes = layer.weight_quantizer.codes(layer.weight)
            assert (row["levels"], row["low"]) == (len(codes.unique()), int(codes.min()))
        assert row["levels"] <= 2 ** row["bits"]


def hook_first(problem, tensor: str, change) -> None:
    name = next(iter(problem.candidates))
    quantizer = getattr(quant_layers(problem.model)[name], f"{tensor}_quantizer")
    quantizer.register_forward_hook(lambda _m, _i, out: change(out, quantizer))


def one_level_more(out, quantizer):
    grid, step = quantizer.grids[quantizer.bits], quantizer.step_of(quantizer.bits)
    out = out.clone()
    out.view(-1)[0] = step.view(-1)[0].detach() * (grid.high + 1) - grid.shift
    return out


def off_the_grid(out, quantizer):
    out = out.clone()
    out.view(-1)[0] += 0.3 * quantizer.step_of(quantizer.bits).view(-1)[0].detach()
    return out


@pytest.mark.parametrize("tensor", ["weight", "input"])
@pytest.mark.parametrize(("change", "message"), [(one_level_more, "were promised"), (off_the_grid, "off the grid")])
def test_a_tampered_network_fails_the_audit(tensor, change, message):
    problem, policy, images = quantized()
    hook_first(problem, tensor, change)
    with pytest.raises(AuditError, match=f"{next(iter(problem.candidates))}: .*{message}"):
        audit(problem, policy, images)


@pytest.mark.parametrize("tensor", ["weight", "input"])
def test_an_unquantized_tensor_or_other_bits_fail_the_audit(tensor):
    problem, policy, images = quantized()
    name = next(iter(problem.candidates))
    quantizer = getattr(quant_layers(problem.model)[name], f"{tensor}_quantizer")
    quantizer.off()
    with pytest.raises(AuditError, match=f"{name}: the {tensor} runs at None bits"):
        audit(problem, policy, images)


def test_bits_that_were_not_promised_fail_the_audit():
    problem, policy, images = quantized()
    name = next(iter(problem.candidates))
    quant_layers(problem.model)[name].input_quantizer.select(8)
    with pytest.raises(AuditError, match="runs at 8 bits, 3 were promised"):
        audit(problem, policy, images)


def test_values_that_are_no_numbers_fail_the_audit():
    problem, policy, images = quantized()
    hook_first(problem, "input", lambda out, _quantizer: out * float("nan"))
    with pytest.raises(AuditError):
        audit(problem, policy, images)


class Around(nn.Module):
    """A network with work of its own in front of it, behind it or nowhere."""

    def __init__(self, model: nn.Module, before: Any = None, behind: Any = None) -> None:
        super().__init__()
        self.model, self.before, self.behind = model, before, behind
        self.extra = nn.Linear(3, 3)

    def forward(self, x):
        x = self.model(x if self.before is None else self.before(self, x))
        return x if self.behind is None else self.behind(self, x)


def renamed(problem, policy, around: Around):
    """The problem of that network, whose layers' names have a beginning more."""
    ledger = tuple(replace(layer, name=f"model.{layer.name}", tie=None) for layer in problem.ledger)
    return replace(problem, model=around, ledger=ledger), {f"model.{name}": bits for name, bits in policy.items()}


def eye(x):
    return torch.eye(x.shape[1])


@pytest.mark.parametrize(
    ("before", "behind", "blamed"),
    [
        (
            lambda _, x: F.conv2d(x, eye(x)[:, :, None, None]),
            None,
            r"conv2d of the network's own forward .*no parameter",
        ),
        (None, lambda net, x: net.extra(x), r"linear of extra .*with extra\.weight and extra\.bias"),
        (None, lambda net, x: F.linear(x, net.extra.weight), r"linear of the network's own .*with extra\.weight"),
        (None, lambda net, x: x @ net.extra.weight, r"matmul of the network's own forward .*with extra\.weight"),
    ],
)
def test_float_work_outside_of_layers_is_blamed_by_its_operands_and_on_no_layer(before, behind, blamed):
    problem, policy, images = quantized()
    around = Around(problem.model, before, behind)
    with pytest.raises(AuditError, match=f"^float numbers are multiplied outside of layers, by {blamed}"):
        audit(*renamed(problem, policy, around), images)
    plain = audit(*renamed(problem, policy, Around(problem.model)), images)
    declared = audit_codes(*_given(*renamed(problem, policy, around), images), narrow=True, stays_float=STAYS)
    assert [row["layer"] for row in declared] == [row["layer"] for row in plain]


STAYS = ("conv2d", "linear", "matmul")


def _given(problem, policy, images):
    return problem.model, problem.ledger, policy, images


def test_a_layer_that_multiplies_nothing_fails_the_audit_by_its_name(monkeypatch):
    problem, policy, images = quantized()
    name = next(iter(problem.candidates))
    layer = quant_layers(problem.model)[name]
    monkeypatch.setattr(layer, "forward", lambda x: x[:, :1, ::1, ::1].expand(-1, layer.out_channels, -1, -1))
    with pytest.raises(AuditError, match=f"^{name} gave no weight to a convolution"):
        audit(problem, policy, images)


def test_a_checkpoint_survives_its_file(tmp_path):
    path = tmp_path / "c.pt"
    assert load_checkpoint(path, "id") is None
    state = {"tensor": torch.arange(3), "number": 0.1, "nested": [{"a": None}, "text"]}
    save_checkpoint(path, "id", state)
    found = load_checkpoint(path, "id")
    assert found is not None
    assert torch.equal(found.pop("tensor"), state.pop("tensor"))
    assert found == state


def test_a_save_that_fails_after_a_fallback_leaves_what_was_fallen_back_to(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    for number in (1, 2):
        save_checkpoint(path, "id", {"number": number})
    path.write_bytes(path.read_bytes()[:-7])
    assert load_checkpoint(path, "id") == {"number": 1}
    monkeypatch.setattr(checkpoint, "write_atomic", mock.Mock(side_effect=OSError("No space left")))
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, "id", {"number": 3})
    assert load_checkpoint(path, "id") == {"number": 1}


@pytest.mark.parametrize("place", [0, 0.3, 0.7, -1, -33, -40])
def test_an_altered_or_truncated_checkpoint_is_refused(place, tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, "id", {"a": torch.zeros(5)})
    body = bytearray(path.read_bytes())
    body[int(place * len(body)) if 0 < place < 1 else int(place)] ^= 1
    path.write_bytes(body)
    with pytest.raises(CheckpointError, match=r"c\.pt: truncated or altered"):
        load_checkpoint(path, "id")
    path.write_bytes(body[:-7])
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        load_checkpoint(path, "id")


def test_another_trials_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.pt", "id", {})
    with pytest.raises(CheckpointError, match=r"c\.pt: truncated or altered"):
        load_checkpoint(tmp_path / "c.pt", "other")


def test_a_saver_saves_every_time_or_once_in_a_while():
    for seconds, expected in ((0.0, 3), (1e6, 0)):
        calls: list[int] = []
        saver = Saver(seconds, lambda calls=calls: calls.append(1))
        for _ in range(3):
            saver.tick()
        assert len(calls) == expected


def test_a_networks_digest_follows_names_shapes_and_bytes(tmp_path):
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    save_network(tmp_path / "n.pt", state)
    assert network_digest(load_network(tmp_path / "n.pt")) == network_digest(state)
    others = [{**state, "a": torch.zeros(3, 2)}, {"b": state["b"], "a": state["a"]}, {**state, "b": -state["b"]}]
    others += [{"c": state["a"], "b": state["b"]}, {**state, "a": state["a"].double()}]
    assert len({network_digest(other) for other in [state, *others]}) == 6
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "none.pt")
    (tmp_path / "n.pt").rename(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: truncated or altered"):
        load_network(tmp_path / "m.pt")  # of another name


def test_a_network_kept_without_a_digest_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "n.pt")
    with pytest.raises(CheckpointError, match="without a digest"):
        load_network(tmp_path / "n.pt")


def test_torch_reads_a_kept_network_as_it_is(tmp_path):
    save_network(tmp_path / "n.pt", {"weight": torch.arange(3)})
    assert torch.equal(torch.load(tmp_path / "n.pt", weights_only=True)["weight"], torch.arange(3))


class Harmful:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_network_s_file_runs_nothing(tmp_path):
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "harm": Harmful(tmp_path / "harmed")}, buffer)
    (tmp_path / "n.pt").write_bytes(sealed(buffer.getvalue(), "n"))
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(tmp_path / "n.pt")
    assert not (tmp_path / "harmed").exists()


def test_what_killed_processes_had_begun_to_save_is_removed(tmp_path):
    save_checkpoint(tmp_path / "c.pt", "id", {"number": 1})
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = files._machine()
    (tmp_path / f".c.pt.{here}-{ended.pid}-0a1b2c3d").touch()
    kept = [f".c.pt.{here}-{os.getpid()}-0a1b2c3d", f".d.pt.{here}-{ended.pid}-0a1b2c3d", "c.pt"]
    for name in kept:
        (tmp_path / name).touch()
    assert load_checkpoint(tmp_path / "c.pt", "id") == {"number": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18"])
def test_small_forms_keep_the_resolution_of_small_images(name):
    seen: list[tuple[int, int]] = []
    for form in ("imagenet", "small"):
        model = build_model(ModelSpec(name=name, width=0.25, form=form), SMALL).eval()
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[-2:])))
        assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
        assert not any(getattr(module, "inplace", False) for module in model.modules())
    assert seen == [(8, 8), (16, 16)]


def test_a_narrow_resnet_is_a_resnet_of_other_widths():
    narrow, full = (build_model(ModelSpec(name="resnet18", width=w), SMALL) for w in (0.25, 1.0))
    assert list(narrow.state_dict()) == list(full.state_dict())
    for name, tensor in full.state_dict().items():
        own = narrow.state_dict()[name]
        assert own.dim() == tensor.dim()
        if name.startswith("layer") and tensor.dim() == 4:
            assert [4 * size for size in own.shape[:2]] == list(tensor.shape[:2])


def test_published_weights_must_be_known_and_fit():
    imagenet = DataSpec(dataset="imagefolder", image_size=224, classes=1000)
    with pytest.raises(SuiteError, match="IMAGENET1K_V1"):
        published_weights(ModelSpec(name="resnet18", weights="V9"), imagenet)
    with pytest.raises(SuiteError, match="weights=none"):
        published_weights(ModelSpec(name="resnet18", weights="IMAGENET1K_V1"), SMALL)


class OneWeight(Enum):
    """Stands in for torchvision's enum of a network's weights: two classes' worth of a linear layer."""

    IMAGENET1K_V1 = "https://download.example/tiny-{}.pth"

    @property
    def url(self) -> str:
        return self.value.format(OneWeight.digest)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder that has resnet18's weights under torchvision's way of naming, and the suite's description of them."""
    state = {"fc.weight": torch.arange(6.0).reshape(2, 3)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    OneWeight.digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda name: OneWeight)
    spec, data = (
        ModelSpec(name="resnet18", weights="IMAGENET1K_V1"),
        DataSpec(dataset="imagefolder", image_size=224, classes=1000),
    )
    file = weights_file(spec, tmp_path)
    file.write_bytes(buffer.getvalue())
    return spec, data, file


def test_weights_come_from_a_folder_by_torchvision_s_names(weights):
    spec, data, file = weights
    assert file.name == f"tiny-{OneWeight.digest}.pth"
    assert torch.equal(published_weights(spec, data, file.parent)["fc.weight"], torch.arange(6.0).reshape(2, 3))


def test_weights_of_another_digest_are_refused_and_nothing_in_them_runs(weights, tmp_path):
    spec, data, file = weights

    class Boom:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    file.write_bytes(pickle.dumps(Boom(), protocol=2))
    with pytest.raises(SuiteError, match=r"damaged: its SHA-256"):
        published_weights(spec, data, file.parent)
    OneWeight.digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]  # even where the digest fits
    file.rename(weights_file(spec, file.parent))
    with pytest.raises(SuiteError, match="holds more than weights"):
        published_weights(spec, data, file.parent)
    assert not (tmp_path / "pwned").exists()


def test_weights_that_are_not_in_the_folder_say_where_to_get_them(weights, tmp_path):
    spec, data, file = weights
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SuiteError, match=f"no {file.name} in .*download https://download.example"):
        published_weights(spec, data, empty)


def test_weights_that_cannot_be_fetched_say_what_else_there_is(weights, tmp_path, monkeypatch):
    spec, data, _ = weights
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def offline(*_what: object, **_how: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(SuiteError, match=r"no network.*--weights.*weights=none"):
        published_weights(spec, data)


def test_a_hundred_classes_and_more_are_scored_by_five_guesses_too():
    generator = torch.Generator().manual_seed(0)
    few, many = (MemorySplit(torch.randn(40, 9, generator=generator), torch.arange(40)) for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # one of those by which some labels are guessed
        networks = nn.Linear(9, 99), nn.Linear(9, 100)
    assert evaluate(networks[0], few, CPU).top5 is None
    network = networks[1]
    score = evaluate(network, many, CPU)
    ranks = network(many.images).argsort(1, descending=True)
    assert score.top5 == float((ranks[:, :5] == many.labels[:, None]).any(1).double().mean())
    assert score.top5 > score.accuracy


def test_validating_on_the_way_changes_nothing_but_what_is_told(tmp_path):
    """Of 36 recipe steps all are fine-tuning; validation is scored after each tenth of an epoch of 120 steps."""
    plain = tiny_suite(methods=["uniform-lsq"])
    watched = tiny_suite({"recipe.validate_epochs": 0.1}, methods=["uniform-lsq"])
    workspace = Workspace(copy_float_starts(tmp_path), "tiny")
    for suite in (plain, watched):
        run_jobs(LocalEngine(suite.resources), jobs_of(plan(suite)), workspace, Runtime(), Silent())
    before, after = (workspace.records.get(plan(suite).trials[0].id) for suite in (plain, watched))
    assert before is not None
    assert after is not None
    assert after.result["network_digest"] == before.result["network_digest"]
    assert after.result["curves"]["finetune"] == before.result["curves"]["finetune"]
    assert after.result["account"]["phases"] == before.result["account"]["phases"]
    rows = after.result["curves"]["validation"]
    assert [row["step"] for row in rows] == [12, 24, 36]
    best, metrics = max(rows, key=lambda row: row["accuracy"]), after.result["metrics"]
    assert (metrics["best_validation_accuracy"], metrics["best_validation_step"]) == (best["accuracy"], best["step"])
    assert rows[-1]["accuracy"] == metrics["validation_accuracy"]  # the last is the final one, recalibrated alike
    assert "best_validation_accuracy" not in before.result["metrics"]


def test_the_environment_is_json_and_names_what_matters():
    found = json.loads(json.dumps(describe(2, "cpu")))
    assert found["threads"] == 2
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"python", "platform", "processor", "cores", "commit", "dirty"} <= set(found)
    assert np.__version__ == found["numpy"]
    assert {name: found[name] for name in ("numba", "llvmlite")} == {
        "numba": version("numba"),
        "llvmlite": version("llvmlite"),
    }


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    assert environment.package_versions.__wrapped__() == {"numpy": np.__version__}
