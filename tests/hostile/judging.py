"""What becomes of a hostile input: a clear message, a traceback, silent acceptance, silent loss, or a hang.

All cases run in one process. A case that takes too long is interrupted by SIGALRM; what does not come back from C code
even then is ended, with the whole command, by faulthandler, which says where it hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import re
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from mmadapter.errors import InputError

CLEAR, RIGHT = "clear message", "right behaviour"
TRACEBACK, ACCEPTED, LOST, HANG = "traceback", "silent acceptance", "silent loss", "hang"
OUTCOMES = (CLEAR, RIGHT, TRACEBACK, ACCEPTED, LOST, HANG)
GOOD = (CLEAR, RIGHT)
SHORTEST_MESSAGE = 20  # letters
MARK = re.compile(r"w\d\dx\d\d")  # a word that stands once in a valid file: tells what was read of it


@dataclass(frozen=True)
class Case:
    """One input. `act` gets an empty folder, and returns all text that came of the input (None: nothing to look at)."""

    kind: str
    name: str
    act: Callable[[Path], str | None]
    expect: Literal["refused", "accepted", "either"] = "refused"
    says: str = ""  # a pattern that the message must match
    given: Callable[[Path], str] | None = None  # the marks that were in the input, for silent loss


@dataclass
class Outcome:
    case: Case
    verdict: str
    message: str


class Hang(BaseException):
    """Raised by the alarm; no `except Exception` catches it."""


@dataclass
class Heard(logging.Handler):
    """Everything that is logged or warned of while a case runs."""

    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    __hash__ = logging.Handler.__hash__  # type: ignore[assignment]


def judged(case: Case, folder: Path, seconds: float) -> Outcome:
    """Runs one case in `folder`, which is made, and says what became of it."""
    folder.mkdir(parents=True)
    heard = Heard()
    log = logging.getLogger("mmadapter")
    log.addHandler(heard)
    try:
        with _limited(seconds), _captured() as said, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                told = case.act(folder)
            except InputError as error:
                return Outcome(case, *_of_a_message(case, str(error)))
            except SystemExit as error:  # of a command
                text = said.getvalue().strip()
                if error.code == 2 and ("error: " in text) and "Traceback" not in text:
                    return Outcome(case, *_of_a_message(case, text[text.rindex("error: ") :]))
                return Outcome(case, TRACEBACK, f"exit status {error.code}: {text[-2000:]}")
            except Hang:
                return Outcome(case, HANG, f"more than {seconds:g} s")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                return Outcome(case, TRACEBACK, "".join(traceback.format_exception(error))[-3000:])
    finally:
        log.removeHandler(heard)
    remarks = [*heard.texts, *(str(one.message) for one in warned if issubclass(one.category, UserWarning))]
    if case.expect == "refused" and not (case.says and re.search(case.says, " ".join(remarks))):
        return Outcome(case, ACCEPTED, "accepted, and nothing was said" if not remarks else f"said only: {remarks}")
    if case.given is not None and told is not None:
        missing = sorted(set(MARK.findall(case.given(folder))).difference(MARK.findall(told)))
        if missing and not remarks:
            return Outcome(case, LOST, f"read without a word about {', '.join(missing[:5])} ({len(missing)} missing)")
    return Outcome(case, CLEAR if remarks else RIGHT, "; ".join(remarks)[:500])


def _of_a_message(case: Case, message: str) -> tuple[str, str]:
    if case.expect == "accepted":
        return TRACEBACK, f"refused, though it is right: {message}"
    if len(message) < SHORTEST_MESSAGE or not re.search(case.says or ".", message, re.DOTALL):
        return TRACEBACK, f"the message does not say it ({case.says!r}): {message}"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message) and case.kind == "command":
        return TRACEBACK, f"the message has control characters: {message!r}"
    return CLEAR, message


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Standard output and error as text; a command's own writing does not disturb the table."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    faulthandler.dump_traceback_later(4 * seconds, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def table(outcomes: list[Outcome]) -> str:
    """Kinds of input against what became of them."""
    counts = Counter((one.case.kind, one.verdict) for one in outcomes)
    kinds = list(dict.fromkeys(one.case.kind for one in outcomes))
    rows = [["", *OUTCOMES, "all"]]
    for kind in [*kinds, "all"]:
        own = [sum(n for (k, v), n in counts.items() if v == verdict and kind in (k, "all")) for verdict in OUTCOMES]
        rows.append([kind, *map(str, own), str(sum(own))])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    name, *numbers = widths
    lines = ([row[0].ljust(name), *map(str.rjust, row[1:], numbers)] for row in rows)
    return "\n".join("  ".join(line) for line in lines)
