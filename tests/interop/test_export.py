"""An exported folder is the whole model for `transformers`, or with OUT/adapter on top; refusals leave nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.config import save_config
from mmadapter.errors import InputError
from mmadapter.hosts.load import host_identity, load_host, load_tokenizer
from mmadapter.interop.export import export, main
from mmadapter.methods.folder import read_card
from mmadapter.model import AdaptedModel
from tests.families import ROUNDING, adapted_logits, adapter_with, open_adapter, open_up, random_tokens, tiny_host
from tests.models import WORDS, batch_of, built, model_on, picture, sample, tiny_tokenizer
from tests.training.tiny_run import save_models, tiny_conf

# The chat recipe and its like: nothing but what ends in the weights.
WITHOUT_PROMPTS = {
    "llama_gqa": {"bias": ["all"], "scale": ["all"], "norms": "blocks"},
    "llama_bias": {"lora": ["all"], "bias": ["q", "o"], "norms": "all"},
    "qwen2": {"bias": ["q", "k", "v"], "scale": ["all"], "norms": "all"},
    "gemma": {"bias": ["q", "k", "v", "o"], "scale": ["all"], "norms": "all", "lora": ["down"]},
    "gpt_neox": {"bias": ["all"], "scale": ["all"], "norms": "all", "lora": ["all"]},
    "mistral": {"scale": ["all"], "norms": "all"},
}
PLAIN = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
root = Path(sys.argv[1])
for name in sys.argv[2:]:
    host = AutoModelForCausalLM.from_pretrained(root / name / "out", dtype=torch.float32)
    torch.save(host(input_ids=torch.load(root / "tokens.pt")).logits, root / name / "logits.pt")
assert not [name for name in sys.modules if name.startswith(("mmadapter", "peft"))]
"""


def saved_host(name, folder, **generation):
    """A random host with its tokenizer in `folder`."""
    host = tiny_host(name)
    host.generation_config.update(max_new_tokens=17, **generation)
    host.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def model_without_prompts(name, folder, **parts):
    host = load_host(saved_host(name, folder), torch.float32, "eager")
    return AdaptedModel(host, load_tokenizer(folder), adapter_with(host, early=0, prompts=0, **parts), folder=folder)


def logits_of(model, image=None):
    batch = batch_of(model, [sample("what colour is the circle", "red", image), sample("left", "blue")])
    with torch.no_grad():
        return model._supervised_logits(batch)


def test_a_process_with_transformers_alone_computes_the_same_logits(tmp_path):
    torch.save(random_tokens(3, 12), tmp_path / "tokens.pt")
    expected = {}
    for name, parts in WITHOUT_PROMPTS.items():
        model = model_without_prompts(name, tmp_path / name / "host", **parts)
        model.save(tmp_path / name / "adapter")
        with torch.no_grad():
            expected[name] = adapted_logits(model.host, model.adapter, random_tokens(3, 12))
        said = export(tmp_path / name / "adapter", tmp_path / name / "out", str(tmp_path / name / "host"))
        assert "it is the whole model" in said and not (tmp_path / name / "out" / "adapter").exists()
    command = [sys.executable, "-c", PLAIN, tmp_path, *WITHOUT_PROMPTS]
    away = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, env=away, cwd=tmp_path)
    for name, logits in expected.items():
        assert (torch.load(tmp_path / name / "logits.pt") - logits).abs().max() < ROUNDING, name
        plain = tiny_host(name)(input_ids=random_tokens(3, 12)).logits
        assert (logits - plain).abs().max() > 1e-2, name


def test_the_folder_holds_safetensors_tokenizer_and_generation_settings_and_no_trace_of_us(tmp_path):
    model = model_without_prompts("llama_gqa", tmp_path / "host", **WITHOUT_PROMPTS["llama_gqa"])
    model.save(tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "out", str(tmp_path / "host"))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_new_tokens"] == 17
    assert load_tokenizer(tmp_path / "out")(WORDS).input_ids == tiny_tokenizer()(WORDS).input_ids
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["attention_bias"], settings["mlp_bias"], settings["dtype"]) == (True, True, "float32")
    assert "mmadapter" not in json.dumps(settings) and settings["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("asked", ["auto", "bfloat16", "float32"])
def test_the_type_is_that_of_the_hosts_files_or_what_is_asked_for(asked, tmp_path):
    tiny_host("llama_gqa").bfloat16().save_pretrained(tmp_path / "host")
    tiny_tokenizer().save_pretrained(tmp_path / "host")
    host = load_host(tmp_path / "host", torch.float32, "eager")
    adapter = adapter_with(host, scale=["all"], bias=["all"], early=0, prompts=0)
    AdaptedModel(host, load_tokenizer(tmp_path / "host"), adapter, folder=tmp_path / "host").save(tmp_path / "a")
    said = export(tmp_path / "a", tmp_path / "out", str(tmp_path / "host"), asked)
    dtype = torch.float32 if asked == "float32" else torch.bfloat16
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype} and str(dtype)[6:] in said
    weight, shift = host.model.layers[1].mlp.up_proj.weight, adapter["bias_scale"]["1"]["up"]
    folded = tensors["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(folded, (weight * shift.scale[:, None]).to(dtype)), "rounded once, from float32"


V2_RUN = [
    "adapter.prompts.layers=2",
    "adapter.early_fusion.layers=1",
    "adapter.projection={hidden: 8, tokens: 10}",
    "adapter.bias_scale.bias=[all]",
    "adapter.norms.which=all",
    "adapter.lora.rank=2",
]
BESIDE = ["adapter.bias_scale=null", "adapter.norms=null", "adapter.lora=null"]


def v1_on(folder):
    host = load_host(folder, torch.float32, "eager")
    return AdaptedModel(host, load_tokenizer(folder), open_adapter(host), folder=folder)


def identity(model):
    return host_identity(model.host, model.tokenizer, model.folder)


def v2_run(folder, *overrides):
    """A run folder whose adapter is away from its start, and its model."""
    save_models(folder)
    conf = tiny_conf(folder, folder / "runs", *V2_RUN, *overrides)
    model = built(conf)
    open_up(model.adapter, torch.Generator().manual_seed(5))
    save_config(conf, folder / "run")
    model.save(folder / "run" / "adapter", {"steps": 7})
    return model


@pytest.mark.parametrize("early", [1, 0])
def test_prompts_and_pictures_beside_the_exported_model_answer_as_before(early, tmp_path, capsys):
    fusion = ["adapter.early_fusion=null"] if not early else []
    model, image = v2_run(tmp_path, *fusion), picture(tmp_path, 1)
    assert main([str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert f"beside it: {tmp_path / 'out' / 'adapter'}" in capsys.readouterr().out
    left = [*fusion, *BESIDE, f"host.path={tmp_path / 'out'}"]
    again = built(tiny_conf(tmp_path, tmp_path / "runs", *V2_RUN, *left))
    card = again.load_adapter(tmp_path / "out" / "adapter")
    for pictures in (image, None):
        expected = logits_of(model, pictures)
        assert (logits_of(again, pictures) - expected).abs().max() < ROUNDING
    assert (logits_of(again, image) - logits_of(again)).abs().max() > 1e-3
    assert card["training"] == {"steps": 7} and card["host"] == identity(again)
    families = {name.partition(".")[0] for name in load_file(tmp_path / "out" / "adapter" / "adapter.safetensors")}
    assert families == {"prompts", "projection", *(["early_fusion"] if early else [])}
    assert identity(again)["config_digest"] != identity(model)["config_digest"], "another host"


def test_the_adapter_of_a_run_is_found_with_its_host_and_host_overrides_it(tmp_path):
    v2_run(tmp_path)
    export(tmp_path / "run" / "adapter", tmp_path / "one")
    (tmp_path / "host").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="no such folder.*--host FOLDER"):
        export(tmp_path / "run", tmp_path / "two")
    export(tmp_path / "run", tmp_path / "two", str(tmp_path / "moved"))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path):
    model = model_on("v2 mistral", images=False)
    model.save(tmp_path / "other")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "empty").mkdir()
    host = str(saved_host("llama_gqa", tmp_path / "host"))
    v1_on(tmp_path / "host").save(tmp_path / "v1")
    before = sorted(path.name for path in tmp_path.iterdir())
    for source, given, said in [
        ("nowhere", host, "no such folder"),
        ("empty", host, "neither a run folder"),
        ("run", host, "no adapter/ .yet."),
        ("other", None, "does not say where its host lies.*--host"),
        ("other", host, "does not fit this host.*model_type: adapter mistral, here llama"),
        ("v1", host, "nothing to put into the host's weights"),
    ]:
        with pytest.raises(InputError, match=said):
            export(tmp_path / source, tmp_path / "out", given)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_bias_that_the_configuration_cannot_hold_is_one_message_at_the_terminal(tmp_path, capsys):
    model = model_without_prompts("mistral", tmp_path / "host", bias=["q", "up"])
    model.save(tmp_path / "adapter")
    assert main([str(tmp_path / "adapter"), str(tmp_path / "out"), "--host", str(tmp_path / "host")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: The trained bias of q, up (4 layers) has no place in a mistral model")
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_an_existing_folder_stays_and_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    v2_run(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmadapter.interop.export.write_adapter", full)  # after the model was written
    assert main([str(tmp_path / "run"), str(tmp_path / "new")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_adapter_does_not_fit_the_host_that_it_was_folded_into(tmp_path):
    """Scale alone leaves the configuration as it was; loaded twice it would count twice."""
    model = model_without_prompts("mistral", tmp_path / "host", scale=["all"])
    model.save(tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "out", str(tmp_path / "host"))
    with pytest.raises(InputError, match="does not fit this host.*config_digest"):
        export(tmp_path / "adapter", tmp_path / "twice", str(tmp_path / "out"))


def test_the_card_left_beside_says_nothing_of_what_was_folded(tmp_path):
    v2_run(tmp_path)
    export(tmp_path / "run", tmp_path / "out")
    card = read_card(tmp_path / "out" / "adapter")
    assert sorted(card["adapter"]) == ["early_fusion", "projection", "prompts"]
    assert card["vision"] == read_card(tmp_path / "run" / "adapter")["vision"]
