"""`mmadapter chat`: a dialog with a trained model, in a terminal or over a pipe."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console

from mmadapter.data.templates import SINGLE, TEMPLATES
from mmadapter.distributed.start import set_threads
from mmadapter.errors import InputError, printable
from mmadapter.hosts.settings import PREPARED, GenerationConf
from mmadapter.runs.folder import find_run, finished_runs
from mmadapter.settings import meant, problems_of
from mmadapter.tasks.section import shortened

if TYPE_CHECKING:
    from mmadapter.model import AdaptedModel, Dialog

RUNS_ROOT = "runs"
MAX_NEW_TOKENS = 256  # of an answer; half of the model's context where that is less
LONGEST_WORD = 24  # columns; what is longer (an address, a text without blanks) is written before its end is known
COMMANDS = {
    "/image PATH": "begin a new dialog about a picture",
    "/system TEXT": "say how the model should answer, from now on; without TEXT: as it was trained",
    "/reset": "forget the dialog and its picture",
    "/help": "show these lines",
    "/quit": "end, as Ctrl-D does",
}
KEYS = {"Ctrl-C": "stop the answer; the dialog goes on", "Tab": "complete a command or the path of a picture"}
TRAIN = "Train one first: mmadapter train experiment=finetune data.path=FILE host=smollm2, then: mmadapter chat"
DESCRIPTION = """Talk with a trained model. Each message is answered with the dialog so far in mind.

RUN_OR_ADAPTER is a run's folder, its name in runs/, or an adapter's folder (which needs --host, and --vision where it
sees pictures). Without it: the newest finished run in runs/, else the small adapter that comes with the package.
"""
EXAMPLES = """examples:
  mmadapter chat                                          the newest finished run, else the shipped adapter
  mmadapter chat runs/NAME --image apple.png              a dialog about a picture
  mmadapter chat runs/NAME/adapter --host models/smollm2  an adapter that somebody gave you
  echo "What is red?" | mmadapter chat runs/NAME          answers each line of a file or pipe

in the dialog:
"""


def main(arguments: list[str]) -> None:
    """The command. Leaves with status 130 where Ctrl-C ends it; raises InputError for what cannot be begun."""
    options = parser().parse_args(arguments)
    longest = MAX_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
    if wrong := list(problems_of(GenerationConf(longest, options.temperature, options.top_p))):
        raise InputError(" ".join(wrong))
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # bytes that are not UTF-8 do not end the dialog
    console = Console(stderr=not in_terminal, highlight=False)
    try:
        folder, said = chosen_run(options.run, options.host)
        if said:
            console.print(said, style="dim", markup=False, soft_wrap=True)
        with console.status(f"loading {folder}"):
            model = loaded(folder, options)
        Chat(model, console, in_terminal, options).talk()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the program behind the pipe has ended (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:16s}{text}" for name, text in (COMMANDS | KEYS).items())
    found = argparse.ArgumentParser(
        "mmadapter chat",
        description=DESCRIPTION,
        epilog=EXAMPLES + lines,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("run", nargs="?", metavar="RUN_OR_ADAPTER")
    found.add_argument("--host", metavar="PATH", help="the language model's folder, where it lies now")
    found.add_argument("--vision", metavar="PATH", help="the image encoder's weights, where they lie now")
    found.add_argument("--device", help="cpu, cuda or cuda:1 (default: the GPU where there is one)")
    found.add_argument("--system", metavar="TEXT", help="how the model should answer")
    found.add_argument("--image", metavar="PATH", help="the picture that the dialog is about")
    found.add_argument(
        "--template",
        choices=[name for name in TEMPLATES if name not in SINGLE],
        help="how turns are written (default: as the model was trained)",
    )
    found.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"the longest answer (default: {MAX_NEW_TOKENS}, or half of the context)",
    )
    found.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the likeliest answer")
    found.add_argument("--top-p", type=float, default=1.0, metavar="P", help="the share of probability drawn from")
    found.add_argument("--seed", type=int, metavar="N", help="with a temperature: the same answers each time")
    return found


def chosen_run(run: str | None, host: str | None = None) -> tuple[Path, str]:
    """The folder to load, and what is to be said where nobody named it. Raises InputError where there is none."""
    if run is None:
        for folder, _ in finished_runs(Path(RUNS_ROOT)):
            return folder, f"{folder}, the newest finished run"
        if host is not None:
            raise InputError(f"There is no finished run in {RUNS_ROOT}/ whose adapter could go with {host}. {TRAIN}")
        from mmadapter.evaluation import SHIPPED

        return (
            SHIPPED,
            f"There is no finished run in {RUNS_ROOT}/: the small adapter that comes with the package answers, which "
            "knows nothing but the toy world of the quick start.",
        )
    folder = Path(run).expanduser()
    if not folder.exists() and "=" in run:
        raise InputError(f"{run}: chat takes no settings of a training; a run knows its host. {TRAIN}")
    if (folder / "config.json").is_file() or (not folder.exists() and run in PREPARED["host"]):
        raise InputError(f"{run} is a language model alone, and chat is with a trained adapter. {TRAIN}")
    return (folder if folder.is_dir() else find_run(run, RUNS_ROOT)), ""


def loaded(folder: Path, options: argparse.Namespace) -> AdaptedModel:
    """The model, loaded without progress bars and warnings of libraries on the screen."""
    set_threads(None)
    import mmadapter
    from mmadapter.hosts.load import hide_library_bars

    hide_library_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return mmadapter.load(folder, options.host, options.vision, options.device)


class Chat:
    """One dialog after another with a model: reads lines, obeys commands, answers messages."""

    def __init__(self, model: AdaptedModel, console: Console, in_terminal: bool, options: argparse.Namespace) -> None:
        from mmadapter.model import Dialog

        self.model = model
        self.console = console  # for notes and errors; answers go to standard output
        self.in_terminal = in_terminal
        self.system: str | None = options.system
        self.dialog: Dialog = Dialog()
        self.generation: dict[str, Any] = {
            "template": options.template,
            "max_new_tokens": options.max_new_tokens or min(MAX_NEW_TOKENS, model.max_tokens // 2),
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
        }
        if options.image is not None:
            self.see(options.image)

    def talk(self) -> None:
        """Reads and answers lines until the input ends, or /quit."""
        warnings, notes = logging.getLogger("mmadapter"), Notes(self._say)
        warnings.addHandler(notes)
        try:
            for line in self._lines():
                try:
                    if not line.startswith("/"):
                        self.answer(line)
                    elif not self.obey(line):
                        return
                except InputError as error:  # about this line; the dialog goes on
                    self._say(f"error: {error}", "red")
        finally:
            warnings.removeHandler(notes)

    def obey(self, line: str) -> bool:
        """Do what a command says; False where it ends the dialog. Raises InputError for what cannot be done."""
        from mmadapter.model import Dialog

        name, _, text = line.partition(" ")
        text = text.strip()
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            lines = COMMANDS | (KEYS if self.in_terminal else {})
            self._say("\n".join(f"{command:14s}{meaning}" for command, meaning in lines.items()))
        elif name == "/reset":
            self.dialog = Dialog()
            self._say("A new dialog.")
        elif name == "/image":
            self.see(text)
        elif name == "/system":
            self.system = text or None
            self._say(
                "The next answers will follow this." if text else "The next answers are as the model was trained."
            )
        else:
            names = [command.split()[0] for command in COMMANDS]
            raise InputError(
                f"There is no command {name}. {meant(name, names)}Commands: {', '.join(names)}. A message that begins "
                "with / wants a blank before it."
            )
        return True

    def see(self, path: str) -> None:
        """Begin a dialog about the picture in a file. Raises InputError where it cannot be seen."""
        from mmadapter.model import Dialog
        from mmadapter.vision.images import read_image

        if not path:
            raise InputError("/image needs a path: /image apple.png")
        if self.model.features is None:
            raise InputError("This model sees no pictures: its adapter is text only.")
        file = picture_file(path)
        picture = read_image(file)
        self.dialog = Dialog(picture=picture)
        self._say(f"A new dialog about {file.name}, {picture.width} x {picture.height} pixels.")

    def answer(self, message: str) -> None:
        """Write the answer as its words come. Ctrl-C stops it; what was written so far then counts as the answer."""
        message, seen = message.strip(), self.dialog
        pieces = self.model.stream(message, history=seen, system=self.system, **self.generation)
        writing = Writing(self.console.width if self.in_terminal else None)
        said, waiting = "", contextlib.ExitStack()
        if self.in_terminal:
            waiting.enter_context(self.console.status("", spinner="dots"))
        try:
            with contextlib.closing(pieces), waiting:
                while True:
                    piece = next(pieces)
                    waiting.close()  # the first word is there
                    said += piece
                    writing.add(piece)
        except StopIteration as end:
            self.dialog = end.value
            writing.end()
        except KeyboardInterrupt:
            if not self.in_terminal:
                raise
            writing.held = ""  # the begun word is dropped: the terminal has written ^C in its place
            writing.end()
            self._say("(stopped)")
            if said.strip():
                self.dialog = replace(seen, turns=(*seen.turns, (message, said.strip())))
        if gone := self.dialog.turns[seen.left_out : self.dialog.left_out]:
            first, last = (shortened(" ".join(asked.split()), 40) for asked, _ in (gone[0], gone[-1]))
            which = f'"{first}"' if len(gone) == 1 else f'"{first}" to "{last}" ({len(gone)} messages)'
            self._say(f"The dialog has become too long: {which} and what was answered are no longer seen.")

    def _say(self, text: str, style: str = "dim") -> None:
        self.console.print(printable(text), style=style, markup=False, soft_wrap=not self.in_terminal)

    def _lines(self) -> Iterator[str]:
        """What is typed or piped in, without empty lines."""
        if not self.in_terminal:
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
            return
        config, methods = self.model.host.config, ", ".join(self.model.adapter) or "none"
        self._say(f"{config.model_type} of {self.model.host_size:,} parameters; adapter: {methods}")
        sees = "/image PATH begins a dialog about a picture, " if self.model.features is not None else ""
        self._say(f"{sees}/help shows what else there is, Ctrl-D ends.")
        prompt = prompt_text(self.console)
        while True:
            print()
            try:
                line = input(prompt)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                self._say("Ctrl-D or /quit ends.")
                continue
            if line.strip():
                yield line


class Notes(logging.Handler):
    """Shows the model's warnings, but not the one about turns that are left out: `Chat.answer` names these."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        if "oldest turns" not in record.getMessage():
            self.say(record.getMessage())


class Writing:
    """Writes an answer on standard output, piece by piece; in a terminal lines are broken between words."""

    def __init__(self, columns: int | None) -> None:
        self.columns = columns  # of the terminal; None: no terminal, lines are not broken
        self.column = 0
        self.held = ""  # the begin of a word

    def add(self, piece: str) -> None:
        """Write the words that are complete; the beginning of the next one is held back."""
        if self.columns is None:
            self._put(without_controls(piece) if sys.stdout.isatty() else piece)
            return
        *words, self.held = re.split(r"(?<=\s)(?=\S)|(?<=\n)", self.held + without_controls(piece))
        if cell_len(self.held) > LONGEST_WORD:
            words, self.held = [*words, self.held], ""
        for word in words:
            self._word(word, self.columns)

    def end(self) -> None:
        """Write the rest, and end the line."""
        if self.columns is not None:
            self._word(self.held.rstrip(), self.columns)
        self._put("\n")

    def _word(self, word: str, columns: int) -> None:
        bare = word.rstrip()
        if self.column and self.column + cell_len(bare) > columns:
            self._put("\n")
            self.column = 0
        self._put(word)
        self.column = 0 if word.endswith("\n") else (self.column + cell_len(word)) % columns

    def _put(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def without_controls(text: str) -> str:
    """The text without control characters, with which an answer could steer the terminal."""
    return "".join(sign for sign in text if sign in "\n\t" or unicodedata.category(sign) != "Cc")


# What is typed.


def picture_file(text: str) -> Path:
    """The file that a typed path means: as it stands, or as a shell would read it (quotes, backslashes before blanks,
    as a terminal writes a file that is dropped on it). Raises InputError where there is none."""
    readings = [text]
    with contextlib.suppress(ValueError):  # a single quotation mark in a name
        readings.append(" ".join(shlex.split(text)))
    for reading in readings:
        if (file := Path(reading).expanduser()).is_file():
            return file
    raise InputError(f"{text}: there is no such picture. Check the path.")


def prompt_text(console: Console) -> str:
    """The prompt. For readline, colour codes stand between marks that say that they take no room on the screen."""
    has_readline = complete_with_tab()
    if console.color_system is None:
        return "> "
    begin, end = ("\001", "\002") if has_readline else ("", "")
    return f"{begin}\033[1;36m{end}>{begin}\033[0m{end} "


def complete_with_tab() -> bool:
    """Let Tab complete commands and paths; False where Python has no readline (Windows)."""
    try:
        import readline
    except ImportError:
        return False
    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        if state == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()]
            found[:] = [line[len(before) :] for line in completions(before + text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims("/")  # a name may hold blanks
    is_libedit = "libedit" in (readline.__doc__ or "")  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    return True


def completions(line: str) -> list[str]:
    """The lines that the beginning of a line may become: commands, and after /image the files that are there."""
    name, blank, path = line.partition(" ")
    if not blank:
        commands = [command.partition(" ") for command in COMMANDS]
        return [name + (" " if more else "") for name, more, _ in commands if name.startswith(line) and line]
    if name != "/image":
        return []
    typed, slash, begin = path.rpartition("/")
    folder = Path(typed + slash or ".").expanduser()
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    except OSError:
        return []
    return [
        f"{name} {typed}{slash}{found}"
        for found in names
        if found.startswith(begin) and (begin or not found.startswith("."))
    ]
