"""HAWQ-style: Hessian trace x perturbation, then an exact integer programme.

Dong et al., NeurIPS 2020 (HAWQ-v2, arXiv 1911.03852); Yao et al., ICML 2021 (HAWQ-v3, arXiv 2011.10680).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field

from methods.allocation import best_ordered_policy, best_policy
from methods.contract import Batch, InapplicableError, MethodOptions, Phase, Problem, Searched
from methods.quantization.grid import make_grid
from methods.quantization.policy import LayerBits

HESSIAN = Phase("hessian", augment=False, train_mode=False)
MIN_SAMPLES = 10

K = TypeVar("K", bound=Hashable)


class HawqOptions(MethodOptions):
    """error: `sum` or `mean` of the squared rounding error, where public implementations differ.

    activation_traces: whether activations are weighed by their Hessian, as HAWQ-v2; off, only weights count.
    assignment: `ilp`, any policy; `trace-ordered`, only policies whose widths fall with the mean trace, as HAWQ
    (arXiv 1905.03696) and many public codes have it. probes: `by-kind`, one Hessian-vector product for all weights and
    one for all inputs, whose cross terms add variance; `separate`, one per block, without them, at many times the cost.
    tolerance: stop when every trace's standard error is below it, relative to the trace or the median trace.
    """

    error: Literal["sum", "mean"] = "sum"
    activation_traces: bool = True
    assignment: Literal["ilp", "trace-ordered"] = "ilp"
    probes: Literal["by-kind", "separate"] = "by-kind"
    tolerance: float = Field(0.05, gt=0)


class Hawq:
    """Bits by sensitivity: a layer's mean Hessian trace times its rounding error, least in sum under the ceiling.

    Omega_l(b) = Tr(H_l)/n_l * ||Q_b(W_l) - W_l||^2, plus the same for inputs; the policy has the least summed Omega.

    Traces are Hutchinson's, of the float network's hard cross-entropy in eval mode, un-augmented, fresh probes for each
    batch: at least 10 samples, at most what the share pays. Weights are not probed if all have one width, nor are
    inputs: such terms do not rank policies. Q_b takes the step of least squared error. For inputs: mean over images of
    v_i' H_i v_i / n times mean over images of ||Q_b(a_i) - a_i||^2. Probes vary a_i for the layers behind its quantizer
    only, not for a skip connection beside them.
    Negative traces count as 0 and are reported. Fine-tuning starts from the float weights.
    Deviation: Q_b takes the step of least squared error; the papers quantize between the smallest and largest value.
    Deviation: probing stops by standard errors, not where two consecutive means are close, which happens by chance.
    Deviation: one product for all weights, one for all inputs (`probes: separate` for one per block, as in the papers).
    """

    version: ClassVar[int] = 4
    searches: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    min_steps: ClassVar[int] = MIN_SAMPLES
    Options: ClassVar[type[MethodOptions]] = HawqOptions

    def __init__(self, problem: Problem, options: HawqOptions) -> None:
        from methods.quantization.modules import quant_layers
        from methods.sensitivity import TraceEstimate

        self.problem, self.options = problem, options
        layers = quant_layers(problem.model)
        self.layers = {name: layers[name] for name in problem.candidates}
        self.sharing: dict[str, list[str]] = {}
        for layer in problem.ledger:
            if not layer.pinned:
                self.sharing.setdefault(layer.tie or layer.name, []).append(layer.name)
        weighed = self._weighed()
        self.weight_traces = {name: TraceEstimate() for name in self.layers if "weight" in weighed}
        self.input_traces = {names[0]: TraceEstimate() for names in self.sharing.values() if "activation" in weighed}
        self.input_steps: dict[str, dict[int, Any]] = {}
        self.input_errors: dict[str, dict[int, float]] = {}
        self.features: dict[str, int] = {}
        self.images = 0
        self.probe = problem.stream("search/probe")

    def _weighed(self) -> set[str]:
        """Which of `weight` and `activation` to probe: those that count and have several widths somewhere."""
        counted = {"weight", "activation"} if self.options.activation_traces else {"weight"}
        every = self.problem.candidates.values()
        weighed = {kind for kind in counted for choices in every if len({getattr(bits, kind) for bits in choices}) > 1}
        if not weighed:
            raise InapplicableError(
                f"the space has one width of what it weighs ({', '.join(sorted(counted))}): nothing to choose by"
            )
        return weighed

    def phase(self) -> Phase | None:
        from methods.sensitivity import converged

        kinds = [[*traces.values()] for traces in (self.weight_traces, self.input_traces) if traces]
        sampled = all(len(trace.samples) >= MIN_SAMPLES for traces in kinds for trace in traces)
        return None if sampled and all(converged(traces, self.options.tolerance) for traces in kinds) else HESSIAN

    def step(self, batch: Batch, phase: Phase) -> Mapping[str, float]:
        from methods.sensitivity import hessian_samples

        weights = {name: self.layers[name].weight for name in self.weight_traces}
        sharing = {names[0]: names for names in self.sharing.values()}
        readers = {source: [self.layers[name] for name in sharing[source]] for source in self.input_traces}
        totals_w, totals_a = dict.fromkeys(weights, 0.0), dict.fromkeys(readers, 0.0)
        errors: dict[tuple[str, int], float] = {}
        for micro in batch:
            of_weights, of_inputs, inputs = hessian_samples(
                self.problem.model,
                readers,
                micro,
                weights,
                self.problem.draws(self.probe, micro),
                separate=self.options.probes == "separate",
            )
            totals_w = {name: total + of_weights[name] / len(batch) for name, total in totals_w.items()}
            totals_a = {name: total + of_inputs[name] / len(batch) for name, total in totals_a.items()}
            for place, error in self._perturbations(inputs):
                errors[place] = errors.get(place, 0.0) + error
            self.images += len(micro.labels)
        totals_w, totals_a = self._averaged(totals_w), self._averaged(totals_a)
        for name, sample in totals_w.items():
            self.weight_traces[name].samples.append(sample)
        for name, sample in totals_a.items():
            self.input_traces[name].samples.append(sample)
        for (name, bits), error in self._averaged(errors).items():
            self.input_errors[name][bits] += error
        totals = [*totals_w.values(), *totals_a.values()]
        return {"mean_trace": sum(totals) / len(totals)}

    def _averaged(self, numbers: Mapping[K, float]) -> dict[K, float]:
        """Each number's mean over the processes of the trial, which all have the same number of images."""
        import torch

        if not numbers:
            return {}
        means = self.problem.average(torch.tensor(list(numbers.values()), dtype=torch.float64))
        return dict(zip(numbers, means.tolist(), strict=True))

    def _perturbations(self, inputs: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int], float]]:
        """The rounding error of these inputs at every candidate width; steps come from the first micro-batch."""
        from methods.sensitivity import least_squares_step, squared_error

        for name, value in inputs.items():
            quantizer = self.layers[name].input_quantizer  # its kind's own grid, also where offsets are learned
            grids = {b: make_grid(quantizer.kind, b, narrow=quantizer.narrow) for b in quantizer.widths}
            if name not in self.input_steps:
                steps = {bits: least_squares_step(value, grid, per_channel=False) for bits, grid in grids.items()}
                self.input_steps[name] = {bits: self.problem.common(step) for bits, step in steps.items()}
                self.input_errors[name] = dict.fromkeys(grids, 0.0)
                self.features[name] = value[0].numel()
            for bits, grid in grids.items():
                yield (name, bits), squared_error(value, self.input_steps[name][bits], grid)

    def result(self) -> Searched:
        problem, weight_errors = self.problem, self._weight_errors()
        reader = {name: names[0] for names in self.sharing.values() for name in names}
        sharers = {name: len(names) for names in self.sharing.values() for name in names}
        weight_traces = self.assigned("weight", {name: trace.clamped for name, trace in self.weight_traces.items()})
        input_traces = self.assigned("input", {name: trace.clamped for name, trace in self.input_traces.items()})

        def omega(name: str, bits: LayerBits) -> float:
            total, source = 0.0, reader[name]
            if name in weight_traces:
                total += weight_traces[name] * weight_errors[name][bits.weight]
            if source in input_traces:  # a shared input's term is split between the layers that share it
                error = self.input_errors[source][bits.activation] / self.images / self._size(source, of_input=True)
                total += input_traces[source] * error / sharers[name]
            return total

        if self.options.assignment == "ilp":
            policy = best_policy(problem.ledger, problem.candidates, problem.ceiling, omega)
        else:
            trace = self._ordering(weight_traces, input_traces)
            policy = best_ordered_policy(problem.ledger, problem.candidates, problem.ceiling, omega, trace)
        objective = sum(omega(name, bits) for name, bits in policy.items())
        return Searched(policy, report={"objective": objective, **self._report()})

    def assigned(self, kind: str, traces: dict[str, float]) -> dict[str, float]:
        """The trace to use for each layer: its own here, another's in the controls below. kind: weight or input."""
        return traces

    def _ordering(self, weight_traces: Mapping[str, float], input_traces: Mapping[str, float]) -> dict[str, float]:
        """The mean trace that ranks each layer: its weight's if weights have a choice of widths, else its input's."""
        if weight_traces and input_traces:
            raise InapplicableError(
                "trace-ordered assignment ranks layers once, but this space frees weights and activations"
            )
        if weight_traces:
            return dict(weight_traces)
        return {name: input_traces[names[0]] for names in self.sharing.values() for name in names}

    def _weight_errors(self) -> dict[str, dict[int, float]]:
        from methods.sensitivity import least_squares_step, squared_error

        errors: dict[str, dict[int, float]] = {}
        for name in self.weight_traces:
            layer = self.layers[name]
            weight, errors[name] = layer.weight.detach(), {}
            for bits, grid in layer.weight_quantizer.grids.items():
                step = least_squares_step(weight, grid, per_channel=True)
                errors[name][bits] = squared_error(weight, step, grid) / self._size(name, of_input=False)
        return errors

    def _size(self, name: str, *, of_input: bool) -> float:
        """What the `mean` variant divides errors by: elements of the weight, or of one image's input."""
        if self.options.error == "sum":
            return 1.0
        layer = self.layers[name]
        return float(self.features[name] if of_input else layer.weight.numel())

    def _report(self) -> dict[str, Any]:
        def rows(traces: Mapping[str, Any]) -> dict[str, Any]:
            return {n: {"mean": t.mean, "standard_error": t.standard_error} for n, t in traces.items()}

        return {
            "variant": self.options.model_dump(mode="json"),
            "samples": len(next(iter({**self.weight_traces, **self.input_traces}.values())).samples),
            "weight_traces": rows(self.weight_traces),
            "input_traces": rows(self.input_traces),
            "negative_traces": [
                f"{kind} of {name}"
                for kind, traces in (("weight", self.weight_traces), ("input", self.input_traces))
                for name, trace in traces.items()
                if trace.mean < 0
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight_traces": {name: list(t.samples) for name, t in self.weight_traces.items()},
            "input_traces": {name: list(t.samples) for name, t in self.input_traces.items()},
            "input_steps": self.input_steps,
            "input_errors": self.input_errors,
            "features": self.features,
            "images": self.images,
            "probe": self.probe.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, samples in state["weight_traces"].items():
            self.weight_traces[name].samples = list(samples)
        for name, samples in state["input_traces"].items():
            self.input_traces[name].samples = list(samples)
        self.input_steps, self.input_errors = state["input_steps"], state["input_errors"]
        self.features, self.images = state["features"], state["images"]
        self.probe.set_state(state["probe"])


class Reversed(Hawq):
    """Control: HAWQ's programme with the mean traces in reverse rank, the most sensitive layer given the least trace.

    Weights' and inputs' traces are permuted among themselves. Same probes, same cost. If it does as well as HAWQ, the
    sensitivity means nothing.
    """

    def assigned(self, kind: str, traces: dict[str, float]) -> dict[str, float]:
        ranked = sorted(traces, key=lambda name: traces[name])  # stable: ties stay in graph order
        return dict(zip(ranked, (traces[name] for name in reversed(ranked)), strict=True))


class Shuffled(Hawq):
    """Control: HAWQ's programme with the mean traces permuted at random, anew for each seed and draw.

    Weights' and inputs' traces are permuted among themselves, each in an order of their own.
    """

    def assigned(self, kind: str, traces: dict[str, float]) -> dict[str, float]:
        import torch

        order = torch.randperm(len(traces), generator=self.problem.stream(f"search/shuffle-{kind}")).tolist()
        values = list(traces.values())
        return dict(zip(traces, (values[index] for index in order), strict=True))
