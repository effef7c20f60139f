"""Comparison runs and variants follow from the settings of the run that they belong to."""

from __future__ import annotations

import pytest

from mmadapter.config import comparison_conf, variant_conf
from mmadapter.errors import InputError
from tests.config.composing import run_conf


def test_the_text_only_comparison_has_no_picture_and_no_visual_parameter():
    whole = run_conf()
    text = comparison_conf(whole, "text_only")
    assert not text.vision.enabled
    assert list(text.data.sources) == ["questions"] and not text.data.sources["questions"].images
    assert text.adapter.groups["adapter"].roles == ["prompt", "gate"] and list(text.adapter.methods) == ["prompts"]
    assert text.evaluate == ["scienceqa"] and not text.tasks["scienceqa"].images
    assert text.comparison == {} and text.optimizer == whole.optimizer


def test_deriving_leaves_the_whole_run_as_it_was():
    whole = run_conf()
    comparison_conf(whole, "text_only")
    assert whole == run_conf()


def test_a_group_forgets_the_sources_that_a_comparison_leaves_out():
    whole = run_conf()
    whole.adapter.groups["adapter"].sources = ["questions", "captions"]
    assert comparison_conf(whole, "text_only").adapter.groups["adapter"].sources == ["questions"]


def test_a_variant_is_the_run_with_its_overrides():
    whole = run_conf("experiment=ablation_init")
    joint = variant_conf(whole, "joint")
    assert joint.adapter.methods["prompts"].attention == "joint"
    assert joint.adapter.groups["adapter"].roles == ["prompt"]
    assert variant_conf(whole, "zero_init").adapter == whole.adapter
    assert joint.variants == {} and joint.optimizer == whole.optimizer


WRONG = [("adapter.prompts.layers=x", "adapter.prompts.layers"), ("adapter.depth=3", "adapter.depth")]


@pytest.mark.parametrize("override,told", WRONG)
def test_a_wrong_override_is_told_with_the_variant(override, told):
    whole = run_conf("experiment=ablation_layers")
    whole.variants["wrong"] = [override]
    with pytest.raises(InputError, match=rf"variants.wrong.*{told}"):
        variant_conf(whole, "wrong")


def test_a_variant_takes_entries_with_names_away():
    whole = run_conf("experiment=ablation_layers")
    whole.variants["text"] = ["~data.sources.captions", "~adapter.groups.images", "vision.enabled=false"]
    text = variant_conf(whole, "text")
    assert list(text.data.sources) == ["questions"] and list(text.adapter.groups) == ["adapter"]
    assert "captions" in whole.data.sources


@pytest.mark.parametrize(
    "key,told", [("data.sources.pictures", "questions, captions"), ("adapter.prompts.layers", "no name")]
)
def test_what_cannot_be_taken_away_is_told(key, told):
    whole = run_conf("experiment=ablation_layers")
    whole.variants["wrong"] = [f"~{key}"]
    with pytest.raises(InputError, match=rf"variants.wrong: ~{key}.*{told}"):
        variant_conf(whole, "wrong")


def test_a_variant_starts_from_an_earlier_one(tmp_path):
    whole = run_conf("experiment=ablation_layers")
    whole.variants = {"base": [], "arm": ["adapter.start=variant:base"]}
    assert variant_conf(whole, "arm", tmp_path).adapter.start == str(tmp_path / "variants" / "base")
    assert variant_conf(whole, "arm").adapter.start is None  # only to be checked: there is no folder yet
    whole.variants = dict(reversed(whole.variants.items()))
    with pytest.raises(InputError, match="variants.arm: adapter.start=variant:base is no variant before this one"):
        variant_conf(whole, "arm")


def test_the_name_of_an_earlier_variant_stands_for_its_overrides():
    whole = run_conf("experiment=ablation_layers")
    whole.variants = {
        "text": ["~data.sources.captions", "seed=3", "adapter.prompts.layers=2"],
        "more": ["text", "seed=4"],
    }
    whole.variants["most"] = ["more", "adapter.prompts.layers=3"]
    most = variant_conf(whole, "most")
    assert (list(most.data.sources), most.seed, most.adapter.methods["prompts"].layers) == (["questions"], 4, 3)
    assert variant_conf(whole, "more").adapter.methods["prompts"].layers == 2
    whole.variants["circle"] = ["circle"]
    with pytest.raises(InputError, match="variants.circle: circle is no variant before this one"):
        variant_conf(whole, "circle")
