"""The order of samples: shuffled, of similar lengths in a batch, dealt to ranks; pure functions of (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from mmadapter.errors import InputError

Item = TypeVar("Item")

WINDOW = 512


def permutation(length: int, *key: object) -> list[int]:
    """A shuffled range(length), the same one for the same key on every machine."""
    import torch  # here, as scoring a file asks for `batches_by_length` only

    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(length, generator=generator).tolist()


class LengthBucketedOrder:
    """The batches of one source, epoch by epoch: shuffled, and of similar lengths within a batch.

    A pure function of (seed, epoch). Within windows of about `window` shuffled samples the samples are sorted by length
    and cut into batches; the batches are shuffled again over the whole epoch. Every sample comes once an epoch; what
    does not fill a batch is the epoch's last batch, smaller and of random lengths, or with `fill_last` filled up with
    other samples.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int | str, window: int = WINDOW, fill_last: bool = False
    ) -> None:
        if batch_size < 1:
            raise InputError(f"The batch size is {batch_size}; it must be at least 1.")
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._window = max(window // batch_size, 1) * batch_size
        self._fill_last = fill_last
        self._epoch: tuple[int, list[list[int]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """The last batch included."""
        return -(-len(self._lengths) // self._batch_size)

    def batch_indices(self, epoch: int, index: int) -> list[int]:
        """The sample indices of batch `index` of `epoch`, shortest sample first."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self._epoch[1][index]

    def _batches(self, epoch: int) -> list[list[int]]:
        size = self._batch_size
        shuffled = permutation(len(self._lengths), "samples", self._seed, epoch)
        full = len(shuffled) // size * size
        batches: list[list[int]] = []
        for start in range(0, full, self._window):
            window = self._by_length(shuffled[start : min(start + self._window, full)])
            batches.extend(window[begin : begin + size] for begin in range(0, len(window), size))
        batches = [batches[place] for place in permutation(len(batches), "batches", self._seed, epoch)]
        if full < len(shuffled):
            batches.append(self._by_length(self._last_batch(shuffled, full)))
        return batches

    def _last_batch(self, shuffled: list[int], full: int) -> list[int]:
        rest = shuffled[full:]
        if self._fill_last:
            missing = self._batch_size - len(rest)
            rest = rest + (shuffled * -(-missing // len(shuffled)))[:missing]
        return rest

    def _by_length(self, indices: list[int]) -> list[int]:
        return sorted(indices, key=self._lengths.__getitem__)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, so that a batch holds similar lengths and memory peaks at the start."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def deal(samples: Sequence[Item], count: int) -> list[list[Item]]:
    """`samples` (shortest first) shared out to `count` ranks, each part shortest first.

    The longest go round first, forwards and backwards in turns. So the parts' sizes differ by at most one sample, and
    their tokens by no more than the longest sample has.
    """
    parts: list[list[Item]] = [[] for _ in range(count)]
    for number, sample in enumerate(reversed(samples)):
        lap, place = divmod(number, count)
        parts[place if lap % 2 == 0 else count - 1 - place].append(sample)
    return [part[::-1] for part in parts]
