"""The ranks of one run: what they tell each other, how they connect, and how they end together.

Nobody else reads RANK or SLURM_PROCID. What ranks send are numbers, JSON and bytes; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmadapter.distributed.launchers import Launched, launched
from mmadapter.distributed.settings import LaunchConf
from mmadapter.distributed.start import end_with_parent
from mmadapter.errors import InputError, disk_trouble

Value = TypeVar("Value")
NCCL_SECONDS = 300.0  # to connect by NCCL, which starts the GPUs
RANK_0_SECONDS = 1.0  # for rank 0 to fail in the same way as another rank, and to speak for it
LAST_WORDS_SECONDS = 30.0  # for the rank that speaks for all to end, which may include asking SLURM for a requeue
NOTE_SECONDS = 5.0  # for the other ranks to note that they wait, too
LONG_WAIT_SECONDS = 1.0  # between two looks at whether another rank has failed
PACKAGE = Path(__file__).parents[1]


class LostRank(RuntimeError):
    """Another rank has failed, and has said so itself."""


class Ranks:
    """This rank among the `world_size` ranks of a run; alone unless `connected` has found others.

    All methods but `end` are collective: every rank calls them, in the same order. Each exchange has the deadline
    launch.timeout_minutes. What rank 0 does within `decide`, and the wait for the slowest rank at a `barrier`, have
    none: there the ranks wait in the store and not in a collective.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, launcher: str = "python") -> None:
        self.rank, self.world_size, self.launcher = rank, world_size, launcher
        self._store: dist.Store = dist.HashStore()  # of one process; `connected` gives them the one they share
        self._has_store = False  # whether the store that all use ends with this process
        self._numbers = itertools.count()

    @property
    def is_first(self) -> bool:
        """Whether this rank owns the run folder and the terminal."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in float64, added in rank order.

        So the last bit of one sum does not depend on what else is summed up with it, as that of an all-reduce does.
        """
        if self.world_size == 1:
            return list(values)
        own = torch.tensor(values, dtype=torch.float64, device=_device())
        of_all = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(of_all, own)
        return reduce(torch.add, of_all).tolist()

    def decide(self, choose: Callable[[], Value]) -> Value:
        """What `choose()` gives on rank 0, which alone calls it, on every rank: a value that JSON can hold."""
        if self.world_size == 1:
            return choose()
        return json.loads(self.decide_bytes(lambda: json.dumps(choose()).encode()))  # type: ignore[no-any-return]

    def decide_bytes(self, choose: Callable[[], bytes]) -> bytes:
        """As `decide`, for bytes. The others wait in the store for rank 0 to be done, however long that takes."""
        if self.world_size == 1:
            return choose()
        content, name = b"", f"work {next(self._numbers)}"
        if self.is_first:
            content = choose()
            with contextlib.suppress(RuntimeError):  # the store has gone: the others wait in the exchange below
                self._store.set(name, "")
        else:
            self._wait_long([name])
        size = torch.tensor([len(content)], device=_device())
        dist.broadcast(size, src=0)
        sent = _as_tensor(content) if self.is_first else torch.empty(int(size), dtype=torch.uint8, device=_device())
        dist.broadcast(sent, src=0)
        return _as_bytes(sent)

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, which JSON can hold, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        return [json.loads(content) for content in self.gather_bytes(json.dumps(value).encode())]

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """The bytes of every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [content]
        sizes = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(content)], device=_device()))
        longest = max(int(size) for size in sizes)
        pieces = [torch.empty(longest, dtype=torch.uint8, device=_device()) for _ in sizes]
        dist.all_gather(pieces, _as_tensor(content.ljust(longest, b"\0")))
        return [_as_bytes(piece[: int(size)]) for piece, size in zip(pieces, sizes, strict=True)]

    def barrier(self) -> None:
        """Waits until every rank is here, however long that takes."""
        if self.world_size == 1:
            return
        number = next(self._numbers)
        names = [f"rank {rank} is at barrier {number}" for rank in range(self.world_size)]
        with contextlib.suppress(RuntimeError):
            self._store.set(names[self.rank], "")
        self._wait_long(names)

    def leave(self) -> None:
        """Waits until every rank has come to its end; then this one is alone. A second time: nothing."""
        self.barrier()
        self.rank, self.world_size = 0, 1
        if dist.is_initialized():
            dist.destroy_process_group()

    def end(self, status: int, last_words: Callable[[], object]) -> int:
        """Ends this rank because of an error or a signal; returns the exit status, the same on all ranks that do so.

        Not collective. One rank calls `last_words` for all: rank 0 if it ends, too, else the first that came here. The
        others end after that one, and leave its message alone on the terminal.
        """
        if self.world_size == 1:
            last_words()
            return status
        spoken: int | None = None
        with contextlib.suppress(RuntimeError):  # the store has gone together with rank 0: each speaks for itself
            if self.is_first:
                self._store.set("rank 0 is ending", "")
            rank_0_speaks = not self.is_first and self._wait_in_store(["rank 0 is ending"], RANK_0_SECONDS)
            another_speaks = rank_0_speaks or self._store.add("speaker", 1) > 1
            if another_speaks and self._wait_in_store(["status"], LAST_WORDS_SECONDS):
                spoken = int(self._store.get("status"))
        if spoken is None:
            last_words()
        with contextlib.suppress(RuntimeError):
            if spoken is None:
                self._store.set("status", str(status))
            ended, deadline = self._store.add("ended", 1), time.monotonic() + 2 * RANK_0_SECONDS
            while self._has_store and ended < self.world_size and time.monotonic() < deadline:
                time.sleep(0.05)
                ended = self._store.add("ended", 0)
        return status if spoken is None else spoken

    def _wait_long(self, names: list[str]) -> None:
        """Waits until all names are set, however long that takes. Raises LostRank where another rank has failed.

        Where the store has gone (kill -9 of torchrun) nothing is waited for here, but in the exchange that comes next.
        """
        has_failed = False
        with contextlib.suppress(RuntimeError):
            while not has_failed and not self._wait_in_store(names, LONG_WAIT_SECONDS):
                has_failed = self._store.check(["status"])
        if has_failed:
            raise LostRank("another rank has failed")

    def _absent(self, note: str, seconds: float) -> list[str]:
        """Leaves a note in the store, waits for that of every rank, and names the ranks that leave none in time."""
        names = [f"rank {rank} {note}" for rank in range(self.world_size)]
        self._store.set(names[self.rank], "")
        if self._wait_in_store(names, seconds):
            return []
        return [str(rank) for rank, name in enumerate(names) if not self._store.check([name])]

    def _wait_in_store(self, names: list[str], seconds: float) -> bool:
        """Waits until all names are set; False where the time is over. (`Store.wait` sees no signals, and is noisy.)"""
        pause, deadline = 0.001, time.monotonic() + seconds
        while not self._store.check(names):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        return True


_runs = itertools.count()  # of this process: each uses names of its own in the store


@contextlib.contextmanager
def connected(device: str, launch: LaunchConf | None = None, group_of_one: bool = False) -> Iterator[Ranks]:
    """The ranks of this run, connected while inside: by NCCL on "cuda", by gloo on "cpu".

    A process that was started alone has no process group; with `group_of_one` it gets one, for DeepSpeed. Raises
    InputError where other ranks do not come in launch.meet_seconds, or where there are more ranks than GPUs.

    An exception that leaves the block ends the run: one rank lets it be seen, the others leave with SystemExit and the
    same status. Those that are still at work end when they miss this one in a collective, or by their launcher.
    """
    end_with_parent(os.environ)
    place, launch = launched(os.environ) or Launched(), launch or LaunchConf()
    ranks = Ranks(place.rank, place.world_size, place.launcher)
    try:
        if place.world_size > 1 or group_of_one:
            _connect(ranks, place, launch, device)
        yield ranks
        ranks.leave()
    except SystemExit:  # a stop that all ranks know of
        raise
    except BaseException as error:
        if ranks.world_size > 1:
            _end_with(ranks, error, launch)
        raise
    finally:
        if place.world_size == 1 and dist.is_initialized():
            dist.destroy_process_group()


def _connect(ranks: Ranks, place: Launched, launch: LaunchConf, device: str) -> None:
    """Meets the other ranks in the store, then makes torch's process group."""
    if place.world_size > 1:
        store = _open_store(place, launch.meet_seconds)
        ranks._store = dist.PrefixStore(f"run {place.attempt}.{next(_runs)}", store)
        ranks._has_store = place.rank == 0 and not place.agent_has_store and not place.file
        _meet(ranks, place, launch.meet_seconds)
    gpu = _use_gpu(place) if device == "cuda" else None
    if gpu is not None:
        faulthandler.enable()  # NCCL ends a process at the deadline by SIGABRT: then it shows where it waits
    seconds = launch.meet_seconds if gpu is None else max(launch.meet_seconds, NCCL_SECONDS)
    # Connecting blocks in C for as long as any collective may: a timer ends it.
    timer = threading.Timer(seconds, partial(_give_up_connecting, ranks, seconds))
    timer.daemon = True
    timer.start()
    try:
        dist.init_process_group(
            "gloo" if gpu is None else "nccl",
            store=dist.PrefixStore("group", ranks._store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(minutes=launch.timeout_minutes),
            device_id=None if gpu is None else torch.device("cuda", gpu),
        )
    finally:
        timer.cancel()


@cache
def _open_store(place: Launched, seconds: float) -> dist.Store:
    """The store at which all ranks meet: a file, or a server in rank 0 or torchrun. Kept as long as the process."""
    if place.file:
        return dist.FileStore(place.file, place.world_size)
    serves = place.rank == 0 and not place.agent_has_store
    try:
        return dist.TCPStore(
            place.address,
            place.port,
            place.world_size,
            is_master=serves,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, OSError) as error:
        what = "cannot listen" if serves else f"did not find rank 0 within {seconds:.0f} s"
        raise InputError(
            f"Rank {place.rank} of {place.world_size} {what} at {place.address}:{place.port} ({error}). To fix: look "
            "for an error of rank 0; check the address (MASTER_ADDR) and that the port is free (MASTER_PORT); where "
            "machines start slowly: launch.meet_seconds=300"
        ) from error


def _meet(ranks: Ranks, place: Launched, seconds: float) -> None:
    """Waits until every rank has come. Raises InputError that names those that have not."""
    try:
        absent = ranks._absent("has come", seconds)
    except RuntimeError as error:  # the store was rank 0's
        raise InputError("Rank 0 ended while the ranks met. To fix: look for its error.") from error
    if absent:
        where = "on this machine" if place.file else f"at {place.address}:{place.port}"
        raise InputError(
            f"Of {ranks.world_size} ranks these did not come within {seconds:.0f} s ({where}): {', '.join(absent)}. To "
            "fix: look for their first error; on several machines, check that all started and that the ports between "
            "them are open; where machines start slowly: launch.meet_seconds=300"
        )


def _give_up_connecting(ranks: Ranks, seconds: float) -> None:
    message = (
        f"error: All ranks have come, but could not connect with each other within {seconds:.0f} s. To fix, on several "
        "machines: open the ports between them, and name the right network (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); "
        "where it takes long: launch.meet_seconds=300"
    )
    os._exit(ranks.end(2, partial(_print_error, message)))


def _end_with(ranks: Ranks, error: BaseException, launch: LaunchConf) -> None:
    """Returns on the rank that shall show the error; raises SystemExit on the others."""
    shows = False

    def show() -> None:
        nonlocal shows
        shows = lost is None
        if lost is not None:
            _print_error(lost)
        elif isinstance(error, InputError) and not ranks.is_first:
            error.args = (f"rank {ranks.rank}: {error}",)

    lost = _lost_connection(ranks, error, launch)
    bad_input = isinstance(error, InputError) or (isinstance(error, OSError) and disk_trouble(error, "") is not None)
    status = ranks.end(130 if isinstance(error, KeyboardInterrupt) else 2 if bad_input else 1, show)
    if not shows:
        raise SystemExit(status) from None


def _lost_connection(ranks: Ranks, error: BaseException, launch: LaunchConf) -> str | None:
    """What to say of an exception of torch.distributed; None for any other."""
    is_from_gloo = isinstance(error, RuntimeError) and "gloo/" in str(error)
    if not (is_from_gloo or isinstance(error, LostRank | dist.DistError)):
        return None
    inner = (Path(__file__).parent, Path(dist.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent not in inner]
    where = "the first meeting"  # where it was lost while the ranks connect, nobody's code has been reached
    if frames:
        frame = ([f for f in frames if PACKAGE in Path(f.filename).parents] or frames)[-1]
        where = f"{Path(frame.filename).name}, line {frame.lineno} ({frame.name})"
    if "timed out" not in str(error).lower():
        return (
            f"stopped: rank {ranks.rank} of {ranks.world_size} has lost the connection to another rank in {where}. "
            "That one has ended: killed? out of memory? its machine lost?"
        )
    absent: list[str] = []
    with contextlib.suppress(RuntimeError):
        absent = ranks._absent("has waited until the deadline", NOTE_SECONDS)
    return (
        f"stopped: rank {ranks.rank} of {ranks.world_size} has waited {launch.timeout_minutes:g} minutes in {where} "
        f"for {'rank ' + ', '.join(absent) if absent else 'the others, which wait somewhere else'}. To fix: see what "
        "that one does (its log, py-spy dump); where it only is slow: launch.timeout_minutes=120"
    )


def _print_error(text: str) -> None:
    """One line on stderr; the cursor comes back where progress bars had hidden it."""
    shown = "\x1b[?25h" if sys.stdout.isatty() else ""
    os.write(2, f"{shown}{text}\n".encode())


def _use_gpu(place: Launched) -> int:
    """Makes this rank's GPU the current one. Raises InputError where there are more ranks than GPUs."""
    count = torch.cuda.device_count()
    bound = count == 1 and place.launcher == "srun"  # SLURM may show each task a GPU of its own
    index = 0 if bound else place.local_rank
    if index >= count:
        raise InputError(
            f"This machine has {count} GPUs for at least {place.local_rank + 1} processes. To fix: start at most "
            f"{count} processes a machine, or use engine.device=cpu."
        )
    torch.cuda.set_device(index)
    return index


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _as_tensor(content: bytes) -> Tensor:
    if not content:
        return torch.empty(0, dtype=torch.uint8, device=_device())
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(_device())


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
