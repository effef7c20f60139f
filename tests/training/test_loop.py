"""The loop: validation, checkpoints, exact continuation however a run was stopped."""

import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from mmadapter import files
from mmadapter.errors import InputError
from mmadapter.runs.journal import Journal, read_metrics
from mmadapter.training.preemption import RunStopped
from tests.distributed.several import in_own_process
from tests.training.toy import ToyData, ToyModel, run_toy, toy_conf, train

EPOCHS = 8.0  # 24 steps


def curve(folder):
    """Everything that must not depend on interruptions."""
    lines = read_metrics(folder / "metrics.jsonl", "train")
    train_lines = [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in lines]
    return train_lines, [(line["step"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl", "validation")]


def adapter(folder):
    return torch.load(folder / "adapter.pt", weights_only=True)


def assert_same_run(one, other):
    assert curve(one) == curve(other)
    left, right = adapter(one), adapter(other)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    pointers = [json.loads((folder / "checkpoints" / "best.json").read_text()) for folder in (one, other)]
    assert pointers[0] == pointers[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    run_toy(folder, EPOCHS)
    return folder


def start(folder, delay=0.0, save_every=2):
    output = folder.with_name(f"{folder.name}.output")
    return in_own_process(lambda: run_toy(folder, EPOCHS, delay, save_every_steps=save_every), output=output)


def wait_for_step(folder, step, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if len(read_metrics(folder / "metrics.jsonl", "train")) >= step:
            return
        time.sleep(0.002)


def test_a_run_writes_a_line_a_step_and_validates_on_schedule(undisturbed):
    steps, validations = curve(undisturbed)
    assert [line[0] for line in steps] == list(range(1, 25))
    assert [line[0] for line in validations] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert all(math.isfinite(line[1]) for line in steps)


def test_best_and_last_checkpoints_are_kept(undisturbed):
    _, validations = curve(undisturbed)
    best = min(validations, key=lambda line: line[1])
    pointer = json.loads((undisturbed / "checkpoints" / "best.json").read_text())
    assert (pointer["step"], pointer["loss"]) == best
    assert (undisturbed / "checkpoints" / pointer["folder"]).is_dir()
    assert json.loads((undisturbed / "checkpoints" / "last.json").read_text())["step"] == 24


def test_validation_in_between_does_not_change_the_training(undisturbed, tmp_path):
    run_toy(tmp_path, EPOCHS, validate_every_steps=5, save_every_steps=7)
    assert curve(tmp_path)[0] == curve(undisturbed)[0]


@pytest.mark.parametrize("step", [0, 1, 3, 7, 23, 24])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_at_any_step_then_the_same_command_gives_the_same_run(undisturbed, tmp_path, monkeypatch, step, name):
    number, original = getattr(signal, name), Journal.write

    def write(self, kind, record):
        original(self, kind, record)
        if kind == "train" and record["step"] == step and step not in seen:
            seen.append(step)
            os.kill(os.getpid(), number)

    seen: list[int] = []
    monkeypatch.setattr(Journal, "write", write)
    if step == 0:
        monkeypatch.setattr(ToyData, "image_paths", lambda self: [])
    try:
        run_toy(tmp_path, EPOCHS)
    except RunStopped as stopped:
        assert stopped.code == 128 + number
        event = read_metrics(tmp_path / "metrics.jsonl", "event")[-1]
        assert (event["event"], event["step"], event["signal"]) == ("stopped", step, name)
    monkeypatch.undo()
    run_toy(tmp_path, EPOCHS)
    assert_same_run(tmp_path, undisturbed)


def test_sigterm_from_outside_ends_with_143_and_says_how_to_go_on(undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, delay=0.1, save_every=100)
    wait_for_step(folder, 4, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    output = (tmp_path / "run.output").read_text()
    assert "stopped by SIGTERM after step" in output and "Run the same command again" in output
    run_toy(folder, EPOCHS)
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_random_moments_then_the_same_command_gives_the_same_run(undisturbed, tmp_path, seed):
    rng, folder = random.Random(seed), tmp_path / "run"
    for _ in range(4):
        process = start(folder, delay=0.01)
        wait_for_step(folder, len(read_metrics(folder / "metrics.jsonl", "train")) + rng.randrange(1, 6), process)
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join()
    run_toy(folder, EPOCHS)
    assert_same_run(folder, undisturbed)


class Killed(BaseException):
    """Stands for kill -9: nothing after it is run by the code under test."""


@pytest.mark.parametrize("moment", range(0, 36, 5))
def test_killed_at_any_point_of_a_save_then_continued_gives_the_same_run(undisturbed, tmp_path, monkeypatch, moment):
    """Dies at the n-th write, fsync or rename of the saves, leaving the folder as it is at that moment."""
    calls, copy = [], tmp_path / "copy"

    def dying(function):
        def wrapper(*arguments, **keywords):
            calls.append(function)
            if len(calls) == moment + 60:
                shutil.copytree(tmp_path / "run", copy)
                raise Killed
            return function(*arguments, **keywords)

        return wrapper

    for name in ("write_durably", "sync"):
        monkeypatch.setattr(files, name, dying(getattr(files, name)))
    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    with pytest.raises(Killed):
        run_toy(tmp_path / "run", EPOCHS)
    monkeypatch.undo()
    run_toy(copy, EPOCHS)
    assert_same_run(copy, undisturbed)


def test_a_damaged_newest_checkpoint_costs_steps_but_changes_nothing(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "run")
    victim = tmp_path / "run" / "checkpoints" / "step-000024" / "optimizer.safetensors"
    victim.write_bytes(victim.read_bytes()[:-4])
    run_toy(tmp_path / "run", EPOCHS)
    assert "step-000024 is damaged" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_finished_training_is_not_done_again(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "step-000024" / "state.json").stat().st_mtime_ns
    assert run_toy(tmp_path / "run", EPOCHS)["finished"]
    assert (tmp_path / "run" / "checkpoints" / "step-000024" / "state.json").stat().st_mtime_ns == before


def test_checkpoints_of_another_schedule_are_refused_with_the_difference(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(InputError, match=r"epochs was 8.0, is 9.0.*run=NAME"):
        run_toy(tmp_path / "run", 9.0)


def toy_training(folder, model, **optimizer):
    conf = toy_conf()
    for key, value in optimizer.items():
        setattr(conf.optimizer, key, value)
    journal = Journal(folder)
    return train(conf, model, ToyData(), folder, journal)


class SometimesNan(ToyModel):
    """Non-finite at the named forward passes in training mode."""

    bad: set[int] = set()
    passes = 0

    def forward(self, batch):
        loss = super().forward(batch)
        if self.training:
            self.passes += 1
            if self.passes in self.bad:
                return loss * math.nan
        return loss


def test_non_finite_steps_are_skipped_counted_and_named(tmp_path, capsys):
    model = SometimesNan()
    model.bad = {3, 9}
    summary = toy_training(tmp_path, model, max_nonfinite_steps=2)
    assert summary["nonfinite_steps"] == 2 and summary["finished"]
    events = [e for e in read_metrics(tmp_path / "metrics.jsonl", "event") if e["event"] == "nonfinite_step"]
    assert [event["step"] for event in events] == [2, 5]
    assert events[0]["samples"][0].startswith("questions ")
    assert "is not finite; skipped for all (2 skipped so far" in capsys.readouterr().out


def test_too_many_non_finite_steps_stop_the_run_with_advice(tmp_path):
    model = SometimesNan()
    model.bad = set(range(100))
    with pytest.raises(
        InputError, match=r"3 steps had a non-finite.*max_nonfinite_steps=2(.|\n)*optimizer.clip_norm=1"
    ):
        toy_training(tmp_path, model, max_nonfinite_steps=2)


def test_non_finite_steps_are_counted_on_across_a_resume(tmp_path):
    class Stopped(SometimesNan):
        def forward(self, batch):
            if self.training and self.passes == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch)

    first, second = Stopped(), SometimesNan()
    first.bad, second.bad = {3, 9}, {1}
    with pytest.raises(RunStopped):
        toy_training(tmp_path, first, max_nonfinite_steps=2)
    with pytest.raises(InputError, match=r"3 steps had a non-finite.*max_nonfinite_steps=2"):
        toy_training(tmp_path, second, max_nonfinite_steps=2)


class OutOfMemory(ToyModel):
    def forward(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_names_peak_shape_and_three_switches(tmp_path):
    with pytest.raises(InputError) as error:
        toy_training(tmp_path, OutOfMemory())
    text = str(error.value)
    assert "4 samples x" in text and "peak was" in text
    assert "micro_batch_size=2" in text and "activation_checkpointing=true" in text and len(text.splitlines()) == 4


def test_gates_are_logged_every_so_often_and_at_the_end(undisturbed):
    with_gates = [line["step"] for line in read_metrics(undisturbed / "metrics.jsonl", "train") if "gates" in line]
    assert with_gates[0] == 1 and with_gates[-1] == 24 and len(with_gates) < 24


def test_images_are_prepared_before_the_first_step_without_touching_the_random_numbers(
    tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr(ToyData, "image_paths", lambda self: [Path("picture.png")])
    run_toy(tmp_path, EPOCHS)
    assert curve(tmp_path) == curve(undisturbed)
