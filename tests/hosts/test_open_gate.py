"""Nothing changes at gate zero; with open gates the logits equal an independent formula (the oracle)."""

import pytest
import torch

from mmadapter.hosts.families import attention_modules, family_of
from mmadapter.methods.zero_init import gated_prompt_attention
from tests.families import (
    ADAPTED,
    EVERY_FAMILY_AND_ATTENTION,
    FAMILIES,
    LAYERS,
    adapted_logits,
    open_adapter,
    random_tokens,
    routed_host,
    tiny_host,
    visual_rows,
)
from tests.hosts.oracle import oracle_logits


@pytest.mark.parametrize(("name", "attention"), EVERY_FAMILY_AND_ATTENTION)
def test_a_fresh_adapter_leaves_the_logits_bit_identical(name, attention):
    tokens = random_tokens(2, 12)
    plain = tiny_host(name, attention)(input_ids=tokens).logits
    host = routed_host(name, attention)
    adapter = open_adapter(host)
    for layer in adapter["prompts"].values():
        torch.nn.init.zeros_(layer.gate)
    assert torch.equal(host(input_ids=tokens).logits, plain)
    assert torch.equal(adapted_logits(host, adapter, tokens), plain)
    assert torch.equal(adapted_logits(host, adapter, tokens, visual_rows(2)), plain)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize(("name", "attention"), EVERY_FAMILY_AND_ATTENTION)
def test_open_gates_equal_the_concatenated_formula(name, attention, images):
    host = routed_host(name, attention)
    adapter = open_adapter(host)
    tokens = random_tokens(3, 12)
    visual = visual_rows(3) if images else None
    ours = adapted_logits(host, adapter, tokens, visual)
    expected = oracle_logits(name, adapter, tokens, visual)
    plain = host(input_ids=tokens).logits
    assert (ours - expected).abs().max() < 5e-5
    assert (ours - plain).abs().max() > 1e-2, "the gates are open, so the adapter must be seen"


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_open_gates_equal_the_formula_on_padded_rows(name, padding):
    host = routed_host(name)
    adapter = open_adapter(host)
    tokens = random_tokens(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, slice(0, 4) if padding == "left" else slice(8, 12)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    keywords = {"attention_mask": mask, "position_ids": positions}
    ours = adapted_logits(host, adapter, tokens, visual_rows(2), **keywords)
    expected = oracle_logits(name, adapter, tokens, visual_rows(2), **keywords)
    assert (ours - expected)[mask.bool()].abs().max() < 5e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "qwen3", "gpt_neox"])
def test_the_joint_softmax_baseline_equals_its_formula(name, attention):
    host = routed_host(name, attention)
    adapter = open_adapter(host, attention="joint")
    tokens = random_tokens(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :3] = 0
    for keywords in ({}, {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}):
        ours = adapted_logits(host, adapter, tokens, visual_rows(2), **keywords)
        expected = oracle_logits(name, adapter, tokens, visual_rows(2), **keywords)
        kept = keywords.get("attention_mask", torch.ones(2, 12)).bool()
        assert (ours - expected)[kept].abs().max() < 5e-5


@pytest.mark.parametrize("name", ["llama_mha", "llama_gqa", "llama_bias", "mistral", "gpt_neox", "phi3"])
def test_the_image_acts_exactly_as_gate_times_projected_value(name):
    """softmax(q(kP + kI))(vP + vI) = softmax(q kP) vP + Wv I."""

    host = routed_host(name)
    module = attention_modules(host)[-1]
    layer = open_adapter(host)["prompts"][str(LAYERS - 1)]
    image, project = visual_rows(2), family_of(host.config.model_type).project
    query = torch.randn(2, 4, 7, 8)
    whole = gated_prompt_attention(query, *project(module, layer.prompt + image[:, None]), layer.gate_values(), 0.35)
    alone = gated_prompt_attention(query, *project(module, layer.prompt[None]), layer.gate_values(), 0.35)
    shift = project(module, image[:, None])[1] - project(module, torch.zeros(1, 1, image.shape[-1]))[1]
    shift = shift.repeat_interleave(4 // shift.shape[1], 1).transpose(1, 2) * layer.gate_values().view(1, 1, 4, 1)
    assert torch.allclose(whole, alone + shift, atol=1e-5)
    assert shift.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("setting", "reference"), [({"gate": "identity"}, "identity"), ({"gate_per": "layer"}, "scalar")]
)
def test_the_released_gate_forms_are_settings(setting, reference):
    host = routed_host("llama_gqa")
    adapter = open_adapter(host, **setting)
    twin = open_adapter(host)
    for ours, theirs in zip(adapter["prompts"].values(), twin["prompts"].values(), strict=True):
        assert ours.gate.shape == ((4,) if reference == "identity" else (1,))
        with torch.no_grad():
            theirs.prompt.copy_(ours.prompt)
            values = ours.gate.clamp(-0.9, 0.9)
            ours.gate.copy_(values)
            theirs.gate.copy_(torch.atanh(values) if reference == "identity" else values.expand(4))
    tokens = random_tokens(2, 9)
    difference = adapted_logits(host, adapter, tokens) - adapted_logits(host, twin, tokens)
    assert difference.abs().max() < 1e-5


def test_layers_below_the_first_adapted_one_are_untouched():
    host = routed_host("llama_gqa")
    adapter = open_adapter(host)
    tokens = random_tokens(1, 6)
    plain = host(input_ids=tokens, output_hidden_states=True).hidden_states
    with host.adapter_slot.during(adapter.call()):
        ours = host(input_ids=tokens, output_hidden_states=True).hidden_states
    first = LAYERS - ADAPTED
    assert torch.equal(plain[first], ours[first])
    assert not torch.equal(plain[first + 1], ours[first + 1])
