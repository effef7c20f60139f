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
from mmadapter.config import RunConf, save_config
from mmadapter.errors import InputError
from mmadapter.model import AdaptedModel
from tests.assistants import built, picture
from tests.config.composing import run_conf
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
    torch.save(load_file(models / "clip" / "open_clip_model.safetensors"), tmp_path / "small.pt")
    conf = conf_of(models, "adapter=v1_visual")
    conf.vision.model, conf.vision.pretrained, conf.vision.quick_gelu = "small", str(tmp_path / "small.pt"), True
    trained = saved_run(conf, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert card["encoder"] == {"model": "small", "quick_gelu": True, "tokens": "class"}
    loaded = mmadapter.load(tmp_path / "run" / "adapter", models / "host", tmp_path / "small.pt")
    assert same(trained, loaded, picture(tmp_path, 1))


def test_a_card_of_an_older_version_builds_a_v1_adapter_from_clip_in_open_clips_layout(models, tmp_path):
    trained = saved_run(conf_of(models, "adapter=v1_visual"), tmp_path / "run")
    file = tmp_path / "run" / "adapter" / "adapter.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in card.items() if key not in ("encoder", "max_tokens")}))
    loaded = mmadapter.load(file.parent, models / "host", models / "clip")
    assert same(trained, loaded, picture(tmp_path, 1)) and loaded.max_tokens == 512
    with pytest.raises(InputError, match="older version and does not say open_clip's name"):
        mmadapter.load(file.parent, models / "host", "openai")


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
