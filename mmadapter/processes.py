"""The processes of one run: who this one is, and the few things they say to each other (design decision 5).

Every engine, the loop, evaluation and the run folder ask here; nobody reads RANK or SLURM_PROCID themselves.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mmadapter.errors import InputError
from mmadapter.launch.environment import Place, find_place
from mmadapter.launch.start import end_with_parent
from mmadapter.launch.watch import GONE, Failure, Watch, speak, stopped_line
from mmadapter.meeting import meet, meeting_place

Value = TypeVar("Value")
GPU_SECONDS = 300.0  # for all to connect by NCCL, which starts the GPUs
MEET_SECONDS = 60.0  # from the first process at the meeting place to the last
COLLECTIVE_TIME = timedelta(hours=24)  # others may wait long for the first one; a death is told by the watch


@dataclass(frozen=True)
class Processes:
    """This process among `count`, numbered from 0. All methods are collective: every process calls them, in order."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine
    launcher: str = "python"  # what started them

    @property
    def is_first(self) -> bool:
        """Whether this process owns the run folder, the terminal and the boards."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64, added in their order.

        So the last bit of one sum does not depend on what else is summed up with it, as that of an all-reduce does.
        """
        if self.count == 1:
            return list(values)
        own = torch.tensor(values, dtype=torch.float64, device=_device())
        of_all = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(of_all, own)
        return reduce(torch.add, of_all).tolist()

    def broadcast(self, value: Any) -> Any:
        """What the first process has, on every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def decide(self, choose: Callable[[], Value]) -> Value:
        """What `choose()` gives on the first process, which alone calls it, on every process."""
        return self.broadcast(choose() if self.is_first else None)

    def gather(self, value: Any) -> list[Any]:
        """What every process has, by number, on every process."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()


_here = Processes()
_watch: Watch | None = None
_exported: list[str] = []
_runs = 0  # of this process so far: each meets under a name of its own


def here() -> Processes:
    """This process; alone unless `join` has found others."""
    return _here


def join(device: str, group_of_one: bool = False, meet_seconds: float = MEET_SECONDS) -> Processes:
    """Finds the other processes of this run and connects with them, by NCCL on "cuda", by gloo on "cpu".

    From then on every process ends when one of them does, with the first one's message, until `leave`. A process that
    was started alone stays as it is; with `group_of_one` it gets a process group that DeepSpeed can use. Raises
    InputError where the others do not come in `meet_seconds`, or there are fewer GPUs than processes; SystemExit where
    one has died by then. A second call changes nothing.
    """
    global _here, _watch, _runs
    if dist.is_initialized():
        return _here
    end_with_parent(os.environ)
    place = find_place(os.environ)
    if place is None:
        place = Place(0, 1, 0, "127.0.0.1", 0, "python")
    _here = Processes(place.rank, place.count, place.local_rank, place.launcher)
    if place.count == 1 and not group_of_one:
        return _here
    _runs += 1
    store: dist.Store = dist.HashStore()
    if place.count > 1:
        store = dist.PrefixStore(f"run {place.attempt}.{_runs}", meeting_place(place, meet_seconds))
        _watch = meet(place, store, meet_seconds)
    index = _use_gpu(place) if device == "cuda" else None
    _export(place, place.local_rank if index is None else index)
    with _in_time(meet_seconds if index is None else max(meet_seconds, GPU_SECONDS)):
        dist.init_process_group(
            "gloo" if index is None else "nccl",
            store=dist.PrefixStore("group", store),
            rank=place.rank,
            world_size=place.count,
            timeout=COLLECTIVE_TIME,
            device_id=None if index is None else torch.device("cuda", index),
        )
    return _here


def answer_with(answer: Callable[[int], bool]) -> None:
    """Has `answer(number)` called on a thread of the first process, when another one asks with `ask_first`."""
    if _watch is not None and _here.is_first:
        _watch.answer_with(answer)


def ask_first(number: int, seconds: float) -> bool:
    """Waits at most so long for the first process to do what it answers with; whether it did. Not after `leave`."""
    return _watch is not None and _watch.ask(number, seconds)


def leave() -> None:
    """Waits until all processes have come here, and goes on alone. Without others, or a second time: nothing."""
    global _here, _watch
    if _watch is not None:
        _watch.leave()
        _watch = None
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in _exported:
        os.environ.pop(name, None)
    _exported.clear()
    _here = Processes()


@contextlib.contextmanager
def joined(device: str, group_of_one: bool = False, meet_seconds: float = MEET_SECONDS) -> Iterator[Processes]:
    """Joined while inside. An exception ends all processes; only the one that failed first lets it be seen.

    The others, and those that failed for the same reason, end quietly with the same exit status.
    """
    try:
        yield join(device, group_of_one, meet_seconds)
    except BaseException as error:
        if _watch is not None:
            _tell(*_ending(error))
        raise
    else:
        leave()


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Ends all processes where what is inside takes longer; it blocks in C, and its own limit is COLLECTIVE_TIME."""
    timer = threading.Timer(seconds, _give_up, [seconds])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(seconds: float) -> None:
    message = (
        f"The processes have met, but could not connect with each other within {seconds:.0f} s. On several machines: "
        "are the ports between them open, and is it the right network (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)? Where "
        "it takes long: launch.meet_seconds=300"
    )
    first = Failure(_here.rank, 2, message) if _watch is None else _watch.fail(2, message)
    if first.rank == _here.rank:
        speak(f"error: {first.message}")
    elif _here.is_first:
        speak(stopped_line(first))
    os._exit(first.status or 1)


def _tell(status: int, message: str) -> None:
    """Tells the others that this process ends; raises SystemExit where another one failed before."""
    global _watch
    assert _watch is not None
    first = _watch.fail(status, message)
    _watch = None
    if first.rank != _here.rank:
        first_is_gone = first.rank == 0 and first.message == GONE  # then each speaks for itself
        if first_is_gone or (_here.is_first and first.message != message):
            speak(stopped_line(first))
        raise SystemExit(first.status or 1) from None


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit status and message of an exception that leaves a run."""
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        return status, f"it left with status {status}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "it was interrupted"
    return 1, f"{type(error).__name__}: {error}"


def _use_gpu(place: Place) -> int:
    """Makes this process's GPU the current one. Raises InputError where there are fewer GPUs than processes."""
    count = torch.cuda.device_count()
    bound = count == 1 and place.launcher == "srun"  # SLURM shows each task its own one
    index = 0 if bound else place.local_rank
    if index >= count:
        raise InputError(
            f"This machine has {count} GPUs for at least {place.local_rank + 1} processes. Start at most {count} "
            "processes a machine, or use engine.device=cpu."
        )
    torch.cuda.set_device(index)
    return index


def _export(place: Place, device_index: int) -> None:
    """What DeepSpeed reads; only what is not there already, and only until `leave`.

    Its LOCAL_RANK is the number of a GPU: 0 where SLURM shows each task one of its own.
    """
    values = {
        "RANK": place.rank,
        "WORLD_SIZE": place.count,
        "LOCAL_RANK": device_index,
        "MASTER_ADDR": place.address,
        "MASTER_PORT": place.port,
    }
    for name, value in values.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            _exported.append(name)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
