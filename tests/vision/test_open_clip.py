"""Frozen features: multi-scale, right activation whatever the weights come from."""

import json

import pytest
import torch
from PIL import Image

from mmadapter.errors import InputError
from mmadapter.vision.open_clip import OpenClipEncoder, _is_torchscript, load_tower
from mmadapter.vision.settings import OpenClipSettings
from tests.models import random_encoder
from tests.vision.towers import encoder_on, pixels, transformers_clip


def loaded(model, pretrained, quick_gelu=None):
    return load_tower(OpenClipSettings(model=model, pretrained=pretrained, layers=[1], quick_gelu=quick_gelu))


def test_the_last_scale_is_clips_own_embedding():
    encoder = random_encoder()
    whole = encoder.encode(pixels())
    assert whole.shape == (2, 32)
    assert torch.allclose(whole[:, 16:], encoder.tower(pixels()), atol=1e-5)
    assert not torch.allclose(whole[:, :16], whole[:, 16:], atol=1e-2)


def test_raw_scales_are_the_class_tokens():
    encoder = random_encoder()
    raw = encoder_on(encoder.tower, [2], project_scales=False)
    assert raw.feature_shape == (32,)
    projected = encoder.tower.ln_post(raw.encode(pixels())) @ encoder.tower.proj
    assert torch.allclose(projected, encoder.tower(pixels()), atol=1e-5)


def test_scales_come_in_the_order_asked_for():
    encoder = random_encoder()
    turned = encoder_on(encoder.tower, [2, 1])
    assert torch.equal(turned.encode(pixels()), encoder.encode(pixels()).roll(16, dims=-1))


def test_bgr_swaps_the_channels_of_the_picture():
    encoder = random_encoder()
    swapped, plain = encoder_on(encoder.tower, [1, 2], channel_order="bgr").preparation(), encoder.preparation()
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    assert torch.equal(swapped(red), plain(blue))
    assert not torch.equal(swapped(red), plain(red))


def test_a_file_that_does_not_say_its_activation_is_refused_until_the_user_does(small_models, tmp_path):
    torch.save(small_models.state_dict(), tmp_path / "weights.pt")
    file = str(tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"QuickGELU.*vision\.model=small-quickgelu"):
        loaded("small", file)
    expected = small_models.eval().encode_image(pixels())
    by_name = loaded("small-quickgelu", file)
    by_switch = loaded("small", file, quick_gelu=True)
    plain = loaded("small", file, quick_gelu=False)
    assert torch.allclose(by_name(pixels()), expected, atol=1e-5)
    assert torch.allclose(by_switch(pixels()), expected, atol=1e-5)
    assert not torch.allclose(plain(pixels()), expected, atol=1e-3)


def test_a_torchscript_file_is_openais_and_gets_quickgelu(small_models, tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "openai.pt"))
    torch.save(small_models.state_dict(), tmp_path / "weights.pt")
    assert _is_torchscript(tmp_path / "openai.pt")
    assert not _is_torchscript(tmp_path / "weights.pt")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_transformers_folder_gives_its_own_features(small_models, tmp_path, activation):
    model = transformers_clip(activation)
    model.save_pretrained(tmp_path / "clip")
    tower = loaded("small", str(tmp_path / "clip"))
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels()).pooler_output)
        assert torch.allclose(tower(pixels()), expected, atol=1e-5)
    wrong = activation == "gelu"
    with pytest.raises(InputError, match=f"hidden_act={activation}"):
        loaded("small", str(tmp_path / "clip"), quick_gelu=wrong)


def test_openais_tags_are_known_to_need_quickgelu_even_under_the_plain_name():
    with pytest.raises(InputError, match=r"vision\.quick_gelu=false.*needs True"):
        loaded("ViT-B-32", "openai", quick_gelu=False)


def test_an_open_clip_folder_is_read_as_it_is(small_models, tmp_path):
    from safetensors.torch import save_file

    from tests.models import _CLIP

    save_file(small_models.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**_CLIP, "quick_gelu": True}}))
    tower = loaded(str(tmp_path), None)
    assert torch.allclose(tower(pixels()), small_models.eval().encode_image(pixels()), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        (None, None, r"vision\.model is not set"),
        ("ViT-B-32", None, r"vision\.pretrained is not set"),
        ("ViT-B-33", "openai", "no such model. Near: .*ViT-B-32"),
        ("ViTamin-S", "datacomp1b", "not a ViT of open_clip's own"),
        ("ViT-B-32", "opnai", "Tags: openai"),
    ],
)
def test_wrong_names_are_refused_with_what_there_is(model, pretrained, message):
    with pytest.raises(InputError, match=message):
        loaded(model, pretrained)


def test_damaged_weights_are_refused_by_file(small_models, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"weights\.pt cannot be loaded"):
        loaded("small-quickgelu", str(tmp_path / "weights.pt"))


def test_the_digest_is_what_cards_of_older_versions_hold():
    encoder = OpenClipEncoder(OpenClipSettings(model="tiny", layers=[1, 2, 3]))
    assert encoder.digest() == "0eea39784ade4d13"
    assert encoder.identity() == {
        "layers": [1, 2, 3], "project_scales": True, "channel_order": "rgb", "features": 384,
        "encoder_digest": "0eea39784ade4d13",
    }  # fmt: skip
