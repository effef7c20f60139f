"""Meta's layout becomes a `transformers` folder with the same logits; damage is refused and nothing is left behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from mmadapter.errors import InputError
from mmadapter.hosts.load import load_host
from mmadapter.interop.meta import convert, llama_settings, main, read_meta_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "official_v1_small.safetensors"


@pytest.fixture(scope="module")
def golden():
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
    direct = read_meta_tensors(source)
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
