"""What the tests of this folder share: a small CLIP that open_clip knows by name."""

import json

import open_clip
import pytest
import torch


@pytest.fixture
def small_models(monkeypatch, tmp_path):
    """open_clip knows `small` and `small-quickgelu`, as it knows ViT-B-32 and ViT-B-32-quickgelu."""
    from mmadapter.vision import open_clip as ours
    from mmadapter.vision import settings
    from tests.models import _CLIP

    known = settings.open_clip_files()
    for name, config in (("small", _CLIP), ("small-quickgelu", {**_CLIP, "quick_gelu": True})):
        known[name] = tmp_path / f"{name}.json"
        known[name].write_text(json.dumps(config))
    for module in (settings, ours):
        monkeypatch.setattr(module, "open_clip_files", lambda: known)
    torch.manual_seed(0)
    return open_clip.CLIP(**_CLIP, quick_gelu=True)
