"""Bits by empirical Fisher information: a complete method in one file."""

from pydantic import Field

from methods.allocation import best_policy
from methods.contract import MethodOptions, Phase, Searched

PROBE = Phase("fisher", augment=False, train_mode=False)


class FisherOptions(MethodOptions):
    """batches: how many batches the information is averaged over."""

    batches: int = Field(8, ge=1)


class Fisher:
    """Layers whose weights' gradients are large get more bits.

    F_l = mean over batches of ||dL/dW_l||^2; the policy minimises sum_l F_l * (4^-w_l + 4^-a_l) under the ceiling.
    """

    version = 1  # raise it when results change: it is part of every trial's id
    searches, chooses, quantizes, min_steps = True, True, True, 1
    Options = FisherOptions

    def __init__(self, problem, options):
        from methods.quantization.modules import quant_layers  # needs torch, which planning does without

        self.problem, self.options, self.taken = problem, options, 0
        self.weights = {name: quant_layers(problem.model)[name].weight for name in problem.candidates}
        self.information = dict.fromkeys(problem.candidates, 0.0)

    def phase(self):
        return PROBE if self.taken < self.options.batches else None

    def step(self, batch, phase):
        for micro in batch:
            loss = self.problem.loss(self.problem.model(micro.images), micro)
            self.problem.grad(loss, list(self.weights.values()))
        for name, weight in self.weights.items():
            self.information[name] += float(weight.grad.square().sum())
            weight.grad = None
        self.taken += 1
        return {"loss": float(loss.detach())}

    def result(self):
        def penalty(name, bits):
            return self.information[name] * (4.0**-bits.weight + 4.0**-bits.activation)

        problem = self.problem
        policy = best_policy(problem.ledger, problem.candidates, problem.ceiling, penalty)
        return Searched(policy, report={"information": self.information})

    def state_dict(self):
        return {"taken": self.taken, "information": dict(self.information)}

    def load_state_dict(self, state):
        self.taken, self.information = state["taken"], dict(state["information"])
