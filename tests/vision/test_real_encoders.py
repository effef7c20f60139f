"""The two encoders of the package index, as `mmadapter pretrained` writes them: features, classes of photographs."""

import json
import re

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from mmadapter.interop.pretrained_vision import check_dinov2_small, check_efficientnet_lite0, drawn_clock
from mmadapter.vision.timm import TimmEncoder
from tests.config.composing import run_conf

pytestmark = pytest.mark.real


def test_what_was_written_passes_its_check(prepared):
    assert "drawn clock" in check_dinov2_small(prepared("dinov2_small"))
    assert "'analog clock'" in check_efficientnet_lite0(prepared("efficientnet_lite0"))


def test_dinov2s_features_are_timms_own(prepared):
    """The group's four blocks, of which the last passes timm's whole forward, and all tokens of that one."""
    folder = prepared("dinov2_small")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=224).eval()
    few, every = (TimmEncoder(run_conf(f"vision={group}").vision) for group in ("dinov2_small", "dinov2_small_tokens"))
    pixels = few.preparation()(drawn_clock())[None]
    feature, tokens = few.encode_one(pixels[0]), every.encode_one(pixels[0])
    with torch.no_grad():
        assert torch.allclose(feature[-384:], model(pixels)[0], atol=1e-5)
        assert torch.allclose(tokens, model.forward_features(pixels)[0], atol=1e-5)
        kept = {}
        for at in (2, 5, 8):
            model.blocks[at].register_forward_hook(lambda _, __, output, at=at: kept.update({at: output}))
        model(pixels)
        assert torch.allclose(feature[:-384], torch.cat([model.norm(kept[at])[0, 0] for at in (2, 5, 8)]), atol=1e-5)
    assert feature.shape == (1536,) and tokens.shape == (257, 384)


# a class that EfficientNet gives -> a word of the captions of such a photograph
SEEN = {
    "dining table": "table",
    "Indian elephant": "elephant",
    "airliner": "jet|plane",
    "goldfinch": "bird",
    "passenger car": "train",
    "desk": "desk|office|computer",
    "street sign": "sign",
    "giant panda": "panda",
    "trolleybus": "bus",
    "tray": "table|tray",
    "washbasin": "sink",
    "scoreboard": "pitch|baseball",
    "Leonberg": "dog",
    "plate": "plate",
}


@pytest.mark.reference_data
def test_efficientnet_sees_what_captions_say(prepared, reference_data):
    """Of the photographs whose class has half of the probability or more, nearly all are captioned so."""
    model = timm.create_model(f"local-dir:{prepared('efficientnet_lite0')}", pretrained=True).eval()
    prepare, names = create_transform(**resolve_model_data_config(model)), ImageNetInfo()
    content = json.loads((reference_data / "coco_mini/annotations/captions_train2017.json").read_text())
    captions: dict[int, str] = {}
    for one in content["annotations"]:
        captions[one["image_id"]] = f"{captions.get(one['image_id'], '')} {one['caption'].lower()}"
    right, wrong = [], []
    for file in sorted((reference_data / "coco_mini/train2017").glob("*.jpg")):
        with torch.no_grad():
            probability, number = model(prepare(Image.open(file).convert("RGB"))[None]).softmax(-1)[0].max(-1)
        name = names.index_to_description(int(number)).partition(",")[0]
        if probability >= 0.5:
            seen = re.search(SEEN.get(name, name), captions[int(file.stem)])
            (right if seen else wrong).append((file.name, name))
    assert len(right) >= 12 and len(wrong) <= 1, (right, wrong)
