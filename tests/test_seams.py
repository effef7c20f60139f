"""One file and one line add a thing: parts that stand in tests/toy_parts.py alone go the whole way of a run.

They train, are saved, loaded, evaluated, listed, reported and swept; nothing else of the package knows them.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import mmadapter
from mmadapter.config import EvalConf, load_run_config, validate
from mmadapter.data.settings import READERS
from mmadapter.errors import InputError
from mmadapter.evaluation import run_evaluation
from mmadapter.hosts.families import FAMILIES
from mmadapter.methods import METHODS
from mmadapter.methods.fold import fold
from mmadapter.runs.__main__ import as_text, list_runs
from mmadapter.settings import typed
from mmadapter.tasks import TASKS
from mmadapter.training.run import run
from mmadapter.vision import ENCODERS
from tests import toy_parts
from tests.config.composing import run_conf
from tests.families import random_tokens
from tests.models import built, tiny_tokenizer
from tests.sweeps.sweep_output import page_of, rows_of

CHECKOUT = Path(__file__).parents[1]
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (10, 30, 230)}
SETTINGS = {
    "vision/mosaic.yaml": {"encoder": "mosaic", "grid": 3, "width": 5},
    "adapter/stretch.yaml": {
        "stretch": {"every": 2},
        "prompts": {"length": 2, "layers": 2},
        "glance": {"tokens": 1},
        "frozen": ["prompt"],
        "groups": {"text": {"roles": ["stretch"]}, "pictures": {"roles": ["gate", "glance"]}},
    },
    "data/lines.yaml": {
        "sources": {"colours": {"reader": "lines", "path": "${data.root}/train.txt", "separator": "|"}},
        "validation": {"held_out": {"reader": "lines", "path": "${data.root}/val.txt", "separator": "|"}},
    },
    "task/talk.yaml": {"name": "talk", "separator": "|", "generation": {"max_new_tokens": 5}},
    "experiment/toy.yaml": {
        "defaults": [
            {"/task@tasks.talk": "talk"},
            {"override /host": "own"},
            {"override /vision": "mosaic"},
            {"override /adapter": "stretch"},
            {"override /data": "lines"},
        ],
        "experiment": "toy",
        "tasks": {"talk": {"path": "${data.root}/val.txt"}},
        "evaluate": ["talk"],
        "host": {"max_tokens": 48},
        "optimizer": {"epochs": 3, "batch_size": 4, "micro_batch_size": 2, "base_lr": 1.0, "warmup_epochs": 0},
        "training": {"tensorboard": False},
    },
}
TRAIN = """
from pathlib import Path
from mmadapter.cli import command
from mmadapter.config import RunConf
from tests import toy_parts

toy_parts.add()
command("train", RunConf, "mmadapter.training.run:run", Path(__file__).resolve())
"""


def save_host(folder: Path) -> None:
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    torch.manual_seed(0)
    config = Starcoder2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=None,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    Starcoder2ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def toys():
    with toy_parts.registered():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with conf/ of the parts, a train.py that registers them, a host and pictures with questions."""
    folder = tmp_path_factory.mktemp("seams")
    for name, content in SETTINGS.items():
        file = folder / "toy" / name
        file.parent.mkdir(parents=True)
        header = "# @package _global_\n" if "experiment" in name else ""
        file.write_text(header + yaml.safe_dump(content, sort_keys=False))
    (folder / "train.py").write_text(TRAIN)
    (folder / "conf").symlink_to(CHECKOUT / "conf")
    save_host(folder / "host")
    (folder / "data").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (12, 12), colour).save(folder / "data" / f"{name}.png")
    asked = ["what colour is the circle", "the square on the left"]
    lines = [f"{name}.png|{question}|{name}" for question in asked for name in COLOURS]
    (folder / "data" / "train.txt").write_text("\n".join([*lines, lines[0], lines[1]]))
    (folder / "data" / "val.txt").write_text("\n".join(f"{name}.png|what is small|{name}" for name in COLOURS))
    return folder


def words_of(place: Path, *words: str) -> list[str]:
    paths = [f"host.path={place / 'host'}", f"data.root={place / 'data'}", f"runs_root={place / 'runs'}"]
    return ["experiment=toy", *paths, *words]


def toy_conf(place: Path, *words: str):
    return run_conf(f"hydra.searchpath=[file://{place / 'toy'}]", *words_of(place, *words))


@pytest.fixture(scope="module")
def done(toys, place):
    """(run folder, its summary, its settings, what it said, the model's logits at its end)."""
    torch.set_num_threads(1)
    conf = toy_conf(place, "run=whole")
    validate(conf)
    said = io.StringIO()
    logits = {}

    def noted(self, model, samples, ranks, progress=None):
        logits["end"] = logits_of(model, place)
        return ask(self, model, samples, ranks, progress)

    ask = toy_parts.Talk.ask
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(toy_parts.Talk, "ask", noted)
        summary = run(conf)
    return place / "runs" / "whole", summary, conf, said.getvalue(), logits["end"]


def logits_of(model, place: Path) -> torch.Tensor:
    """(3, 7, vocabulary): two rows with pictures, and one without."""
    features = [*model.features.of([place / "data" / f"{name}.png" for name in ("red", "blue")]), None]
    with torch.no_grad():
        return model.logits(random_tokens(3, 7), features)


def start(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`mmadapter train --config-dir toy ...` by a script that registers the parts."""
    flags = [word for word in words if word.startswith("-")]  # before the settings: argparse does not mix them
    settings = words_of(place, *(word for word in words if word not in flags))
    command = [sys.executable, "train.py", "--config-dir", str(place / "toy"), *flags, *settings]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    told = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=300)
    assert told.returncode == 0, told.stdout + told.stderr
    return told


# room -> the register (or table) of what it holds, and where else a name of it may stand, with the reason
SELF_TEST = {"doctor.py": "it builds the shipped model, and lists the package timm"}
ALPACA = dict.fromkeys(("model.py", "evaluation.py"), "alpaca is a template, too")
DEMO = {"demo.py": "it asks the shipped adapter the questions that this one was trained on"}
COMMANDS = {"__main__.py": "a check of data is called like its reader"}
TO_ENCODERS = {
    "config.py": "the encoder of settings without one",
    "methods/version_0_1.py": "old cards",
    "runs/versions.py": "the version of the package timm",
    "interop/pretrained_vision.py": "it writes folders for timm's encoder, and checks them with it",
    **SELF_TEST,
}
ROOMS = {
    "methods": (METHODS, SELF_TEST),
    "hosts": (FAMILIES, dict.fromkeys(("interop/gguf.py", "interop/vocabulary.py"), "GGUF's names for families")),
    "tasks": (
        TASKS,
        {"config.py": "the task of `mmadapter eval` alone", "data": "a reader has this name", **COMMANDS, **DEMO},
    ),
    "data": (READERS, {"tasks": "a task derives from its reader", **COMMANDS, **ALPACA, **DEMO}),
    "vision": (ENCODERS, TO_ENCODERS),
}


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_room_names_what_a_register_holds(room):
    """As a text of its own ("lora"), or as the class of its settings."""
    register, allowed = ROOMS[room]
    names = set(register) if isinstance(register, dict) else set(register.names())
    classes = set() if isinstance(register, dict) else {register.settings(name).__name__ for name in names}
    package, found = CHECKOUT / "mmadapter", []
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package).as_posix()
        if where.startswith((f"{room}/", *allowed)):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            said = getattr(node, "value", None) if isinstance(node, ast.Constant) else getattr(node, "id", None)
            if (isinstance(node, ast.Constant) and said in names) or (isinstance(node, ast.Name) and said in classes):
                found.append(f"{where}:{node.lineno} {said}")
    assert not found


def test_they_are_registered_for_these_tests_alone():
    registers = {
        "stretch": METHODS,
        "glance": METHODS,
        "starcoder2": FAMILIES,
        "mosaic": ENCODERS,
        "lines": READERS,
        "talk": TASKS,
    }
    assert not any(name in register for name, register in registers.items())
    with toy_parts.registered():
        assert all(name in register for name, register in registers.items())
    assert not any(name in register for name, register in registers.items())


def test_what_is_declared_moves_and_nothing_else(done):
    folder, _, conf, said, _ = done
    trained, fresh = load_file(folder / "adapter" / "adapter.safetensors"), built(conf)
    own = {item.name: item for item in fresh.trainable_parameters()}
    assert {name: tuple(tensor.shape) for name, tensor in trained.items() if name.startswith("stretch")} == {
        "stretch.0.fc_in.amount": (16,),
        "stretch.2.fc_in.amount": (16,),
    }
    assert trained.keys() == own.keys()
    moved = {item.role for item in own.values() if not torch.equal(trained[item.name], item.parameter)}
    still = {item.role for item in own.values() if torch.equal(trained[item.name], item.parameter)}
    assert moved == {"stretch", "gate", "glance"} and still == {"prompt"}
    table = json.loads((folder / "trainable.json").read_text())
    assert [(row["group"], row["role"], row["parameters"]) for row in table][0] == ("text", "stretch", 32)
    assert re.search(r"text +stretch +2 +32 ", said)


def test_a_fresh_adapter_leaves_the_host_as_it_is(toys, place):
    model = built(toy_conf(place))
    ids = random_tokens(2, 7)
    with torch.no_grad():
        assert torch.equal(model.logits(ids), model.host(input_ids=ids).logits)


def test_the_settings_stand_in_the_adapter_and_in_the_run(done):
    folder, _, conf, _, _ = done
    card = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert card["adapter"]["stretch"] == {"at": "fc_in", "every": 2}
    assert card["host"]["model_type"] == "starcoder2" and card["vision"]["features"] == 5
    assert card["encoder"] == {"encoder": "mosaic", "grid": 3, "width": 5}
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["adapter"]["stretch"] == {"at": "fc_in", "every": 2}
    assert (written["vision"]["encoder"], written["vision"]["grid"]) == ("mosaic", 3)
    assert written["data"]["sources"]["colours"]["separator"] == "|" and written["tasks"]["talk"]["longest"] == 3
    assert load_run_config(folder) == conf


def test_cfg_job_shows_them_with_their_defaults(place):
    shown = yaml.safe_load(start(place, "adapter.stretch.every=3", "--cfg=job").stdout)
    assert shown["adapter"]["stretch"] == {"at": "fc_in", "every": 3} and shown["tasks"]["talk"]["longest"] == 3
    assert shown["vision"]["width"] == 5 and shown["data"]["sources"]["colours"]["reader"] == "lines"


@pytest.mark.parametrize("folder_of_adapter", [False, True], ids=["run folder", "adapter folder"])
def test_what_is_loaded_gives_the_same_logits_to_the_bit(done, place, folder_of_adapter):
    folder, *_, logits = done
    given = (folder / "adapter", place / "host") if folder_of_adapter else (folder,)
    model = mmadapter.load(*given)
    assert torch.equal(logits_of(model, place), logits)
    assert (logits[0] - logits[1]).abs().max() > 0, "the picture acts"
    assert "stretch 32" in repr(model) and "Mosaic, features (5,)" in repr(model)
    with pytest.raises(InputError, match="vision=tiny is given, but the encoder is mosaic"):
        mmadapter.load(folder / "adapter", host=place / "host", vision="tiny")


def test_what_can_fold_is_folded_into_the_host(done, place):
    folder, *_, logits = done
    model = mmadapter.load(folder)
    fold(model.host, model.adapter)
    assert list(model.adapter) == ["prompts", "glance"]
    assert (logits_of(model, place) - logits).abs().max() < 1e-4


def test_the_score_stands_in_summary_terminal_report_and_list(done, place):
    folder, summary, _, said, _ = done
    rows = [json.loads(line) for line in (folder / "eval" / "talk" / "predictions.jsonl").read_text().splitlines()]
    model = mmadapter.load(folder)
    pictures = [place / "data" / f"{name}.png" for name in COLOURS]
    texts = model.generate(["what is small"] * 3, pictures, template="plain", max_new_tokens=5)
    assert [row["output"] for row in rows] == texts and [row["reference"] for row in rows] == list(COLOURS)
    words = sum(min(len(text.split()), 3) for text in texts) / 3
    assert words > 0
    written = json.loads((folder / "summary.json").read_text())["evaluation"]
    assert (
        written
        == summary["evaluation"]
        == {"talk": {"words": words, "letters": sum(map(len, texts)) / 3, "answers": 3}}
    )
    assert "Talkativeness" in said and re.search(rf"Adapter with images +{words:.2f} ", said)
    assert f"mmadapter eval task=talk run={folder}" in said.replace("\n", "")
    page = (folder / "report.html").read_text()
    assert "Words an answer" in page and f"{words:.3f}" in page and "A note that only the toy task makes." in page
    assert f"talk.words {words:.4g}" in as_text(list_runs([folder], None))


def test_eval_takes_the_run_and_its_settings(done, place, capsys):
    folder, summary, *_ = done
    asked = typed(EvalConf, {"task": {"name": "talk", "longest": 1}, "runs_root": str(folder.parent)})
    asked.given = ["longest"]
    validate(asked)
    metrics = run_evaluation(asked)
    said = capsys.readouterr().out
    assert f"run: {folder}, the newest finished one that evaluates talk" in said and "Talkativeness" in said
    assert metrics["letters"] == summary["evaluation"]["talk"]["letters"] and 0 < metrics["words"] <= 1
    assert json.loads((folder / "eval" / "talk-longest-1" / "metrics.json").read_text()) == metrics
    assert "A note that only the toy task makes." in (folder / "report.html").read_text()
    asked.vision.pretrained = "elsewhere.pt"
    with pytest.raises(
        InputError, match="vision.pretrained=elsewhere.pt: the vision settings of .* have no pretrained"
    ):
        run_evaluation(asked)


def test_a_sweep_over_the_methods_setting_has_the_tasks_score_in_its_table(place):
    told = start(place, "-m", "adapter.stretch.every=1,4", "optimizer.epochs=1", "sweep.metric=talk.words")
    [folder] = (place / "runs" / "sweeps").iterdir()
    rows = rows_of(folder)
    assert [(row["adapter.stretch.every"], row["state"]) for row in rows] == [("1", "finished"), ("4", "finished")]
    page, sizes = page_of(folder), []
    for row in rows:
        run_folder = Path(place, row["run"])
        written = json.loads((run_folder / "summary.json").read_text())["evaluation"]["talk"]
        assert float(row["value"]) == float(row["talk.words"]) == written["words"]
        assert float(row["talk.letters"]) == written["letters"]
        assert f"{written['words']:.2f}" in page.text
        sizes.append(len(json.loads((run_folder / "adapter" / "adapter.json").read_text())["tensors"]))
    assert sizes[0] - sizes[1] == 3, "one vector on each of four layers, or on the first alone"
    assert "talk.words" in page.text and "best talk.words (maximize)" in told.stdout


@pytest.mark.parametrize(
    "word, meant",
    [
        ("adapter.stretch.evry=2", "adapter.stretch.every"),
        ("adapter.glance.tokns=2", "adapter.glance.tokens"),
        ("+vision.gird=2", "vision.grid"),
        ("+data.sources.colours.seperator=x", "data.sources.colours.separator"),
        ("+tasks.talk.longst=1", "tasks.talk.longest"),
    ],
)
def test_a_setting_that_a_part_does_not_have_is_refused_by_name(toys, place, word, meant):
    key = word.lstrip("+").partition("=")[0]
    with pytest.raises(InputError, match=re.escape(f"There is no setting '{key}'. Did you mean {meant}?")):
        toy_conf(place, word)


def test_values_out_of_bounds_and_unknown_places_are_refused(toys, place):
    with pytest.raises(InputError, match="adapter.stretch.every=0: must be at least 1"):
        validate(toy_conf(place, "adapter.stretch.every=0"))
    with pytest.raises(InputError, match="adapter.glance reads 3 features or more, but the encoder gives 2"):
        validate(toy_conf(place, "vision.width=2"))
    with pytest.raises(InputError, match="starcoder2 block are: q, k, v, o, fc_in, fc_out"):
        built(toy_conf(place, "adapter.stretch.at=gate"))
