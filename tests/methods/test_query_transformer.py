"""The query transformer computes what the official V2 code computes, and has its sizes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from mmadapter.methods.projection import QueryTransformer, draw

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = {
    "clip_proj.": "narrow.",
    "clip_proj_norm.": "narrow_norm.",
    "visual_query.weight": "queries",
    "visual_blocks.": "blocks.",
    "visual_proj.": "widen.",
    "visual_proj_norm.": "widen_norm.",
}


def our_names(tensors):
    """The adapter's visual tensors of a golden file under our names."""
    ours = {}
    for official, name in OFFICIAL.items():
        start = f"adapter.{official}"
        ours |= {name + key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
    return ours


@pytest.mark.parametrize("name", ["official_v2_bias_small", "official_v2_lora_bias_small"])
def test_the_visual_query_is_the_official_one(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    sizes = about["visual"]
    projection = QueryTransformer(
        sizes["clip"], sizes["embed"], about["prompt_length"], sizes["depth"], sizes["heads"], about["dim"]
    )
    projection.load_state_dict(our_names(tensors))
    found = projection(tensors["input.clip_features"])
    assert found.shape == tensors["expect.visual_query"].shape
    assert (found - tensors["expect.visual_query"]).abs().max() < 1e-5


def test_the_norms_epsilon_is_1e5_everywhere():
    norms = [module for module in QueryTransformer(8, 8, 2, 2, 2, 8).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 6
    assert {norm.eps for norm in norms} == {1e-5}


def sizes_of(inner, blocks):
    """Parameters of each part at CLIP ViT-L/14 and LLaMA-7B's width; nothing is allocated."""
    projection = QueryTransformer(768, inner, 10, blocks, 16, 4096, device="meta")
    assert all(parameter.is_meta for parameter in projection.parameters())
    sizes = dict.fromkeys(("narrow", "narrow_norm", "queries", "blocks", "widen", "widen_norm"), 0)
    for name, parameter in projection.named_parameters():
        sizes[name.split(".")[0]] += parameter.numel()
    return sizes


def test_the_released_v2_has_the_official_counts_part_by_part():
    assert sizes_of(inner=768, blocks=8) == {
        "narrow": 590_592,
        "narrow_norm": 1_536,
        "queries": 7_680,
        "blocks": 56_702_976,
        "widen": 3_149_824,
        "widen_norm": 8_192,
    }


def test_the_v1_caption_model_has_8814080():
    assert sum(sizes_of(inner=512, blocks=2).values()) == 8_814_080


def test_queries_are_drawn_like_an_embedding_and_norms_start_as_identity():
    projection = QueryTransformer(8, 64, 200, 1, 2, 8)
    with torch.no_grad():
        for norm in (projection.narrow_norm, projection.widen_norm):
            assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.bias.any()
    draw(projection, torch.Generator().manual_seed(0))
    assert abs(projection.queries.mean()) < 0.05 and abs(projection.queries.std() - 1) < 0.05
    for norm in (projection.narrow_norm, projection.widen_norm):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.bias.any()
