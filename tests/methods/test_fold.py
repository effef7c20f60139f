"""A folded host computes what host and adapter computed before, on every family, or is refused by name."""

import copy

import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.hosts.families import attention_modules
from mmadapter.methods.fold import fold
from mmadapter.methods.groups import trainable_parameters
from tests.families import (
    FAMILIES,
    ROUNDING,
    adapted_logits,
    adapter_with,
    open_v2_adapter,
    random_tokens,
    routed_host,
    tiny_host,
    visual_tokens,
)

# Kinds of linear layers that can have a bias in each family, where that is not all of them. The code has no such table.
HOLDS = {
    **dict.fromkeys(["mistral", "phi3"], []),
    "qwen2": ["q", "k", "v"],
    **dict.fromkeys(["qwen3", "gemma", "gemma2", "gemma3"], ["q", "k", "v", "o"]),
}


@torch.no_grad()
def both_logits(host, adapter):
    """With pictures, and without."""
    tokens = random_tokens(3, 12)
    return torch.stack([adapted_logits(host, adapter, tokens, visual) for visual in (visual_tokens(3), None)])


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("scale_on", ["output", "input"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_folded_host_gives_the_same_logits(name, scale_on, lora):
    host = routed_host(name)
    adapter = open_v2_adapter(host, lora=lora, scale_on=scale_on)
    for kinds in adapter["bias_scale"].values():
        for kind in (kind for kind in kinds if name in HOLDS and kind not in HOLDS[name]):
            kinds[kind].bias.data.zero_()  # as it starts: there is nothing to hold
    expected = both_logits(host, adapter)
    assert fold(host, adapter) is host
    assert (both_logits(host, adapter) - expected).abs().max() < ROUNDING
    assert (expected - tiny_host(name)(input_ids=random_tokens(3, 12)).logits).abs().max() > 1e-2
    assert {item.role for item in trainable_parameters(adapter)} == {"prompt", "gate", "early_gate"}
    again = type(host)(copy.deepcopy(host.config))
    again.load_state_dict(host.state_dict(), strict=True)  # no part of ours is left, and none of its own is missing
    plain = again.eval()(input_ids=random_tokens(3, 12)).logits
    assert torch.allclose(host(input_ids=random_tokens(3, 12)).logits, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "lacking", "advice"),
    [
        ("mistral", "q, k, v, gate, up, o, down", r"adapter.bias_scale.bias=\[\]"),
        ("phi3", "qkv, gate_up, o, down", r"adapter.bias_scale.bias=\[\]"),
        ("qwen2", "gate, up, o, down", r"can have one on q, k, v\).*adapter.bias_scale.bias=\[q,k,v\]"),
        ("qwen3", "gate, up, down", r"can have one on q, k, v, o\)"),
    ],
)
def test_a_bias_without_a_place_is_refused_by_name_and_nothing_is_changed(name, lacking, advice):
    host = routed_host(name)
    adapter = open_v2_adapter(host, lora=True)
    expected = both_logits(host, adapter)
    with pytest.raises(InputError, match=rf"bias of {lacking} \(4 layers\) has no place in a {name} .*{advice}"):
        fold(host, adapter)
    assert torch.equal(both_logits(host, adapter), expected)


def test_only_the_settings_that_are_needed_are_switched_on():
    host = routed_host("llama_gqa")
    adapter = adapter_with(host, bias=["o"], scale=["all"])
    expected = both_logits(host, adapter)
    fold(host, adapter)
    assert (host.config.attention_bias, host.config.mlp_bias) == (True, False)
    assert torch.count_nonzero(attention_modules(host)[0].q_proj.bias) == 0
    assert (both_logits(host, adapter) - expected).abs().max() < ROUNDING


def test_bfloat16_is_rounded_once_from_float32():
    host = routed_host("llama_gqa").bfloat16()
    adapter = open_v2_adapter(host)
    truth_host, truth = routed_host("llama_gqa").bfloat16().float(), copy.deepcopy(adapter)
    truth.attach(truth_host)
    expected, unfolded = both_logits(truth_host, truth), both_logits(host, adapter)
    weight, scale = attention_modules(host)[0].q_proj.weight.float(), adapter["bias_scale"]["0"]["q"].scale.detach()
    fold(host, adapter)
    assert torch.equal(attention_modules(host)[0].q_proj.weight, (weight * scale[:, None]).bfloat16())
    assert {parameter.dtype for parameter in host.parameters()} == {torch.bfloat16}
    folded = both_logits(host, adapter)
    assert (unfolded - expected).abs().max() < 0.02 and (folded - expected).abs().max() < 0.02  # both 0.009
    assert (folded - expected).abs().mean() < 1.5 * (unfolded - expected).abs().mean()


def test_another_type_is_for_all_weights_and_rotary_frequencies_stay():
    host = routed_host("llama_gqa")
    adapter = adapter_with(host, bias=["all"])
    frequencies = host.model.rotary_emb.inv_freq.clone()
    fold(host, adapter, torch.bfloat16)
    assert {parameter.dtype for parameter in host.parameters()} == {torch.bfloat16}
    assert torch.equal(host.model.rotary_emb.inv_freq, frequencies)


def test_a_weight_beyond_float16_is_refused():
    host = routed_host("llama_gqa")
    adapter = adapter_with(host, scale=["q"])
    adapter["bias_scale"]["2"]["q"].scale.data.fill_(1e7)
    with pytest.raises(InputError, match="not finite in float16.*bfloat16 or float32"):
        fold(host, adapter, torch.float16)


def test_prompts_through_the_frozen_projections_are_exact_where_keys_and_values_carry_nothing():
    """The released 7B's form: bias on q, o, gate, up, down, norms, prompts through the frozen projections."""
    host = routed_host("llama_mha")
    adapter = adapter_with(host, bias=["q", "o", "gate", "up", "down"], norms="all", through="base")
    expected = both_logits(host, adapter)
    fold(host, adapter)
    assert (both_logits(host, adapter) - expected).abs().max() < ROUNDING


@pytest.mark.parametrize(
    ("name", "parts", "said"),
    [
        ("llama_mha", {"lora": ["all"]}, "of layers 0 to 3"),
        ("llama_mha", {"lora": ["all"], "early": 0}, "of layers 1 to 3"),
        ("llama_mha", {"bias": ["v"]}, "of layers 0 to 3"),
        ("gpt_neox", {"scale": ["all"]}, "of layers 0 to 3"),
        ("qwen3", {"norms": "all"}, "of layers 0 to 3"),
    ],
)
def test_prompts_through_frozen_projections_that_differ_from_the_folded_ones_are_refused(name, parts, said):
    host = routed_host(name)
    adapter = adapter_with(host, through="base", **parts)
    with pytest.raises(InputError, match=rf"through=base.*{said}.*prompts.through=adapted"):
        fold(host, adapter)


def test_without_prompts_it_does_not_matter_how_they_would_be_projected():
    host = routed_host("llama_mha")
    adapter = adapter_with(host, ["all"], ["all"], early=0, prompts=0, through="base")
    expected = both_logits(host, adapter)
    fold(host, adapter)
    assert (host(input_ids=random_tokens(3, 12)).logits - expected[1]).abs().max() < ROUNDING


def test_a_layer_that_is_no_plain_linear_one_is_refused_by_name():
    class Quantised(torch.nn.Linear):
        pass

    host = routed_host("llama_mha")
    host.model.layers[2].mlp.up_proj = Quantised(32, 48)
    adapter = adapter_with(host, scale=["all"])
    with pytest.raises(InputError, match="Layer 2, up of this host is a Quantised"):
        fold(host, adapter)
