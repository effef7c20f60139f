"""An image encoder that is defined in a test file alone: registered, set, loaded, its features kept."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mmadapter.errors import InputError
from mmadapter.settings import chosen, number, problems_of, to_plain, typed
from mmadapter.vision import ENCODERS
from mmadapter.vision.encoder import VisionEncoder, weights_digest
from mmadapter.vision.features import FeatureStore
from mmadapter.vision.settings import OpenClipSettings, VisionSettings
from tests.models import picture


@dataclass
class GridSettings(VisionSettings):
    cells: int = number(2, at_least=1)

    def feature_shape(self):
        return (self.cells**2, 3)


def pixels_of(image):
    return (
        torch.frombuffer(bytearray(image.resize((8, 8)).tobytes()), dtype=torch.uint8).view(8, 8, 3).movedim(2, 0) / 255
    )


class GridEncoder(VisionEncoder):
    """The mean colour of each cell of a grid, scaled."""

    def __init__(self, settings: GridSettings):
        super().__init__()
        self.settings, self.feature_shape = settings, settings.feature_shape()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)

    def preparation(self):
        return pixels_of

    def encode(self, pixels):
        cells = nn.functional.adaptive_avg_pool2d(pixels, self.settings.cells)
        return cells.flatten(2).mT * self.scale

    def digest(self):
        return weights_digest(self, self.settings.cells)


@dataclass
class Settings:
    vision: VisionSettings = chosen(ENCODERS, by="encoder", default=OpenClipSettings)


@pytest.fixture(autouse=True)
def registered():
    ENCODERS.add("grid", GridSettings, GridEncoder)
    yield
    ENCODERS.remove("grid")


def test_it_is_chosen_by_its_name_and_has_keys_of_its_own():
    settings = typed(Settings, {"vision": {"encoder": "grid", "cells": 3, "cache": "features"}})
    assert settings.vision == GridSettings(encoder="grid", cells=3, cache="features")
    assert settings.vision.feature_shape() == (9, 3)
    assert typed(Settings, to_plain(settings)) == settings
    assert isinstance(typed(Settings, {"vision": {"model": "tiny"}}).vision, OpenClipSettings)
    with pytest.raises(InputError, match="vision.layers"):
        typed(Settings, {"vision": {"encoder": "grid", "layers": [1]}})
    settings.vision.cells = 0
    assert list(problems_of(settings)) == ["vision.cells=0: must be at least 1."]


@pytest.mark.parametrize("workers", [0, 2])
def test_its_features_are_kept_like_any_others(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("mmadapter.vision.reading.WORTH_A_WORKER", 1)
    settings = GridSettings(encoder="grid", cells=2)
    encoder = ENCODERS.load(settings.encoder)(settings)
    store = FeatureStore(encoder, tmp_path / "cache", workers)
    paths = [picture(tmp_path, seed) for seed in range(3)]
    store.add(paths)
    features = store.of([paths[0], None, paths[2]])
    assert features[1] is None and features[0].shape == settings.feature_shape() == encoder.feature_shape
    assert store.folder.name == encoder.digest() != GridEncoder(GridSettings(cells=3)).digest()
    assert encoder.identity() == {"features": 3, "encoder_digest": encoder.digest()}


def test_an_encoder_may_have_no_weights(tmp_path):
    class Unscaled(GridEncoder):
        def __init__(self, settings):
            super().__init__(settings)
            self.scale = None

        def encode(self, pixels):
            return nn.functional.adaptive_avg_pool2d(pixels, self.settings.cells).flatten(2).mT

    store = FeatureStore(Unscaled(GridSettings(encoder="grid")))
    assert not list(store.encoder.parameters()) and store.feature(picture(tmp_path, 1)).shape == (4, 3)
