"""What a user meets at the terminal: help without waiting, settings to look at, one message for a mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from mmadapter.cli import quoted

CHECKOUT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "open_clip", "numpy", "deepspeed")


def entry(name: str, *arguments: str, folder: Path | None = None, **environment: str):
    """Run `python NAME ARGUMENTS` from `folder` as a user would."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", str(CHECKOUT / name), *arguments],
        capture_output=True, text=True, cwd=folder or CHECKOUT, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def imported(told) -> set[str]:
    """Top-level packages that the process imported (`-X importtime` writes them to stderr)."""
    lines = [line for line in told.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def said(told) -> str:
    return "\n".join(line for line in told.stderr.splitlines() if not line.startswith("import time:"))


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_help_names_commands_and_choices_and_imports_nothing_heavy(name):
    told = entry(name, "--help")
    assert told.returncode == 0, said(told)
    assert "mmadapter eval task=scienceqa" in told.stdout or "mmadapter train experiment=scienceqa" in told.stdout
    assert "scienceqa" in told.stdout and "--cfg job" in told.stdout
    assert imported(told).isdisjoint(HEAVY)


def test_help_lists_every_experiment():
    told = entry("train.py", "--help").stdout
    assert all(file.stem in told for file in (CHECKOUT / "conf" / "experiment").glob("*.yaml"))


def test_cfg_job_prints_the_composed_settings_and_imports_nothing_heavy():
    told = entry("train.py", "experiment=scienceqa", "optimizer.epochs=3", "--cfg", "job")
    settings = yaml.safe_load(told.stdout)
    assert settings["experiment"] == "scienceqa" and settings["optimizer"]["epochs"] == 3
    assert imported(told).isdisjoint(HEAVY)


MISTAKES = [
    (["optimizer.epoch=3"], "error: There is no setting 'optimizer.epoch'. Did you mean optimizer.epochs?"),
    (["+optimizer.epoch=3"], "error: There is no setting 'optimizer.epoch'. Did you mean optimizer.epochs?"),
    (["experiment=scienseqa"], "error: There is no experiment=scienseqa. Did you mean experiment=scienceqa?"),
    (["optimizer.batch_size=many"], "error: optimizer.batch_size"),
    (["host.path=/no/llama"], "error: host.path=/no/llama: no such folder."),
    (["optimizer.micro_batch_size=5"], "error: optimizer.micro_batch_size=5 does not divide"),
    (["quickstart"], "Settings are given as key=value"),
    (["+data.x=1", "--cfg", "job"], "error: There is no setting 'data.x'."),
    (["+data.sources.mine.reader=alpacca"], "error: data.sources.mine.reader='alpacca'. Did you mean alpaca?"),
    (["seed=null"], "error: seed=null: it needs a value."),
    (["evaluate=scienceqa"], "error: evaluate=scienceqa: it must be a list. To fix: evaluate=[scienceqa]"),
    (["tasks=3"], "error: tasks=3: it must be a mapping of names to settings."),
    (["adapter.lora=false"], "error: adapter.lora=False: it must be a mapping of settings, or null."),
    (["optimizer=null"], "A group is chosen by the name of one of its files: optimizer=v1"),
]


@pytest.mark.parametrize("arguments,message", MISTAKES)
def test_a_mistake_gives_one_message_and_status_2_before_anything_heavy_is_imported(arguments, message, tmp_path):
    told = entry("train.py", *arguments, folder=tmp_path)
    assert told.returncode == 2
    assert message in said(told)
    assert "Traceback" not in said(told) and said(told).count("error:") == 1
    assert imported(told).isdisjoint(HEAVY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", ["~/my.json", "数据.json", "my (1).json", "a=b.json", "Sei höflich (bitte)!", "C:\\My data (1)\\x.json"]
)
def test_a_text_that_the_grammar_cannot_read_is_taken_as_it_stands(value):
    parser = OverridesParser.create()
    with pytest.raises(HydraException):
        parser.parse_override(f"data.path={value}")
    assert str(parser.parse_override(quoted(f"data.path={value}")).value()) == value
    for word in (f"data.path={value}'", "quickstart", "~data.validation.own", "seed=0,1", "evaluate=[a", "--cfg=job ("):
        assert quoted(word) == word


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "1"}


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_predictions_are_scored_by_one_process_alone(launcher, tmp_path):
    answers = tmp_path / "answers.json"
    answers.write_text("[]")
    scoring = ("eval.py", "task=scienceqa", f"predictions={answers}", "task.problems=problems.json")
    told = entry(*scoring, folder=tmp_path, **launcher)
    assert told.returncode == 2 and "error: predictions= is scored by one process" in said(told), said(told)
    assert "started 2" in said(told) and imported(told).isdisjoint(HEAVY) and list(tmp_path.iterdir()) == [answers]
    told = entry(*scoring, "launch.processes=2", folder=tmp_path)
    assert told.returncode == 2 and "launch.processes=2: predictions= is scored by one process" in said(told)


def test_someone_who_wants_the_whole_trace_gets_it():
    told = entry("train.py", "host.path=/no/llama", HYDRA_FULL_ERROR="1")
    assert told.returncode != 0 and "Traceback" in said(told) and "no such folder" in said(told)


def test_eval_refuses_an_unknown_key_before_it_prints_the_settings():
    told = entry("eval.py", "+optimizer.epochs=1", "--cfg", "job")
    assert told.returncode == 2 and "error: There is no setting 'optimizer'" in said(told) and told.stdout == ""


TROUBLE = """
import errno, os, signal
from mmadapter.config import RunConf
from pathlib import Path
from mmadapter.cli import command

def main(conf):
    {does}

command("train", RunConf, main, Path(__file__).resolve())
"""


def command_of(folder, code: str) -> list[str]:
    """What starts `code` as the train.py of a checkout in `folder`, with the shipped host."""
    (folder / "train.py").write_text(code)
    (folder / "conf").symlink_to(CHECKOUT / "conf")
    return [sys.executable, str(folder / "train.py"), "host=tiny"]


@pytest.mark.parametrize(
    "does,status,message",
    [
        ("raise OSError(errno.ENOSPC, 'No space left on device')", 2, "error: runs: No space left .* Make room"),
        ("open(os.devnull + '/x', 'w')", 2, "error: /dev/null/x: Not a directory. Check this path"),
        ("raise OSError(errno.EROFS, 'Read-only file system', '/r/x')", 2, "error: /r/x: Read-only .* permissions"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
        ("raise OSError(errno.EPIPE, 'Broken pipe')", 1, "Traceback.*Broken pipe"),
    ],
)
def test_trouble_with_the_disk_and_ctrl_c_give_one_line_a_bug_its_traceback(tmp_path, does, status, message):
    told = subprocess.run(command_of(tmp_path, TROUBLE.format(does=does)), capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == status, told.stderr
    assert re.search(message, told.stderr, re.DOTALL) and (status == 1 or told.stderr.count("\n") == 1), told.stderr


@pytest.mark.parametrize(
    "word, status, says", [("~comparison", 0, "{}"), ("~seed", 2, "error: ~seed: a setting cannot be")]
)
def test_named_entries_can_be_taken_away_all_together_and_a_setting_cannot(tmp_path, word, status, says):
    command = [*command_of(tmp_path, TROUBLE.format(does="print(conf.comparison)")), word]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == status and says in told.stdout + told.stderr, told.stderr


def test_other_packages_say_only_warnings(tmp_path):
    """timm and open_clip tell at level INFO which files they load."""
    lines = [f"logging.getLogger('{name}').info('{name} tells')" for name in ("timm", "root", "mmadapter")]
    does = "; ".join(["import logging", *lines, "logging.getLogger('timm').warning('timm warns')"])
    told = subprocess.run(command_of(tmp_path, TROUBLE.format(does=does)), capture_output=True, text=True, cwd=tmp_path)
    assert told.stdout.splitlines() == ["mmadapter tells", "timm warns"], told.stderr


def test_a_signal_that_comes_when_all_is_done_makes_no_failure_of_it(tmp_path):
    """Python takes about a second to end after torch; a cluster would call the job failed."""
    released = "from mmadapter.training.preemption import release_signals; release_signals()"  # as a run does
    does = f"{released}; import atexit; atexit.register(lambda: os.kill(os.getpid(), signal.SIGUSR2))"
    told = subprocess.run(command_of(tmp_path, TROUBLE.format(does=does)), capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 0, told.stderr


def started_as_two(tmp_path, does: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = command_of(tmp_path, "from mmadapter.errors import InputError" + TROUBLE.format(does=does))
    words = ["engine=zero1", "launch.processes=2", *arguments]
    return subprocess.run([*command, *words], capture_output=True, text=True, cwd=tmp_path)


def test_processes_that_this_one_starts_show_a_mistake_without_a_traceback(tmp_path):
    told = started_as_two(tmp_path, "raise InputError('a mistake')")
    assert told.returncode == 2 and "error: a mistake" in told.stderr and "Traceback" not in told.stderr, told.stderr


def test_a_killed_process_of_a_job_loses_no_other_job_of_the_sweep(tmp_path):
    does = "print(f'here {conf.seed}', flush=True); conf.seed or os.kill(os.getpid(), signal.SIGKILL)"
    told = started_as_two(tmp_path, does, "seed=0,1", "evaluate=[]", "-m")
    assert told.returncode == 2 and "ended with status 137" in told.stderr, told.stderr
    assert told.stdout.count("here 1") == 2, told.stdout


ENTRY = """
import os
from mmadapter.config import RunConf
from pathlib import Path
from mmadapter.cli import command

def main(conf):
    print("in", os.getcwd(), os.environ["OMP_NUM_THREADS"], conf.seed)

command("train", RunConf, main, Path(__file__).resolve())
"""


def test_hydra_leaves_no_folder_behind_and_stays_where_it_was_started(tmp_path):
    arguments = [*command_of(tmp_path, ENTRY), "threads=1"]
    start = tmp_path / "start"
    start.mkdir()
    told = subprocess.run(arguments, capture_output=True, text=True, cwd=start)
    assert told.stdout.split() == ["in", str(start), "1", "0"], told.stderr
    assert list(start.iterdir()) == []
    swept = subprocess.run([*arguments, "seed=1,2", "-m"], capture_output=True, text=True, cwd=start)
    seeds = [line.split()[-1] for line in swept.stdout.splitlines() if line.startswith("in ")]
    assert seeds == ["1", "2"], swept.stderr
    assert [item.name for item in start.iterdir()] == ["runs"]


def test_eval_knows_which_of_the_tasks_settings_were_typed(tmp_path):
    script = tmp_path / "eval.py"
    script.write_text(ENTRY.replace("RunConf", "EvalConf").replace("train", "eval").replace("conf.seed", "conf.given"))
    (tmp_path / "conf").symlink_to(CHECKOUT / "conf")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yaml").write_text("{}")
    arguments = [f"run={tmp_path / 'one'}", "task=instruct", "task.limit=4", "task.generation.temperature=0"]
    told = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert "['generation.temperature', 'limit']" in told.stdout, told.stderr


@pytest.mark.parametrize(
    "asked,environment,usable,expected",
    [(None, None, 8, "2"), (None, None, 1, "1"), (None, "6", 8, "6"), (3, "6", 8, "3")],
)
def test_threads_are_two_unless_asked_otherwise(monkeypatch, asked, environment, usable, expected):
    from mmadapter.cli import THREAD_VARIABLES, set_threads

    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("OMP_NUM_THREADS")
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    set_threads(asked)
    assert {os.environ[name] for name in THREAD_VARIABLES} == {expected}


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "1"}, {}])
def test_waiting_threads_soon_sleep_unless_the_user_says_how_they_wait(monkeypatch, said):
    from mmadapter.distributed.start import set_threads

    environment = {"OMP_NUM_THREADS": "1", **said}
    monkeypatch.setattr(os, "environ", environment)
    set_threads(1)
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    found = {name: environment[name] for name in names if name in environment}
    assert found == (said or {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"})
