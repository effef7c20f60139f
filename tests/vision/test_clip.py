"""Frozen features: multi-scale, right activation whatever the weights come from."""

import json

import pytest
import torch
from PIL import Image

from mmadapter.errors import InputError
from mmadapter.vision.clip import ImageEncoder
from mmadapter.vision.load_clip import load_visual_tower, tower_shape
from tests.assistants import random_encoder
from tests.vision.towers import pixels, transformers_clip


def test_the_last_scale_is_clips_own_embedding():
    encoder = random_encoder()
    whole = encoder(pixels())
    assert whole.shape == (2, 32)
    assert torch.allclose(whole[:, 16:], encoder.tower(pixels()), atol=1e-5)
    assert not torch.allclose(whole[:, :16], whole[:, 16:], atol=1e-2)


def test_raw_scales_are_the_class_tokens():
    encoder = random_encoder()
    raw = ImageEncoder(encoder.tower, [2], project_scales=False)
    assert raw.width == 32
    projected = encoder.tower.ln_post(raw(pixels())) @ encoder.tower.proj
    assert torch.allclose(projected, encoder.tower(pixels()), atol=1e-5)


def test_scales_come_in_the_order_asked_for():
    encoder = random_encoder()
    turned = ImageEncoder(encoder.tower, [2, 1])
    assert torch.equal(turned(pixels()), encoder(pixels()).roll(16, dims=-1))


def test_bgr_swaps_the_channels_of_the_picture():
    encoder = random_encoder()
    swapped = ImageEncoder(encoder.tower, [1, 2], channel_order="bgr")
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    assert torch.equal(swapped.pixels(red), encoder.pixels(blue))
    assert not torch.equal(swapped.pixels(red), encoder.pixels(red))


def test_a_layer_outside_the_tower_is_refused():
    with pytest.raises(InputError, match="blocks 0 to 2"):
        ImageEncoder(random_encoder().tower, [3])


def test_a_file_that_does_not_say_its_activation_is_refused_until_the_user_does(small_models, tmp_path):
    torch.save(small_models.state_dict(), tmp_path / "weights.pt")
    file = str(tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"QuickGELU.*vision\.model=small-quickgelu"):
        load_visual_tower("small", file)
    expected = small_models.eval().encode_image(pixels())
    by_name = load_visual_tower("small-quickgelu", file)
    by_switch = load_visual_tower("small", file, quick_gelu=True)
    plain = load_visual_tower("small", file, quick_gelu=False)
    assert torch.allclose(by_name(pixels()), expected, atol=1e-5)
    assert torch.allclose(by_switch(pixels()), expected, atol=1e-5)
    assert not torch.allclose(plain(pixels()), expected, atol=1e-3)


def test_a_torchscript_file_is_openais_and_gets_quickgelu(small_models, tmp_path):
    from mmadapter.vision.load_clip import _is_torchscript

    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "openai.pt"))
    torch.save(small_models.state_dict(), tmp_path / "weights.pt")
    assert _is_torchscript(tmp_path / "openai.pt")
    assert not _is_torchscript(tmp_path / "weights.pt")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_transformers_folder_gives_its_own_features(small_models, tmp_path, activation):
    model = transformers_clip(activation)
    model.save_pretrained(tmp_path / "clip")
    tower = load_visual_tower("small", str(tmp_path / "clip"))
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels()).pooler_output)
        assert torch.allclose(tower(pixels()), expected, atol=1e-5)
    wrong = activation == "gelu"
    with pytest.raises(InputError, match=f"hidden_act={activation}"):
        load_visual_tower("small", str(tmp_path / "clip"), quick_gelu=wrong)


def test_openais_tags_are_known_to_need_quickgelu_even_under_the_plain_name():
    with pytest.raises(InputError, match=r"vision\.quick_gelu=false.*needs True"):
        load_visual_tower("ViT-B-32", "openai", quick_gelu=False)


def test_an_open_clip_folder_is_read_as_it_is(small_models, tmp_path):
    from safetensors.torch import save_file

    from tests.assistants import _CLIP

    save_file(small_models.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**_CLIP, "quick_gelu": True}}))
    tower = load_visual_tower(str(tmp_path), None)
    assert torch.allclose(tower(pixels()), small_models.eval().encode_image(pixels()), atol=1e-5)
    assert tower_shape(str(tmp_path), True) == (3, 16, 5)
    assert tower_shape(str(tmp_path), False) == (3, 32, 5)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        (None, None, r"vision\.model is not set"),
        ("ViT-B-32", None, r"vision\.pretrained is not set"),
        ("ViT-B-33", "openai", "no such model. Near: .*ViT-B-32"),
        ("ViT-B-32", "opnai", "Tags: openai"),
    ],
)
def test_wrong_names_are_refused_with_what_there_is(model, pretrained, message):
    with pytest.raises(InputError, match=message):
        load_visual_tower(model, pretrained)


def test_damaged_weights_are_refused_by_file(small_models, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"weights\.pt cannot be loaded"):
        load_visual_tower("small-quickgelu", str(tmp_path / "weights.pt"))
