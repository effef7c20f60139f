"""Features of every token: what the official V2 code takes from CLIP, from towers of either library."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from mmadapter.vision.open_clip import OpenClipEncoder
from mmadapter.vision.settings import OpenClipSettings
from tests.models import random_encoder
from tests.vision.towers import encoder_on, pixels, transformers_clip


def norm(x, weights, name):
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def attended(x, weights, name, heads):
    rows, length, width = x.shape
    projected = x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]
    query, key, value = (part.view(rows, length, heads, -1).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    scores = query @ key.mT / (width // heads) ** 0.5
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, width)
    return mixed @ weights[f"{name}.out_proj.weight"].T + weights[f"{name}.out_proj.bias"]


def official_tokens(weights, images, patch, heads, blocks):
    """(images, tokens, channels) after the official code's steps, from the weights alone."""
    cut = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (images, 3, down, across, patch, patch)
    patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) @ weights["conv1.weight"].flatten(1).T
    first = weights["class_embedding"].expand(len(images), 1, -1)
    x = torch.cat([first, patches], dim=1) + weights["positional_embedding"]
    x = norm(x, weights, "ln_pre")
    for index in range(blocks):
        name = f"transformer.resblocks.{index}"
        x = x + attended(norm(x, weights, f"{name}.ln_1"), weights, f"{name}.attn", heads)
        inner = norm(x, weights, f"{name}.ln_2") @ weights[f"{name}.mlp.c_fc.weight"].T
        inner = gelu(inner + weights[f"{name}.mlp.c_fc.bias"])
        x = x + inner @ weights[f"{name}.mlp.c_proj.weight"].T + weights[f"{name}.mlp.c_proj.bias"]
    return norm(x, weights, "ln_post") @ weights["proj"]


def test_the_last_block_gives_what_the_official_code_computes():
    tower = random_encoder().tower
    encoder = encoder_on(tower, [2], tokens="all")
    expected = official_tokens(tower.state_dict(), pixels(), patch=16, heads=2, blocks=3)
    assert encoder.encode(pixels()).shape == expected.shape == (2, 5, 16)
    assert torch.allclose(encoder.encode(pixels()), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_transformers_folder_gives_its_own_tokens(small_models, tmp_path, activation):
    model = transformers_clip(activation)
    model.save_pretrained(tmp_path / "clip")
    encoder = OpenClipEncoder(
        OpenClipSettings(model="small", pretrained=str(tmp_path / "clip"), layers=[2], tokens="all")
    )
    with torch.no_grad():
        last = model.vision_model(pixel_values=pixels()).last_hidden_state
        expected = model.visual_projection(model.vision_model.post_layernorm(last))
    assert torch.allclose(encoder.encode(pixels()), expected, atol=1e-5)


@pytest.mark.parametrize("project_scales", [True, False])
def test_scales_are_joined_along_the_channels_in_the_order_asked_for(project_scales):
    tower = random_encoder().tower
    both = encoder_on(tower, [2, 0], project_scales=project_scales, tokens="all").encode(pixels())
    each = [
        encoder_on(tower, [layer], project_scales=project_scales, tokens="all").encode(pixels()) for layer in (2, 0)
    ]
    assert torch.equal(both, torch.cat(each, dim=-1))


@pytest.mark.parametrize("project_scales", [True, False])
def test_the_first_token_is_the_class_token(project_scales):
    tower = random_encoder().tower
    everything = encoder_on(tower, [1, 2], project_scales=project_scales, tokens="all")
    only = encoder_on(tower, [1, 2], project_scales=project_scales)
    assert torch.equal(everything.encode(pixels())[:, 0], only.encode(pixels()))
    width = 32 if project_scales else 64
    assert everything.feature_shape == (5, width) and only.feature_shape == (width,)


def test_the_digest_tells_the_two_settings_apart():
    tower = random_encoder().tower
    digests = {encoder_on(tower, [1, 2], tokens=tokens).digest() for tokens in ("class", "all")}
    assert len(digests) == 2
    assert encoder_on(tower, [1, 2], tokens="all").digest() in digests
