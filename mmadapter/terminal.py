"""The terminal: bars, quiet lines where there is none, tables; times, sizes and numbers as people read them."""

from __future__ import annotations

import logging
import shlex
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mmadapter.errors import printable

LINE_SECONDS = 10.0  # without a terminal: at least one line in this time while something goes on
PLAIN_WIDTH = 120
QUIET_SECONDS = 2.0  # what is over sooner needs no line of its own


def default_console() -> Console:
    """The terminal as it is; elsewhere lines of 120 characters."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def quiet_console() -> Console:
    """Shows nothing, and silences warnings and logs: what the first rank says, the others need not say again."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    return Console(quiet=True, force_terminal=False)


class Bars(Progress):
    """Bars with what is to be said of each on a line below, so that 80 columns are enough."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["text"]:
                yield Text(f"  {printable(task.fields['text'])}", no_wrap=True, overflow="ellipsis")


class Display:
    """Bars for everything that takes long. One object for the whole run; `close` puts the terminal back."""

    def __init__(self, console: Console | None = None, log_every_steps: int = 10) -> None:
        self.console = console or default_console()
        self.log_every_steps = log_every_steps
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._last_line: dict[str, float] = {}
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """One message, above the bars."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def say_once(self, text: str) -> None:
        """A message that may come up again and again, such as what is left out of a file: the first time only."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def table(self, title: str, columns: list[str], rows: list[list[str]], text_columns: Collection[str] = ()) -> None:
        """A table; the first column and `text_columns` are text, the others are numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
        table.pad_edge, table.padding = False, (0, 1, 0, 0)
        for number, column in enumerate(columns):
            is_text = number == 0 or column in text_columns
            table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=number == 0)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print(table)

    def report(self, what: str, done: int, total: int, text: str = "") -> None:
        """`done` of `total` pieces of something; the bar goes away when it is finished."""
        if self.console.is_terminal:
            self._update_bar(what, done, total, text)
        else:
            self._line(what, done, total, text)
        if done >= total:
            self.end(what)

    def training(self, record: Mapping[str, Any], total_steps: int, epochs: float, seconds_left: float) -> None:
        """One finished training step."""
        step = record["step"]
        text = (
            f"epoch {record['epoch']:.2f}/{epochs:.4g}  {losses_text(record)}  lr {record['lr']:.3g}  "
            f"{record['tokens_per_s']:,.0f} supervised tokens/s"
        )
        if self.console.is_terminal:
            self._update_bar("training", step, total_steps, text)
        elif self._line_is_due("training", step, total_steps):
            self.say(f"step {step}/{total_steps}  {text}  ETA {duration(seconds_left)}")

    def close(self) -> None:
        """Ends all bars."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks.clear()

    def _update_bar(self, what: str, done: int, total: int, text: str) -> None:
        if self._progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._progress = Bars(*columns, console=self.console, transient=True)
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, completed=done, text=text)
        self._progress.update(self._tasks[what], completed=done, total=total, text=text)

    def _line(self, what: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        started = self._started.setdefault(what, now)
        due = now - self._last_line.get(what, started) >= LINE_SECONDS
        if due or (done >= total and now - started >= QUIET_SECONDS):
            self._last_line[what] = now
            self.say(f"{what}: {done}/{total} {text}".rstrip())

    def _line_is_due(self, what: str, step: int, total: int) -> bool:
        now = time.monotonic()
        passed = now - self._last_line.get(what, -LINE_SECONDS)
        due = passed >= LINE_SECONDS or (step % self.log_every_steps == 0 and passed >= QUIET_SECONDS) or step == total
        if due:
            self._last_line[what] = now
        return due

    def end(self, what: str) -> None:
        """Takes away the bar of something, finished or not."""
        self._started.pop(what, None)
        self._last_line.pop(what, None)
        if what in self._tasks and self._progress is not None:
            self._progress.remove_task(self._tasks.pop(what))
        if not self._tasks:
            self.close()


def own_command() -> str:
    """The command of this training, to be typed again; a program of one's own that calls ours stays what it is."""
    program = Path(sys.argv[0]).name
    own = ["mmadapter", "train"] if program in ("mmadapter train", "train.py") else ["python", program]
    return shlex.join([*own, *sys.argv[1:]])


def losses_text(record: Mapping[str, Any]) -> str:
    """The loss, and that of each source where there are several."""
    by_source = record.get("loss_by_source") or {}
    parts = ", ".join(f"{name} {loss:.4f}" for name, loss in by_source.items())
    return f"loss {record['loss']:.4f}" + (f" ({parts})" if len(by_source) > 1 else "")


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 8 s, 4 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def readable_bytes(size: float) -> str:
    """Bytes with a unit: 512 B, 1.4 MB, 13.5 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def number_text(value: float) -> str:
    """A short number: 1,200, 0.05, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str] | None]) -> str:
    """Columns aligned with blanks: the first to the left, the others to the right; None draws a line."""
    filled = [row for row in rows if row is not None]
    widths = [max(len(row[column]) for row in [header, *filled]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return printable("\n".join([line(header), rule, *(rule if row is None else line(row) for row in rows)]))
