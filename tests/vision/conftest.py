"""What the tests of this folder share: a small CLIP that open_clip knows by name."""

import open_clip
import pytest
import torch


@pytest.fixture
def small_models(monkeypatch):
    """open_clip knows `small` and `small-quickgelu`, as it knows ViT-B-32 and ViT-B-32-quickgelu."""
    from open_clip import factory

    from tests.assistants import _CLIP

    known = {**factory._MODEL_CONFIGS, "small": _CLIP, "small-quickgelu": {**_CLIP, "quick_gelu": True}}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", known)
    torch.manual_seed(0)
    return open_clip.CLIP(**_CLIP, quick_gelu=True)
