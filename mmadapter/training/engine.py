"""The engine carries out optimizer steps: what every engine does, and the plain one of one process."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmadapter.data.batches import Batch
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.methods.groups import Group, TrainableParameter
from mmadapter.training.determinism import own_stream
from mmadapter.training.optimizer import EPSILON, MOMENTS, adam_entries, learns_from, scale, set_lr, sum_of_squares
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


class Model(Protocol):
    """What engine and loop ask of a model; `model(batch)` gives the sum of its token losses, a float32 scalar."""

    def __call__(self, batch: Batch) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def trainable_parameters(self) -> list[TrainableParameter]: ...

    def gates(self) -> Tensor: ...

    def save(self, folder: Path, training: dict[str, Any]) -> None: ...


class Engine(ABC):
    """What a step means, under every engine; the loop asks for the four functions below.

    The gradient of a source reaches only the groups that learn from it; a group's gradient is divided by the
    supervised tokens of its sources in the whole step, so that it does not matter how the step was split into
    micro-batches. A group without a supervised token in the step stays as it is, without decay and momentum. What is
    drawn in a forward (dropout) depends on `seed`, step, source and the micro-batch's place among its source's: other
    sources in the step change nothing.
    """

    adam: type[torch.optim.AdamW] = torch.optim.AdamW

    def __init__(
        self,
        model: Model,
        groups: Sequence[Group],
        settings: OptimizerConf,
        seed: int = 0,
        engine: EngineConf | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.groups, self.settings, self.seed = model, list(groups), settings, seed
        self.zero, self.ranks = engine or EngineConf(), ranks or Ranks()
        self.parameters: dict[str, nn.Parameter] = {name: p for group in groups for name, p in group.parameters}
        trainable = model.trainable_parameters()
        self.device = trainable[0].parameter.device
        entries, betas = adam_entries(groups, trainable, settings), (settings.betas[0], settings.betas[1])
        self.optimizer = self.adam(entries, lr=0.0, betas=betas, eps=EPSILON)
        self.steps_done = 0  # skipped ones too
        self.exchanged_bytes: int | None = None  # by this rank in a step; where it was counted

    @abstractmethod
    def step(self, batches: Sequence[Batch], lr: float) -> StepResult:
        """One optimizer step over all `batches` (micro-batches, each of one source)."""

    @abstractmethod
    def loss_sum(self, batch: Batch) -> float:
        """Sum of the token losses of a batch, without a graph."""

    @abstractmethod
    def state_dict(self) -> EngineState:
        """The whole state, on every rank; collective."""

    @abstractmethod
    def load_state_dict(self, state: EngineState) -> None:
        """Raises InputError where names or shapes are not those of this run's trainable tensors."""

    def values(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, on the CPU."""
        return {name: p.detach().cpu().clone().contiguous() for name, p in self.parameters.items()}


class SingleDeviceEngine(Engine):
    """Plain PyTorch: one process, one device."""

    def step(self, batches: Sequence[Batch], lr: float) -> StepResult:
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

        # Averaged over the group's supervised tokens, and clipped; a group that is not finite stays put.
        norms: dict[str, float] = {}
        skipped = []
        for group in self.groups:
            sources = [source for source, count in tokens.items() if count and learns_from(group, source)]
            if not sources:
                continue
            members = [parameter for _, parameter in group.parameters]
            for parameter in members:
                if parameter.grad is None:  # not reached by this step's samples: the group still moves as one
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in members if parameter.grad is not None]
            scale(gradients, 1.0 / sum(tokens[source] for source in sources))
            norm = norms[group.name] = math.sqrt(sum_of_squares(gradients))
            limit = self.settings.clip_norm
            if not math.isfinite(norm) or not all(math.isfinite(sums[source]) for source in sources):
                skipped.append(group.name)
                for parameter in members:
                    parameter.grad = None
            elif limit is not None and norm > limit:
                scale(gradients, limit / norm)

        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return step_result(sums, tokens, norms, tuple(skipped))

    @torch.no_grad()
    def loss_sum(self, batch: Batch) -> float:
        return float(self.model(batch.to(self.device))) if batch.supervised_tokens else 0.0

    def state_dict(self) -> EngineState:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        moments: dict[str, dict[str, Tensor]] = {kind: {} for kind in MOMENTS}
        steps: dict[str, int] = {}
        for parameter, state in self.optimizer.state.items():
            if state:
                name = names[id(parameter)]
                steps[name] = int(state["step"])
                for kind in MOMENTS:
                    moments[kind][name] = state[kind].detach().cpu().clone()
        return EngineState(self.values(), moments, steps, self.steps_done)

    @torch.no_grad()
    def load_state_dict(self, state: EngineState) -> None:
        check_fits(state, self.parameters)
        for name, parameter in self.parameters.items():
            parameter.copy_(state.parameters[name])
        self.optimizer.state.clear()
        for name, count in state.steps.items():  # the others have never been moved
            parameter = self.parameters[name]
            own = {kind: state.moments[kind][name].to(parameter.device, copy=True) for kind in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(count), dtype=torch.float32), **own}
        self.steps_done = state.steps_done


def tokens_by_source(batches: Sequence[Batch]) -> dict[str, int]:
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
    if differing := differing_shapes(state.parameters, parameters):
        raise InputError(
            f"The checkpoint does not fit this adapter: {differing}. Use the settings it was made with, or another "
            "folder (run=NAME)."
        )


def differing_shapes(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> str:
    """In which names or shapes the tensors of a file and those of this run differ; empty where they agree."""
    shapes, own = ({name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (there, here))
    names = sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name))
    if not names:
        return ""
    listed = "; ".join(f"{n} is {shapes.get(n, 'missing')} there, {own.get(n, 'missing')} here" for n in names[:5])
    return f"{listed} ({len(names)} tensors differ)"
