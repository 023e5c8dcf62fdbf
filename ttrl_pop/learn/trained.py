"""What learns: parameters of the adapter and the population by name, copied, put back, averaged and kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttrl_pop.model.policy import Policy


@dataclass(frozen=True, slots=True)
class LearnerState:
    """A copy of all that updates change."""

    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    policy_version: int
    bad_in_a_row: int


class Trained:
    """The trainable parameters of a policy and, where asked for, their exponential average over the steps."""

    def __init__(self, policy: Policy, keep_average: bool) -> None:
        self.adapter: dict[str, nn.Parameter] = policy.adapter_parameters()
        self.population: dict[str, nn.Parameter] = policy.population_parameters()
        self.by_name = {**self.adapter, **self.population}
        self.average = self.copy() if keep_average else {}
        """Average by name, which labels problems where the configuration says so; empty where it is not kept."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.by_name.values())

    def copy(self) -> dict[str, Tensor]:
        """A copy of all values by name, for `put`."""
        return {name: parameter.detach().clone() for name, parameter in self.by_name.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Give every parameter the value of its name."""
        for name, parameter in self.by_name.items():
            parameter.copy_(values[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While active, the policy's weights are their exponential average over the steps so far."""
        own = self.copy()
        try:
            self.put(self.average)
            yield
        finally:
            self.put(own)

    def extend_average(self, decay: float) -> None:
        """average ← decay · average + (1 − decay) · parameters, where an average is kept."""
        for name, average in self.average.items():
            average.lerp_(self.by_name[name].detach(), 1 - decay)

    def add_gradients(self, gradients: list[Tensor | None]) -> None:
        """Add to each parameter's gradient; None where a loss does not depend on it."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The optimizer's state by parameter name, and the average where there is one, for a checkpoint."""
        state = {
            f"{name}::{key}": value
            for name, parameter in self.by_name.items()
            for key, value in optimizer.state[parameter].items()
        }
        return state | {f"{name}::average": value for name, value in self.average.items()}

    def load_tensors(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave.

        Raises:
            ValueError: a tensor is of no parameter that is here, or of another shape.
        """
        for full, value in tensors.items():
            name, _, key = full.rpartition("::")
            if name not in self.by_name or (key != "step" and value.shape != self.by_name[name].shape):
                raise ValueError(f"nothing here has the name and the shape {tuple(value.shape)} of {full}")
            parameter = self.by_name[name]
            if key == "average":
                self.average[name] = value.to(parameter.device)
                continue
            # Adam counts its steps in a CPU tensor unless it is fused.
            on_device = key != "step" or optimizer.defaults["fused"]
            optimizer.state[parameter][key] = value.to(parameter.device, copy=True) if on_device else value.clone()
