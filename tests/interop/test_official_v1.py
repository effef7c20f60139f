"""Our V1 equals what the official code computes (numbers in tests/golden, made with the official code)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from mmadapter.hosts.attention import route
from mmadapter.interop.meta import llama_settings, rename_llama_tensors
from mmadapter.methods import AdapterConf
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.settings import PromptsConf
from tests.families import adapted_logits

GOLDEN = Path(__file__).parents[1] / "golden" / "official_v1_small.safetensors"


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["about"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def build(golden, attention):
    from transformers import LlamaConfig, LlamaForCausalLM

    about, tensors = golden
    base = {name.removeprefix("base."): tensor for name, tensor in tensors.items() if name.startswith("base.")}
    config = LlamaConfig(**llama_settings(about, about["vocab_size"]), attn_implementation=attention)
    host = LlamaForCausalLM(config)
    host.load_state_dict(rename_llama_tensors(base, config.num_attention_heads, config.num_key_value_heads))
    host.requires_grad_(False).eval()
    route(host)
    first = about["n_layers"] - about["adapted_layers"]
    settings = PromptsConf(length=about["prompt_length"], layers=about["adapted_layers"])
    adapter = Adapter.build(AdapterConf(methods={"prompts": settings}), host)
    prompts = tensors["adapter.adapter_query.weight"].view(about["adapted_layers"], about["prompt_length"], -1)
    with torch.no_grad():
        for index, layer in adapter["prompts"].items():
            layer.prompt.copy_(prompts[int(index) - first])
            layer.gate.copy_(tensors[f"adapter.layers.{index}.attention.gate"].flatten())
    return host, adapter, first


def loss_of(host, adapter, tensors):
    logits = adapted_logits(host, adapter, tensors["input.tokens"])
    labels = tensors["input.labels"].clone()
    labels[labels == 0] = -100  # the official code ignores label 0
    return logits, cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def official_form(adapter, first, attribute):
    prompts = torch.cat([attribute(layer.prompt) for layer in adapter["prompts"].values()])
    gates = {index: attribute(layer.gate).view(1, -1, 1, 1) for index, layer in adapter["prompts"].items()}
    return prompts, gates


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_loss_and_gradients_are_the_official_ones(golden, attention):
    host, adapter, first = build(golden, attention)
    tensors = golden[1]
    logits, loss = loss_of(host, adapter, tensors)
    loss.backward()
    assert (logits - tensors["expect.logits"]).abs().max() < 2e-5
    assert abs(loss - tensors["expect.loss"]) < 1e-6
    prompts, gates = official_form(adapter, first, lambda tensor: tensor.grad)
    expected = tensors["expect.grad.adapter_query.weight"]
    assert (prompts - expected).norm() / expected.norm() < 1e-5
    for index, gate in gates.items():
        expected = tensors[f"expect.grad.layers.{index}.attention.gate"]
        assert (gate - expected).norm() / expected.norm() < 1e-5


def test_five_steps_of_adamw_give_the_official_trajectory(golden):
    host, adapter, first = build(golden, "sdpa")
    tensors = golden[1]
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.02)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        _, loss = loss_of(host, adapter, tensors)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert (torch.stack(losses) - tensors["expect.trajectory.losses"]).abs().max() < 1e-5
    prompts, gates = official_form(adapter, first, lambda tensor: tensor.detach())
    expected = tensors["expect.trajectory.adapter.adapter_query.weight"]
    assert (prompts - expected).abs().max() < 2e-5
    for index, gate in gates.items():
        assert (gate - tensors[f"expect.trajectory.adapter.layers.{index}.attention.gate"]).abs().max() < 2e-5
