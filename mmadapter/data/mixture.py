"""Which samples each optimizer step holds, and what each rank gets of them; pure functions of (seed, step).

A source's samples are shuffled into batches of similar lengths (`LengthBucketedOrder`). A step holds batches of every
source (`JointMixture`) or of one in turns (`TurnsMixture`); `micro_batches` cuts them, for this rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch

from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.forest import make_forest_batch
from mmadapter.data.tokens import Encoded
from mmadapter.errors import InputError

Item = TypeVar("Item")
WINDOW = 512  # about so many shuffled samples are sorted by length


@dataclass(frozen=True)
class StepShape:
    """How samples become steps: the effective batch, its micro-batches, the order's seed, this rank's part."""

    batch_size: int
    micro_batch_size: int  # samples of a micro-batch, at most
    seed: int
    rank: int = 0
    world_size: int = 1
    micro_batch_tokens: int | None = None  # and its tokens, at most, where it has more than one sample; None: no limit

    def __post_init__(self) -> None:
        """Raises InputError where a step has fewer samples than there are ranks."""
        if self.batch_size < self.world_size:
            raise InputError(
                f"optimizer.batch_size={self.batch_size} is shared out over {self.world_size} processes: some would "
                f"have nothing to do in every step. Start at most {self.batch_size} processes (or set "
                f"optimizer.batch_size={self.world_size})."
            )


class Mixture:
    """Several sources as one stream of optimizer steps; the index of the next step is the whole state.

    A source's samples in its own step k depend on its name, samples, samples a step and the seed alone.
    """

    steps_per_epoch: int
    layout = "padded"  # of the micro-batches: or "forest"

    def __init__(
        self,
        sources: Mapping[str, Sequence[Encoded]],
        shape: StepShape,
        pad_id: int,
        samples_per_step: Mapping[str, int],
        fill_last: bool,
        together: Collection[str] = (),
    ) -> None:
        """`together` names the sources whose samples of one picture come one behind the other.

        Raises InputError for a source without a sample.
        """
        if empty := [name for name, samples in sources.items() if not samples]:
            raise InputError(f"The data source {empty[0]!r} holds no sample. Check its split, limit and path.")
        self.sources, self.shape, self.pad_id, self.samples_per_step = sources, shape, pad_id, samples_per_step
        self.orders = {
            name: LengthBucketedOrder(
                [len(item.ids) for item in samples],
                samples_per_step[name],
                f"{shape.seed}/{name}",
                fill_last,
                _by_picture(samples) if name in together else None,
            )
            for name, samples in sources.items()
        }

    def sources_of_step(self, step: int) -> list[tuple[str, int]]:
        """The sources that step `step` holds, each with the number of its own step."""
        raise NotImplementedError

    def describe(self) -> str:
        """What a step and an epoch are, in one sentence."""
        raise NotImplementedError

    def step_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of step `step`, counted from the run's start, source after source."""
        batches = []
        for name, own_step in self.sources_of_step(step):
            order = self.orders[name]
            chosen = order.batch_indices(*divmod(own_step, order.batches_per_epoch))
            samples = [self.sources[name][number] for number in chosen]
            batches += micro_batches(samples, self.shape, self.pad_id, self.layout)
        return batches


class JointMixture(Mixture):
    """Steps that each hold a fixed number of samples of every source, so that other sources may come or go.

    A source that ends starts again, reshuffled; its last step is filled up with other samples of its own. An epoch is
    as many steps as the source that needs the most takes to come once whole.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Encoded]],
        shape: StepShape,
        pad_id: int,
        samples_per_step: Mapping[str, int],
        together: Collection[str] = (),
    ) -> None:
        super().__init__(sources, shape, pad_id, samples_per_step, fill_last=True, together=together)
        self.steps_per_epoch = max(order.batches_per_epoch for order in self.orders.values())

    def sources_of_step(self, step: int) -> list[tuple[str, int]]:
        return [(name, step) for name in self.sources]

    def describe(self) -> str:
        parts = ", ".join(f"{self.samples_per_step[name]} {name}" for name in self.sources)
        epoch = self.steps_per_epoch
        passes = [f"{name} {epoch / order.batches_per_epoch:.3g} times" for name, order in self.orders.items()]
        return f"every step holds {parts}; an epoch is {epoch:,} steps, in which come: {', '.join(passes)}"


class TurnsMixture(Mixture):
    """Steps of one source each, of `shape.batch_size` samples, the sources in shuffled turns.

    An epoch holds, for each source, a fixed number of steps:

    * no weights, or one source: as many as the source has. Every sample of every source comes exactly once an epoch;
      what does not fill a source's last step makes a smaller one.
    * weights: the epoch has as many steps as without weights, shared out by weight (largest remainder, at least one
      each). A source that ends starts again, reshuffled; one that does not end goes on there in the next epoch. Its
      last step is filled up with other samples of the same source, so no sample is lost and every step is full.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Encoded]],
        shape: StepShape,
        pad_id: int,
        weights: Mapping[str, float | None] | None = None,
        together: Collection[str] = (),
    ) -> None:
        given = {name: float(weight) for name, weight in (weights or {}).items() if weight is not None}
        weighted = bool(given) and len(sources) > 1
        every = dict.fromkeys(sources, shape.batch_size)
        super().__init__(sources, shape, pad_id, every, fill_last=weighted, together=together)
        self.steps = {name: order.batches_per_epoch for name, order in self.orders.items()}
        self.steps_per_epoch = sum(self.steps.values())
        if weighted:
            self.steps = _shared_out(self.steps_per_epoch, given)
            self.steps_per_epoch = sum(self.steps.values())
        self._epoch: int | None = None
        self._turns: list[tuple[str, int]] = []  # of that epoch

    def sources_of_step(self, step: int) -> list[tuple[str, int]]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            names = [name for name, steps in self.steps.items() for _ in range(steps)]
            next_step = {name: epoch * steps for name, steps in self.steps.items()}
            self._epoch, self._turns = epoch, []
            for slot in permutation(len(names), "sources", self.shape.seed, epoch):
                self._turns.append((names[slot], next_step[names[slot]]))
                next_step[names[slot]] += 1
        return [self._turns[place]]

    def describe(self) -> str:
        if len(self.sources) == 1:
            return f"an epoch is {self.steps_per_epoch:,} steps"
        parts = ", ".join(f"{steps:,} of {name}" for name, steps in self.steps.items())
        return f"every step holds one source; an epoch is {self.steps_per_epoch:,} steps: {parts}"


def _shared_out(steps: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`steps` shared out by weight with largest remainders, at least one for each."""
    total = sum(weights.values())
    exact = {name: steps * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: steps - sum(shares.values())]:
        shares[name] += 1
    return {name: max(share, 1) for name, share in shares.items()}


class LengthBucketedOrder:
    """The batches of one source, epoch by epoch: shuffled, and of similar lengths within a batch.

    A pure function of (seed, epoch). Within windows of shuffled samples the samples are sorted by length and cut into
    batches; the batches are shuffled again over the whole epoch. Every sample comes once an epoch; what does not fill a
    batch is the epoch's last batch, smaller and of random lengths, or with `fill_last` filled up with other samples.
    `units` are samples that come one behind the other, all in the same batch unless it is full; None: each by itself.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int | str,
        fill_last: bool = False,
        units: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._lengths, self._batch_size, self._seed, self._fill_last = lengths, batch_size, seed, fill_last
        self._units = units
        self._sort_by = lengths  # of each sample: its length, or the greatest of its unit
        if units is not None:
            longest = {number: max(lengths[one] for one in unit) for unit in units for number in unit}
            self._sort_by = [longest[number] for number in range(len(lengths))]
        self.batches_per_epoch = -(-len(lengths) // batch_size)  # the last batch included
        self._epoch: int | None = None
        self._batches: list[list[int]] = []  # of that epoch

    def batch_indices(self, epoch: int, index: int) -> list[int]:
        """The sample indices of batch `index` of `epoch`, shortest sample (or unit) first."""
        if self._epoch != epoch:
            self._epoch, self._batches = epoch, self._batches_of(epoch)
        return self._batches[index]

    def _batches_of(self, epoch: int) -> list[list[int]]:
        size = self._batch_size
        if self._units is None:
            shuffled = permutation(len(self._lengths), "samples", self._seed, epoch)
        else:
            places = permutation(len(self._units), "samples", self._seed, epoch)
            shuffled = [number for place in places for number in self._units[place]]
        rest = len(shuffled) % size
        full, last = shuffled[: len(shuffled) - rest], shuffled[len(shuffled) - rest :]

        window = max(WINDOW // size, 1) * size
        batches: list[list[int]] = []
        for start in range(0, len(full), window):
            of_window = sorted(full[start : start + window], key=self._sort_by.__getitem__)  # units stay whole
            batches.extend(of_window[begin : begin + size] for begin in range(0, len(of_window), size))
        batches = [batches[place] for place in permutation(len(batches), "batches", self._seed, epoch)]

        if last and self._fill_last:
            missing = size - rest
            last += (shuffled * -(-missing // len(shuffled)))[:missing]
        return [*batches, sorted(last, key=self._sort_by.__getitem__)] if last else batches


def permutation(length: int, *key: object) -> list[int]:
    """A shuffled range(length), the same one for the same key on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(length, generator=generator).tolist()


# The part of a rank, without communication: every rank knows the whole step.


def micro_batches(samples: Sequence[Encoded], shape: StepShape, pad_id: int, layout: str = "padded") -> list[Batch]:
    """This rank's micro-batches of one source's `samples`, shortest sample first, within the limits of `shape`.

    All ranks get the same number of them, of balanced lengths; samples of one picture that stand one behind the other
    are dealt to the same rank. One that has fewer micro-batches gets fillers, which count nothing. With several ranks
    `visual` says whether one of them has an image at the same place.
    """
    fair = -(-len(samples) // shape.world_size)
    dealt = [list(pieces(part, shape, layout)) for part in deal(_units(samples, fair), shape.world_size)]
    batches = []
    for place in range(max(len(part) for part in dealt)):
        own = dealt[shape.rank][place : place + 1]
        held = own[0] if own else samples[:1]
        batch = make_forest_batch(held) if layout == "forest" else make_batch(held, pad_id)
        if shape.world_size > 1:
            there = [item for part in dealt for piece in part[place : place + 1] for item in piece]
            visual = any(item.sample.image is not None for item in there)
            batch = replace(batch, filler=not own, visual=visual)
        batches.append(batch)
    return batches


def pieces(samples: Sequence[Encoded], shape: StepShape, layout: str) -> Iterator[Sequence[Encoded]]:
    """`samples` cut into micro-batches, each as large as the limits of `shape` allow.

    A padded micro-batch has as many tokens as its samples times the longest one, a forest at most those of its samples.
    """
    begin, tokens, longest = 0, 0, 0
    for place, item in enumerate(samples):
        tokens, longest = tokens + len(item.ids), max(longest, len(item.ids))
        count = place + 1 - begin
        held = tokens if layout == "forest" else count * longest
        too_large = shape.micro_batch_tokens is not None and held > shape.micro_batch_tokens
        if count > 1 and (count > shape.micro_batch_size or too_large):
            yield samples[begin:place]
            begin, tokens, longest = place, len(item.ids), len(item.ids)
    if samples:
        yield samples[begin:]


def deal(units: Sequence[Sequence[Item]], count: int) -> list[list[Item]]:
    """`units` of samples (shortest first) shared out to `count` ranks, each part shortest first.

    The longest go round first, forwards and backwards in turns. So the parts' sizes differ by at most one unit, and
    their tokens by no more than the longest unit has.
    """
    parts: list[list[Sequence[Item]]] = [[] for _ in range(count)]
    for number, unit in enumerate(reversed(units)):
        lap, place = divmod(number, count)
        parts[place if lap % 2 == 0 else count - 1 - place].append(unit)
    return [[item for unit in reversed(part) for item in unit] for part in parts]


def _units(samples: Sequence[Encoded], most: int) -> list[Sequence[Encoded]]:
    """Neighbours with the same picture as one unit, of at most so many samples; all others are units of one."""
    units: list[Sequence[Encoded]] = []
    for image, members in groupby(samples, key=lambda item: item.sample.image):
        own, size = list(members), 1 if image is None else most
        units += [own[begin : begin + size] for begin in range(0, len(own), size)]
    return units


def _by_picture(samples: Sequence[Encoded]) -> list[list[int]]:
    """The numbers of the samples, those of one picture in one list."""
    units: dict[object, list[int]] = {}
    for number, item in enumerate(samples):
        units.setdefault(number if item.sample.image is None else item.sample.image, []).append(number)
    return list(units.values())
