"""Every command line of the documents, the notebook and the help texts: its settings and options exist, and it runs."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus

from data_prep.shapes import make_world
from mmadapter import cli
from mmadapter.__main__ import main as mmadapter
from mmadapter.config import EvalConf, RunConf
from mmadapter.runs.folder import run_folder
from tests.made_runs import made_run, made_sweep
from tests.training.tiny_run import SIZES, save_deep_host, save_dialogs, save_models

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *("docs/" + file.name for file in (CHECKOUT / "docs").glob("*.md"))]
# What a line of text begins with that is a command. In a block marked bash every line is one.
PROGRAMS = "mmadapter|python|pip|pytest|ruff|mypy|torchrun|srun|deepspeed|tensorboard|optuna-dashboard|mkdir|printf"
LAUNCHERS = ("torchrun", "srun", "deepspeed")
COMMAND = re.compile(rf"([A-Z_]+=\S+ )*({PROGRAMS})( |$)")

# What stands for something of the reader's own, and what the tests put there, in this order; whole words.
STANDS_FOR = {
    "/models/": "models/",  # the toy hosts
    "/data/": "data/",  # small data in their own layouts
    "/new/place": "models/tiny",
    "host.path=...": "host.path=models/llama-7b",
    "data.root=...": "data.root=data/scienceqa",
    "data.sources.alpaca.path=...": "data.sources.alpaca.path=alpaca_data.json",
    "host.path=FOLDER": "host.path=models/llama-7b",
    "runs/quickstart-a6967135": "runs/NAME",
    "run=RUN": "run=runs/NAME",
    "task=TASK": "task=scienceqa",
    "runs/sweeps/NAME": "made/sweeps/made",
    "task=instruct run=runs/NAME task.path=FILE": "task=instruct run=runs/NAME task.path=alpaca_data.json",
    "task=scienceqa predictions=FILE": "task=scienceqa predictions=answers.json",
    "FILE task.annotations=captions_val2014.json output": "all.json task.annotations=captions_val2014.json output",
    "predictions=FILE": "predictions=val.json",
    "PATH --columns": "german.csv --columns",
    "own PATH": "own my.json",
    "FILE_OR_FOLDER": "my.json",
    "gguf FILE": "gguf host.gguf",
    "meta FOLDER": "meta models/7B",
    "RUN_OR_ADAPTER": "runs/NAME",
    "seed=N": "seed=1",
    "...": "",  # and what else you set
}

# Lines that no test here runs, and why.
INSTALLS = "installs: .ci/run does it"
TESTS = "starts the tests, or checks the code: .ci/run does it"
FETCHES = (
    "fetches a package from the index: tests/interop/test_real_models.py, tests/vision/test_real_encoders.py do it"
)
MENTIONS = "names a command, or an option of one; it is no line to type"
NOT_RUN = {
    "pip install -e .": INSTALLS,
    "pip install -e .[test]": INSTALLS,
    "pip install -e .[notebook]": INSTALLS,
    "pip install -e '.[test,search]'": INSTALLS,
    "pip install -e '.[cluster]'": INSTALLS,
    "pip install -e '.[search]'": INSTALLS,
    "pip install 'mmadapter[notebook]'": INSTALLS,
    "pip download --no-deps NAME==VERSION": FETCHES,
    "pytest": TESTS,
    "pytest tests/methods -x": TESTS,
    "pytest tests/ROOM -x": TESTS,
    "pytest -m slow": TESTS,
    "pytest -m real": TESTS,
    "pytest -m slurm": TESTS,
    "MMADAPTER_REFERENCE_DATA=FOLDER pytest -m reference_data": TESTS,
    "ruff check .": TESTS,
    "ruff format .": TESTS,
    "mypy": TESTS,
    "mmadapter": MENTIONS,
    "mmadapter NAME": MENTIONS,
    "mmadapter export": MENTIONS,
    "torchrun": MENTIONS,
    "deepspeed": MENTIONS,
    "srun": MENTIONS,
    "mmadapter check": MENTIONS,
    "mmadapter check scienceqa": MENTIONS,
    "mmadapter check instruct": MENTIONS,
    "mmadapter check own": MENTIONS,
    "mmadapter check coco_caption": MENTIONS,
    "deepspeed --no_local_rank": MENTIONS,
    "srun --kill-on-bad-exit=1": MENTIONS,
    "mmadapter train adapter.gain.on=[k,v] 'adapter.groups.gain.roles=[gain]'": "needs the method that the page writes",
    "mmadapter eval task=contains run=RUN": "needs the task that the page writes",
    "optuna-dashboard sqlite:///runs/sweeps/NAME/study.sqlite": "another program, which no extra installs",
}
# Lines that are run, but have nothing to check before.
ONLY_RUN = {
    "mkdir -p conf/local",
    r"printf '# @package _global_\ncluster: {partition: gpu, gpus_per_node: 1, cpus_per_task: 8, mem_gb: 64}\n'"
    " > conf/local/default.yaml",
    "tensorboard --logdir runs/quickstart-a6967135/tensorboard",
}


def commands_of(text: str) -> list[str]:
    """The command lines of a Markdown text: in blocks, and between backticks.

    A line goes on behind a backslash and ends at two blanks or more; `a && b` is two lines.
    """
    found, block, begun = [], None, ""
    prose = []
    for line in text.splitlines():
        if line.startswith("```"):
            block, begun = (line[3:].strip() if block is None else None), ""
        elif block is None:
            prose.append(line)
        elif line.endswith("\\"):
            begun += line[:-1].strip() + " "
        else:
            whole, begun = (begun + line.strip()).partition("  ")[0], ""
            if COMMAND.match(whole) or (block == "bash" and whole and not whole.startswith("#")):
                found.append(whole)
    for code in re.findall(r"`([^`]+)`", "\n".join(prose)):
        words = " ".join(code.split())
        found += [words] if COMMAND.match(words) else []
    return [line for one in found for line in one.split(" && ")]


def documented() -> dict[str, str]:
    """Every command line, and where it stands first."""
    found: dict[str, str] = {}
    texts = {name: (CHECKOUT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    cells = json.loads((CHECKOUT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    texts["the notebook"] = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for name in ("train", "eval"):
        shown = yaml.safe_load((CHECKOUT / "conf" / f"{name}.yaml").read_text())["hydra"]["help"]["template"]
        texts[f"mmadapter {name} --help"] = f"```\n{shown}```"
    for name, text in texts.items():
        for line in commands_of(text):
            found.setdefault(line, name)
    return found


LINES = documented()
CHECKED = [line for line in LINES if line not in NOT_RUN]


def filled(line: str) -> str:
    """The line with the tests' files in the place of the reader's."""
    for written, ours in STANDS_FOR.items():
        before, after = (r"(?<!\w)" if written[0].isalnum() else ""), (r"(?!\w)" if written[-1].isalnum() else "")
        line = re.sub(before + re.escape(written) + after, lambda _, ours=ours: ours, line)
    return line


def test_what_is_listed_as_not_run_stands_in_a_document():
    gone = [line for line in [*NOT_RUN, *ONLY_RUN] if line not in LINES]
    assert not gone, f"no document has these lines any more: {gone}"
    assert len(CHECKED) > 60


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with everything that the lines name."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("train.py", "eval.py", "examples"):
        (folder / name).symlink_to(CHECKOUT / name)

    # Models: a random host of as many layers as LLaMA-7B has, and the shipped one in the place of the others.
    models = folder / "models"
    save_models(models)
    save_deep_host(models)
    (models / "deep").rename(models / "llama-7b")
    (models / "tiny").symlink_to(CHECKOUT / "mmadapter" / "tiny" / "llama")
    (models / "smollm2").symlink_to(models / "tiny")

    # Data: the made world as the publishers' files, dialogs about pictures, a table.
    make_world(folder / "data", sizes=SIZES)
    save_dialogs(folder / "dialogs")
    shutil.copytree(folder / "dialogs", folder / "data" / "coco" / "train2017", ignore=shutil.ignore_patterns("*.json"))
    for ours, theirs in (
        ("dialogs/llava.json", "llava_instruct_150k.json"),
        ("dialogs/sharegpt.json", "sharegpt.json"),
        ("dialogs/llava.json", "dialogs/my.json"),
        ("data/alpaca.json", "alpaca_data.json"),
        ("data/alpaca.json", "alpaca_gpt4_data.json"),
        ("data/scienceqa/problems.json", "problems.json"),
        ("data/coco/dataset_coco.json", "dataset_coco.json"),
    ):
        (folder / theirs).symlink_to(folder / ours)
    (folder / "my.json").symlink_to(folder / "dialogs" / "my.json")
    rows = "".join(f"Was ist {number}?,Eine Zahl.\n" for number in range(20))
    (folder / "german.csv").write_text(f"Frage,Antwort\n{rows}")
    save_answers(folder)

    made_run(folder / "runs" / "NAME", "finished")
    made_sweep(folder / "made", {"seed=0": ("finished", 50.0), "seed=1": ("finished", 60.0)})
    return folder


def save_answers(folder: Path) -> None:
    """Files of predictions as other programs leave them, and COCO's captions with Karpathy's lists."""
    problems = json.loads((folder / "problems.json").read_text())
    right = {number: item["answer"] for number, item in problems.items() if item["split"] == "test"}
    (folder / "answers.json").write_text(json.dumps({"results": right}))
    images = json.loads((folder / "dataset_coco.json").read_text())["images"]
    scored = {split: [one for one in images if one["split"] == split] for split in ("val", "test")}
    annotations, captions = [], {}
    for split, those in scored.items():
        (folder / f"karpathy_{split}_images.txt").write_text("".join(f"{one['filename']}\n" for one in those))
        captions[split] = [{"image_id": one["cocoid"], "caption": one["sentences"][0]["raw"]} for one in those]
        annotations += [{"image_id": one["cocoid"], "caption": s["raw"]} for one in those for s in one["sentences"]]
    listed = [{"id": one["cocoid"], "file_name": one["filename"]} for those in scored.values() for one in those]
    numbered = [{"id": number, **one} for number, one in enumerate(annotations)]
    (folder / "captions_val2014.json").write_text(json.dumps({"images": listed, "annotations": numbered}))
    (folder / "val.json").write_text(json.dumps(captions["val"]))
    (folder / "results.json").write_text(json.dumps(captions["test"]))
    (folder / "all.json").write_text(json.dumps(captions["val"] + captions["test"]))


class Understood(Exception):
    """The options of a line were read; nothing is to be done."""


def parsed(parser, arguments=None, namespace=None):
    """In the place of ArgumentParser.parse_args."""
    _, unknown = parser.parse_known_args(arguments, namespace)
    assert not unknown
    raise Understood


@pytest.mark.parametrize("line", [line for line in CHECKED if line not in ONLY_RUN])
def test_every_line_is_understood(line, place, monkeypatch, capsys):
    """Settings are composed and checked, jobs of a sweep are built without weights, options are read. Nothing starts."""
    words = shlex.split(filled(line))
    if len(words) > 1 and words[0] in LAUNCHERS:  # what each of the processes that it starts is given
        words = ["mmadapter", *words[words.index("train") :]]
    composed: list[RunConf | EvalConf] = []

    def act(conf):
        composed.append(conf)
        if "-m" in words:  # a sweep compares its jobs
            return {"folder": made_run(run_folder(conf), "finished")}
        return None

    def submit(launcher, job_overrides, initial_job_idx):
        composed.extend(job_overrides)
        return [JobReturn(overrides=job, status=JobStatus.COMPLETED) for job in job_overrides]

    command = cli.command
    monkeypatch.setattr(cli, "command", lambda name, schema, _: command(name, schema, act))
    monkeypatch.setattr(cli, "start_ranks", lambda words, count, environment: composed.append(words) or 0)
    monkeypatch.setattr(cli, "set_threads", lambda threads: None)
    monkeypatch.setattr(cli, "hold_signals", lambda: None)
    if "cluster=slurm" in words:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra [cluster]")
        monkeypatch.setattr("mmadapter.sweeps.launcher.SlurmJobs.launch", submit)
    if "sweep.trials=40" in words:
        pytest.importorskip("optuna", reason="needs the extra [search]")
        words.append("sweep.trials=2")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("MMADAPTER_MODELS", "models")
    monkeypatch.chdir(place)

    try:
        if words[0] == "mmadapter":
            if words[1] not in ("train", "eval"):  # these are Hydra's
                monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            monkeypatch.setattr(sys, "argv", words)
            mmadapter()
        elif words[:2] == ["python", "-m"]:
            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            monkeypatch.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        elif words[0] == "python":
            if words[1] not in ("train.py", "eval.py"):
                monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
        else:
            pytest.fail(f"{LINES[line]}: nothing here knows {line!r}. List it in NOT_RUN with the reason")
        status = 0
    except Understood:
        return
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert not status, said.err
    assert composed or said.out
