"""The engine carries out optimizer steps; here the plain one: one process, one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.methods.groups import Group, TrainableParameter
from mmadapter.training.determinism import own_stream
from mmadapter.training.optimizer import (
    build_adamw,
    gradient_norm,
    learns_from,
    load_moments,
    moments,
    scale_gradients,
    set_lr,
)
from mmadapter.training.settings import EngineConf, OptimizerConf


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. Losses are token averages; a source without a supervised token has loss 0."""

    loss: float
    loss_by_source: dict[str, float]
    tokens_by_source: dict[str, int]  # supervised tokens
    grad_norms: dict[str, float]  # of each group that had something to learn, before clipping
    skipped_groups: tuple[str, ...] = ()  # not moved, because a loss or gradient was not finite

    @property
    def supervised_tokens(self) -> int:
        return sum(self.tokens_by_source.values())

    @property
    def grad_norm(self) -> float:
        return math.sqrt(sum(norm * norm for norm in self.grad_norms.values()))


@dataclass
class EngineState:
    """Everything that an engine must get back to go on exactly; free of the number of processes."""

    parameters: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # exp_avg, exp_avg_sq -> name -> tensor
    steps: dict[str, int] = field(default_factory=dict)  # how often AdamW has moved each parameter
    steps_done: int = 0  # of the engine, skipped ones too


class Engine(Protocol):
    """What the loop asks of an engine."""

    def step(self, batches: Sequence[Any], lr: float) -> StepResult: ...

    def loss_sum(self, batch: Any) -> float: ...

    def state_dict(self) -> EngineState: ...

    def load_state_dict(self, state: EngineState) -> None: ...


class SingleDeviceEngine:
    """Plain PyTorch. `model(batch)` gives the sum of the token losses as a float32 scalar.

    The gradient of a source reaches only the groups that learn from it; a group's gradient is divided by the
    supervised tokens of its sources in the whole step, so that it does not matter how the step was split into
    micro-batches. A group without a supervised token in the step stays as it is, without decay and momentum. What is
    drawn in a forward (dropout) depends on `seed`, step, source and the micro-batch's place among its source's: other
    sources in the step change nothing.
    """

    def __init__(
        self,
        model: Callable[[Any], Tensor],
        groups: Sequence[Group],
        trainable: Sequence[TrainableParameter],
        settings: OptimizerConf,
        device: torch.device | str = "cpu",
        seed: int = 0,
        engine: EngineConf | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.groups, self.settings, self.seed = model, list(groups), settings, seed
        self.steps_done = 0
        self.device = torch.device(device)
        self.parameters: dict[str, nn.Parameter] = {name: p for group in groups for name, p in group.parameters}
        self.optimizer = build_adamw(groups, trainable, settings)

    def step(self, batches: Sequence[Any], lr: float) -> StepResult:
        """One optimizer step over all `batches` (micro-batches, each of one source)."""
        self.optimizer.zero_grad(set_to_none=True)

        # The gradient of each micro-batch's loss sum, for the groups that learn from its source.
        pieces: dict[str, list[Tensor]] = {batch.source: [] for batch in batches}
        for batch in batches:
            if batch.supervised_tokens == 0:
                continue
            with own_stream(self.device, self.seed, self.steps_done, batch.source, len(pieces[batch.source])):
                loss = self.model(batch.to(self.device))
            learning = [p for g in self.groups if learns_from(g, batch.source) for _, p in g.parameters]
            if learning and loss.requires_grad:  # else no part is reached: text, and only parts for pictures are there
                loss.backward(inputs=learning)
            pieces[batch.source].append(loss.detach())
        sums, tokens = loss_sums(pieces), tokens_by_source(batches)

        # Averaged over the group's supervised tokens, and clipped; what is not finite moves nothing.
        norms: dict[str, float] = {}
        skipped = [group.name for group in self.groups if not self._prepare_group(group, sums, tokens, norms)]
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return step_result(sums, tokens, norms, tuple(skipped))

    def _prepare_group(
        self, group: Group, sums: dict[str, float], tokens: dict[str, int], norms: dict[str, float]
    ) -> bool:
        """Averages and clips the gradients of a group; False where they are not finite: it then stays put."""
        sources = [source for source, count in tokens.items() if count and learns_from(group, source)]
        if not sources:
            return True
        members = [parameter for _, parameter in group.parameters]
        for parameter in members:
            if parameter.grad is None:  # not reached by this step's samples: the group still moves as one
                parameter.grad = torch.zeros_like(parameter)
        scale_gradients(members, 1.0 / sum(tokens[source] for source in sources))
        norm = norms[group.name] = gradient_norm(members)
        if not math.isfinite(norm) or not all(math.isfinite(sums[source]) for source in sources):
            for parameter in members:
                parameter.grad = None
            return False
        limit = self.settings.clip_norm
        if limit is not None and norm > limit:
            scale_gradients(members, limit / norm)
        return True

    @torch.no_grad()
    def loss_sum(self, batch: Any) -> float:
        """Sum of the token losses of a batch, without a graph."""
        return float(self.model(batch.to(self.device))) if batch.supervised_tokens else 0.0

    def state_dict(self) -> EngineState:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        tensors, steps = moments(self.optimizer, names)
        values = {name: p.detach().cpu().clone().contiguous() for name, p in self.parameters.items()}
        return EngineState(values, tensors, steps, self.steps_done)

    @torch.no_grad()
    def load_state_dict(self, state: EngineState) -> None:
        """Raises InputError where names or shapes are not those of this run's trainable tensors."""
        check_fits(state, self.parameters)
        for name, parameter in self.parameters.items():
            parameter.copy_(state.parameters[name])
        load_moments(self.optimizer, self.parameters, state.moments, state.steps)
        self.steps_done = state.steps_done


def tokens_by_source(batches: Sequence[Any]) -> dict[str, int]:
    """The supervised tokens of each source among `batches`."""
    tokens: dict[str, int] = {}
    for batch in batches:
        tokens[batch.source] = tokens.get(batch.source, 0) + batch.supervised_tokens
    return tokens


def loss_sums(pieces: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """The sum of each source's losses, in float64."""
    return {source: float(torch.stack([*parts]).double().sum()) if parts else 0.0 for source, parts in pieces.items()}


def step_result(
    sums: Mapping[str, float], tokens: dict[str, int], norms: dict[str, float], skipped: tuple[str, ...]
) -> StepResult:
    """What a step did, from the loss sums and supervised tokens of its sources."""
    total = sum(tokens.values())
    by_source = {source: sums[source] / tokens[source] if tokens[source] else 0.0 for source in tokens}
    return StepResult(sum(sums.values()) / total if total else 0.0, by_source, tokens, norms, skipped)


def check_fits(state: EngineState, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises InputError where names or shapes are not those of this run's trainable tensors."""
    here = {name: tuple(p.shape) for name, p in parameters.items()}
    there = {name: tuple(t.shape) for name, t in state.parameters.items()}
    if here != there:
        differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        raise InputError(
            f"The checkpoint does not fit this adapter: {_shapes(differing[:5], there, here)} "
            f"({len(differing)} tensors differ). Use the settings it was made with, or another folder (run=NAME)."
        )


def _shapes(names: Iterable[str], there: dict, here: dict) -> str:
    return "; ".join(f"{n} is {there.get(n, 'missing')} there, {here.get(n, 'missing')} here" for n in names)
