"""What `mmadapter settings` says: every setting and option has a meaning, and docs/settings.md is what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mmadapter.config import CONF, EvalConf, RunConf
from mmadapter.errors import InputError
from mmadapter.settings import number, plain
from mmadapter.settings_reference import explained, first_sentence, groups, main, page, sections

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
ALL = [one for schema in (RunConf, EvalConf) for section in sections(schema) for one in section.settings]


@dataclass
class Commented:
    beside: int = number(1, at_least=1)  # said beside it
    # said above it,
    # in two lines
    above: str | None = plain(None)

    # about the class, not the next field

    silent: bool = False


@dataclass
class Derived(Commented):
    beside: int = 2


def test_the_page_is_what_the_command_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "mmadapter settings --markdown > docs/settings.md"


def test_every_setting_has_a_meaning():
    assert not [one.key for one in ALL if not one.meaning]


def test_every_part_says_what_it_is():
    parts = {one.key.partition(".")[0]: one.about for one in reversed([*sections(RunConf), *sections(EvalConf)])}
    assert not [key for key, about in parts.items() if not about]


def test_every_option_of_a_group_has_a_line_without_a_command():
    options = {f"{group}={name}": text for group, found in groups().items() for name, text in found.items()}
    assert not [name for name, text in options.items() if not 8 <= len(text) <= 250 or "mmadapter train " in text]
    assert set(groups()["host"]) == {file.stem for file in (CONF / "host").glob("*.yaml")}


def test_a_meaning_is_the_comment_beside_or_above_the_field():
    found = {one.key: (one.meaning, one.allowed, one.default) for one in next(sections(Commented, "part")).settings}
    assert found == {
        "part.beside": ("said beside it", "whole number, at least 1", "1"),
        "part.above": ("said above it, in two lines", "text, or null", "null"),
        "part.silent": ("", "true, false", "false"),
    }


def test_a_field_with_another_default_keeps_its_meaning():
    one = next(sections(Derived)).settings[0]
    assert (one.meaning, one.allowed, one.default) == ("said beside it", "whole number", "2")


def test_settings_of_every_component_are_there():
    keys = {one.key for one in ALL}
    assert {"adapter.lora.rank", "data.sources.NAME.columns.question", "tasks.NAME.generation.beams"} <= keys
    assert {"optimizer.lr", "vision.image_size", "engine.gathered_parameters", "predictions", "host.path"} <= keys


def test_a_name_of_ones_own_stands_for_any_name():
    assert "data.sources.NAME.val_size=200" in explained("data.sources.alpaca.val_size")


def test_a_group_shows_its_options_and_its_settings(capsys):
    main(["host"])
    said = capsys.readouterr().out
    assert "host=smollm2\n      SmolLM2-135M-Instruct" in said and "host.max_tokens=512\n" in said


def test_a_misspelt_key_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"There is no setting 'optimizer.batchsize'. Did you mean optimizer.batch_"):
        explained("optimizer.batchsize")


def test_the_first_sentence_leaves_commands_out(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("# @package _global_\n# V2 on captions: mmadapter train experiment=joint\nkey: 1\n")
    assert first_sentence(file) == "V2 on captions"
    file.write_text("# V2 on captions and\n# instructions. More.\nkey: 1\n")
    assert first_sentence(file) == "V2 on captions and instructions"
