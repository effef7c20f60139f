"""Each process's part of a step: the same number of micro-batches for all, of balanced lengths, without a word between
them, for every process knows the whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.tokens import Encoded


@dataclass(frozen=True)
class OwnPart:
    """That of process `rank` among `count`."""

    rank: int = 0
    count: int = 1

    def batches(self, samples: Sequence[Encoded], batch_size: int, pad_id: int) -> list[Batch]:
        """This process's micro-batches, of at most `batch_size`, of one source's `samples`, shortest sample first.

        All processes get the same number of them. One that has fewer samples gets fillers, which count nothing. With
        several processes `visual` says whether one of them has an image at the same place.
        """
        dealt = [_cut(part, batch_size) for part in deal(samples, self.count)]
        places = max(len(part) for part in dealt)
        return [self._batch([part[place : place + 1] for part in dealt], samples, pad_id) for place in range(places)]

    def _batch(self, place: Sequence[list[list[Encoded]]], samples: Sequence[Encoded], pad_id: int) -> Batch:
        """What this process has at a place where each of the processes has one piece or none."""
        own = place[self.rank]
        batch = make_batch(own[0], pad_id) if own else make_batch(samples[:1], pad_id)
        if self.count == 1:
            return batch
        visual = any(item.sample.image is not None for pieces in place for piece in pieces for item in piece)
        return replace(batch, filler=not own, visual=visual)


def deal(samples: Sequence[Encoded], count: int) -> list[list[Encoded]]:
    """`samples` (shortest first) shared out to `count` processes, each part shortest first.

    The longest go round first, forwards and backwards in turns. So the parts' sizes differ by at most one sample, and
    their tokens by no more than the longest sample has.
    """
    parts: list[list[Encoded]] = [[] for _ in range(count)]
    for number, sample in enumerate(reversed(samples)):
        lap, place = divmod(number, count)
        parts[place if lap % 2 == 0 else count - 1 - place].append(sample)
    return [part[::-1] for part in parts]


def _cut(samples: Sequence[Encoded], size: int) -> list[list[Encoded]]:
    return [list(samples[begin : begin + size]) for begin in range(0, len(samples), size)]
