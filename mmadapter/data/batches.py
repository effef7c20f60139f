"""Batches without waste, and several sources as one stream of them: a pure function of (seed, index)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from mmadapter.data.order import WINDOW, LengthBucketedOrder, permutation
from mmadapter.data.samples import Sample
from mmadapter.data.tokens import Encoded
from mmadapter.errors import InputError

__all__ = ["Batch", "LengthBucketedOrder", "Mixture", "make_batch"]


@dataclass(frozen=True)
class Batch:
    """Rows of one source, left padded, with the supervised positions listed as (row index, target) pairs."""

    source: str
    input_ids: Tensor
    """(rows, tokens) int64"""
    attention_mask: Tensor
    """(rows, tokens) int64, 1 = real"""
    rows: Tensor
    """(pairs,) index into the flattened (rows * tokens) hidden states whose logits predict `targets`"""
    targets: Tensor
    """(pairs,) the token to be predicted; only supervised pairs are listed, so it may be empty"""
    pair_sample: Tensor
    """(pairs,) the row of the batch that the pair belongs to"""
    images: tuple[Path | None, ...]
    samples: tuple[Sample, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        names = ("input_ids", "attention_mask", "rows", "targets", "pair_sample")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    @property
    def supervised_tokens(self) -> int:
        """How many tokens the loss is taken over."""
        return int(self.targets.numel())


def make_batch(encoded: Sequence[Encoded], pad_id: int) -> Batch:
    """Pads to the longest of `encoded` on the left and lists the supervised pairs; all must come from one source."""
    sources = {item.sample.source for item in encoded}
    if len(sources) != 1:
        raise ValueError(f"a batch holds samples of exactly one source, got {sorted(sources)}")
    width = max(len(item.ids) for item in encoded)
    input_ids = torch.full((len(encoded), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    supervised = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, item in enumerate(encoded):
        start = width - len(item.ids)
        input_ids[row, start:] = torch.frombuffer(item.ids, dtype=torch.int32)
        attention_mask[row, start:] = 1
        for begin, end in item.spans:
            # The first token has no position before it that could predict it.
            supervised[row, start + max(begin, 1) : start + end] = True
    pairs = supervised.flatten().nonzero()[:, 0]
    return Batch(
        source=sources.pop(),
        input_ids=input_ids,
        attention_mask=attention_mask,
        rows=pairs - 1,
        targets=input_ids.flatten()[pairs],
        pair_sample=pairs // width,
        images=tuple(item.sample.image for item in encoded),
        samples=tuple(item.sample for item in encoded),
    )


class Mixture:
    """Micro-batches of several sources; the whole state of a run is the index of the next one.

    A *step* is up to `micro_batches` consecutive micro-batches of `batch_size` samples, all of one source, so the
    samples of a step do not depend on how it is cut into micro-batches. An epoch holds, for each source, a fixed number
    of steps:

    * no weights, or one source: as many as the source has. Every sample of every source comes exactly once an epoch;
      what does not fill a source's last step makes a smaller one.
    * weights: the epoch has as many steps as without weights, shared out by weight (largest remainder, at least one
      each). A source that ends starts again, reshuffled; one that does not end goes on there in the next epoch. Its
      last step is filled up with other samples of the same source, so no sample is lost and every step is full.

    The order of the sources within an epoch is shuffled.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Encoded]],
        weights: Mapping[str, float | None] | None,
        batch_size: int,
        seed: int,
        pad_id: int,
        micro_batches: int = 1,
        window: int = WINDOW,
    ) -> None:
        if not sources:
            raise InputError("There is no data source. Name at least one in data.sources.")
        if empty := [name for name, samples in sources.items() if not len(samples)]:
            raise InputError(f"The data source {empty[0]!r} holds no sample. Check its split, limit and path.")
        given = _checked_weights(sources, weights)
        self._sources = sources
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._seed = seed
        self._pad_id = pad_id
        self._filled = given is not None
        self._orders = {
            name: LengthBucketedOrder(
                [len(item.ids) for item in samples], batch_size * micro_batches, f"{seed}/{name}", window, self._filled
            )
            for name, samples in sources.items()
        }
        natural = {name: order.batches_per_epoch for name, order in self._orders.items()}
        self._steps = natural if given is None else _shared_out(sum(natural.values()), given)
        self._schedule: tuple[int, list[tuple[str, int]], list[int]] | None = None
        self._length = self._epoch_schedule(0)[1][-1]

    def __len__(self) -> int:
        """Micro-batches in one epoch; the same in every epoch."""
        return self._length

    @property
    def steps_per_epoch(self) -> int:
        """Steps (groups of up to `micro_batches` micro-batches) in one epoch."""
        return sum(self._steps.values())

    def step_indices(self, step: int) -> range:
        """The indices of the micro-batches that make up step `step`, counted from the run's start."""
        epoch, place = divmod(step, self.steps_per_epoch)
        ends = self._epoch_schedule(epoch)[1]
        begin = ends[place - 1] if place else 0
        return range(epoch * len(self) + begin, epoch * len(self) + ends[place])

    def batch(self, index: int) -> Batch:
        """Micro-batch `index`, counted from the run's start."""
        epoch, offset = divmod(index, len(self))
        slots, ends = self._epoch_schedule(epoch)
        place = bisect_right(ends, offset)
        name, step = slots[place]
        part = offset - (ends[place - 1] if place else 0)
        order = self._orders[name]
        indices = order.batch_indices(*divmod(step, order.batches_per_epoch))
        chosen = indices[part * self._batch_size : (part + 1) * self._batch_size]
        return make_batch([self._sources[name][number] for number in chosen], self._pad_id)

    def _epoch_schedule(self, epoch: int) -> tuple[list[tuple[str, int]], list[int]]:
        """The epoch's steps as (source, its own step number in the run), and where each one's micro-batches end."""
        if self._schedule is None or self._schedule[0] != epoch:
            names = [name for name, steps in self._steps.items() for _ in range(steps)]
            shuffled = [names[place] for place in permutation(len(names), "sources", self._seed, epoch)]
            seen = {name: epoch * steps for name, steps in self._steps.items()}
            slots = []
            for name in shuffled:
                slots.append((name, seen[name]))
                seen[name] += 1
            ends = list(accumulate(self._micro_batches_of(name, step) for name, step in slots))
            self._schedule = (epoch, slots, ends)
        return self._schedule[1], self._schedule[2]

    def _micro_batches_of(self, name: str, step: int) -> int:
        order = self._orders[name]
        is_last = step % order.batches_per_epoch == order.batches_per_epoch - 1
        left_over = len(self._sources[name]) % (self._batch_size * self._micro_batches)
        if self._filled or not is_last or not left_over:
            return self._micro_batches
        return -(-left_over // self._batch_size)


def _checked_weights(
    sources: Mapping[str, Sequence[Encoded]], weights: Mapping[str, float | None] | None
) -> dict[str, float] | None:
    """The weights where they decide something; None for one source or a proportional mixture."""
    weights = weights or {}
    if unknown := sorted(set(weights) - set(sources)):
        raise InputError(f"A weight is given for the unknown source {unknown[0]!r}; the sources are {sorted(sources)}.")
    given = {name: float(weight) for name, weight in weights.items() if weight is not None}
    for name, weight in given.items():
        if not 0 < weight < float("inf"):
            raise InputError(f"data.sources.{name}.weight is {weight}; it must be above 0, or leave the source out.")
    if not given or len(sources) == 1:
        return None
    if without := [name for name in sources if name not in given]:
        raise InputError(
            f"data.sources.{without[0]} has no weight while {sorted(given)} have one. Give every source a weight, "
            "or none (then each sample comes once an epoch)."
        )
    return given


def _shared_out(steps: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`steps` shared out by weight with largest remainders, at least one for each."""
    total = sum(weights.values())
    exact = {name: steps * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: steps - sum(shares.values())]:
        shares[name] += 1
    return {name: max(share, 1) for name, share in shares.items()}
