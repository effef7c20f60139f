"""Contenders in processes of their own that take turns, so that a machine that slows down slows all of them down.

The parent hands out the turns over pipes; only one process works at a time. A contender is a function of its module
that takes the case and returns what does a turn: a function of the turn's number.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from bench.case import Case

# Module in bench/contenders and the package that it needs besides those of mmadapter.
CONTENDERS = {
    "ours": ("ours", None),
    "padded": ("padded", None),
    "as_published": ("as_published", None),
    "transformers": ("plain_transformers", None),
    "peft": ("peft_prompts", "peft"),
    "plain_v2": ("plain_v2", "peft"),
    "floor": ("floor", None),
    "open_clip": ("plain_open_clip", None),
}
# What no module is here for, and how it would be had.
NOT_BUILT = {"litgpt": "pip install litgpt; its contender is not written yet"}


@dataclass(frozen=True)
class Turn:
    """What one turn took, and what came of it."""

    cpu_seconds: float  # of the process, all threads
    wall_seconds: float
    peak_bytes: int  # the most that the process, or its GPU, held meanwhile; see bench.process_memory
    outcome: Any


@dataclass(frozen=True)
class Built:
    """A contender that is ready for its turns."""

    turn: Turn  # that built it
    imported_bytes: int  # before it: the interpreter and its packages
    bytes: int  # and behind it


@dataclass
class Measured:
    """All that a contender did."""

    name: str
    built: Built
    turns: list[Turn] = field(default_factory=list)

    @property
    def peak_bytes(self) -> int:
        """The most that it held in its turns, above the imported interpreter."""
        return max(turn.peak_bytes for turn in self.turns) - self.built.imported_bytes


class Failed(Exception):
    """A contender ended with an error; its traceback."""


def not_installed(name: str) -> str | None:
    """Why a contender cannot take part, and how it could; None where it can. Raises SystemExit for an unknown one."""
    base = name.partition("@")[0]
    if base in NOT_BUILT:
        return NOT_BUILT[base]
    if base not in CONTENDERS:
        raise SystemExit(f"no contender is called {base!r}; known: {', '.join([*CONTENDERS, *NOT_BUILT])}")
    package = CONTENDERS[base][1]
    return f"pip install {package}" if package is not None and find_spec(package) is None else None


def measure(does: str, cases: Mapping[str, Case], turns: int) -> tuple[list[Measured], dict[str, str]]:
    """So many turns of each contender, in turns; and those that did not run, each with the reason.

    `cases` says what each contender is given. `does` is the function of its module: training, generation, ...
    """
    not_run = {name: reason for name in cases if (reason := not_installed(name))}
    running: dict[str, tuple[Contender, Measured]] = {}
    for name in cases:
        if name not in not_run:
            try:
                contender = Contender(name, does, cases[name])
                running[name] = contender, Measured(name, contender.built)
            except Failed as error:
                not_run[name] = str(error)
    for number in range(turns):
        for name in list(running):
            contender, measured = running[name]
            try:
                measured.turns.append(contender.turn(number))
            except Failed as error:
                not_run[name] = f"failed in turn {number + 1}: {error}"
                del running[name]
        if sys.stdout.isatty():
            print(f"{does}: turn {number + 1} of {turns}", end="\r", flush=True)
    for contender, _ in running.values():
        contender.end()
    return [measured for _, measured in running.values()], not_run


class Contender:
    """A contender's process."""

    def __init__(self, name: str, does: str, case: Case) -> None:
        """Starts the process and waits until the contender is built. Raises Failed where it cannot be built."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        module = f"bench.contenders.{CONTENDERS[name.partition('@')[0]][0]}"
        threads = str(case.threads)
        os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        self._process = context.Process(target=serve, args=(other, module, does, case), daemon=True)
        self._process.start()
        other.close()
        self.built: Built = self._answer()

    def turn(self, number: int) -> Turn:
        """Raises Failed where it ends with an error."""
        self._pipe.send(number)
        return self._answer()

    def end(self) -> None:
        self._pipe.send(None)
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise Failed(f"its process ended with {code}{' (killed: no memory?)' if code == -9 else ''}") from None
        if isinstance(answer, str):
            print(answer, file=sys.stderr)
            raise Failed(answer.strip().splitlines()[-1])
        return answer


def serve(pipe: Connection, module: str, does: str, case: Case) -> None:
    """The process of a contender: builds it, then does a turn for each number it is sent, until it is sent None."""
    try:
        import torch
        import transformers.models.llama.modeling_llama  # noqa: F401  what hosts import is no contender's own memory

        from bench.process_memory import counting_kept, resident_bytes
        from mmadapter.hosts.load import hide_library_bars

        torch.set_num_threads(case.threads)
        hide_library_bars()
        build = getattr(import_module(module), does)
        imported = resident_bytes()
        turn = timed(build, case, case.is_on_gpu)
        do = counting_kept(turn.outcome) if case.counts_kept else turn.outcome
        pipe.send(Built(replace(turn, outcome=None), imported, resident_bytes()))
        while (number := pipe.recv()) is not None:
            pipe.send(timed(do, number, case.is_on_gpu))
    except (EOFError, BrokenPipeError):  # the parent has ended
        pass
    except Exception:
        pipe.send(traceback.format_exc())


def timed(function: Callable[[Any], Any], given: Any, on_gpu: bool) -> Turn:
    """`function(given)`, with what it took."""
    from bench.process_memory import peak_bytes, reset_peak

    def now() -> tuple[float, float]:
        if on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    reset_peak()
    cpu, wall = now()
    outcome = function(given)
    cpu_end, wall_end = now()
    return Turn(cpu_end - cpu, wall_end - wall, peak_bytes(), outcome)
