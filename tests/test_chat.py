"""`mmadapter chat`: over a pipe and in a terminal, with the shipped models and an adapter of a few steps."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mmadapter
from mmadapter import chat
from mmadapter.config import save_config
from mmadapter.errors import InputError
from mmadapter.model import AdaptedModel, Dialog
from tests.config.composing import run_conf
from tests.models import picture

CHECKOUT = Path(__file__).parents[1]
QUESTIONS = ["Which number is larger, 20 or 11?", "What is the opposite of hot?"]
PROMPT = "\x1b[1;36m>\x1b[0m "
SHORT = ["--max-new-tokens", "12"]


def trained_run(folder: Path, images: bool) -> Path:
    """A finished run: the shipped models with an adapter of a few steps."""
    words = ["adapter=v1_visual" if images else "adapter=v1", "vision=tiny" if images else "vision=none"]
    conf = run_conf("host=tiny", *words, "adapter.prompts.layers=3", "host.max_tokens=256")
    model = AdaptedModel.build(conf.host, conf.vision, conf.adapter, device="cpu")
    seen = picture(folder.parent, 1) if images else None
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=3e-2)
    for _ in range(8):
        loss = model.train().loss_of([(QUESTIONS[0], "20 is larger, of course.", seen), (QUESTIONS[1], "cold", None)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_config(conf, folder)
    model.save(folder / "adapter")
    (folder / "finished.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with runs/seeing, the newest, and runs/text; and picture files."""
    place = tmp_path_factory.mktemp("chat")
    (place / "runs").mkdir()
    text, seeing = trained_run(place / "runs" / "text", False), trained_run(place / "runs" / "seeing", True)
    os.utime(text / "finished.json", (1, 1))
    (place / "my pictures").mkdir()
    picture(place, 2).rename(place / "my pictures" / "red ball.png")
    assert seeing.is_dir()
    return place


@pytest.fixture(scope="module")
def model(place) -> AdaptedModel:
    return mmadapter.load(place / "runs" / "seeing", device="cpu")


@pytest.fixture
def piped(place, model, monkeypatch, capsys):
    """What `mmadapter chat WORDS` writes for lines on standard input: (answers, notes)."""

    def run(lines: list[str], *words: str, loaded: AdaptedModel = model) -> tuple[str, str]:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(mmadapter, "load", lambda *_: loaded)
        chat.main([*SHORT, *words])
        told = capsys.readouterr()
        return told.out, told.err

    return run


def written(*answers: str) -> str:
    """Answers as they stand on standard output."""
    return "".join(f"{answer}\n" for answer in answers)


def asked(model: AdaptedModel, *messages: str, image: Path | None = None, **settings) -> list[str]:
    """The answers of `model.chat` in one dialog."""
    answers, dialog = [], Dialog()
    for number, message in enumerate(messages):
        seen = image if number == 0 else None
        answer, dialog = model.chat(message, seen, dialog, max_new_tokens=12, **settings)
        answers.append(answer)
    return answers


def test_a_pipe_answers_each_line_as_model_chat_does_and_remembers_what_was_said(place, model):
    told = subprocess.run(
        [sys.executable, "-m", "mmadapter", "chat", *SHORT],
        input="".join(f"{line}\n" for line in [*QUESTIONS, "", QUESTIONS[0]]),
        capture_output=True, text=True, cwd=place, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout == written(*asked(model, *QUESTIONS, QUESTIONS[0]))
    assert told.stderr == "runs/seeing, the newest finished run\n"


def test_reset_forgets_what_was_said(piped, model):
    answers, _ = piped([QUESTIONS[0], "/reset", QUESTIONS[1]])
    assert answers == written(asked(model, QUESTIONS[0])[0], asked(model, QUESTIONS[1])[0])


def test_an_image_begins_a_dialog_about_it(piped, model, place):
    image = place / "my pictures" / "red ball.png"
    alone = asked(model, QUESTIONS[0])
    seeing = asked(model, QUESTIONS[0], QUESTIONS[1], image=image)
    assert seeing[0] != alone[0]
    answers, notes = piped([QUESTIONS[0], "/image my pictures/red ball.png", *QUESTIONS])
    assert answers == written(*alone, *seeing)
    assert "A new dialog about red ball.png, 40 x 40 pixels." in notes
    assert piped(QUESTIONS, "--image", str(image))[0] == written(*seeing)


def test_a_path_may_be_written_as_a_shell_wants_it(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    file = place / "my pictures" / "red ball.png"
    typed = ["~/my pictures/red ball.png", f"'{file}'", str(file).replace(" ", "\\ "), str(file)]
    assert [chat.picture_file(text) for text in typed] == [file] * 4


def test_system_tells_how_to_answer_until_it_is_taken_back(piped, model):
    told = "Answer in one word."
    answers, notes = piped([QUESTIONS[0], "/reset", f"/system {told}", QUESTIONS[0], "/reset", "/system", QUESTIONS[0]])
    plain, other = asked(model, QUESTIONS[0])[0], asked(model, QUESTIONS[0], system=told)[0]
    assert answers == written(plain, other, plain) and plain != other
    assert piped([QUESTIONS[0]], "--system", told)[0] == written(other)
    assert "The next answers will follow this." in notes


def test_what_is_wrong_with_one_line_is_told_and_the_dialog_goes_on(piped, model, place):
    (place / "broken.png").write_text("no picture")
    answers, notes = piped(
        [QUESTIONS[0], "/image nothere.png", "/image broken.png", "/imgae x", "/image", QUESTIONS[1]]
    )
    assert answers == written(*asked(model, *QUESTIONS))
    assert "error: nothere.png: there is no such picture." in notes
    assert "error: broken.png" in notes
    assert "error: There is no command /imgae. Did you mean /image?" in notes
    assert "error: /image needs a path: /image apple.png" in notes


def test_a_model_without_eyes_says_so(piped, place, model):
    blind = mmadapter.load(place / "runs" / "text", device="cpu")
    answers, notes = piped(["/image broken.png", QUESTIONS[0]], loaded=blind)
    assert "This model sees no pictures: its adapter is text only." in notes
    assert answers == written(*asked(blind, QUESTIONS[0]))


def test_what_no_longer_fits_is_named(piped, model):
    """256 tokens of context hold few of Alpaca's frames."""
    lines = [f"{number} {QUESTIONS[0]}" for number in range(9)]
    answers, notes = piped(lines)
    assert answers == written(*asked(model, *lines))
    gone = re.findall(r"The dialog has become too long: (.*?) and what was answered", " ".join(notes.split()))
    assert gone[0].startswith('"0 Which number is larger'), notes
    assert "oldest turns" not in notes


def test_a_message_that_is_too_long_is_cut_and_it_is_said(piped):
    answers, notes = piped(["red " * 400])
    assert answers.strip() and "their ends are cut off" in notes


def test_quit_ends_before_the_rest(piped, model):
    assert piped([QUESTIONS[0], "/quit", QUESTIONS[1]])[0] == written(*asked(model, QUESTIONS[0]))


def test_sampling_with_a_seed_repeats(piped, model):
    words = ["--temperature", "2", "--top-p", "0.9", "--seed", "5"]
    once, again = (piped(QUESTIONS, *words)[0] for _ in range(2))
    assert once == again == written(*asked(model, *QUESTIONS, temperature=2.0, top_p=0.9, seed=5))


REFUSED = [
    (["--max-new-tokens", "0"], "max_new_tokens=0: must be at least 1"),
    (["--temperature", "-1"], "temperature=-1.0: must be at least 0"),
    (["--top-p", "1.5"], "top_p=1.5: must be at most 1"),
    (["no/such/run"], "run=no/such/run: no run folder"),
    (["--image", "nothere.png"], "nothere.png: there is no such picture"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_is_refused_at_the_start(words, message, piped):
    with pytest.raises(InputError, match=re.escape(message)):
        piped([QUESTIONS[0]], *words)


def test_without_a_finished_run_the_adapter_of_the_package_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, said = chat.chosen_run(None)
    assert folder == Path(mmadapter.__file__).parent / "tiny" / "run"
    assert said.startswith("There is no finished run in runs/")


@pytest.mark.parametrize("words", [["--host", "models/smollm2"], ["host=smollm2"], ["smollm2"], ["models/smollm2"]])
def test_a_language_model_alone_is_told_to_be_trained(words, tmp_path, monkeypatch):
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    (tmp_path / "models" / "smollm2" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"Train one first: mmadapter train experiment=finetune data\.path=FILE"):
        chat.main(words)


# In a terminal.


class Terminal:
    """A process in a pseudo terminal of 60 columns."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.shown = ""
        self.process, self.device = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe(
                command[0], command, os.environ | {"PYTHONPATH": str(CHECKOUT), "COLUMNS": "60", "TERM": "xterm"}
            )

    def wait_for(self, text: str, seconds: float = 180) -> str:
        """What was shown since the last call, up to `text`, which it waits for."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.device], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.shown!r}"
            try:
                self.shown += os.read(self.device, 65536).decode(errors="replace")
            except OSError:  # the process has closed it
                raise AssertionError(f"ended before {text!r}: {self.shown!r}") from None
        before, found, self.shown = self.shown.partition(text)
        return before + found

    def type(self, text: str) -> None:
        os.write(self.device, text.encode())

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def plain(shown: str) -> str:
    """The words of a screen, without colours and line ends."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", " ", shown).split())


def test_a_dialog_in_a_terminal(place, model):
    """Words come as they are generated; Tab completes a path with blanks; Ctrl-D ends."""
    ready = PROMPT
    terminal = Terminal([sys.executable, "-m", "mmadapter", "chat", "runs/seeing", *SHORT], place)
    try:
        first = plain(terminal.wait_for(ready))
        assert "/image PATH" in first and "llama" in first

        terminal.type(QUESTIONS[0] + "\n")
        told = terminal.wait_for(ready)
        assert plain(asked(model, QUESTIONS[0])[0]) in plain(told)

        terminal.type("/image my p\t")
        terminal.wait_for("my pictures/")
        terminal.type("\t\n")
        assert "A new dialog about red ball.png" in terminal.wait_for("pixels.")
        terminal.wait_for(ready)

        time.sleep(1)  # Python loses a Ctrl-C that comes between the prompt and its waiting for keys
        terminal.type("\x03")
        terminal.wait_for("Ctrl-D or /quit ends.")
        terminal.wait_for(ready)
        terminal.type("\x04")
        assert terminal.status() == 0
    finally:
        os.close(terminal.device)


def test_ctrl_c_stops_the_answer_and_the_dialog_goes_on(place, model):
    ready = PROMPT
    words = ["--max-new-tokens", "200", "--temperature", "3", "--seed", "1"]
    terminal = Terminal([sys.executable, "-m", "mmadapter", "chat", "runs/seeing", *words], place)
    try:
        terminal.wait_for(ready)
        terminal.type(QUESTIONS[0] + "\n")
        terminal.wait_for("\x1b[2K")  # the sign of waiting goes away: the first word is here
        terminal.type("\x03")
        stopped = terminal.wait_for("(stopped)")
        whole, _ = model.chat(QUESTIONS[0], max_new_tokens=200, temperature=3.0, seed=1)
        said = plain(stopped).removesuffix("(stopped)").strip()
        assert said and len(said.split()) < len(whole.split())
        terminal.wait_for(ready)
        terminal.type("/reset\n")
        terminal.wait_for("A new dialog.")
        terminal.wait_for(ready)
        terminal.type("/quit\n")
        assert terminal.status() == 0
    finally:
        os.close(terminal.device)


@pytest.mark.parametrize(
    "pieces", [["one two three ", "four", "teen five\nsix "], list("one two three fourteen five\nsix")]
)
def test_lines_are_broken_between_words_whatever_the_pieces(pieces, capsys):
    writing = chat.Writing(12)
    for piece in pieces:
        writing.add(piece)
    writing.end()
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "one two",
        "three",
        "fourteen",
        "five",
        "six",
    ]


def test_an_answer_does_not_steer_the_terminal(capsys):
    writing = chat.Writing(40)
    writing.add("a\x1b[2J\x07b")
    writing.end()
    assert capsys.readouterr().out == "a[2Jb\n"


def test_a_text_without_blanks_is_shown_before_its_end(capsys):
    writing = chat.Writing(40)
    writing.add("狗" * 20)
    assert capsys.readouterr().out == "狗" * 20


def test_completions(place, monkeypatch):
    monkeypatch.chdir(place)
    assert chat.completions("/i") == ["/image "] and chat.completions("hello") == []
    assert chat.completions("/image my") == ["/image my pictures/"]
    assert chat.completions("/image my pictures/r") == ["/image my pictures/red ball.png"]


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom mmadapter.chat import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: status = end.code\n"
        "print(status, [m for m in ('torch', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, timeout=180)
    assert "/image PATH" in told.stdout and told.stdout.endswith("0 []\n"), told.stdout + told.stderr
