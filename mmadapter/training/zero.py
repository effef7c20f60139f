"""The engine for several processes, and for models that outgrow one device: DeepSpeed's ZeRO stages 0 to 3.

DeepSpeed shares out moments, gradients and the frozen base, reduces gradients and gathers weights. What a step means
(which group learns from which source, averaging, clipping, what is skipped) is the same as in `engine.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.deepspeed_library import load_deepspeed
from mmadapter.methods.groups import Group, TrainableParameter
from mmadapter.processes import here
from mmadapter.training.carrier import Carrier
from mmadapter.training.deepspeed_start import ZeroSettings, cpu_adam, keep_whole, start
from mmadapter.training.engine import EngineState, StepResult, check_fits, loss_sums, step_result, tokens_by_source
from mmadapter.training.optimizer import OptimizerSettings, build_adamw, learns_from, set_lr, sum_of_squares
from mmadapter.training.shares import MOMENTS, Share, find_shares, whole_tensors, write_parameter


class ZeroEngine:
    """DeepSpeed behind the loop's interface. `model(batch)` gives the sum of this process's token losses.

    Every process gives the same number of micro-batches, of the same sources in the same order; a process that has
    nothing to learn from gives fillers. Each micro-batch's gradients are taken as on one device, and handed to
    DeepSpeed through the Carrier, so that all processes reduce the same tensors in the same order.

    One coupling is left: where finite gradients of several processes sum up to infinity, and the optimizer is
    offloaded, DeepSpeed leaves out the whole step, not the group alone.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        trainable: Sequence[TrainableParameter],
        settings: OptimizerSettings,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        zero: ZeroSettings,
    ) -> None:
        self.model, self.groups, self.settings, self.seed, self.zero = model, list(groups), settings, seed, zero
        self.device = torch.device(device)
        self.steps_done = 0
        self.parameters: dict[str, nn.Parameter] = {name: p for group in groups for name, p in group.parameters}
        load_deepspeed(self.device)
        self.optimizer = build_adamw(groups, trainable, settings, _adam(zero))
        numbers = {id(p): i for i, entry in enumerate(self.optimizer.param_groups) for p in entry["params"]}
        entries = {name: numbers[id(parameter)] for name, parameter in self.parameters.items()}
        self.carrier = Carrier(model, self.groups, zero.stage == 3, self.device)
        # A sum over more than two processes depends in its last bit on what else is in the bucket. Where groups learn
        # from sources of their own, each parameter is reduced alone: its sum is the same whatever the others do.
        apart = any(group.sources is not None for group in groups)
        self.bucket = 1 if apart else sum(parameter.numel() for parameter in self.parameters.values())
        self.deepspeed = start(self.carrier, self.optimizer, zero, self.device, self.bucket)
        if zero.stage == 0:  # which has no setting for the bucket
            self.deepspeed.enable_backward_allreduce = False
        if zero.stage == 3:
            keep_whole(self.deepspeed, [item.parameter for item in trainable])
        self.shares = find_shares(self.deepspeed, zero.stage, entries, self.parameters)
        for share in self.shares.values():
            if share.master not in self.optimizer.state:
                self.optimizer.state[share.master] = _before_the_first_step(share.master, not zero.cpu_adam)

    def step(self, batches: Sequence[Any], lr: float) -> StepResult:
        """One optimizer step over the `batches` of all processes."""
        tokens = _summed(tokens_by_source(batches))
        sums, broken = self._backward_all(batches)
        learning = {g.name: [s for s, count in tokens.items() if count and learns_from(g, s)] for g in self.groups}
        for group in self.groups:
            count = sum(tokens[source] for source in learning[group.name])
            self._scale(group, here().count / count if count else 0.0)  # DeepSpeed has divided by the processes
        sums, norms = self._totals(sums, broken)
        norms = {name: norms[name] for name, sources in learning.items() if sources}
        finite = {name: math.isfinite(norms[name] + sum(sums[source] for source in learning[name])) for name in norms}
        for group in self.groups:
            self._let_move(group, norms.get(group.name, math.nan), finite.get(group.name, False))
        set_lr(self.optimizer, lr)
        self.deepspeed.step()
        self.steps_done += 1
        if getattr(self.deepspeed.optimizer, "overflow", False):
            finite = dict.fromkeys(finite, False)
        return step_result(sums, tokens, norms, tuple(name for name, fine in finite.items() if not fine))

    def _backward_all(self, batches: Sequence[Any]) -> tuple[dict[str, float], set[str]]:
        """Hands all gradients to DeepSpeed; returns each source's loss sum here, and groups that were not finite."""
        pieces: dict[str, list[Tensor]] = {batch.source: [] for batch in batches}
        self.carrier.broken.clear()
        for number, batch in enumerate(batches, 1):
            place = len(pieces[batch.source]) * here().count + here().rank
            self.deepspeed.set_gradient_accumulation_boundary(number == len(batches))
            loss = self.deepspeed(batch, self.seed, self.steps_done, batch.source, place)
            self.deepspeed.backward(loss)
            pieces[batch.source].append(loss.detach() if batch.supervised_tokens else torch.zeros_like(loss))
        if self.zero.stage == 0:
            # Here a bucket is full when it holds more than this, elsewhere when the next tensor would not fit in.
            self.deepspeed.allreduce_gradients(bucket_size=self.bucket - 1)
        if self.zero.offload and self.device.type == "cuda":
            # The gradients are on their way to the machine's memory, where they are read next: DeepSpeed copies without
            # waiting, and at stage 2 waits in its own step only.
            torch.cuda.synchronize(self.device)
        return loss_sums(pieces), set(self.carrier.broken)

    def _scale(self, group: Group, factor: float) -> None:
        """Multiplies the shares of a group's gradient; 0 clears them, whatever they hold."""
        for name, _ in group.parameters:
            gradient = self.shares[name].gradient()
            if factor:
                gradient.mul_(factor)
            else:
                gradient.zero_()

    def _totals(self, sums: dict[str, float], broken: set[str]) -> tuple[dict[str, float], dict[str, float]]:
        """Loss sums and gradient norms over all processes; the norm of a group that is broken somewhere is NaN."""
        counts = self.zero.stage > 0 or here().is_first  # at stage 0 every process has the whole gradient
        squares = []
        for group in self.groups:
            parts = (self.shares[name].gradient() for name, _ in group.parameters)
            squares.append(sum_of_squares(parts) if counts else 0.0)
        flags = [math.nan if group.name in broken else 0.0 for group in self.groups]
        totals = here().sum([*sums.values(), *squares, *flags])
        split = len(sums) + len(squares)
        names = [group.name for group in self.groups]
        found = zip(names, totals[len(sums) : split], totals[split:], strict=True)
        return dict(zip(sums, totals, strict=False)), {name: math.sqrt(square) + flag for name, square, flag in found}

    def _let_move(self, group: Group, norm: float, moves: bool) -> None:
        """Clips a group's gradient; or clears it, and has the optimizer leave the group out."""
        limit = self.settings.clip_norm
        if not moves:
            self._scale(group, 0.0)
        elif limit is not None and norm > limit:
            self._scale(group, limit / norm)
        for entry in self.optimizer.param_groups:
            if entry["group"] == group.name:
                entry["moves"] = moves

    @torch.no_grad()
    def loss_sum(self, batch: Any) -> float:
        """Sum of the token losses of this process's batch, without a graph; 0 for a filler, which runs all the same."""
        loss = self.carrier(batch.to(self.device))
        return float(loss) if batch.supervised_tokens else 0.0

    def state_dict(self) -> EngineState:
        """The whole state, on every process; collective."""
        steps = {name: int(self.optimizer.state[share.master]["step"]) for name, share in self.shares.items()}
        moved = {name: share for name, share in self.shares.items() if steps[name]}
        values = {name: p.detach().cpu().clone().contiguous() for name, p in self.parameters.items()}
        tensors = {kind: self._whole_moments(moved, kind) for kind in MOMENTS}
        return EngineState(values, tensors, {name: steps[name] for name in moved}, self.steps_done)

    def _whole_moments(self, shares: dict[str, Share], kind: str) -> dict[str, Tensor]:
        return whole_tensors(
            shares,
            lambda share: share.own(self.optimizer.state[share.master][kind]),
            replicated=self.zero.stage == 0,
            device=self.device,
        )

    @torch.no_grad()
    def load_state_dict(self, state: EngineState) -> None:
        """From any engine and number of processes. Raises InputError where it is not of this run's trained tensors."""
        check_fits(state, self.parameters)
        for name, share in self.shares.items():
            write_parameter(share, state.parameters[name])
            own = self.optimizer.state[share.master]
            count = state.steps.get(name, 0)
            own["step"] = count if self.zero.cpu_adam else torch.tensor(float(count))
            for kind in MOMENTS:
                piece, moments = share.own(own[kind]), state.moments[kind].get(name)
                piece.zero_() if moments is None else piece.copy_(share.cut(moments))
        self.steps_done = state.steps_done


def _summed(tokens: dict[str, int]) -> dict[str, int]:
    """The same over all processes, which all have the same sources in the same order."""
    return {source: int(count) for source, count in zip(tokens, here().sum([*tokens.values()]), strict=True)}


def _adam(zero: ZeroSettings) -> Any:
    """A class of AdamW whose step leaves out entries that shall not move."""
    base = cpu_adam() if zero.cpu_adam else torch.optim.AdamW

    class AdamWOfMovingEntries(base):  # type: ignore[misc, valid-type]
        param_groups: list[dict[str, Any]]

        def step(self, closure: Any = None) -> Any:
            entries = self.param_groups
            self.param_groups = [entry for entry in entries if entry["moves"]]
            try:
                return super().step(closure)
            finally:
                self.param_groups = entries

    return AdamWOfMovingEntries


def _before_the_first_step(master: Tensor, counts_in_a_tensor: bool) -> dict[str, Any]:
    """The state that AdamW makes at its first step, from the start: it can be read and written at any time."""
    moments = {kind: torch.zeros_like(master) for kind in MOMENTS}
    return {"step": torch.tensor(0.0) if counts_in_a_tensor else 0, **moments}
