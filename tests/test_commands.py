"""`mmadapter COMMAND`: the table of commands, what a mistake is told, and what is loaded for it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.shapes import make_world
from mmadapter.__main__ import COMMANDS
from tests.training.tiny_run import SIZES

CHECKOUT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "transformers", "open_clip", "timm", "numpy", "PIL", "deepspeed")
UNIX = ("resource", "fcntl", "termios")  # not on Windows, or otherwise
# As if some packages were not installed: whoever imports one fails. What others import on this system they may.
BLOCKED = """
import builtins, sys
for name in set({names!r}) - set({unix!r}):
    sys.modules[name] = None
true_import = builtins.__import__
def refusing_import(name, globals=None, *rest, **more):
    ours = str((globals or {{}}).get("__name__")).split(".")[0] in ("mmadapter", "data_prep")
    if ours and name.split(".")[0] in {names!r}:
        raise ModuleNotFoundError("there is no " + name + " here")
    return true_import(name, globals, *rest, **more)
builtins.__import__ = refusing_import
sys.argv = ["mmadapter", *{words!r}]
import runpy
runpy.run_module("mmadapter", run_name="__main__", alter_sys=True)
"""


def mmadapter(*words: str, folder: Path, without: tuple[str, ...] = (), **environment: str):
    """`mmadapter WORDS` typed in `folder`, where the packages `without` cannot be imported."""
    code = BLOCKED.format(names=without, unix=UNIX, words=words)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, env=environment)


LIGHT = [
    (["--help"], 0, "train       train an adapter"),
    (["trian"], 2, "error: There is no command 'trian'. Did you mean mmadapter train?"),
    ([], 2, "usage: mmadapter COMMAND"),
    (["--version"], 0, "mmadapter 0.2"),
    (["check", "scienseqa"], 2, "Did you mean mmadapter check scienceqa?"),
    (["convert", "--help"], 0, "mmadapter convert meta --help"),
    (["train", "--help"], 0, "mmadapter train experiment=scienceqa"),
    (["eval", "--help"], 0, "mmadapter eval task=scienceqa"),
    (["train", "--cfg", "job"], 0, "experiment: quickstart"),
    (["train", "optimizer.epoch=3"], 2, "error: There is no setting 'optimizer.epoch'. Did you mean optimizer.epochs?"),
    (["train", "experiment=scienseqa"], 2, "Did you mean experiment=scienceqa?"),
    (["settings", "optimizer.lr"], 0, "actual rate, whatever the batch"),
    (["settings", "optimizer.lrr"], 2, "error: There is no setting 'optimizer.lrr'. Did you mean optimizer.lr?"),
    (["runs", "."], 0, "no runs"),
    (["runs", "--help"], 0, "usage: mmadapter runs"),
    (["sweep", "--help"], 0, "usage: mmadapter sweep"),
]


@pytest.mark.parametrize("words,status,message", LIGHT, ids=[" ".join(words) for words, _, _ in LIGHT])
def test_it_answers_where_torch_cannot_be_imported(words, status, message, tmp_path):
    told = mmadapter(*words, folder=tmp_path, without=HEAVY)
    assert told.returncode == status, told.stderr
    assert message in (told.stderr if status else told.stdout) and "Traceback" not in told.stderr
    assert list(tmp_path.iterdir()) == []


def test_python_m_mmadapter_train_py_and_eval_py_are_the_same_doors(tmp_path):
    def said(*words: str) -> str:
        command = [sys.executable, *words, "--cfg", "job", "threads=1"]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout

    for name in ("train", "eval"):
        assert "threads: 1\n" in said(str(CHECKOUT / f"{name}.py"))
        assert said("-m", "mmadapter", name) == said(str(CHECKOUT / f"{name}.py"))


def test_bad_input_of_any_command_is_one_line_and_status_2(tmp_path):
    for words in (
        ["export", "gone", "out"],
        ["convert", "meta", "gone", "out"],
        ["check", "scienceqa", "--root", "gone"],
    ):
        told = mmadapter(*words, folder=tmp_path)
        assert told.returncode == 2 and told.stderr.startswith("error: ") and "gone" in told.stderr, told.stderr
        assert "Traceback" not in told.stderr and list(tmp_path.iterdir()) == []


ABSENT_ELSEWHERE = (*UNIX, "deepspeed")


QUICK = [
    "optimizer.epochs=1",
    "optimizer.batch_size=8",
    "optimizer.micro_batch_size=8",
    "tasks.coco_caption.limit=1",
    "run=quick",
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Where a short quick start has run, without what is missing elsewhere, and what it has said."""
    folder = tmp_path_factory.mktemp("quick")
    make_world(folder / "data" / "shapes", sizes=SIZES)
    return folder, mmadapter("train", *QUICK, folder=folder, without=ABSENT_ELSEWHERE)


def test_the_quick_start_runs_where_unix_modules_and_deepspeed_are_missing(quick):
    folder, told = quick
    assert told.returncode == 0, told.stderr
    assert "Adapter with images" in told.stdout and "report: runs/quick/report.html" in told.stdout
    assert "peak memory" not in told.stdout  # nobody tells it there
    again = mmadapter("eval", "task=scienceqa", "task.limit=2", folder=folder, without=ABSENT_ELSEWHERE)
    assert again.returncode == 0 and "runs/quick" in again.stdout, again.stderr


def test_a_finished_run_is_shown_and_listed_where_torch_cannot_be_imported(quick):
    folder, trained = quick
    shown = mmadapter("train", *QUICK, folder=folder, without=HEAVY)
    assert shown.returncode == 0, shown.stderr
    said, _, results = shown.stdout.partition("or resume=never.\n")
    assert "runs/quick is finished; nothing is trained again." in said
    assert "Adapter with images" in results and trained.stdout.endswith(results)
    # One of several ranks, if only of one, goes the long way, and says the same.
    as_a_rank = mmadapter("train", *QUICK, folder=folder, RANK="0", WORLD_SIZE="1")
    assert as_a_rank.stdout == shown.stdout and as_a_rank.returncode == 0
    listed = mmadapter("runs", folder=folder, without=HEAVY)
    assert listed.returncode == 0 and "1 finished" in listed.stdout, listed.stdout + listed.stderr


def test_a_folder_of_other_settings_is_refused_where_torch_cannot_be_imported(quick):
    folder, _ = quick
    told = mmadapter("train", *QUICK, "seed=5", folder=folder, without=HEAVY)
    assert told.returncode == 2 and "runs/quick holds a run of other settings" in told.stderr, told.stderr
    assert "seed: 0 -> 5" in told.stderr


def test_an_engine_of_deepspeed_says_what_to_install_where_it_is_missing(tmp_path):
    told = mmadapter("train", "engine=zero2", folder=tmp_path, without=ABSENT_ELSEWHERE)
    assert told.returncode == 2, told.stderr
    assert told.stderr.startswith("error: engine=zero2 needs DeepSpeed, which is not installed. To fix: pip install")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_line_of_help_and_a_module(name):
    about, called = COMMANDS[name]
    assert about and about[0].islower() and len(about) < 80
    for place in called.values() if isinstance(called, dict) else [called]:
        module, _, function = place.partition(":")
        assert importlib.util.find_spec(module) is not None and function, f"{name}: there is no {module}"


def test_the_wheel_takes_conf_data_prep_and_the_tiny_models(tmp_path):
    """What setup.py lists is what the package needs; .ci/run builds the wheel and works with it."""
    told = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "-d", str(tmp_path / "lib")],
        capture_output=True, text=True, cwd=CHECKOUT,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    built = tmp_path / "lib"

    def names(folder: Path) -> set[str]:
        return {
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".yaml", ".py", ".jinja")
        }

    assert names(built / "mmadapter" / "conf") == names(CHECKOUT / "conf") - {"local/default.yaml"}
    assert names(built / "data_prep") == names(CHECKOUT / "data_prep")
    assert names(CHECKOUT / "mmadapter") <= names(built / "mmadapter")
    assert (built / "mmadapter" / "tiny" / "llama" / "model.safetensors").is_file()
    assert (built / "mmadapter" / "py.typed").is_file() and not (built / "conf").exists()
    # composed from there as from here
    code = "import mmadapter.config as c; print(c.CONF); print(c.CHECKOUT)"
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(built)}
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout.split()
    assert said == [str(built / "mmadapter" / "conf"), "None"]
