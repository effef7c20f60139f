"""Every misspelt key is refused by name, with the name that was meant."""

from __future__ import annotations

import sys

import pytest
from hydra.errors import HydraException

from mmadapter import cli
from mmadapter.cli import composition_message
from mmadapter.config import EvalConf, RunConf, load_run_config, typed
from mmadapter.errors import InputError
from mmadapter.settings import known_keys, nearest, unknown_keys
from tests.config.composing import CONF, composed, eval_conf, run_conf

# what is typed -> what is meant
TYPOS = {
    "optimizer.epoch": "optimizer.epochs",
    "optimizer.batchsize": "optimizer.batch_size",
    "optimizer.baselr": "optimizer.base_lr",
    "optimiser.epochs": "optimizer.epochs",
    "adapter.prompts.layer": "adapter.prompts.layers",
    "adapter.promts.length": "adapter.prompts",
    "adapter.groups.adapter.role": "adapter.groups.adapter.roles",
    "host.pth": "host.path",
    "host.attn": "host.attention",
    "vision.enable": "vision.enabled",
    "vision.pretraned": "vision.pretrained",
    "data.rot": "data.root",
    "data.source.questions.limit": "data.sources.questions.limit",
    "data.sources.question.limit": "data.sources.questions.limit",
    "data.sources.questions.limt": "data.sources.questions.limit",
    "training.save_every_step": "training.save_every_steps",
    "engine.nam": "engine.name",
    "tasks.scienceqa.generation.beam": "tasks.scienceqa.generation.beams",
    "tasks.sciencqa.limit": "tasks.scienceqa.limit",
    "sed": "seed",
    "epochs": "optimizer.epochs",
    "comparison.text_only.image": "comparison.text_only.images",
}
NEW_ENTRIES = ["data.sources.question.limit", "tasks.sciencqa.limit"]  # with +, Hydra takes them for new entries


@pytest.mark.parametrize("typed_key,meant", TYPOS.items())
def test_a_misspelt_key_is_refused_and_the_right_one_named(typed_key, meant):
    with pytest.raises(Exception) as refused:
        run_conf(f"{typed_key}=1")
    message = composition_message(refused.value, RunConf)
    wrong_part = next(part for part in _prefixes(typed_key) if part not in _prefixes(meant))
    assert f"There is no setting {wrong_part!r}" in message
    assert any(f"{part}?" in message or f"{part} or" in message for part in _prefixes(meant)), message


def test_no_misspelt_key_slips_past_the_check_behind_a_plus_sign():
    typos = {key: meant for key, meant in TYPOS.items() if key not in NEW_ENTRIES}
    with pytest.raises(InputError) as refused:
        typed(composed("train", *(f"+{key}=1" for key in typos)), RunConf)
    for key, meant in typos.items():
        wrong_part = next(part for part in _prefixes(key) if part not in _prefixes(meant))
        assert f"There is no setting {wrong_part!r}" in str(refused.value)


@pytest.mark.parametrize("word", ["comparison.hosst.train=false", "variants.first=[]"])
def test_a_new_comparison_or_variant_needs_a_plus_sign(word):
    with pytest.raises(HydraException) as refused:
        run_conf(word)
    name = word.partition("=")[0].removesuffix(".train")
    message = composition_message(refused.value, RunConf)
    assert f"There is no setting {name!r}" in message
    assert "comparison.host?" in message or name == "variants.first"
    conf = run_conf(f"+{word}")
    assert "hosst" in conf.comparison or conf.variants == {"first": []}


@pytest.mark.parametrize("key", NEW_ENTRIES)
def test_a_plus_sign_makes_no_new_source_or_task(key):
    with pytest.raises((HydraException, InputError)):
        run_conf(f"+{key}=1")


@pytest.mark.parametrize("group", ["host", "vision", "adapter", "data", "optimizer", "training", "engine"])
def test_a_plus_key_is_refused_in_every_group(group):
    with pytest.raises(InputError, match=rf"There is no setting '{group}\.made_up'"):
        run_conf(f"+{group}.made_up=1")


def test_eval_refuses_misspelt_keys_too():
    with pytest.raises(InputError, match="task.made_up"):
        eval_conf("+task.made_up=1")
    with pytest.raises(Exception) as refused:
        eval_conf("task.limt=1")
    assert "task.limit?" in composition_message(refused.value, EvalConf)


def test_a_misspelt_choice_names_the_choices():
    with pytest.raises(Exception) as refused:
        composed("train", "experiment=scienseqa")
    message = composition_message(refused.value, RunConf)
    assert "experiment=scienceqa?" in message and "quickstart" in message


def test_a_wrong_type_names_the_key():
    with pytest.raises(InputError, match="optimizer.batch_size: Value 'many'"):
        run_conf("optimizer.batch_size=many")


def test_a_misspelt_key_in_a_saved_config_names_file_and_key(tmp_path):
    (tmp_path / "config.yaml").write_text("optimizer: {epoch: 3}\n")
    with pytest.raises(InputError, match="config.yaml.*optimizer.epoch"):
        load_run_config(tmp_path)


def test_unknown_keys_are_found_in_every_depth():
    content = {"host": {"path": None, "x": 1}, "data": {"sources": {"a": {"reader": "alpaca", "y": 2}}}, "z": 3}
    assert list(unknown_keys(content, RunConf)) == ["host.x", "data.sources.a.y", "z"]


def test_nothing_is_suggested_where_nothing_is_near():
    assert nearest("quantum_flux", list(known_keys(RunConf))) == []


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


@pytest.mark.parametrize(
    "word, told",
    [
        ("adapter.prompt_length=4", "is now adapter.prompts.length"),
        ("adapter.gate=linear", "is now adapter.prompts.gate and adapter.early_fusion.gate"),
        ("vision.batch_size=3", "each picture is encoded alone"),
        ("cluster.max_num_timeout=3", "as often as it needs"),
    ],
)
def test_a_key_of_version_0_1_is_refused_with_its_new_name_or_why_it_is_gone(monkeypatch, capsys, word, told):
    monkeypatch.setattr(sys, "argv", ["train.py", word])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it
    with pytest.raises(SystemExit) as ended:
        cli.command("train", RunConf, lambda conf: pytest.fail("a run has begun"), CONF.parent / "train.py")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and told in said and word.partition("=")[0] in said
