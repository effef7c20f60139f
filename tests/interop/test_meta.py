"""Meta's layout becomes a `transformers` folder with the same logits; damage is refused and nothing is left behind."""

import json
import math
from base64 import b64encode
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from mmadapter.errors import InputError
from mmadapter.hosts.load import load_host, load_tokenizer
from mmadapter.interop.meta import convert, llama_settings, main, read_meta_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "official_v1_small.safetensors"


@pytest.fixture(scope="module")
def golden():
    return golden_numbers()


def golden_numbers():
    """The official toy model: what it is, and its tensors."""
    with safe_open(GOLDEN, "pt") as file:
        about = json.loads(file.metadata()["about"])
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_meta_folder(folder, golden, parts=1):
    about, tensors = golden
    folder.mkdir()
    names = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")
    (folder / "params.json").write_text(json.dumps({name: about[name] for name in names} | {"vocab_size": -1}))
    base = {name.removeprefix("base."): tensor for name, tensor in tensors.items() if name.startswith("base.")}
    base["rope.freqs"] = torch.zeros(4)
    for part in range(parts):
        torch.save(
            {name: cut(name, tensor, part, parts) for name, tensor in base.items()},
            folder / f"consolidated.{part:02}.pth",
        )
    return folder


def cut(name, tensor, part, parts):
    """A model-parallel part as Meta's fairscale layers keep it."""
    if tensor.ndim == 1:
        return tensor
    columns = any(key in name for key in ("tok_embeddings", "wo.", "w2."))
    return tensor.chunk(parts, dim=1 if columns else 0)[part].clone()


@pytest.mark.parametrize("parts", [1, 2])
def test_the_converted_folder_gives_the_official_logits_at_gate_zero(golden, tmp_path, parts):
    source = write_meta_folder(tmp_path / "7B", golden, parts)
    assert main([str(source), str(tmp_path / "hf")]) == 0
    host = load_host(tmp_path / "hf", torch.float32)
    direct = read_meta_tensors(source, golden[0]["dim"])
    assert torch.equal(host.get_input_embeddings().weight, direct["tok_embeddings.weight"])
    tokens = golden[1]["input.tokens"]
    reference = meta_forward(golden, tokens)
    assert (host(input_ids=tokens).logits - reference).abs().max() < 2e-5


def meta_forward(golden, tokens):
    """LLaMA as Meta's rows define it, written out here: rotary pairs are neighbours."""
    about, tensors = golden
    base = {name.removeprefix("base."): tensor for name, tensor in tensors.items() if name.startswith("base.")}
    heads, width = about["n_heads"], about["dim"]
    size = width // heads
    angles = torch.arange(tokens.shape[1])[:, None] * about["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + about["norm_eps"]) * weight

    def rotated(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    hidden = base["tok_embeddings.weight"][tokens]
    causal = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
    for index in range(about["n_layers"]):
        weight = {
            name.removeprefix(f"layers.{index}."): t for name, t in base.items() if name.startswith(f"layers.{index}.")
        }
        x = norm(hidden, weight["attention_norm.weight"])
        q, k, v = ((x @ weight[f"attention.w{part}.weight"].T).unflatten(-1, (heads, size)) for part in "qkv")
        scores = torch.einsum("bthd,bshd->bhts", rotated(q), rotated(k)) / size**0.5 + causal
        mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(-2)
        hidden = hidden + mixed @ weight["attention.wo.weight"].T
        x = norm(hidden, weight["ffn_norm.weight"])
        gate = torch.nn.functional.silu(x @ weight["feed_forward.w1.weight"].T)
        hidden = hidden + (gate * (x @ weight["feed_forward.w3.weight"].T)) @ weight["feed_forward.w2.weight"].T
    return norm(hidden, base["norm.weight"]) @ base["output.weight"].T


def test_the_feed_forward_widths_of_the_released_models():
    shape = {"n_layers": 1, "norm_eps": 1e-6, "n_heads": 32}
    assert llama_settings({**shape, "dim": 4096, "multiple_of": 256}, 32000)["intermediate_size"] == 11008
    assert llama_settings({**shape, "dim": 8192, "multiple_of": 256}, 32000)["intermediate_size"] == 22016
    llama_2_70b = {**shape, "dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8}
    assert llama_settings(llama_2_70b, 32000)["intermediate_size"] == 28672


def test_a_full_disk_leaves_nothing_of_the_converted_folder(golden, tmp_path, capsys, monkeypatch):
    def full(model, folder):
        (folder / "model.safetensors").write_text("half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", full)
    source = write_meta_folder(tmp_path / "7B", golden)
    assert main([str(source), str(tmp_path / "hf")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'hf'} cannot be written (I/O error: No space left")
    assert [path.name for path in tmp_path.iterdir()] == ["7B"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "params", "no heads", "shape"])
def test_damage_is_refused_and_nothing_is_written(golden, tmp_path, damage, capsys):
    source = write_meta_folder(tmp_path / "7B", golden)
    weights = source / "consolidated.00.pth"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "missing":
        weights.unlink()
    elif damage == "params":
        (source / "params.json").write_text("{")
    elif damage == "no heads":
        (source / "params.json").write_text('{"dim": 8, "n_layers": 1, "multiple_of": 8, "norm_eps": 1e-5}')
    else:
        params = json.loads((source / "params.json").read_text())
        (source / "params.json").write_text(json.dumps(params | {"n_layers": 2}))
    assert main([str(source), str(tmp_path / "hf")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and str(source) in message
    assert [path.name for path in tmp_path.iterdir()] == ["7B"]


def test_an_existing_target_is_never_overwritten(golden, tmp_path):
    (tmp_path / "hf").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert(write_meta_folder(tmp_path / "7B", golden), tmp_path / "hf")


LLAMA3 = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 16,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "vocab_size": 290,
}


def write_llama3_folder(folder, parts=2, **changed):
    """A toy Llama 3.1 as Meta writes it: in several files the embeddings are split by rows of the vocabulary."""
    torch.manual_seed(0)
    params = LLAMA3 | changed
    dim, kv, ffn, rows = params["dim"], params["dim"] // 2, llama_settings(params, 290)["intermediate_size"], 290
    base = {"tok_embeddings.weight": torch.randn(rows, dim), "output.weight": torch.randn(rows, dim) / 8}
    base["norm.weight"] = 1 + torch.rand(dim)
    for layer in range(params["n_layers"]):
        shapes = {"wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim)}
        base |= {f"layers.{layer}.attention.{n}.weight": torch.randn(s) / dim**0.5 for n, s in shapes.items()}
        shapes = {"w1": (ffn, dim), "w2": (dim, ffn), "w3": (ffn, dim)}
        base |= {f"layers.{layer}.feed_forward.{n}.weight": torch.randn(s) / dim**0.5 for n, s in shapes.items()}
        base |= {f"layers.{layer}.{n}_norm.weight": 1 + torch.rand(dim) for n in ("attention", "ffn")}
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for part in range(parts):
        held = {}
        for name, tensor in base.items():
            columns = name.endswith(("wo.weight", "w2.weight"))
            held[name] = tensor if tensor.ndim == 1 else tensor.chunk(parts, int(columns))[part].clone()
        torch.save(held, folder / f"consolidated.{part:02}.pth")
    return base


def llama3_forward(base, tokens, factor, heads=4, kv_heads=2):
    """Llama 3.1 written out: as Meta's rows define it, with frequencies divided by `factor` where they are slow."""
    dim = base["norm.weight"].shape[0]
    size = dim // heads
    turns = []
    for pair in range(size // 2):
        frequency = 500000.0 ** (-2 * pair / size)
        wavelength = 2 * math.pi / frequency
        if wavelength > 8192 / 1:
            frequency = frequency / factor
        elif wavelength > 8192 / 4:
            share = (8192 / wavelength - 1) / (4 - 1)
            frequency = (1 - share) * frequency / factor + share * frequency
        turns.append(frequency)
    angles = torch.arange(tokens.shape[1], dtype=torch.float64)[:, None] * torch.tensor(turns, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight

    def rotated(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    base = {name: tensor.double() for name, tensor in base.items()}
    hidden = base["tok_embeddings.weight"][tokens]
    causal = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=torch.float64).triu(1)
    for layer in range(LLAMA3["n_layers"]):
        weight = {n.removeprefix(f"layers.{layer}."): t for n, t in base.items() if n.startswith(f"layers.{layer}.")}
        x = norm(hidden, weight["attention_norm.weight"])
        q = rotated((x @ weight["attention.wq.weight"].T).unflatten(-1, (heads, size)))
        k = rotated((x @ weight["attention.wk.weight"].T).unflatten(-1, (kv_heads, size)))
        v = (x @ weight["attention.wv.weight"].T).unflatten(-1, (kv_heads, size))
        k, v = (one.repeat_interleave(heads // kv_heads, dim=2) for one in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / size**0.5 + causal
        mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(-2)
        hidden = hidden + mixed @ weight["attention.wo.weight"].T
        x = norm(hidden, weight["ffn_norm.weight"])
        gate = torch.nn.functional.silu(x @ weight["feed_forward.w1.weight"].T)
        hidden = hidden + (gate * (x @ weight["feed_forward.w3.weight"].T)) @ weight["feed_forward.w2.weight"].T
    return norm(hidden, base["norm.weight"]) @ base["output.weight"].T


@pytest.mark.parametrize("parts,changed,factor", [(1, {}, 32), (2, {"rope_scaling_factor": 8}, 8)])
def test_llama_3_with_its_scaled_rotary_equals_a_formula_at_700_tokens(tmp_path, parts, changed, factor):
    base = write_llama3_folder(tmp_path / "meta", parts, **changed)
    assert main([str(tmp_path / "meta"), str(tmp_path / "hf")]) == 0
    host = load_host(tmp_path / "hf", torch.float32)
    tokens = torch.randint(290, (1, 700), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = host(input_ids=tokens).logits
    expected = llama3_forward(base, tokens, factor)
    assert (logits - expected).abs().max() < 1e-3
    assert (expected - llama3_forward(base, tokens, 1)).abs().max() > 0.1  # the plain rotary would be seen
    assert host.config.max_position_embeddings == 131072


def test_the_factor_of_the_scaled_rotary_goes_by_the_size():
    factors = [
        llama_settings(LLAMA3 | {"dim": dim}, 290)["rope_scaling"]["factor"] for dim in (2048, 3072, 4096, 8192, 16384)
    ]
    assert factors == [32, 32, 8, 8, 8]
    assert "rope_scaling" not in llama_settings(LLAMA3 | {"use_scaled_rope": False}, 290)


def test_unknown_settings_and_another_vocabulary_are_refused_by_name(tmp_path, capsys):
    write_llama3_folder(tmp_path / "meta", quantization_args={"group_size": 32}, vision_chunk_size=448)
    assert main([str(tmp_path / "meta"), str(tmp_path / "hf")]) == 2
    assert "not known here: quantization_args, vision_chunk_size." in capsys.readouterr().err
    write_llama3_folder(tmp_path / "other", vocab_size=580)
    assert main([str(tmp_path / "other"), str(tmp_path / "hf")]) == 2
    assert "says 580 tokens, but the embeddings have 290 rows" in capsys.readouterr().err


def test_llama_3s_tiktoken_file_becomes_its_tokenizer(tmp_path, capsys):
    """Ranks by tiktoken's own rule: of neighbours, those that make the token of the lowest rank are merged first."""
    write_llama3_folder(tmp_path / "meta")
    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [b"th", b" th", b"the", b" the", b"19", b"198", "é".encode(), b"is", b" is"]
    lines = [b64encode(token) + f" {rank}".encode() for rank, token in enumerate(ranks)]
    (tmp_path / "meta" / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    assert main([str(tmp_path / "meta"), str(tmp_path / "hf")]) == 0
    tokenizer = load_tokenizer(tmp_path / "hf")
    begin = len(ranks)
    text = "the é is 19845<|eot_id|>\n"
    expected = [begin, 258, 32, 262, 264, 32, 261, *b"45", begin + 9, *b"\n"]
    assert tokenizer(text)["input_ids"] == expected
    assert tokenizer.decode(expected[1:]) == text
    assert tokenizer.convert_ids_to_tokens([begin + 1, begin + 2, begin + 4, begin + 11]) == [
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
    ]
    (tmp_path / "meta" / "tokenizer.model").write_bytes(lines[0] + b"\nnot a line of ranks at all\n")
    assert main([str(tmp_path / "meta"), str(tmp_path / "again")]) == 2
    assert "tokenizer.model is damaged" in capsys.readouterr().err
