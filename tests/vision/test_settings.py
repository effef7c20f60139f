"""What the settings of an encoder tell without torch: sizes, and every contradiction at once."""

import json
import subprocess
import sys

import pytest

from mmadapter.settings import problems_of
from mmadapter.vision.open_clip import OpenClipEncoder
from mmadapter.vision.settings import OpenClipSettings
from tests.models import _CLIP


def problems(**settings):
    return "\n".join(problems_of(OpenClipSettings(**settings), "vision"))


def test_the_sizes_of_a_tower_are_known_without_loading_it(tmp_path):
    large = {"model": "ViT-L-14-quickgelu", "layers": [3, 7, 11, 15, 19, 23]}
    assert OpenClipSettings(**large).feature_shape() == (4608,)
    assert OpenClipSettings(**{**large, "layers": [23]}, tokens="all").feature_shape() == (257, 768)
    raw = OpenClipSettings(model="ViT-L-14-336", layers=[1, 2], tokens="all", project_scales=False)
    assert raw.feature_shape() == (577, 2048)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": _CLIP}))
    own = OpenClipSettings(model=str(tmp_path), layers=[0, 2])
    assert own.feature_shape() == (32,)


@pytest.mark.parametrize("settings", [{}, {"tokens": "all"}, {"project_scales": False}])
def test_a_loaded_encoder_has_the_sizes_that_its_settings_told(settings):
    told = OpenClipSettings(model="tiny", layers=[1, 3], **settings)
    assert OpenClipEncoder(told).feature_shape == told.feature_shape()


def test_contradictions_are_told_at_once():
    told = problems(model="ViT-L-14", layers=[3, 24, 24])
    assert "vision.layers=[3, 24, 24] names a block twice." in told
    assert "vision.layers=[3, 24, 24]: ViT-L-14 has no block 24, 24; they count 0 to 23." in told
    assert "vision.layers is empty" in problems(model="tiny")
    assert "vision.model is not set" in problems(layers=[1])
    assert "open_clip has no such model. Near: ViT-L-16, ViT-L-14" in problems(model="ViT-L-15", layers=[1])
    assert "is not a ViT of open_clip's own" in problems(model="RN50", layers=[1])


def test_values_outside_of_a_choice_are_refused():
    assert problems(model="tiny", layers=[1], tokens="patches") == "vision.tokens=patches: allowed are class, all."
    assert "vision.channel_order=gbr: allowed are rgb, bgr." in problems(model="tiny", layers=[1], channel_order="gbr")


def test_text_only_needs_nothing():
    settings = OpenClipSettings(enabled=False)
    assert list(problems_of(settings, "vision")) == list(settings.missing_weights("vision")) == []


def test_missing_weights_are_a_matter_of_their_own(tmp_path):
    """A dry run needs none."""
    told = OpenClipSettings(model="ViT-L-14", layers=[1])
    assert list(problems_of(told, "vision")) == []
    assert "vision.pretrained=openai" in next(told.missing_weights("vision"))
    told.pretrained = "/no/such.pt"
    assert list(told.missing_weights("vision")) == ["vision.pretrained=/no/such.pt: no such file or folder."]
    (tmp_path / "is.pt").touch()
    for pretrained in ("openai", str(tmp_path / "is.pt")):
        told.pretrained = pretrained
        assert list(told.missing_weights("vision")) == []


def test_settings_load_no_torch():
    code = (
        "import sys; from mmadapter.vision import ENCODERS; s = ENCODERS.settings('open_clip'); "
        "s(model='ViT-L-14', layers=[1]).feature_shape(); "
        "print([name for name in ('torch', 'open_clip', 'PIL', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
