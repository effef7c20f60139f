"""Picture files read by processes of their own, in order, so that the encoder need not wait for a disk or a decoder."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mmadapter.errors import InputError

WORTH_A_WORKER = 64  # pictures: fewer are read sooner than a process has started
AHEAD = 8  # pictures that each worker reads in advance; 0.6 MB each at 224 x 224 pixels, in shared memory
Made = TypeVar("Made")


class Outcomes(Dataset, Generic[Made]):
    """What `act` makes of each file, or the InputError that it raised: as a value, it keeps its message on its way."""

    def __init__(self, act: Callable[[Path], Made], paths: Sequence[Path]) -> None:
        self.act, self.paths = act, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Made | InputError:
        try:
            return self.act(self.paths[index])
        except InputError as error:
            return error


def in_order(act: Callable[[Path], Made], paths: Sequence[Path], workers: int) -> Generator[Made, None, None]:
    """`act(path)` for all `paths`, in their order, by up to `workers` processes (0, or few files: by this one).

    Raises what `act` raised as InputError, and an InputError where a worker has ended by itself.
    """
    count = min(workers, len(paths) // WORTH_A_WORKER)
    if count < 1:
        yield from map(act, paths)
        return
    loader = DataLoader(
        Outcomes(act, paths),
        batch_size=None,
        num_workers=count,
        prefetch_factor=AHEAD,
        multiprocessing_context=_start_method(),
        worker_init_fn=_end_with_the_run,
        generator=torch.Generator(),  # its own: else it would draw from the run's
    )
    try:
        for outcome in loader:
            if isinstance(outcome, InputError):
                raise outcome
            yield outcome
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            f"A process that reads pictures has ended by itself ({error}). Most often the machine has run out of "
            "memory or of shared memory (/dev/shm). Run the same command again: it goes on; "
            f"vision.workers={count // 2} needs less, vision.workers=0 reads in the run's own process."
        ) from error


def _end_with_the_run(worker: int) -> None:
    """In a worker: ends it when the run is gone, be it by kill -9. torch's own watch sees only the server between."""

    def watch() -> None:
        run = multiprocessing.parent_process()
        assert run is not None
        run.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _start_method() -> Any:
    """Workers come from a server that has imported what they need and nothing else.

    A fork of the run itself would hold on to its lock, its GPU and its threads' locks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmadapter.vision.reading", "mmadapter.data.images", "open_clip.transform"])
    return context
