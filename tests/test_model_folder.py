"""An adapter loaded elsewhere is bit-identical, holds only what trained, and never destroys the last one."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.errors import InputError
from mmadapter.methods.folder import read_card, settings_of_card
from tests.models import BOTH_METHODS, batch_of, model_on, picture, sample

LOAD_AND_SCORE = """
import sys, torch
from pathlib import Path
from tests.models import model_on, batch_of, sample
root = Path(sys.argv[1])
for name in sys.argv[2:]:
    model = model_on(name, gates=0.0)
    for item in model.trainable_parameters(): torch.nn.init.constant_(item.parameter, 3.0)
    model.load_adapter(root / name)
    batch = batch_of(model, [sample("what is red", "a circle", root / "1.png")])
    torch.save(model._supervised_logits(batch), root / f"{name}.pt")
"""


def test_a_new_process_computes_the_same_logits(tmp_path):
    image = picture(tmp_path, 1)
    models = {name: model_on(name) for name in BOTH_METHODS}
    for name, model in models.items():
        model.save(tmp_path / name)
    command = [sys.executable, "-c", LOAD_AND_SCORE, tmp_path, *BOTH_METHODS]
    subprocess.run(
        command,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
    )
    for name, model in models.items():
        expected = model._supervised_logits(batch_of(model, [sample("what is red", "a circle", image)]))
        assert torch.equal(torch.load(tmp_path / f"{name}.pt"), expected), name


def test_the_file_holds_exactly_the_trained_tensors(tmp_path):
    model = model_on()
    model.save(tmp_path / "adapter", {"steps": 3})
    tensors = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert tensors.keys() == {item.name for item in model.trainable_parameters()}
    card = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert card["training"] == {"steps": 3}
    assert card["host"]["model_type"] == "llama"
    files = sorted((tmp_path / "adapter").iterdir())
    assert [path.name for path in files] == ["adapter.json", "adapter.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}, "colleagues can read it"


def test_an_interrupted_save_leaves_the_previous_adapter(tmp_path, monkeypatch):
    model = model_on(images=False)
    folder = tmp_path / "adapter"
    model.save(folder)
    before = (folder / "adapter.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        model.trainable_parameters()[0].parameter.add_(1.0)
    monkeypatch.setattr("mmadapter.methods.folder.sync", full)
    with pytest.raises(InputError, match=r"(?s)could not be saved.*No space left.*Free some space"):
        model.save(folder)
    assert (folder / "adapter.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "no temporary folder is left behind"


def test_a_tensor_that_is_not_whole_here_is_never_written(tmp_path):
    model = model_on(images=False)
    model.save(tmp_path / "adapter")
    last = model.trainable_parameters()[-1]
    last.parameter.data = torch.empty(0)  # as ZeRO-3 leaves what it has shared out
    with pytest.raises(AssertionError, match=f"internal error: 1 of the adapter's tensors .*{last.name}"):
        model.save(tmp_path / "adapter")
    model_on(images=False).load_adapter(tmp_path / "adapter")


def test_another_host_is_refused_with_the_differing_fields(tmp_path):
    model_on("llama_gqa", images=False).save(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"host.*kv_heads: adapter 2, here 4"):
        model_on("llama_mha", images=False).load_adapter(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"model_type: adapter llama, here mistral"):
        model_on("mistral", images=False).load_adapter(tmp_path / "adapter")


def test_an_adapter_with_images_is_refused_by_a_text_only_model(tmp_path):
    model_on().save(tmp_path / "adapter")
    with pytest.raises(InputError, match="vision"):
        model_on(images=False).load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("damage", ["missing", "truncated", "no card"])
def test_a_damaged_folder_is_refused_and_nothing_is_loaded(damage, tmp_path):
    model = model_on(images=False)
    model.save(tmp_path / "adapter")
    tensors, card = tmp_path / "adapter" / "adapter.safetensors", tmp_path / "adapter" / "adapter.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-40])
    else:
        (tensors if damage == "missing" else card).unlink()
    with torch.no_grad():
        for item in model.trainable_parameters():
            item.parameter.fill_(7.0)
    with pytest.raises(InputError, match="copy|Copy|cannot be read"):
        model.load_adapter(tmp_path / "adapter")
    assert all((item.parameter == 7.0).all() for item in model.trainable_parameters())


def test_a_run_starts_from_another_runs_adapter_and_keeps_what_that_one_lacks(tmp_path):
    first, second = model_on("llama_gqa", seed=0), model_on("v2 llama_gqa", images=False, gates=0.3)
    text_only = model_on("llama_gqa", images=False)
    text_only.save(tmp_path / "run" / "adapter")
    for later in (first, second):
        fresh = {item.name: item.parameter.detach().clone() for item in later.trainable_parameters()}
        said = later.start_from(tmp_path / "run")
        taken = {item.name: item.parameter for item in text_only.trainable_parameters()}
        assert f"{len(taken)} tensors, {len(fresh) - len(taken)} fresh" in said
        for item in later.trainable_parameters():
            assert torch.equal(item.parameter, taken.get(item.name, fresh[item.name])), item.name


def test_starting_from_an_adapter_with_more_than_this_one_is_refused(tmp_path):
    model_on("v2 llama_gqa", images=False).save(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"does not fit this tensors.*bias_scale\.0\.down\.bias"):
        model_on("llama_gqa", images=False).start_from(tmp_path / "adapter")


def test_starting_with_another_kind_of_gate_is_refused(tmp_path):
    model_on("llama_gqa", images=False).save(tmp_path / "adapter")
    other = model_on("llama_gqa", images=False)
    other.adapter.settings["prompts"] = replace(other.adapter.settings["prompts"], gate="identity")
    with pytest.raises(InputError, match="prompts.gate: adapter tanh, here identity"):
        other.start_from(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("method", "change", "field"),
    [
        ("prompts", {"through": "base"}, "prompts.through: adapter adapted, here base"),
        ("bias_scale", {"scale_on": "input"}, "bias_scale.scale_on: adapter output, here input"),
        ("lora", {"alpha": 12}, "lora.factor: adapter 2.0, here 4.0"),
    ],
)
def test_settings_that_no_shape_tells_are_compared(method, change, field, tmp_path):
    model_on("v2_lora llama_mha").save(tmp_path / "adapter")
    other = model_on("v2_lora llama_mha")
    other.adapter.settings[method] = replace(other.adapter.settings[method], **change)
    with pytest.raises(InputError, match=field):
        other.load_adapter(tmp_path / "adapter")


def test_the_card_holds_the_methods_settings_as_conf_has_them(tmp_path):
    model = model_on("v2_lora llama_gqa")
    model.save(tmp_path / "adapter")
    card = read_card(tmp_path / "adapter")
    assert card["format"] == 2
    assert card["adapter"]["lora"] == {"rank": 3, "alpha": 6, "on": ["all"]}
    assert card["adapter"]["early_fusion"] == {"layers": 1, "gate": "tanh", "gate_per": "head", "through": "adapted"}
    assert settings_of_card(tmp_path, card).methods == model.adapter.settings


def test_a_card_of_a_newer_version_or_with_an_unknown_method_is_refused_by_name(tmp_path):
    model = model_on(images=False)
    model.save(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"adapter": card["adapter"] | {"hyper": {}}}))
    with pytest.raises(InputError, match="(?s)adapter.hyper.*registered here: projection, prompts, early_fusion, lora"):
        settings_of_card(tmp_path, read_card(tmp_path / "adapter"))
    file.write_text(json.dumps(card | {"format": 3}))
    with pytest.raises(InputError, match="has format 3, which a newer mmadapter wrote"):
        model.load_adapter(tmp_path / "adapter")


def test_the_card_notes_the_template_and_older_cards_mean_alpacas(tmp_path):
    model = model_on(images=False, seed=2)
    model.template = "vicuna"
    model.save(tmp_path / "a")
    card = json.loads((tmp_path / "a" / "adapter.json").read_text())
    assert (card["template"], card["begin_of_text"], card["chat_template"]) == ("vicuna", "auto", None)
    again = model_on(images=False, seed=2)
    again.load_adapter(tmp_path / "a")
    told = {"max_new_tokens": 5}
    assert again.generate("what is red", **told) == model.generate("what is red", template="vicuna", **told)
    for name in ("template", "begin_of_text", "chat_template", "system"):
        del card[name]
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(card))
    again.load_adapter(tmp_path / "a")
    assert (again.template, again.begin_of_text, again.system) == ("alpaca", "always", None)


def test_the_system_text_of_the_training_is_that_of_answers(tmp_path):
    model = model_on(images=False, seed=2)
    model.template, model.system = "vicuna", "a circle is green"
    model.save(tmp_path / "a")
    again = model_on(images=False, seed=2)
    again.load_adapter(tmp_path / "a")
    told = {"max_new_tokens": 5}
    with_it = model.chat("what is red", system="a circle is green", **told)[0]
    assert again.generate("what is red", **told) == [with_it] == [again.chat("what is red", **told)[0]]
    assert again.loss_of([("a", "b", None)]) != model_on(images=False, seed=2).loss_of(
        [("a", "b", None)], template="vicuna"
    )
    assert again.generate("what is red", template="plain", **told)  # has no place for it
