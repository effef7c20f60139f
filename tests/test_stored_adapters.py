"""Adapter folders that version 0.2 wrote, with what they computed then: every later version computes the same.

Host and CLIP tower are a formula (tests/formula_models.py), so nothing of this depends on models that ship.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.formula_models import METHODS, QUESTION, STORED, computed, loaded, picture, write_models

TOLERANCE = 2e-4  # of logits up to 20 in float32: other orders of sums on another CPU, or in another version of torch


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("formula"))


@pytest.mark.parametrize("name", METHODS)
def test_a_stored_adapter_computes_what_it_did(name, models, caplog):
    expected, model = load_file(STORED / f"{name}.safetensors"), loaded(name, models)
    found = computed(model)
    assert found.keys() == expected.keys() == {"logits", "loss"}
    for what, numbers in expected.items():
        assert numbers.isfinite().all() and (found[what] - numbers).abs().max() < TOLERANCE, what
    card = json.loads((STORED / name / "adapter.json").read_text())
    assert card["format"] == 2 and len(card["host"]["weights_digest"]) == 16
    assert caplog.text == "", "the host is known by its weights"
    if name != "lora":
        assert (expected["logits"][0] - model.logits(torch.tensor([[1, 5, 9, 14, 20, 7]]))).abs().max() > 0.01
        assert model.generate(QUESTION, picture(), max_new_tokens=4)


def test_the_formula_gives_the_same_numbers_everywhere(models):
    """Also where numpy or zlib differ: these three were noted when the fixture was made."""
    tensors = load_file(models / "host" / "model.safetensors")
    found = [tensors[name].flatten()[5].item() for name in ("model.norm.weight", "lm_head.weight")]
    assert found == pytest.approx(NOTED, abs=1e-7)


NOTED = [0.9232751727104187, -0.518091082572937]
