"""What is asked of a model, shared out over the processes in whole batches, and the answers put together again.

The batches are those of one process, so the answers are too, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmadapter.data.order import batches_by_length
from mmadapter.processes import here

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class OwnBatch:
    """What this process asks in one round, in which every process asks one batch."""

    indices: list[int]
    visual: bool | None  # whether some process has an image in this round; None: nobody else needs to know
    done: int  # how many have been asked when this round is over, by all processes together
    filler: bool = False  # only keeps this process in step with the others: its answers are not used


def own_batches(
    lengths: Sequence[int], images: Sequence[bool], batch_size: int, in_step: bool = False
) -> Iterator[OwnBatch]:
    """This process's part of all batches, those of similar length in the same round; one entry of `lengths` and of
    `images` (whether it has one) for each thing to be asked.

    Where the processes are `in_step`, all get the same number, the last of some is the shortest thing once more.
    """
    processes = here()
    batches = list(batches_by_length(lengths, batch_size))
    done = 0
    for start in range(0, len(batches), processes.count):
        together = batches[start : start + processes.count]
        done += sum(map(len, together))
        visual = any(images[index] for batch in together for index in batch) if in_step else None
        if processes.rank < len(together):
            yield OwnBatch(together[processes.rank], visual, done)
        elif in_step:
            yield OwnBatch(batches[-1][-1:], visual, done, filler=True)


def answers_of_all(
    ask: Callable[[OwnBatch], Sequence[Answer]],
    batches: Iterator[OwnBatch],
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """The answers of all processes, in order, on every one of them. Collective; the first one shows `progress`(done).

    `ask` gives one answer for each index of a batch.
    """
    processes = here()
    mine: dict[int, Answer] = {}
    for batch in batches:
        answers = ask(batch)
        if not batch.filler:
            mine |= dict(zip(batch.indices, answers, strict=True))
        if progress and processes.is_first:
            progress(batch.done)
    of_all = {index: answer for part in processes.gather(mine) for index, answer in part.items()}
    return [of_all[index] for index in sorted(of_all)]
