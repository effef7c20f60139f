"""The engine for several ranks, and for models that outgrow one device: DeepSpeed's ZeRO stages 0 to 3.

DeepSpeed shards moments, gradients and the frozen base, reduces gradients and gathers weights. What a step means (which
group learns from which source, averaging, clipping, what is skipped) is the same as in `engine.py`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from mmadapter.data.batches import Batch
from mmadapter.distributed.deepspeed import find_shares, keep_whole, start_engine, whole_tensors, write_parameter
from mmadapter.distributed.exchanged import ExchangedBytes
from mmadapter.distributed.ranks import Ranks
from mmadapter.methods.groups import Group
from mmadapter.training.determinism import own_stream
from mmadapter.training.engine import (
    Engine,
    EngineState,
    StepResult,
    check_fits,
    loss_sums,
    step_result,
    tokens_by_source,
)
from mmadapter.training.optimizer import MOMENTS, learns_from, set_lr, sum_of_squares
from mmadapter.training.settings import EngineConf, OptimizerConf

OUTSIDE = ("adapter", "vision")  # children of the model that are not sharded
FETCHED_AHEAD = 5 * 10**7  # parameters that are gathered before they are needed: DeepSpeed's own number


class AdamWOfMovingEntries(torch.optim.AdamW):
    """AdamW whose step leaves out the entries that shall not move."""

    def step(self, closure: Any = None) -> Any:
        entries = self.param_groups
        self.param_groups = [entry for entry in entries if entry["moves"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = entries


class ZeroEngine(Engine):
    """DeepSpeed behind the loop's interface. `model(batch)` gives the sum of this process's token losses.

    Every process gives the same number of micro-batches, of the same sources in the same order; a process that has
    nothing to learn from gives fillers. Each micro-batch's gradients are taken as on one device, and handed to
    DeepSpeed through the Carrier, so that all processes reduce the same tensors in the same order.

    One coupling is left: where finite gradients of several processes sum up to infinity, and the optimizer is
    offloaded, DeepSpeed leaves out the whole step, not the group alone.
    """

    adam = AdamWOfMovingEntries

    def __init__(
        self,
        model: Any,
        groups: Sequence[Group],
        settings: OptimizerConf,
        seed: int,
        engine: EngineConf,
        ranks: Ranks,
    ) -> None:
        super().__init__(model, groups, settings, seed, engine, ranks)
        numbers = {id(p): i for i, entry in enumerate(self.optimizer.param_groups) for p in entry["params"]}
        entries = {name: numbers[id(parameter)] for name, parameter in self.parameters.items()}
        self.carrier = Carrier(model, self.groups, engine.stage == 3, self.device)
        # A sum over more than two processes depends in its last bit on what else is in the bucket. Where groups learn
        # from sources of their own, each parameter is reduced alone: its sum is the same whatever the others do.
        apart = any(group.sources is not None for group in groups)
        self.bucket = 1 if apart else sum(parameter.numel() for parameter in self.parameters.values())
        self.deepspeed = start_engine(
            self.device,
            model=self.carrier,
            optimizer=self.optimizer,
            config=deepspeed_configuration(engine, self.bucket),
        )
        if engine.stage == 0:  # which has no setting for the bucket
            self.deepspeed.enable_backward_allreduce = False
        if engine.stage == 3:
            keep_whole(self.deepspeed, [item.parameter for item in model.trainable_parameters()])
        self.shares = find_shares(self.deepspeed, engine.stage, entries, self.parameters)
        for share in self.shares.values():
            if share.master not in self.optimizer.state:
                # What AdamW makes at its first step, from the start: it can be read and written at any time.
                zeros = {kind: torch.zeros_like(share.master) for kind in MOMENTS}
                self.optimizer.state[share.master] = {"step": torch.tensor(0.0), **zeros}

    def step(self, batches: Sequence[Batch], lr: float) -> StepResult:
        """One optimizer step over the `batches` of all ranks, which have the same sources in the same order."""
        # Counted once, and on a CPU alone: compiled kernels do not run under a dispatch mode.
        if self.exchanged_bytes is None and self.ranks.world_size > 1 and self.device.type == "cpu":
            with ExchangedBytes() as exchanged:
                result = self._step(batches, lr)
            self.exchanged_bytes = exchanged.bytes
            return result
        return self._step(batches, lr)

    def _step(self, batches: Sequence[Batch], lr: float) -> StepResult:
        own = tokens_by_source(batches)
        tokens = {source: int(count) for source, count in zip(own, self.ranks.sum([*own.values()]), strict=True)}
        learning = {g.name: [s for s, count in tokens.items() if count and learns_from(g, s)] for g in self.groups}

        # Every micro-batch hands its gradients to DeepSpeed.
        pieces: dict[str, list[Tensor]] = {batch.source: [] for batch in batches}
        self.carrier.broken.clear()
        for number, batch in enumerate(batches, 1):
            place = len(pieces[batch.source]) * self.ranks.world_size + self.ranks.rank
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

        # Each group's gradient is averaged over the supervised tokens of its sources. (DeepSpeed has divided by the
        # ranks.) At stage 0 every rank has the whole gradient, and rank 0 counts it.
        squares: list[float] = []
        for group in self.groups:
            count = sum(tokens[source] for source in learning[group.name])
            self._scale(group, self.ranks.world_size / count if count else 0.0)
            parts = [self.shares[name].gradient() for name, _ in group.parameters]
            squares.append(sum_of_squares(parts) if self.zero.stage > 0 or self.ranks.is_first else 0.0)

        # Loss sums and norms over all ranks; NaN for a group that is not finite somewhere.
        sums = loss_sums(pieces)
        flags = [math.nan if group.name in self.carrier.broken else 0.0 for group in self.groups]
        totals = iter(self.ranks.sum([*sums.values(), *squares, *flags]))
        sums = {source: next(totals) for source in sums}
        lengths = [math.sqrt(next(totals)) for _ in self.groups]
        norms = {g.name: length + next(totals) for g, length in zip(self.groups, lengths, strict=True)}
        norms = {name: norms[name] for name, sources in learning.items() if sources}
        finite = {name: math.isfinite(norms[name] + sum(sums[source] for source in learning[name])) for name in norms}

        # Clipped; what is not finite, or had nothing to learn from, is cleared, and the optimizer leaves it out.
        limit = self.settings.clip_norm
        for group in self.groups:
            if not finite.get(group.name, False):
                self._scale(group, 0.0)
            elif limit is not None and norms[group.name] > limit:
                self._scale(group, limit / norms[group.name])
        for entry in self.optimizer.param_groups:
            entry["moves"] = finite.get(entry["group"], False)
        set_lr(self.optimizer, lr)
        self.deepspeed.step()
        self.steps_done += 1
        if getattr(self.deepspeed.optimizer, "overflow", False):
            finite = dict.fromkeys(finite, False)
        return step_result(sums, tokens, norms, tuple(name for name, fine in finite.items() if not fine))

    def _scale(self, group: Group, factor: float) -> None:
        """Multiplies the shares of a group's gradient; 0 clears them, whatever they hold."""
        for name, _ in group.parameters:
            gradient = self.shares[name].gradient()
            if factor:
                gradient.mul_(factor)
            else:
                gradient.zero_()

    @torch.no_grad()
    def loss_sum(self, batch: Batch) -> float:
        """Sum of the token losses of this process's batch, without a graph; 0 for a filler, which runs all the same."""
        loss = self.carrier(batch.to(self.device))
        return float(loss) if batch.supervised_tokens else 0.0

    def state_dict(self) -> EngineState:
        """The whole state, on every process; collective."""
        steps = {name: int(self.optimizer.state[share.master]["step"]) for name, share in self.shares.items()}
        moved = {name: share for name, share in self.shares.items() if steps[name]}
        moments = {}
        for kind in MOMENTS:
            own = {name: share.own(self.optimizer.state[share.master][kind]) for name, share in moved.items()}
            moments[kind] = whole_tensors(moved, own, replicated=self.zero.stage == 0, device=self.device)
        return EngineState(self.values(), moments, {name: steps[name] for name in moved}, self.steps_done)

    @torch.no_grad()
    def load_state_dict(self, state: EngineState) -> None:
        """From any engine and number of processes. Raises InputError where it is not of this run's trained tensors."""
        check_fits(state, self.parameters)
        for name, share in self.shares.items():
            write_parameter(share, state.parameters[name])
            own = self.optimizer.state[share.master]
            own["step"] = torch.tensor(float(state.steps.get(name, 0)))
            for kind in MOMENTS:
                piece, moments = share.own(own[kind]), state.moments[kind].get(name)
                piece.zero_() if moments is None else piece.copy_(share.cut(moments))
        self.steps_done = state.steps_done


class Carrier(nn.Module):
    """Holds the trained parameters and, where it shall be shared out, the frozen base of `model`.

    Its forward returns a loss whose graph is one node with a gradient for every trained parameter: of the micro-batch
    where the parameter's group learns from its source, else zero. So all processes hand DeepSpeed the same tensors in
    the same order, whatever their micro-batches hold, and what activation checkpointing runs again lies behind it.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], with_base: bool, device: torch.device) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameter for group in groups for _, parameter in group.parameters)
        self.groups, self.device = groups, device
        self.broken: set[str] = set()  # groups whose gradient was not finite; whoever reads it clears it
        self.whole = weakref.ref(model)  # no part of this module, which DeepSpeed never lets go of
        self.with_base = with_base
        if with_base:
            self.base = nn.ModuleDict({name: part for name, part in model.named_children() if name not in OUTSIDE})

    def forward(self, batch: Batch, *stream: object) -> Tensor:
        """The sum of the micro-batch's token losses; what is drawn at random depends on `stream` alone.

        Fillers go through the model like others: at stage 3 all processes must ask for the same weights.
        """
        model = self.whole()
        assert model is not None
        if not torch.is_grad_enabled():
            return model(batch.to(self.device))
        # A recomputation that stops early would leave out DeepSpeed's hooks behind the modules.
        with own_stream(self.device, *stream), set_checkpoint_early_stop(not self.with_base):
            loss = model(batch.to(self.device))
        found = self._gradients(loss, batch)
        gradients = [found.get(id(p), torch.zeros_like(p)) for p in self.trained]
        return _WithGradients.apply(loss.detach(), gradients, *self.trained)  # type: ignore[no-any-return]

    def _gradients(self, loss: Tensor, batch: Batch) -> dict[int, Tensor]:
        """id -> gradient of the parameters that learn from the micro-batch; notes groups where it is not finite."""
        learning = [group for group in self.groups if learns_from(group, batch.source)]
        parameters = [parameter for group in learning for _, parameter in group.parameters]
        if not parameters or not loss.requires_grad:
            return {}
        found = dict(zip(map(id, parameters), torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
        kept: dict[int, Tensor] = {}
        for group in learning if batch.supervised_tokens else ():
            own = {id(p): found[id(p)] for _, p in group.parameters if found[id(p)] is not None}
            if own and not torch.stack([gradient.isfinite().all() for gradient in own.values()]).all():
                self.broken.add(group.name)
            else:
                kept |= own
        return kept


class _WithGradients(torch.autograd.Function):
    """A loss that has the given gradients."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        return None, None, *(gradient * factors[0] for gradient in ctx.gradients)


def deepspeed_configuration(engine: EngineConf, bucket: int) -> dict[str, Any]:
    """DeepSpeed's configuration: float32 optimizer, no scaling, clipping, schedule or printing of its own."""
    zero: dict[str, Any] = {"stage": engine.stage, "reduce_bucket_size": bucket, "overlap_comm": False}
    if engine.stage == 3:
        # What stays whole is chosen by `keep_whole`, not by size.
        zero |= {"stage3_param_persistence_threshold": 0}
        zero |= {f"stage3_max_{what}": engine.gathered_parameters for what in ("live_parameters", "reuse_distance")}
        zero |= {"stage3_prefetch_bucket_size": min(engine.gathered_parameters, FETCHED_AHEAD)}
    if engine.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if engine.stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
