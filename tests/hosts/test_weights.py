"""The digest of a host's weights: the same for the same numbers however they are stored, another for other ones."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmadapter
from mmadapter.errors import InputError
from mmadapter.hosts.load import load_host
from mmadapter.hosts.weights import weights_digest
from tests.families import FAMILIES, tiny_host
from tests.formula_models import STORED, write_models


def digest_of(folder, dtype=torch.float32):
    return load_host(folder, dtype, "eager").weights_digest


@pytest.mark.parametrize("name", ["llama_gqa", "gemma", "phi3", "gpt_neox"])
def test_the_same_weights_have_the_same_digest_in_other_files_and_other_types(name, tmp_path):
    host = tiny_host(name, "eager")
    for key in ("", "2"):
        host.save_pretrained(tmp_path / f"one{key}")
    host.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    expected = digest_of(tmp_path / "one")
    assert expected == digest_of(tmp_path / "several") == digest_of(tmp_path / "one", torch.bfloat16)
    (tmp_path / "one2" / "model.safetensors").unlink()
    torch.save(host.state_dict(), tmp_path / "one2" / "pytorch_model.bin")
    assert digest_of(tmp_path / "one2") == expected
    host.bfloat16().save_pretrained(tmp_path / "small")
    assert digest_of(tmp_path / "small") == expected
    assert digest_of(tmp_path / "small", torch.bfloat16) == expected


def test_other_weights_have_another_digest(tmp_path):
    host = tiny_host("llama_gqa", "eager")
    host.save_pretrained(tmp_path)
    seen = {weights_digest(tmp_path, host)}
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in ("model.layers.3.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"):
        save_file(tensors | {name: tensors[name] * 1.01}, file, metadata={"format": "pt"})
        seen.add(weights_digest(tmp_path, host))
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    seen.add(weights_digest(tmp_path, host))
    assert len(seen) == 5
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert weights_digest(tmp_path, host) not in seen


@pytest.mark.parametrize("name", FAMILIES)
def test_files_and_memory_agree_in_every_family(name, tmp_path):
    """A folder without safetensors files is judged by the weights in memory."""
    host = tiny_host(name, "eager")
    host.save_pretrained(tmp_path / "host")
    (tmp_path / "empty").mkdir()
    assert weights_digest(tmp_path / "host", host) == weights_digest(tmp_path / "empty", host) is not None


@pytest.fixture
def models(tmp_path):
    return write_models(tmp_path / "models")


def test_an_adapter_is_refused_on_another_host_of_the_same_shape(models, tmp_path):
    file = models / "host" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"lora was trained on a host of this shape with other weights.*adapter [0-9a-f]{16}, here"
    ):
        mmadapter.load(STORED / "lora", host=models / "host", device="cpu")


def test_an_adapter_without_a_digest_still_loads_and_it_is_said(models, tmp_path, caplog):
    import json
    import shutil

    shutil.copytree(STORED / "lora", tmp_path / "old")
    card = json.loads((tmp_path / "old" / "adapter.json").read_text())
    del card["host"]["weights_digest"]
    (tmp_path / "old" / "adapter.json").write_text(json.dumps(card))
    with caplog.at_level(logging.WARNING, "mmadapter"):
        model = mmadapter.load(tmp_path / "old", host=models / "host", device="cpu")
    assert "adapter.json does not say which weights the host had" in caplog.text
    model.save(tmp_path / "new")
    assert "weights_digest" in json.loads((tmp_path / "new" / "adapter.json").read_text())["host"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_host_with_weights_that_are_not_finite_is_refused_by_name(value, tmp_path):
    host = tiny_host("llama_gqa", "eager")
    with torch.no_grad():
        host.model.layers[2].mlp.down_proj.weight[3, 5] = value
    host.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"not finite .*, the first in model\.layers\.2\.mlp\.down_proj"):
        load_host(tmp_path, torch.float32)
