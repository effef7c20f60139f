"""Bars on a terminal, quiet lines elsewhere."""

import io

import pytest
from rich.console import Console

from mmadapter import terminal as module
from mmadapter.terminal import Display, duration

RECORD = {"epoch": 0.5, "loss": 1.25, "lr": 1e-3, "tokens_per_s": 1234.0}


def make_display(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140, _environ={})
    return Display(console, log_every_steps=10), console.file


def test_without_a_terminal_a_long_training_writes_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    display, output = make_display(terminal=False)
    for step in range(1, 101):
        now[0] += 0.5
        display.training({"step": step, **RECORD}, 100, 2.0, 60.0)
    lines = output.getvalue().splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[0] == "step 1/100  epoch 0.50/2  loss 1.2500  lr 0.001  1,234 supervised tokens/s  ETA 1 min 00 s"
    assert lines[-1].startswith("step 100/100")


def test_what_is_over_quickly_writes_nothing():
    display, output = make_display(terminal=False)
    for number in range(1, 6):
        display.report("pictures", number, 5)
    assert output.getvalue() == ""


def test_on_a_terminal_a_bar_shows_loss_rate_and_tokens():
    display, output = make_display(terminal=True)
    display.training({"step": 3, **RECORD}, 100, 2.0, 60.0)
    display.say("a message [with brackets]")
    display.close()
    assert "loss 1.2500" in output.getvalue() and "3/100" in output.getvalue()
    assert "a message [with brackets]" in output.getvalue()


def test_a_finished_bar_goes_away_and_another_can_begin():
    display, _ = make_display(terminal=True)
    display.report("pictures", 5, 5)
    display.report("pictures", 1, 5)
    display.close()


@pytest.mark.parametrize("seconds, text", [(8.4, "8 s"), (245, "4 min 05 s"), (7805, "2 h 10 min")])
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_eighty_columns_are_enough_for_everything_that_a_bar_says():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={})
    display = Display(console, log_every_steps=10)
    for step in (9_998, 9_999):
        display.training({"step": step, **RECORD}, 12_345, 30.0, 60.0)
    display.close()
    output = console.file.getvalue()
    assert "9999/12345" in output and "ETA" in output
    assert "epoch 0.50/30  loss 1.2500  lr 0.001  1,234 supervised tokens/s" in output
