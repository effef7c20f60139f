"""The estimate of a dry run."""

import pytest
import torch
from transformers import LlamaConfig

from mmadapter.terminal import readable_bytes
from mmadapter.training.memory import estimate
from mmadapter.training.settings import EngineConf
from tests.families import adapted_logits, adapter_with, open_adapter, random_tokens, routed_host

LLAMA_7B = LlamaConfig()  # 32 layers, 4096 wide
GB = 1e9


def estimate_7b(**settings):
    keywords = {"adapted_layers": 30, "tokens": 8 * 512, "longest": 512} | settings
    return estimate(LLAMA_7B, 2, round(13.48 * GB), 1_790_976, **{"engine": EngineConf(), **keywords})


def test_activations_of_llama_7b_are_2_8_megabytes_a_token():
    assert estimate_7b(tokens=1).activations == pytest.approx(2.8e6, rel=0.02)


def test_checkpointing_leaves_a_width_a_token_and_layer_and_one_layer():
    plain, thin = estimate_7b(), estimate_7b(checkpointing=True)
    assert thin.activations < plain.activations / 7
    assert thin.frozen == plain.frozen


def test_trainables_count_with_start_gradient_and_both_moments():
    assert estimate_7b().trainable == 1_790_976 * 20


@pytest.mark.parametrize(
    "engine, frozen, trainable",
    [("zero0", 1, 32), ("zero1", 1, 24 + 16 / 8), ("zero2", 1, 20 + 16 / 8), ("zero3", 1 / 8, 20 + 20 / 8)],
)
def test_each_stage_shares_out_one_thing_more(engine, frozen, trainable):
    memory = estimate_7b(engine=EngineConf(engine), processes=8)
    assert memory.frozen == pytest.approx(13.48 * GB * frozen)
    assert memory.trainable == 1_790_976 * trainable
    assert memory.gathered == (2 * 2 * 10**9 if engine == "zero3" else 0) and memory.offloaded == 0
    assert memory.activations == estimate_7b().activations


def test_offloaded_bytes_are_said_but_not_in_the_sum():
    memory, without = (
        estimate_7b(engine=EngineConf("zero3_offload"), processes=8),
        estimate_7b(engine=EngineConf("zero3"), processes=8),
    )
    assert memory.offloaded == pytest.approx(13.48 * GB / 8 + 1_790_976 * 20 / 8)
    assert memory.total == without.total - memory.offloaded
    assert "offloaded" in memory.rows()[-1][0]


@pytest.mark.parametrize("parts", [{"scale": ["all"]}, {"norms": "all"}, {"lora": ["all"]}])
def test_what_scale_norms_and_lora_keep_for_the_backward_is_counted(parts):
    """As measured: what autograd saves with them, less what it saves without."""
    tokens, extra = random_tokens(4, 48), 0
    for sign, chosen in ((1, parts), (-1, {"bias": ["all"]})):
        host = routed_host("llama_mha").bfloat16()
        adapter = adapter_with(host, early=0, prompts=4, **chosen)
        extra += sign * saved_bytes(host, adapter, tokens)
        if sign == 1:
            expected = 4 * adapter.kept_per_token() * tokens.numel() * 4
    assert extra == pytest.approx(expected, rel=0.5)
    assert open_adapter(routed_host("llama_mha")).kept_per_token() == 0
    with_parts = estimate_7b(kept_by_parts=1000).activations - estimate_7b().activations
    assert with_parts == 4 * 1000 * 8 * 512 * 30


def saved_bytes(host, adapter, tokens):
    """Bytes of everything but parameters that autograd keeps of one forward."""
    own = {parameter.data_ptr() for module in (host, adapter) for parameter in module.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = adapted_logits(host, adapter, tokens)
    assert output.requires_grad
    return sum(kept.values())


def test_eager_attention_costs_a_square():
    assert estimate_7b(eager_attention=True).activations > 2 * estimate_7b().activations


def test_the_sum_is_the_sum():
    memory = estimate_7b()
    assert memory.as_dict()["total"] == memory.frozen + memory.trainable + memory.activations + memory.logits
    assert memory.rows()[-1][0] == "sum"


def test_bytes_are_readable():
    assert [readable_bytes(size) for size in (12, 1400, 2.5e6, 13.48e9)] == ["12 B", "1.4 kB", "2.5 MB", "13.5 GB"]


def test_logits_that_are_made_by_chunks_take_a_chunk_and_a_gradient():
    assert estimate_7b(supervised=4096, logits_at_once=128).logits == 128 * 32_000 * 6 + 4096 * 4096 * 2
    assert estimate_7b(supervised=100, logits_at_once=128).logits == 100 * 32_000 * 6 + 100 * 4096 * 2
