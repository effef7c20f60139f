"""Hosts that cannot be used are refused before a weight is read, with what can be used."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmadapter.errors import InputError
from mmadapter.hosts import load
from mmadapter.hosts.settings import TINY_HOST, HostConf, host_folder
from tests.families import random_tokens, tiny_host


def write_config(folder, **settings):
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_an_unsupported_model_is_refused_with_the_list(tmp_path):
    with pytest.raises(InputError, match=r"'bloom'.*Supported: gemma, gemma2, .*llama, mistral, phi3, qwen2, qwen3"):
        load.load_host(write_config(tmp_path, model_type="bloom"), torch.float32)


def test_flex_attention_on_cpu_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="FlexAttention does not support backward on CPU"):
        load.load_host(write_config(tmp_path, model_type="llama"), torch.float32, "flex")


def test_gemma_2_is_eager_only(tmp_path):
    with pytest.raises(InputError, match=r"gemma2 runs with eager only\. Set host\.attention=eager"):
        load.load_host(write_config(tmp_path, model_type="gemma2"), torch.float32, "sdpa")


@pytest.mark.parametrize("version", ["4.56.2", "6.0.0", "3.5.1"])
def test_an_untested_transformers_is_refused_by_name(version, monkeypatch):
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(InputError, match=rf"transformers {version} is not supported.*pip install"):
        load.check_transformers_version()


@pytest.mark.parametrize("version", ["4.57.0", "4.57.6", "5.0.0", "5.23.0"])
def test_tested_versions_pass(version, monkeypatch):
    monkeypatch.setattr("transformers.__version__", version)
    load.check_transformers_version()


@pytest.mark.parametrize(
    ("path", "message"),
    [(None, r"host\.path is not set"), ("/nowhere/at/all", "no such folder"), ("EMPTY", r"no config\.json there")],
)
def test_wrong_folders_are_refused(path, message, tmp_path):
    with pytest.raises(InputError, match=message):
        host_folder(str(tmp_path) if path == "EMPTY" else path)


def test_a_home_folder_is_found_by_its_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_config(tmp_path, model_type="llama")
    assert host_folder("~") == tmp_path


def test_metas_layout_is_refused_with_the_command_that_converts_it(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(InputError, match=r"mmadapter convert meta"):
        host_folder(str(tmp_path))


def test_a_truncated_weight_file_is_refused_by_folder(tmp_path):
    tiny_host("llama_gqa").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged|cannot be loaded"):
        load.load_host(tmp_path, torch.float32)


def test_a_host_with_a_tensor_missing_is_refused_not_filled_at_random(tmp_path, caplog):
    tiny_host("llama_gqa").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 of the host's tensors are in no weight file.*layers\.1\.mlp\.up_proj"):
        load.load_host(tmp_path, torch.float32)
    assert caplog.text == ""


def test_a_host_without_weights_is_refused_with_what_to_do(tmp_path):
    tiny_host("llama_gqa").config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cannot be loaded .*download it again"):
        load.load_host(tmp_path, torch.float32)


@pytest.mark.parametrize("content", [None, "{}", '{"version": "1.0", "model": {"type": "WordLev'])
def test_a_folder_without_a_readable_tokenizer_is_refused_in_one_line(tmp_path, content):
    write_config(tmp_path, model_type="llama")
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match=r"no tokenizer can be read there .*host\.tokenizer") as refused:
        load.load_tokenizer(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_loaded_host_is_the_plain_model_and_its_saved_config_never_names_our_route(attention, tmp_path):
    plain = tiny_host("llama_gqa", attention)
    plain.save_pretrained(tmp_path / "host")
    host = load.load_host(tmp_path / "host", torch.float32, attention)
    tokens = random_tokens(2, 7)
    assert torch.equal(host(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    assert not any(parameter.requires_grad for parameter in host.parameters())
    host.save_pretrained(tmp_path / "again")
    assert "mmadapter" not in (tmp_path / "again" / "config.json").read_text()
    assert host.config._attn_implementation == attention


def test_a_later_change_of_the_base_attention_is_followed():
    from mmadapter.hosts.attention import route
    from tests.families import adapted_logits, open_adapter

    host = tiny_host("llama_gqa", "sdpa")
    route(host)
    adapter = open_adapter(host)
    tokens = random_tokens(2, 7)
    sdpa = adapted_logits(host, adapter, tokens)
    host.set_attn_implementation("eager")
    assert (adapted_logits(host, adapter, tokens) - sdpa).abs().max() < 1e-5
    assert host(input_ids=tokens, output_attentions=True).attentions[0] is not None, "eager gives its weights"


def test_auto_is_float32_on_every_cpu_and_a_slow_choice_is_told(monkeypatch, caplog):
    for quick in (["bf16"], []):
        monkeypatch.setattr(load, "fast_bfloat16", lambda quick=quick: quick)
        assert HostConf(dtype="auto").dtype_on("cpu") == "float32"
        assert HostConf(dtype="auto").dtype_on("cuda:0") == "bfloat16"
        caplog.clear()
        assert load.load_host(TINY_HOST, torch.bfloat16).dtype == torch.bfloat16
        assert ("bfloat16 is much slower than host.dtype=float32 here" in caplog.text) is not bool(quick)


def test_what_the_cpu_can_is_read_from_torch(monkeypatch):
    x86 = {"architecture": "x86_64", "avx512_f": True, "amx_bf16": False}
    arm = {"architecture": "arm64", "sve": True}
    for found, quick in [
        (x86, []),
        (x86 | {"amx_bf16": True}, ["amx_bf16"]),
        (x86 | {"avx512_bf16": True}, ["avx512_bf16"]),
        (arm, []),
        (arm | {"bf16": True}, ["bf16"]),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert load.fast_bfloat16() == quick
