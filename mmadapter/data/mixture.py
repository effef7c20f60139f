"""Several sources as one stream of optimizer steps: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.order import WINDOW, LengthBucketedOrder, deal, permutation
from mmadapter.data.tokens import Encoded
from mmadapter.errors import InputError


@dataclass(frozen=True)
class OwnPart:
    """What rank `rank` of `count` gets of every step, without communication: every rank knows the whole step."""

    rank: int = 0
    count: int = 1

    def batches(self, samples: Sequence[Encoded], batch_size: int, pad_id: int) -> list[Batch]:
        """This rank's micro-batches, of at most `batch_size`, of one source's `samples`, shortest sample first.

        All ranks get the same number of them, of balanced lengths. One that has fewer samples gets fillers, which count
        nothing. With several ranks `visual` says whether one of them has an image at the same place.
        """
        dealt = [
            [part[begin : begin + batch_size] for begin in range(0, len(part), batch_size)]
            for part in deal(samples, self.count)
        ]
        places = max(len(part) for part in dealt)
        return [self._batch([part[place : place + 1] for part in dealt], samples, pad_id) for place in range(places)]

    def _batch(self, place: Sequence[list[list[Encoded]]], samples: Sequence[Encoded], pad_id: int) -> Batch:
        """What this rank has at a place where each of the ranks has one piece or none."""
        own = place[self.rank]
        batch = make_batch(own[0], pad_id) if own else make_batch(samples[:1], pad_id)
        if self.count == 1:
            return batch
        visual = any(item.sample.image is not None for pieces in place for piece in pieces for item in piece)
        return replace(batch, filler=not own, visual=visual)


class JointMixture:
    """Steps that each hold a fixed number of samples of every source; the index of the next step is the whole state.

    A step is made of micro-batches of one source and at most `batch_size` samples, source after source. A source's
    samples in step k depend on its own name, samples, share and the seed alone, so that other sources may come or go. A
    source that ends starts again, reshuffled; its last step is filled up with other samples of its own. An epoch is as
    many steps as the source that needs the most takes to come once whole.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Encoded]],
        samples_per_step: Mapping[str, int],
        batch_size: int,
        seed: int,
        pad_id: int,
        window: int = WINDOW,
        part: OwnPart = OwnPart(),
    ) -> None:
        _check_samples(sources)
        self._sources, self._batch_size, self._pad_id, self._own_part = sources, batch_size, pad_id, part
        self.samples_per_step = {name: samples_per_step[name] for name in sources}
        self._orders = {
            name: LengthBucketedOrder(
                [len(item.ids) for item in samples], samples_per_step[name], f"{seed}/{name}", window, fill_last=True
            )
            for name, samples in sources.items()
        }

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every source has come at least once whole."""
        return max(order.batches_per_epoch for order in self._orders.values())

    def step_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of step `step`, counted from the run's start."""
        return [batch for name in self._sources for batch in self._part(name, step)]

    def describe(self) -> str:
        """What a step and an epoch are, in one sentence."""
        parts = ", ".join(f"{count} {name}" for name, count in self.samples_per_step.items())
        epoch = self.steps_per_epoch
        passes = [f"{name} {epoch / order.batches_per_epoch:.3g} times" for name, order in self._orders.items()]
        return f"every step holds {parts}; an epoch is {epoch:,} steps, in which come: {', '.join(passes)}"

    def _part(self, name: str, step: int) -> list[Batch]:
        order = self._orders[name]
        chosen = order.batch_indices(*divmod(step, order.batches_per_epoch))
        samples = [self._sources[name][number] for number in chosen]
        return self._own_part.batches(samples, self._batch_size, self._pad_id)


class Mixture:
    """Steps of one source each, the sources in turns; the index of the next step is the whole state.

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
        part: OwnPart = OwnPart(),
    ) -> None:
        _check_samples(sources)
        given = {name: float(weight) for name, weight in (weights or {}).items() if weight is not None}
        self._sources = sources
        self._batch_size = batch_size
        self._own_part = part
        self._seed = seed
        self._pad_id = pad_id
        self._filled = bool(given) and len(sources) > 1
        self._orders = {
            name: LengthBucketedOrder(
                [len(item.ids) for item in samples], batch_size * micro_batches, f"{seed}/{name}", window, self._filled
            )
            for name, samples in sources.items()
        }
        natural = {name: order.batches_per_epoch for name, order in self._orders.items()}
        self._steps = _shared_out(sum(natural.values()), given) if self._filled else natural
        self._schedule: tuple[int, list[tuple[str, int]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps (of up to `micro_batches` micro-batches) in one epoch; the same in every epoch."""
        return sum(self._steps.values())

    def step_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of step `step`, counted from the run's start."""
        epoch, place = divmod(step, self.steps_per_epoch)
        samples = self._samples(*self._epoch_schedule(epoch)[place])
        return self._own_part.batches(samples, self._batch_size, self._pad_id)

    def describe(self) -> str:
        """What a step and an epoch are, in one sentence."""
        if len(self._sources) == 1:
            return f"an epoch is {self.steps_per_epoch:,} steps"
        parts = ", ".join(f"{steps:,} of {name}" for name, steps in self._steps.items())
        return f"every step holds one source; an epoch is {self.steps_per_epoch:,} steps: {parts}"

    def _samples(self, name: str, step: int) -> list[Encoded]:
        """All samples of step `step` of source `name`, shortest first."""
        order = self._orders[name]
        return [self._sources[name][number] for number in order.batch_indices(*divmod(step, order.batches_per_epoch))]

    def _epoch_schedule(self, epoch: int) -> list[tuple[str, int]]:
        """The epoch's steps as (source, its own step number in the run)."""
        if self._schedule is None or self._schedule[0] != epoch:
            names = [name for name, steps in self._steps.items() for _ in range(steps)]
            seen = {name: epoch * steps for name, steps in self._steps.items()}
            slots = []
            for place in permutation(len(names), "sources", self._seed, epoch):
                name = names[place]
                slots.append((name, seen[name]))
                seen[name] += 1
            self._schedule = (epoch, slots)
        return self._schedule[1]


def _shared_out(steps: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`steps` shared out by weight with largest remainders, at least one for each."""
    total = sum(weights.values())
    exact = {name: steps * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: steps - sum(shares.values())]:
        shares[name] += 1
    return {name: max(share, 1) for name, share in shares.items()}


def _check_samples(sources: Mapping[str, Sequence[Encoded]]) -> None:
    """Raises InputError where there is nothing to draw from."""
    if not sources:
        raise InputError("There is no data source. Name at least one in data.sources.")
    if empty := [name for name, samples in sources.items() if not len(samples)]:
        raise InputError(f"The data source {empty[0]!r} holds no sample. Check its split, limit and path.")
