"""A host in 8 or 4 bits computes what it would with the rounded weights, forward and backward; elsewhere it is refused.

nf4 needs the extra [quant]; its tests are left out where bitsandbytes is not installed.
"""

import copy
import json
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

import mmadapter
from mmadapter.errors import InputError
from mmadapter.hosts.attention import route
from mmadapter.hosts.families import decoder_layers
from mmadapter.hosts.load import load_host
from mmadapter.hosts.quantized import quantize
from mmadapter.hosts.settings import TINY_HOST, HostConf
from mmadapter.methods import AdapterConf
from mmadapter.methods.fold import fold
from mmadapter.methods.settings import PromptsConf
from mmadapter.model import AdaptedModel
from mmadapter.training.memory import memory_needed
from mmadapter.training.settings import EngineConf, OptimizerConf
from mmadapter.vision.settings import OpenClipSettings
from tests.families import (
    CORE,
    ROUNDING,
    adapted_logits,
    adapter_of,
    open_v2_adapter,
    random_tokens,
    tiny_host,
    v2_methods,
    visual_tokens,
)

FAMILIES = [*CORE, "llama_bias", "phi3", "gpt_neox", "gemma3"]
# QLoRA (Dettmers et al. 2023), appendix E
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


@pytest.fixture(params=["int8", "nf4"])
def kind(request):
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes", reason="needs the extra [quant]")
    return request.param


def rounded(weight, kind):
    """The nearest matrix that `kind` can hold, by its definition."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    flat = weight.flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % 64)).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = values[(blocks[..., None] / largest[..., None] - values).abs().argmin(-1)]
    return (nearest * largest).flatten()[: len(flat)].view_as(weight)


def both_hosts(name, kind):
    """A quantised host, and the plain one with the rounded weights."""
    plain = tiny_host(name)
    quantized = copy.deepcopy(plain)
    quantize(quantized, kind)
    for block in decoder_layers(plain):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = rounded(module.weight.data, kind)
    route(plain)
    route(quantized)
    return quantized, plain


@pytest.mark.parametrize("name", FAMILIES)
def test_open_gates_equal_the_plain_host_with_rounded_weights_and_so_does_every_gradient(name, kind):
    tokens, found = random_tokens(2, 12), []
    for host in both_hosts(name, kind):
        adapter = open_v2_adapter(host, lora=True)
        logits = adapted_logits(host, adapter, tokens, visual_tokens(2))
        logits.logsumexp(-1).sum().backward()
        found.append((logits.detach(), {key: one.grad for key, one in adapter.named_parameters()}))
    (logits, gradients), (expected, expected_gradients) = found
    assert (logits - expected).abs().max() < ROUNDING
    unrounded = tiny_host(name)
    route(unrounded)
    plain = adapted_logits(unrounded, open_v2_adapter(unrounded, lora=True), tokens, visual_tokens(2))
    assert (logits - plain).abs().max() > 20 * ROUNDING, "the weights are rounded, so this is another host"
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[key], rtol=1e-4, atol=1e-4), key


@pytest.mark.parametrize("name", ["llama_gqa", "gpt_neox"])
def test_a_fresh_adapter_leaves_the_logits_of_the_quantised_host_bit_identical(name, kind):
    host, _ = both_hosts(name, kind)
    tokens = random_tokens(2, 12)
    plain = host(input_ids=tokens).logits
    assert torch.equal(adapted_logits(host, adapter_of(host, **v2_methods(lora=True)), tokens, visual_tokens(2)), plain)


def test_embeddings_norms_and_head_stay_and_the_adapter_trains_in_float32(kind):
    plain, host = load_host(TINY_HOST, torch.float32), load_host(TINY_HOST, torch.float32, quantization=kind)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    kept = {name for name, tensor in plain.state_dict().items() if name in before and torch.equal(before[name], tensor)}
    gone = {name for name in plain.state_dict() if name not in kept}
    assert all(".self_attn." in name or ".mlp." in name for name in gone) and len(gone) == 7 * len(plain.model.layers)
    adapter = open_v2_adapter(host)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.01)
    adapted_logits(host, adapter, random_tokens(2, 12)).logsumexp(-1).sum().backward()
    optimizer.step()
    assert {one.dtype for one in adapter.parameters()} == {torch.float32}
    after = {name.replace(".base.", "."): tensor for name, tensor in host.state_dict().items()}
    assert before.keys() <= after.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_the_backward_keeps_no_weights(kind):
    """A layer that kept them in float32 would need more memory than the plain host."""
    linear = nn.Linear(256, 256, bias=False)
    block = tiny_host("llama_gqa")
    decoder_layers(block)[0].mlp = nn.Sequential(linear)
    quantize(block, kind)
    kept = []
    hidden = torch.randn(3, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda one: one
    ):
        decoder_layers(block)[0].mlp(hidden).sum().backward()
    assert sum(kept) == 0 and hidden.grad.shape == (3, 256)


def test_a_dry_run_shows_what_the_stored_weights_take(kind):
    bytes_of = {}
    for quantization in (None, kind):
        for device in ("meta", "cpu"):
            model = built(quantization, device)
            for dtype in ("float32", "bfloat16"):
                needed = memory_needed(OptimizerConf().sized(8, 1e-3), HostConf(), EngineConf(), 1, model, dtype)
                bytes_of[quantization, device, dtype] = needed.frozen
        assert model.host_size == 950_912
    assert all(bytes_of[kind, "meta", dtype] == bytes_of[kind, "cpu", dtype] for dtype in ("float32", "bfloat16"))
    matrices = sum(one.numel() for one in block_matrices())
    rows = sum(len(one) for one in block_matrices())
    stored = (
        matrices + 4 * rows if kind == "int8" else matrices // 2 + 4 * matrices // 64 + 4 * 16 * len(block_matrices())
    )
    assert bytes_of[None, "cpu", "float32"] - bytes_of[kind, "cpu", "float32"] == 4 * matrices - stored
    assert bytes_of[None, "cpu", "bfloat16"] - bytes_of[kind, "cpu", "bfloat16"] == 2 * matrices - stored


def block_matrices():
    host = load_host(TINY_HOST, torch.float32)
    return [one.weight for block in decoder_layers(host) for one in block.modules() if isinstance(one, nn.Linear)]


def built(quantization, device="cpu"):
    """Prompts on the shipped host, opened."""
    methods = AdapterConf({"prompts": PromptsConf(length=4, layers=2)})
    host = HostConf(path="tiny", max_tokens=128, quantization=quantization)
    model = AdaptedModel.build(host, OpenClipSettings(enabled=False), methods, device=device)
    if device != "meta":
        for item in model.trainable_parameters():
            if item.role == "gate":
                item.parameter.data.fill_(0.5)
    return model


def test_the_adapter_folder_says_it_and_opens_to_the_same_bits(tmp_path, kind):
    model = built(kind)
    model.save(tmp_path / "adapter")
    card = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert card["quantization"] == kind
    again = mmadapter.load(tmp_path / "adapter", host="tiny", device="cpu")
    tokens = random_tokens(2, 12)
    assert torch.equal(again.logits(tokens), model.logits(tokens))


def test_the_plain_host_takes_the_adapter_and_the_other_way_round_with_a_warning(tmp_path, kind, caplog):
    plain, quantized = built(None), built(kind)
    assert plain._identity() == quantized._identity()
    for one, other, told in (
        (quantized, plain, f"{kind}, and here it is null"),
        (plain, quantized, "null, and here it is"),
    ):
        caplog.clear()
        one.save(tmp_path / "adapter")
        with caplog.at_level(logging.WARNING):
            other.load_adapter(tmp_path / "adapter")
        assert told in caplog.text and "rounded otherwise" in caplog.text
    caplog.clear()
    plain.load_adapter(tmp_path / "adapter")
    assert caplog.text == ""


def test_nothing_folds_into_a_quantised_host():
    host, _ = both_hosts("llama_gqa", "int8")
    with pytest.raises(
        InputError, match=r"Layer 0, q of this host is a Int8Linear.*Use the host that is not quantised"
    ):
        fold(host, open_v2_adapter(host))


def test_a_weight_of_zeros_stays_zero():
    host = tiny_host("llama_gqa")
    decoder_layers(host)[0].mlp.up_proj.weight.data[3] = 0
    quantize(host, "int8")
    out = decoder_layers(host)[0].mlp.up_proj(torch.ones(1, 32))
    assert out[0, 3] == 0 and out.isfinite().all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_its_library_nf4_is_refused_with_what_to_install(monkeypatch, device):
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional", raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"host\.quantization=nf4 needs.*pip install 'mmadapter\[quant\]'.*=int8"):
        load_host(TINY_HOST, torch.float32, device=device, quantization="nf4")


def test_bitsandbytes_fetches_nothing_from_the_hub(tmp_path):
    """Where the package `kernels` is installed, it would load programs out of the Hub while it is imported."""
    pytest.importorskip("bitsandbytes", reason="needs the extra [quant]")
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    print('FETCHED')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from mmadapter.hosts.quantized import bitsandbytes; "
        "bitsandbytes(); import kernels; print('kernels is', kernels.__name__)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout == "kernels is kernels\n" and "FETCHED" not in told.stderr, told.stderr
