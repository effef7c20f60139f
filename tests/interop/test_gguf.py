"""A GGUF file becomes a `transformers` folder that computes the same; what is not understood is refused by name."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mmadapter.hosts.load import load_host, load_tokenizer
from mmadapter.interop.gguf import main
from tests.families import ROUNDING, tiny_host
from tests.interop import gguf_files
from tests.interop.gguf_files import gguf, pieces, write_gguf

NAMES = {  # host of tests/families.py -> its family in GGUF files
    "llama_gqa": "llama",
    "llama_head_dim": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "phi3": "phi3",
}
IDS = torch.tensor([[1, *range(6, 30)]])


def logits_of(folder, ids=IDS):
    attention = "eager" if json.loads((folder / "config.json").read_text())["model_type"] == "gemma2" else "sdpa"
    with torch.no_grad():
        return load_host(folder, torch.float32, attention)(input_ids=ids).logits


@pytest.mark.parametrize("host", NAMES)
def test_every_family_computes_what_its_file_says(tmp_path, host, capsys):
    plain = tiny_host(host)
    file = write_gguf(tmp_path / "model.gguf", plain, NAMES[host])
    assert main([str(file), str(tmp_path / "hf")]) == 0
    with torch.no_grad():
        expected = plain(input_ids=IDS).logits
    assert (logits_of(tmp_path / "hf") - expected).abs().max() < ROUNDING
    said = capsys.readouterr().out
    assert f"{plain.config.num_hidden_layers} layers, width 32" in said and "licence as the file says: apache" in said


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F16", "BF16"])
def test_quantised_blocks_become_the_numbers_they_stand_for(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    plain = tiny_host("llama_gqa")
    file = write_gguf(tmp_path / "model.gguf", plain, "llama", quantised=kind)
    assert main([str(file), str(tmp_path / "hf")]) == 0
    found = load_file(tmp_path / "hf" / "model.safetensors")
    for name, weight in plain.state_dict().items():
        if name.endswith(("v_proj.weight", "up_proj.weight", "norm.weight")):  # order of rows as it was
            blocks = gguf.quants.quantize(weight.numpy(), kind)
            meant = weight if weight.ndim == 1 else torch.from_numpy(gguf.quants.dequantize(blocks, kind))
            assert torch.equal(found[name], meant), name


def test_both_kinds_of_tokenizer_with_their_special_tokens_and_template(tmp_path):
    plain = tiny_host("llama_gqa")
    for kind in ("llama", "gpt2"):
        file = write_gguf(tmp_path / f"{kind}.gguf", plain, "llama", tokenizer=kind)
        assert main([str(file), str(tmp_path / kind)]) == 0
    pieces = load_tokenizer(tmp_path / "llama")
    ids = pieces("the inné<tool></s>")["input_ids"]
    shown = ["<s>", "▁the", "▁", "in", "n", "<0xC3>", "<0xA9>", "<tool>", "</s>"]  # the file begins texts with <s>
    assert pieces.convert_ids_to_tokens(ids) == shown
    assert pieces.decode(ids, skip_special_tokens=True) == "the inné<tool>"
    bytewise = load_tokenizer(tmp_path / "gpt2")
    ids = bytewise("the the 12\n</s><tool>é")["input_ids"]
    shown = ["the", "Ġthe", "Ġ", "1", "2", "Ċ", "</s>", "<tool>", "Ã", "©"]  # says itself that it adds no <s>
    assert bytewise.convert_ids_to_tokens(ids) == shown
    assert bytewise.decode(ids) == "the the 12\n</s><tool>é"
    assert (bytewise.bos_token, bytewise.eos_token, bytewise.pad_token) == ("<s>", "</s>", "<|end|>")
    assert bytewise.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>hi</s>"
    ends = json.loads((tmp_path / "gpt2" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, 5]  # of a text, and of a turn


def test_llama_31s_scaled_rotary_is_read_from_its_divisors(tmp_path, capsys):
    plain, size, theta = tiny_host("llama_gqa"), 8, 5e5
    divisors = []
    for pair in range(size // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / size)
        share = min(1, max(0, (8192 / wavelength - 1) / 3))
        divisors.append(1 / ((1 - share) / 32 + share))
    assert divisors[0] == 1 and divisors[-1] == 32
    stored = {"keys": {"rope.freq_base": theta}, "extra": {"rope_freqs.weight": divisors}}
    file = write_gguf(tmp_path / "model.gguf", plain, "llama", **stored)
    assert main([str(file), str(tmp_path / "hf")]) == 0
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    shape = {name: getattr(plain.config, name) for name in ("hidden_size", "intermediate_size", "vocab_size")}
    shape |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    scaled = LlamaForCausalLM(LlamaConfig(**shape, rope_theta=theta, rope_scaling=scaling)).eval()
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected = scaled(input_ids=IDS).logits
    assert (logits_of(tmp_path / "hf") - expected).abs().max() < 1e-5
    assert (expected - plain(input_ids=IDS).logits).abs().max() > 1e-3
    stored["extra"]["rope_freqs.weight"] = [1.0, 2.0, 3.0, 32.0]
    file = write_gguf(tmp_path / "odd.gguf", plain, "llama", **stored)
    assert main([str(file), str(tmp_path / "odd")]) == 2
    assert "rope_freqs.weight is not Llama 3's scaled rotary" in capsys.readouterr().err


def test_nothing_of_a_file_is_silently_left_out(tmp_path, capsys):
    plain = tiny_host("llama_gqa")
    file = write_gguf(tmp_path / "a.gguf", plain, "llama", keys={"expert_count": 8})
    assert main([str(file), str(tmp_path / "hf")]) == 2
    said = capsys.readouterr().err
    assert "not known here: llama.expert_count." in said and "--ignore llama.expert_count" in said
    assert main([str(file), str(tmp_path / "hf"), "--ignore", "llama.expert_count"]) == 0
    file = write_gguf(tmp_path / "b.gguf", plain, "llama", extra={"blk.0.attn_sinks.weight": [1.0]})
    assert main([str(file), str(tmp_path / "other")]) == 2
    assert "blk.0.attn_sinks.weight has no place in a llama" in capsys.readouterr().err
    file = write_gguf(
        tmp_path / "c.gguf", plain, "llama", keys={"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}
    )
    assert main([str(file), str(tmp_path / "other")]) == 2
    assert "rope.scaling.type=longrope is not known here; linear and yarn are" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "c.gguf", "hf"]


def test_numbers_in_the_other_order_of_bytes_are_refused(tmp_path, capsys, monkeypatch):
    """The package gguf would read them as other numbers, without an error."""

    class Other(gguf.GGUFWriter):
        def __init__(self, file, name):
            super().__init__(file, name, endianess=gguf.GGUFEndian.BIG)

    monkeypatch.setattr(gguf, "GGUFWriter", Other)
    file = write_gguf(tmp_path / "big.gguf", tiny_host("llama_gqa"), "llama")
    assert main([str(file), str(tmp_path / "hf")]) == 2
    assert f"gguf-convert-endian {file} little" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["big.gguf"]


@pytest.mark.parametrize("change", ["tokens", "kinds", "scores", "end"])
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path, capsys, monkeypatch, change):
    def write(writer, *_):
        tokens, types = pieces()
        tokens += ["<more>"] if change == "tokens" else []
        types += [5] if change == "tokens" else []
        writer.add_string("tokenizer.ggml.model", "llama")
        writer.add_array("tokenizer.ggml.tokens", tokens)
        writer.add_array("tokenizer.ggml.token_type", types[:-1] if change == "kinds" else types)
        scores = [-float(index) for index in range(len(tokens))]
        writer.add_array("tokenizer.ggml.scores", scores[:-1] if change == "scores" else scores)
        writer.add_uint32("tokenizer.ggml.eos_token_id", 64 if change == "end" else 2)

    monkeypatch.setattr(gguf_files, "write_tokenizer", write)
    file = write_gguf(tmp_path / "model.gguf", tiny_host("llama_gqa"), "llama")
    assert main([str(file), str(tmp_path / "hf")]) == 2
    assert "its tokenizer does not fit: " in capsys.readouterr().err


ODD_SETTINGS = [
    ("block_count", 0),
    ("block_count", 2**31),
    ("attention.head_count", 0),
    ("attention.head_count", 3),
    ("attention.head_count_kv", "two"),
    ("embedding_length", "wide"),
    ("embedding_length", 0),
    ("context_length", 1.5),
    ("feed_forward_length", 40),
    ("attention.layer_norm_rms_epsilon", math.nan),
    ("attention.layer_norm_rms_epsilon", -1.0),
    ("rope.freq_base", "big"),
]


def test_settings_that_cannot_be_are_refused_with_the_file(tmp_path, capsys):
    plain = tiny_host("llama_gqa")
    for number, (key, value) in enumerate(ODD_SETTINGS):
        file = write_gguf(tmp_path / f"{number}.gguf", plain, "llama", keys={key: value})
        assert main([str(file), str(tmp_path / "hf")]) == 2, (key, value)
        said = capsys.readouterr().err
        assert f"{number}.gguf" in said and (key in said or "fit" in said), said
        assert not (tmp_path / "hf").exists()


def test_what_is_no_gguf_or_no_host_is_refused(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "hf")
    text = tmp_path / "text.gguf"
    text.write_text("not one")
    assert main([str(text), out]) == 2
    assert "is not a GGUF file: it begins with b'not '" in capsys.readouterr().err
    assert main([str(tmp_path / "none.gguf"), out]) == 2
    assert "no such file" in capsys.readouterr().err
    plain = tiny_host("llama_gqa")
    file = write_gguf(tmp_path / "other.gguf", plain, "mamba")
    assert main([str(file), out]) == 2
    said = capsys.readouterr().err
    assert "the family 'mamba', which cannot be a host. Supported: llama, qwen2, qwen3, gemma" in said
    file = write_gguf(tmp_path / "whole.gguf", plain, "llama")
    (tmp_path / "half.gguf").write_bytes(file.read_bytes()[:-2000])
    assert main([str(tmp_path / "half.gguf"), out]) == 2
    assert "is damaged or not whole" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main([str(file), out]) == 2
    assert "pip install 'mmadapter[gguf]'" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
