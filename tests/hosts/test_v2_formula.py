"""V2 on every family: a fresh adapter changes nothing; fusion, bias, scale, norms and LoRA, open, equal the oracle."""

import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.hosts.calls import VisualTokens
from mmadapter.hosts.families import attention_modules, family_of
from mmadapter.methods.bias_scale import BiasScale
from mmadapter.methods.groups import trainable_parameters
from mmadapter.methods.settings import BiasScaleConf
from tests.families import (
    EVERY_FAMILY_AND_ATTENTION,
    FAMILIES,
    adapted_logits,
    adapter_of,
    open_v2_adapter,
    random_tokens,
    routed_host,
    tiny_host,
    v2_methods,
    visual_rows,
    visual_tokens,
)
from tests.hosts.oracle import oracle_logits


def fresh_v2_adapter(host, lora=True):
    return adapter_of(host, **v2_methods(lora=lora, factor=True))


@pytest.mark.parametrize(("name", "attention"), EVERY_FAMILY_AND_ATTENTION)
def test_a_fresh_v2_adapter_leaves_the_logits_bit_identical(name, attention):
    tokens = random_tokens(2, 12)
    plain = tiny_host(name, attention)(input_ids=tokens).logits
    host = routed_host(name, attention)
    adapter = fresh_v2_adapter(host)
    assert torch.equal(adapted_logits(host, adapter, tokens, visual_tokens(2)), plain)
    assert torch.equal(adapted_logits(host, adapter, tokens), plain)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt_neox"])
def test_a_fresh_v2_adapter_leaves_bfloat16_logits_bit_identical(name):
    tokens = random_tokens(2, 12)
    plain = tiny_host(name).bfloat16()(input_ids=tokens).logits
    host = routed_host(name).bfloat16()
    assert torch.equal(adapted_logits(host, fresh_v2_adapter(host, lora=False), tokens, visual_tokens(2)), plain)


@pytest.mark.parametrize(("name", "attention"), EVERY_FAMILY_AND_ATTENTION)
def test_open_v2_equals_the_formula(name, attention):
    host = routed_host(name, attention)
    tokens, visual = random_tokens(3, 12), visual_tokens(3)
    plain = host(input_ids=tokens).logits
    adapter = open_v2_adapter(host)
    ours = adapted_logits(host, adapter, tokens, visual)
    assert (ours - oracle_logits(name, adapter, tokens, visual)).abs().max() < 2e-4
    without = adapted_logits(host, adapter, tokens)
    assert (without - oracle_logits(name, adapter, tokens)).abs().max() < 2e-4
    assert (ours - without).abs().max() > 1e-2 and (without - plain).abs().max() > 1e-2
    assert torch.equal(host(input_ids=tokens).logits, plain), "without the keyword it is the plain host"


@pytest.mark.parametrize("projection", ["adapted", "base"])
@pytest.mark.parametrize("scale_on", ["output", "input"])
@pytest.mark.parametrize("name", ["llama_gqa", "llama_bias", "qwen3", "phi3", "gpt_neox"])
def test_lora_scale_forms_and_prompt_projections_equal_the_formula(name, scale_on, projection):
    host = routed_host(name)
    tokens, visual = random_tokens(2, 10), visual_tokens(2)
    plain = host(input_ids=tokens).logits
    settings = {"lora": True, "scale_on": scale_on, "factor": True, "through": projection}
    adapter = open_v2_adapter(host, **settings)
    for layer in adapter["prompts"].values():  # the oracle knows tanh(gate) only
        with torch.no_grad():
            layer.factor.fill_(1.0)
    ours = adapted_logits(host, adapter, tokens, visual)
    assert (ours - oracle_logits(name, adapter, tokens, visual)).abs().max() < 2e-4
    assert torch.equal(host(input_ids=tokens).logits, plain)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_open_v2_equals_the_formula_on_padded_rows(name, padding):
    host = routed_host(name)
    adapter = open_v2_adapter(host)
    tokens, mask = random_tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, slice(0, 4) if padding == "left" else slice(8, 12)] = 0
    keywords = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    ours = adapted_logits(host, adapter, tokens, visual_tokens(2), **keywords)
    expected = oracle_logits(name, adapter, tokens, visual_tokens(2), **keywords)
    assert (ours - expected)[mask.bool()].abs().max() < 2e-4


@pytest.mark.parametrize("tokens_per_image", [1, 5])
@pytest.mark.parametrize("name", ["llama_gqa", "qwen3", "gemma3"])
def test_without_early_layers_visual_tokens_are_added_to_the_prompts(name, tokens_per_image):
    """One visual token to all prompts of a layer (V1), or one to each (released V2), through adapted projections."""
    host = routed_host(name)
    adapter = open_v2_adapter(host, early=0)
    tokens, visual = random_tokens(2, 9), visual_tokens(2, tokens_per_image)
    ours = adapted_logits(host, adapter, tokens, visual)
    assert (ours - oracle_logits(name, adapter, tokens, visual)).abs().max() < 2e-4


def test_the_gate_factor_multiplies_the_gates():
    host = routed_host("llama_gqa")
    adapter = open_v2_adapter(host, factor=True)
    for layer in adapter["prompts"].values():
        assert torch.allclose(layer.gate_values(), torch.tanh(layer.gate) * layer.factor)
    roles = {item.name.rpartition(".")[2]: item.role for item in trainable_parameters(adapter)}
    assert roles["factor"] == "gate"


def test_a_row_without_an_image_is_not_touched_by_early_fusion():
    host = routed_host("llama_gqa")
    adapter = open_v2_adapter(host)
    tokens, visual = random_tokens(2, 9), visual_tokens(2)
    visual[1] = 0
    with host.adapter_slot.during(adapter.call(VisualTokens(visual, torch.tensor([True, False])))):
        mixed = host(input_ids=tokens).logits
    assert torch.allclose(mixed[0], adapted_logits(host, adapter, tokens, visual_tokens(2))[0], atol=1e-5)
    assert torch.allclose(mixed[1], adapted_logits(host, adapter, tokens)[1], atol=1e-5)


def branch_weights(module, adapter, query, tokens):
    """(heads, queries, visual tokens): how much each query attends to each visual token."""
    keys, _ = family_of(module.config.model_type).project(module, tokens)
    grouped = query.reshape(1, keys.shape[1], -1, keys.shape[-1])
    return (grouped @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5).softmax(-1)


def test_attention_to_distinct_visual_tokens_changes_with_the_query_and_with_the_picture():
    """Equal tokens, or learned ones plus a shared vector, would cancel in the softmax."""
    host = routed_host("llama_gqa")
    adapter, module = open_v2_adapter(host), attention_modules(host)[0]
    queries = torch.randn(1, 4, 2, 8, generator=torch.Generator().manual_seed(0))
    one, other = visual_tokens(1), visual_tokens(1, seed=9)
    first = branch_weights(module, adapter, queries, one)
    assert (first - branch_weights(module, adapter, queries.flip(2), one)).abs().max() > 0.01
    assert (first - branch_weights(module, adapter, queries, other)).abs().max() > 0.01
    shared = one + visual_rows(1)[:, None]
    assert torch.allclose(first, branch_weights(module, adapter, queries, shared), atol=1e-5), "a shared vector cancels"
    tokens = random_tokens(1, 9)
    by_picture = [adapted_logits(host, adapter, tokens, visual) for visual in (one, other)]
    assert (by_picture[0] - by_picture[1]).abs().max() > 1e-2


def test_inference_mode_and_kept_projections_give_the_same_logits():
    host = routed_host("llama_gqa")
    adapter, tokens = open_v2_adapter(host), random_tokens(2, 9)
    expected = adapted_logits(host, adapter, tokens, visual_tokens(2))
    with torch.inference_mode():
        call = adapter.call(VisualTokens(visual_tokens(2), torch.ones(2, dtype=torch.bool)), keep=True)
        with host.adapter_slot.during(call):
            for _ in range(2):
                assert torch.equal(host(input_ids=tokens).logits, expected)


def test_small_scales_are_not_lost_in_bfloat16():
    shift = BiasScale(512, 512)
    with torch.no_grad():
        shift.scale.fill_(1.003)  # rounds to 1 in bfloat16
    hidden = torch.linspace(1, 2, 512, dtype=torch.bfloat16)[None]
    outputs = shift(lambda x: x, hidden)
    assert outputs.dtype == torch.bfloat16
    assert (outputs.float().sum() / hidden.float().sum()).item() == pytest.approx(1.003, abs=1e-3)


def test_an_unknown_linear_layer_is_refused_with_the_familys_names():
    host = routed_host("phi3")
    with pytest.raises(InputError, match=r"adapter.bias_scale.bias names q, but .* phi3 block are: qkv, gate_up, o, d"):
        adapter_of(host, bias_scale=BiasScaleConf(bias=["q", "o"]))


def test_visual_tokens_and_prompts_do_not_share_a_layer():
    with pytest.raises(InputError, match=r"early_fusion.layers=2 and adapter.prompts.layers=3 meet.*prompts.layers=2 "):
        adapter_of(routed_host("llama_gqa"), **v2_methods(early=2))


def test_prompts_on_more_layers_than_the_host_has_are_refused():
    with pytest.raises(InputError, match=r"adapter.prompts.layers=5, but the host has 4 layers.*prompts.layers=4"):
        adapter_of(routed_host("llama_gqa"), **v2_methods(early=0, layers=5))


def test_several_adapters_on_one_host_do_not_touch_each_other():
    host, tokens, visual = routed_host("llama_gqa"), random_tokens(2, 9), visual_tokens(2)
    first = open_v2_adapter(host, lora=True)
    alone = adapted_logits(host, first, tokens, visual)
    second = open_v2_adapter(host, lora=True, seed=5)
    other = adapted_logits(host, second, tokens, visual)
    assert torch.equal(adapted_logits(host, first, tokens, visual), alone)
    assert (other - alone).abs().max() > 1e-2
    assert torch.equal(host(input_ids=tokens).logits, tiny_host("llama_gqa")(input_ids=tokens).logits)
