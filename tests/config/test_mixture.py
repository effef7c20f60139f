"""How sources may share the steps: what is refused, and what the settings come to."""

from __future__ import annotations

import json

import pytest

from mmadapter.config import comparison_conf, validate, with_overrides
from mmadapter.data import settings as data_settings
from mmadapter.errors import InputError
from mmadapter.methods.settings import GroupConf
from tests.config.composing import run_conf

SHARES = ("data.sources.questions.samples_per_step=24", "data.sources.captions.samples_per_step=8")
NO_WEIGHTS = ("data.sources.questions.weight=null", "data.sources.captions.weight=null")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "max_position_embeddings": 512}))
    return run_conf(f"host.path={folder}", f"data.root={folder / 'world'}", "optimizer.micro_batch_size=8")


@pytest.fixture
def shared(sound):
    """The quick start (weights, all groups learn from all sources) with further settings."""
    return lambda *overrides: with_overrides(sound, list(overrides), "test")


@pytest.fixture
def disjoint(shared):
    """The same with groups that learn from one source each."""

    def conf(*overrides):
        settings = shared(*overrides)
        settings.adapter.groups = {
            "visual": GroupConf(roles=["visual_projection"], sources=["captions"]),
            "instruction": GroupConf(roles=["prompt", "gate"], sources=["questions"]),
        }
        return settings

    return conf


def samples_per_step(settings) -> dict[str, int] | None:
    sharing = settings.data.sources, settings.optimizer.batch_size, settings.group_sources
    return data_settings.samples_per_step(*sharing)


def refusal(settings) -> str:
    with pytest.raises(InputError) as refused:
        validate(settings)
    return str(refused.value)


def test_shared_groups_take_turns_unless_numbers_are_given(shared):
    for settings, shares in (
        (shared(), None),
        (shared(*NO_WEIGHTS), None),
        (shared(*NO_WEIGHTS, *SHARES), {"questions": 24, "captions": 8}),
    ):
        validate(settings)
        assert samples_per_step(settings) == shares


def test_disjoint_groups_get_equal_shares_or_the_given_numbers(disjoint):
    for settings, shares in (
        (disjoint(*NO_WEIGHTS), {"questions": 16, "captions": 16}),
        (disjoint(*NO_WEIGHTS, *SHARES), {"questions": 24, "captions": 8}),
    ):
        validate(settings)
        assert samples_per_step(settings) == shares


def test_weights_with_disjoint_groups_are_refused_with_the_settings_that_mend_it(disjoint):
    told = refusal(disjoint())
    assert "data.sources.questions.weight" in told and "adapter.groups.visual.sources" in told
    assert f"Remove the weights: {' '.join(NO_WEIGHTS)}" in told and "samples_per_step=N" in told


def test_weights_together_with_numbers_are_refused(shared):
    told = refusal(shared(*SHARES))
    assert "samples_per_step" in told and "weight" in told and "Set one of them to null" in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("weight=0", "weight=0.0: must be above 0"),
        ("weight=.nan", "weight=nan: must be above 0"),
        ("samples_per_step=0", "samples_per_step=0: must be at least 1"),
    ],
)
def test_a_share_is_a_number_above_nothing(shared, override, told):
    assert f"data.sources.captions.{told}" in refusal(shared(f"data.sources.captions.{override}"))


def test_weights_on_some_sources_only_are_refused(shared):
    told = refusal(shared("data.sources.captions.weight=null"))
    assert "data.sources.captions.weight is not set, but questions has one" in told


def test_numbers_on_some_sources_only_are_refused(disjoint):
    told = refusal(disjoint(*NO_WEIGHTS, SHARES[0]))
    assert "data.sources.captions.samples_per_step is not set, but questions has one" in told


def test_numbers_must_add_up_to_the_batch_that_the_rate_is_taken_from(disjoint):
    told = refusal(disjoint(*NO_WEIGHTS, *SHARES, "optimizer.batch_size=64"))
    assert "add up to 32" in told and "Set optimizer.batch_size=32" in told


def test_a_batch_that_cannot_be_shared_equally_is_refused(disjoint):
    told = refusal(disjoint(*NO_WEIGHTS, "optimizer.batch_size=9", "optimizer.micro_batch_size=9"))
    assert "cannot be shared equally by the 2 sources" in told and "Set optimizer.batch_size=8" in told


def test_a_source_that_moves_nothing_is_refused(disjoint):
    settings = disjoint(*NO_WEIGHTS)
    settings.adapter.groups["visual"].sources = ["questions"]
    assert "data.sources.captions moves no group" in refusal(settings)


def test_validation_has_no_share(shared):
    assert "validation reads all" in refusal(shared("data.validation.questions.weight=1"))


def test_micro_batches_need_not_divide_a_joint_step(shared, disjoint):
    validate(disjoint(*NO_WEIGHTS, "optimizer.micro_batch_size=5"))
    with pytest.raises(InputError, match="does not divide"):
        validate(shared("optimizer.micro_batch_size=5"))


def test_a_comparison_run_of_fewer_sources_keeps_shares_and_actual_rate(disjoint):
    settings = disjoint(*NO_WEIGHTS, "data.sources.questions.images=false")
    validate(settings)
    alone = comparison_conf(settings, "text_only")
    assert samples_per_step(alone) == {"questions": 16} and alone.optimizer.batch_size == 16
    rates = [conf.optimizer.base_lr * conf.optimizer.batch_size / 256 for conf in (settings, alone)]
    assert rates[0] == rates[1]
