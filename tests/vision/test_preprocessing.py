"""A folder in open_clip's layout keeps its own preparation of pictures, as open_clip itself reads it."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmadapter.errors import InputError
from mmadapter.settings import problems_of
from mmadapter.vision.open_clip import OpenClipEncoder
from mmadapter.vision.settings import OpenClipSettings
from tests.models import _CLIP


def folder_with(folder, **preprocess):
    torch.manual_seed(0)
    folder.mkdir()
    save_file(open_clip.CLIP(**_CLIP).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": _CLIP, "preprocess_cfg": preprocess}))
    return folder


def encoder_of(folder):
    return OpenClipEncoder(OpenClipSettings(model=str(folder), layers=[1, 2]))


OWN = [
    {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    {"mean": 0.5, "std": 0.5, "size": 32, "mode": "RGB"},
    {"interpolation": "bilinear"},
    {"resize_mode": "squash"},
    {"resize_mode": "longest", "fill_color": 200},
    {"resize_mode": "longest"},
]


@pytest.mark.parametrize("own", OWN)
def test_pictures_are_prepared_as_open_clip_does(tmp_path, own):
    folder = folder_with(tmp_path / "clip", **own)
    _, _, theirs = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours, plain = encoder_of(folder).preparation(), encoder_of(folder_with(tmp_path / "plain")).preparation()
    differ = False
    for shape in ((40, 100), (300, 7), (32, 32)):
        noise = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        image = Image.fromarray(noise.numpy())
        assert torch.equal(ours(image), theirs(image))
        differ |= not torch.equal(ours(image), plain(image))
    assert differ


def test_each_preparation_has_a_digest_of_its_own_and_clips_own_has_that_of_before(tmp_path):
    plain = encoder_of(folder_with(tmp_path / "plain")).digest()
    digests = {encoder_of(folder_with(tmp_path / str(number), **own)).digest() for number, own in enumerate(OWN)}
    assert len(digests) == len(OWN) and plain not in digests
    clips = {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    assert encoder_of(folder_with(tmp_path / "clips", **clips)).digest() == plain


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"mean": [0.5, 0.5]}, r"mean=\[0.5, 0.5\], allowed: a number, or one for each"),
        ({"std": "small"}, "std='small', allowed"),
        ({"resize_mode": "crop"}, "resize_mode='crop', allowed: 'shortest', 'longest', 'squash'"),
        ({"interpolation": "nearest"}, "interpolation='nearest', allowed: 'bicubic'"),
        ({"size": 64}, "size=64, but the model's image_size is 32"),
        ({"gamma": 2}, "open_clip does not know gamma"),
    ],
)
def test_what_open_clip_would_not_do_is_refused(tmp_path, own, message):
    settings = OpenClipSettings(model=str(folder_with(tmp_path / "clip", **own)), layers=[1])
    with pytest.raises(InputError, match=message):
        OpenClipEncoder(settings)
    assert message[:5] in "\n".join(problems_of(settings, "vision"))


def test_a_timm_tower_is_refused_with_the_line_to_use(tmp_path):
    folder = folder_with(tmp_path / "siglip")
    config = {"embed_dim": 8, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    told = "\n".join(problems_of(OpenClipSettings(model=str(folder), layers=[1]), "vision"))
    assert "vision=timm vision.model=test_vit" in told
    assert f"vision.pretrained={folder / 'open_clip_model.safetensors'}" in told
