"""Picture files read by processes of their own, in order, so that the encoder need not wait for a disk or a decoder.

Each worker has a pipe that nobody else writes to: its death is the end of the pipe, at once and at any moment. (In
the DataLoader of torch all workers write into one queue: one that is killed there leaves the run waiting for ever.)
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmadapter.errors import InputError

WORTH_A_WORKER = 64  # pictures: fewer are read sooner than a process has started
Made = TypeVar("Made")


def in_order(act: Callable[[Path], Made], paths: Sequence[Path], workers: int) -> Generator[Made, None, None]:
    """`act(path)` for all `paths`, in their order, by up to `workers` processes (0, or few files: by this one).

    What `act` makes travels as plain bytes: no tensors. Raises what `act` raised as InputError, and an InputError where
    a worker has ended by itself.
    """
    count = min(workers, len(paths) // WORTH_A_WORKER)
    if count < 1:
        yield from map(act, paths)
        return
    context, started = _start_method(), []
    try:
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(act, list(paths[number::count]), theirs), daemon=True)
            started.append((process, ours))
            process.start()
            theirs.close()  # else this process would keep the pipe open when the worker is gone
        for number in range(len(paths)):
            yield _received(*started[number % count], count)
    finally:
        for process, ours in started:
            ours.close()
            if process.pid is not None:
                process.terminate()
                process.join()


def _received(worker: Any, pipe: Connection, count: int) -> Any:
    """The worker's next outcome."""
    try:
        outcome = pipe.recv()
    except (EOFError, OSError) as error:
        worker.join()
        raise InputError(
            f"A process that reads pictures (process {worker.pid}) has ended by itself, with status "
            f"{worker.exitcode}. Most often the machine has run out of memory. Run the same command again: it goes on; "
            f"vision.workers={count // 2} needs less, vision.workers=0 reads in the run's own process."
        ) from error
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def _work(act: Callable[[Path], Any], paths: Sequence[Path], pipe: Connection) -> None:
    """A worker: sends what becomes of each file, waiting where nobody takes it yet; ends when the run is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the run, which ends its workers
    torch.set_num_threads(1)
    for path in paths:
        try:
            outcome = act(path)
        except InputError as error:
            outcome = error
        try:
            pipe.send(outcome)
        except BrokenPipeError:
            return


@cache
def _start_method() -> Any:
    """Workers come from a server that has imported what they need and nothing else.

    A fork of the run itself would hold on to its lock, its GPU and its threads' locks.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmadapter.vision.features", "open_clip.transform"])
    return context
