"""What strangers write is shown and never obeyed: by a terminal, by a spreadsheet."""

from __future__ import annotations

import csv
import io
import logging
import sys

import pytest
from rich.console import Console

from mmadapter import cli
from mmadapter.config import RunConf
from mmadapter.errors import InputError, exit_status, printable
from mmadapter.files import read_json_lines, write_json_lines
from mmadapter.runs.sweep import read_results
from mmadapter.sweeps.results import csv_of
from mmadapter.terminal import Display, format_table
from tests.made_runs import made_sweep

EVIL = "a\x1b]52;c;YQ==\x07b\x9b2Jc\rd\x7f\x00"
SHOWN = r"a\x1b]52;c;YQ==\x07b\x9b2Jc\x0dd\x7f\x00"


def test_controls_are_written_out_and_letters_stay():
    assert printable("half \ud83d") == r"half \ud83d"
    assert printable(EVIL) == SHOWN and printable("é 日本\n\t👩‍👩‍👧 שלום") == "é 日本\n\t👩‍👩‍👧 שלום"


def test_no_display_sends_them(capsys):
    said = io.StringIO()
    display = Display(Console(file=said, width=200, force_terminal=True))
    display.say(EVIL)
    display.table("scores", ["name", "value"], [[EVIL, "1"]])
    display.report("reading", 1, 2, EVIL)
    display.close()
    assert said.getvalue().count(SHOWN) >= 2 and "\x1b]52" not in said.getvalue() and "\x9b" not in said.getvalue()
    assert SHOWN in format_table(["a"], [[EVIL]])

    def refused() -> None:
        raise InputError(EVIL)

    assert exit_status(refused) == 2 and SHOWN in capsys.readouterr().err


def test_what_a_command_warns_of_is_clean():
    record = logging.LogRecord("mmadapter", logging.WARNING, "", 0, "%s: 1", (EVIL,), None)
    assert cli._without_controls(record) and record.getMessage() == f"{SHOWN}: 1"


@pytest.mark.parametrize("word", ["~optimizer.base_lr", "~seed", "~optimizer"])
def test_a_setting_that_is_taken_away_is_refused_with_its_default(monkeypatch, capsys, word):
    monkeypatch.setattr(sys, "argv", ["train.py", word])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as ended:
        cli.command("train", RunConf, lambda conf: pytest.fail("a run has begun"))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"{word}: a setting cannot be taken away" in said and "default" in said


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    values = ("=1+1", "@SUM(A1)", "+cmd|'/c'!A1", "-0.5", "-x", "plain")
    folder = made_sweep(tmp_path, {f"note={value}": ("finished", 50.0) for value in values}, swept=["note"])
    rows = csv.DictReader(io.StringIO(csv_of(read_results(folder))))
    assert [row["note"] for row in rows] == ["'=1+1", "'@SUM(A1)", "'+cmd|'/c'!A1", "-0.5", "'-x", "plain"]


def test_half_of_a_character_is_written_as_json_writes_it_and_read_again(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [{"output": "half \ud83d", "whole": "\U0001f600"}])
    assert r"half \ud83d" in (tmp_path / "a.jsonl").read_text()
    assert read_json_lines(tmp_path / "a.jsonl") == [{"output": "half \ud83d", "whole": "\U0001f600"}]
