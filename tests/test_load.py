"""`mmadapter.load`: run folders and adapter folders back into models, by where host and CLIP weights lie now."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import mmadapter
from mmadapter.config import RunConf, load_run_config, save_config
from mmadapter.errors import InputError
from mmadapter.methods.folder import read_card, settings_of_card
from mmadapter.methods.settings import BiasScaleConf
from mmadapter.model import AdaptedModel
from tests.config.composing import run_conf
from tests.models import built, picture
from tests.training.tiny_run import CLIP, save_models

CHECKOUT = Path(__file__).parents[1]
ALL_TOKENS = ["vision.tokens=all", "adapter.projection.hidden=32", "adapter.projection.heads=4"]
PRESETS = {
    "v1": ["adapter=v1_visual"],
    "v1, one gate a layer": ["adapter=v1_visual", "adapter.prompts.gate=identity", "adapter.prompts.gate_per=layer"],
    "v1, joint, text only": ["adapter=v1_joint", "vision=none"],
    "v1, query transformer": ["adapter=v1_caption", *ALL_TOKENS],
    "v2": ["adapter=v2", "adapter.prompts.layers=3"],
    "v2, visual tokens alone": [
        *("adapter=v2", "adapter.prompts=null", "adapter.early_fusion.gate=identity"),
        *("adapter.early_fusion.gate_per=layer", "adapter.groups.instruction.roles=[norm,bias,scale]"),
    ],
    "v2, released": ["adapter=v2_release_lora", *ALL_TOKENS, "adapter.lora={rank: 3, alpha: 6, on: [q, down]}"],
    "v2, chat": ["adapter=v2_chat", "vision=none"],
}
TRIPLES = [("what colour is the circle", "red", None), ("what is on the left", "a small square", None)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


def conf_of(models: Path, *overrides: str) -> RunConf:
    vision = [] if "vision=none" in overrides else [f"vision.model={models / 'clip'}", "vision.layers=[1,2]"]
    conf = run_conf(f"host.path={models / 'host'}", "host.max_tokens=300", *vision, *overrides)
    if "prompts" in conf.adapter.methods and not any("prompts.layers" in word for word in overrides):
        conf.adapter.methods["prompts"].layers = 2
    return conf


def opened(conf: RunConf) -> AdaptedModel:
    """The model of the settings, every trained tensor away from where it starts."""
    model = built(conf)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for item in model.trainable_parameters():
            item.parameter.add_(torch.randn(item.parameter.shape, generator=generator), alpha=0.5)
    return model


def saved_run(conf: RunConf, folder: Path) -> AdaptedModel:
    """A run folder as a finished training leaves it, and the model that was trained."""
    save_config(conf, folder)
    model = opened(conf)
    model.save(folder / "adapter")
    return model


def same(one: AdaptedModel, other: AdaptedModel, image: Path | None) -> bool:
    triples = [(prompt, answer, image) for prompt, answer, _ in TRIPLES] + TRIPLES
    with torch.no_grad():
        return torch.equal(one.loss_of(triples), other.loss_of(triples))


@pytest.mark.parametrize("preset", PRESETS)
def test_an_adapter_folder_says_all_that_builds_it_again(preset, models, tmp_path):
    conf = conf_of(models, *PRESETS[preset])
    trained = saved_run(conf, tmp_path / "run")
    clip = models / "clip" if conf.vision.enabled else None
    loaded = mmadapter.load(tmp_path / "run" / "adapter", host=models / "host", vision=clip, device="cpu")
    ours = {item.name: item.parameter for item in trained.trainable_parameters()}
    theirs = {item.name: item.parameter for item in loaded.trainable_parameters()}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert same(trained, loaded, picture(tmp_path, 1) if clip else None)
    assert loaded.max_tokens == 300


def test_a_run_folder_knows_its_host_and_follows_it_where_it_moved(models, tmp_path):
    trained = saved_run(conf_of(models, *PRESETS["v2"]), tmp_path / "run")
    image = picture(tmp_path, 1)
    assert same(trained, mmadapter.load(tmp_path / "run"), image)
    shutil.copytree(models, tmp_path / "moved")
    moved = mmadapter.load(str(tmp_path / "run"), tmp_path / "moved" / "host", tmp_path / "moved" / "clip", "cpu")
    assert moved.folder == tmp_path / "moved" / "host"
    assert same(trained, moved, image)
    assert next(mmadapter.load(tmp_path / "run", dtype="bfloat16").host.parameters()).dtype == torch.bfloat16


ASK = """
answers = model.generate(["what is red", "a circle"], [image, None], max_new_tokens=8, template="plain")
loss = model.loss_of([("what is red", "a circle", image), ("what", "red", None)]).item().hex()
said, dialog = model.chat("what is red", image, max_new_tokens=8)
said += model.chat("a circle", history=dialog, max_new_tokens=8)[0]
"""
IN_A_NEW_PROCESS = f"""
import json, sys
import mmadapter
assert not {{"torch", "transformers", "numpy", "PIL"}} & set(sys.modules), "importing the package is not light"
model, image = mmadapter.load(sys.argv[1]), sys.argv[2]
{ASK}
print(json.dumps([answers, loss, said]))
"""


def test_a_new_process_gives_the_same_answers_and_importing_the_package_is_light(models, tmp_path):
    here: dict = {"model": saved_run(conf_of(models, *PRESETS["v2"]), tmp_path / "run"), "image": picture(tmp_path, 1)}
    exec(ASK, here)
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, tmp_path / "run", here["image"]]
    told = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1]) == [here["answers"], here["loss"], here["said"]]
    assert here["answers"][0] and here["said"]


def test_loading_leaves_the_random_numbers_alone(models, tmp_path):
    saved_run(conf_of(models, *PRESETS["v2, released"]), tmp_path / "run")
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    mmadapter.load(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]


def test_an_adapter_folder_without_its_host_or_its_clip_is_refused(models, tmp_path):
    saved_run(conf_of(models, *PRESETS["v2"]), tmp_path / "run")
    folder = tmp_path / "run" / "adapter"
    with pytest.raises(InputError, match=r"host= \(its card says: llama, 4 layers.*and vision= .*\[1, 2\].*run folder"):
        mmadapter.load(folder)
    with pytest.raises(InputError, match=r"Give vision="):
        mmadapter.load(folder, host=models / "host")
    with pytest.raises(InputError, match=r"a folder in open_clip's layout"):
        mmadapter.load(folder, host=models / "host", vision="openai")
    with pytest.raises(InputError, match=r"does not fit this host. Differs: .*width: adapter 32"):
        mmadapter.load(folder, host="tiny", vision=models / "clip")


def test_clip_weights_for_text_only_and_folders_of_other_things_are_refused(models, tmp_path):
    saved_run(conf_of(models, *PRESETS["v2, chat"]), tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "adapter"):
        with pytest.raises(InputError, match="text only. Leave vision= away"):
            mmadapter.load(folder, host=models / "host", vision="tiny")
    with pytest.raises(InputError, match="neither a run folder .* nor an adapter folder"):
        mmadapter.load(models / "host")
    with pytest.raises(InputError, match="dtype=float16: allowed are auto, float32, bfloat16"):
        mmadapter.load(tmp_path / "run", dtype=torch.float16)
    (tmp_path / "adapter.json").write_text('{"base_model": "x"}')
    with pytest.raises(InputError, match="says nothing on adapter, host, tensors, sha256: it is no card"):
        mmadapter.load(tmp_path, host=models / "host")


def test_a_card_names_open_clips_model_for_weights_that_do_not_say_it(models, tmp_path, monkeypatch):
    """Weights of a known architecture: `vision=` names the file, the card knows the model."""
    import open_clip
    from safetensors.torch import load_file

    (tmp_path / "small.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path / "small.json")
    listed = lambda: {"small": tmp_path / "small.json"}  # noqa: E731
    for module in ("settings", "open_clip"):
        monkeypatch.setattr(f"mmadapter.vision.{module}.open_clip_files", listed)
    torch.save(load_file(models / "clip" / "open_clip_model.safetensors"), tmp_path / "small.pt")
    conf = conf_of(models, "adapter=v1_visual")
    conf.vision.model, conf.vision.pretrained, conf.vision.quick_gelu = "small", str(tmp_path / "small.pt"), True
    trained = saved_run(conf, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert (card["encoder"]["model"], card["encoder"]["quick_gelu"]) == ("small", True)
    assert not {"pretrained", "cache", "workers"} & card["encoder"].keys(), "nothing of this machine"
    loaded = mmadapter.load(tmp_path / "run" / "adapter", models / "host", tmp_path / "small.pt")
    assert same(trained, loaded, picture(tmp_path, 1))


OLD = Path(__file__).parent / "golden" / "version_0_1"  # made by version 0.1, with the losses that it computed


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_an_adapter_folder_of_version_0_1_computes_what_it_did(name):
    loaded = mmadapter.load(OLD / name / "adapter", host="tiny", vision="tiny", device="cpu")
    expected = json.loads((OLD / "losses.json").read_text())[name]
    with torch.no_grad():
        for image, loss in zip((None, OLD / "picture.png"), expected, strict=True):
            assert loaded.loss_of([("What colour is the circle?", "Red.", image)]).item() == pytest.approx(
                loss, abs=1e-5
            )
    card = json.loads((OLD / name / "adapter" / "adapter.json").read_text())
    assert card["format"] == 1 and loaded.max_tokens == card["max_tokens"]


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_run_folder_of_version_0_1_has_todays_adapter_settings(name):
    adapter = load_run_config(OLD / name).adapter
    assert adapter.methods == settings_of_card(OLD, read_card(OLD / name / "adapter")).methods or name == "v2"
    if name == "v2":
        told = (
            adapter.methods["prompts"].through,
            adapter.methods["early_fusion"].gate,
            adapter.methods["lora"].factor,
        )
        assert told == ("base", "identity", 2.0)
        assert adapter.methods["bias_scale"] == BiasScaleConf(bias=["q", "o"], scale=["up"], scale_on="input")
    assert same(mmadapter.load(OLD / name), mmadapter.load(OLD / name / "adapter", "tiny", "tiny"), OLD / "picture.png")


def test_a_card_without_the_name_of_its_clip_takes_a_folder_that_says_it(models, tmp_path):
    trained = saved_run(conf_of(models, "adapter=v1_visual"), tmp_path / "run")
    folder = tmp_path / "run" / "adapter"
    assert json.loads((folder / "adapter.json").read_text())["encoder"]["model"] is None
    assert same(trained, mmadapter.load(folder, models / "host", models / "clip"), picture(tmp_path, 1))
    with pytest.raises(InputError, match="does not say open_clip's name"):
        mmadapter.load(folder, models / "host", "openai")


def test_the_readmes_lines_run_on_a_run_folder(models, tmp_path, capsys, monkeypatch):
    section = (CHECKOUT / "README.md").read_text().split("## As a library")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    names = set(re.findall(r'"([^"]*\.jpg)"', code))
    (run,) = set(re.findall(r'"(runs/[^"]*)"', code))
    assert len(code.strip().splitlines()) <= 10 and names
    saved_run(conf_of(models, "adapter=v1_visual"), tmp_path / run)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(sorted(names)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(picture(tmp_path, number)).save(name)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_documented_training_loop_runs_and_its_adapter_loads(tmp_path, capsys, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs/library.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "library.md", "exec"), names)
    said = capsys.readouterr().out
    assert "lora" in said and "trained:" in said
    assert names["loss"].item() < 0.5, "it has learnt its one answer"
    assert said.rstrip().endswith("['20.']")
    loaded = mmadapter.load(tmp_path / "my-adapter", host="tiny", device="cpu")
    assert loaded.generate("Which number is larger, 20 or 11?") == ["20."]
