"""Whole runs of two processes: one folder, one voice, the result of one process; stopped, killed, refused together."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.data.images import image_digest
from mmadapter.errors import InputError
from mmadapter.processes import here
from mmadapter.training.journal import Journal, read_metrics
from mmadapter.training.run import run, run_for_metric
from tests.several import Several
from tests.training.tiny_run import save_inputs, tiny_conf

SHORT = ("evaluate=[]", "engine.name=zero1", "training.save_every_steps=4", "optimizer.epochs=1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", autouse=True)
def alone(inputs, tmp_path_factory):
    """The runs folder of the same run in one process: this one, so that those that are forked find all imported."""
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (takes 3 s; DeepSpeed wants it at every start)

    runs = tmp_path_factory.mktemp("one")
    conf = short(inputs, runs)
    conf.engine.name = "single"
    run(conf)
    return runs


def short(inputs, runs, *overrides):
    conf = tiny_conf(inputs, runs, *SHORT, *overrides)
    conf.comparison = {}
    return conf


def run_like_the_entry(conf, disturb=None):
    """What train.py does, with what the entry does about an InputError; `disturb(rank)` prepares trouble."""
    torch.set_num_threads(1)
    if disturb is not None:
        disturb(int(os.environ["RANK"]))
    try:
        run_for_metric(conf)
    except InputError as error:
        print(f"error: {error}")
        sys.exit(2)


def several(conf, folder, disturb=None, count=2):
    group = Several(count, run_like_the_entry, conf, disturb, folder=folder)
    return group, group.end()


def folder_of(runs: Path) -> Path:
    return next(path for path in runs.iterdir() if path.is_dir())


def losses(runs: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder_of(runs) / "metrics.jsonl", "train")]


def adapter(runs: Path) -> dict:
    return load_file(folder_of(runs) / "adapter" / "adapter.safetensors")


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """(runs folder, the group) of an undisturbed run of two processes."""
    runs = tmp_path_factory.mktemp("two")
    group, statuses = several(short(inputs, runs), tmp_path_factory.mktemp("said"))
    assert statuses == [0, 0], group.said(0) + group.said(1)
    return runs, group


def test_two_processes_train_what_one_trains(alone, undisturbed):
    """Float32 sums taken in another order: a few times 1e-7 of a loss, after ten steps 1e-6 of a parameter."""
    assert losses(undisturbed[0]) == pytest.approx(losses(alone), rel=1e-6)
    one, other = adapter(alone), adapter(undisturbed[0])
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in one)
    files = [{p.relative_to(f) for p in f.rglob("*")} for f in map(folder_of, (alone, undisturbed[0]))]
    assert files[0] == files[1] and folder_of(alone).name == folder_of(undisturbed[0]).name


def test_only_the_first_process_speaks_and_the_folder_says_how_many_there_were(undisturbed):
    runs, group = undisturbed
    assert group.said(1) == "" and group.said(0).count("run folder: ") == 1 and "trained 10 steps" in group.said(0)
    versions = json.loads((folder_of(runs) / "versions.json").read_text())
    assert versions["processes"] == 2 and "launcher" in versions
    peak = json.loads((folder_of(runs) / "summary.json").read_text())["peak"]
    each = [of_one["host_bytes"] for of_one in peak["processes"]]
    assert len(each) == 2 and peak["host_bytes"] == max(each) and min(each) > 0
    assert "of the largest of 2 processes" in " ".join(group.said(0).split())


def test_a_finished_run_is_shown_once(inputs, undisturbed, tmp_path):
    group, statuses = several(short(inputs, undisturbed[0]), tmp_path)
    assert statuses == [0, 0] and group.said(0).count("is finished") == 1 and group.said(1) == ""


def at_step(step, does):
    """Replaces the loop's step so that `does()` comes before step number `step` (from 0)."""
    from mmadapter.training.loop import Training

    original = Training._step

    def disturbed(self):
        if self.position.step == step:
            does()
        original(self)

    Training._step = disturbed


def signal_for_one(number):
    def disturb(rank):
        if rank == 1:
            at_step(5, lambda: os.kill(os.getpid(), number))

    return disturb


def test_a_signal_to_one_process_stops_all_at_one_step_and_they_go_on_as_if_nothing_had_been(
    inputs, undisturbed, tmp_path
):
    conf = short(inputs, tmp_path / "runs")
    group, statuses = several(conf, tmp_path / "stopped", signal_for_one(signal.SIGTERM))
    assert statuses == [143, 143], group.said(0) + group.said(1)
    assert "stopped by SIGTERM after step 6 of 10; everything is saved" in group.said(0) and group.said(1) == ""
    assert several(conf, tmp_path / "again")[1] == [0, 0]
    assert losses(tmp_path / "runs") == losses(undisturbed[0])
    one, other = adapter(tmp_path / "runs"), adapter(undisturbed[0])
    assert all(torch.equal(one[key], other[key]) for key in one)


def launcher_that_requeues(rank):
    def requeue(number, frame):
        print(f"requeued by {here().count}")
        if rank == 0:
            sys.exit(77)

    signal.signal(signal.SIGUSR2, requeue)
    signal_for_one(signal.SIGUSR2)(rank)


def test_an_earlier_handler_is_called_on_every_process_after_the_save(inputs, tmp_path):
    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, launcher_that_requeues)
    assert statuses == [77, 140]
    assert "everything is saved" in group.said(0) and group.said(1) == "requeued by 1\n"


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(inputs, undisturbed, tmp_path, killed):
    def disturb(rank):
        if rank == killed:
            at_step(6, lambda: os.kill(os.getpid(), signal.SIGKILL))

    conf = short(inputs, tmp_path / "runs")
    group, statuses = several(conf, tmp_path / "killed", disturb)
    assert statuses[killed] == -9 and statuses[1 - killed] == 1, group.said(0) + group.said(1)
    assert f"stopped, because process {killed} ended: it is gone without a word" in group.said(1 - killed)
    assert "Traceback" not in group.said(1 - killed)
    if killed == 0:
        return
    assert several(conf, tmp_path / "again")[1] == [0, 0]
    assert losses(tmp_path / "runs") == losses(undisturbed[0])
    one, other = adapter(tmp_path / "runs"), adapter(undisturbed[0])
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_full_disk_on_the_first_process_ends_all_with_its_message(inputs, tmp_path):
    def disturb(rank):
        from mmadapter.training import checkpoint

        def full(self, snapshot):
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint.CheckpointFolder.save = full

    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, disturb)
    assert statuses == [2, 2]
    assert group.said(0).count("error: No room left on the disk") == 1 and group.said(1) == ""


def broken_for_one(rank):
    if rank == 1:
        from mmadapter.training import one_run

        def missing(conf):
            raise InputError("items.json is missing on this machine")

        one_run.read_samples = missing


def test_what_one_process_cannot_read_ends_all_with_status_2(inputs, tmp_path):
    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, broken_for_one)
    assert statuses == [2, 2]
    assert group.said(1).count("error: items.json is missing on this machine") == 1
    assert "stopped, because process 1 ended: items.json is missing" in group.said(0)


def not_finite_for_one(rank):
    if rank == 1:
        from mmadapter.assistant import Assistant

        usual = Assistant.forward

        def forward(self, batch, *rest):
            print("read", batch.samples[0].where)
            return usual(self, batch, *rest) * torch.nan

        Assistant.forward = forward


def test_samples_of_a_step_that_is_not_finite_are_named_whichever_process_read_them(inputs, tmp_path):
    conf = short(inputs, tmp_path / "runs", "optimizer.max_nonfinite_steps=0")
    group, statuses = several(conf, tmp_path, not_finite_for_one)
    assert statuses == [2, 2] and "error: " not in group.said(1), group.said(1)
    assert group.said(0).count("Training stopped at step 1: 1 steps had a non-finite loss") == 1, group.said(0)
    events = read_metrics(folder_of(tmp_path / "runs") / "metrics.jsonl", "event")
    (event,) = [e for e in events if e["event"] == "nonfinite_step"]
    read = {line.removeprefix("read ") for line in group.said(1).splitlines()}
    assert read & set(event["samples"][:2])


@pytest.mark.parametrize(
    "overrides,message",
    [
        (("data.sources.questions.split=tset",), "error: .*tset"),
        (("resume=changed",), "error: resume=changed continues a run under other settings"),
        (("engine.name=single",), "error: engine=single is one process, but .* has started 2. Use engine=zero1"),
        (("launch.processes=3",), "error: launch.processes=3, but .* has started 2"),
        (
            ("optimizer.batch_size=1", "optimizer.micro_batch_size=1"),
            "error: optimizer.batch_size=1 is shared out over 2",
        ),
    ],
)
def test_what_no_process_can_use_is_said_once(inputs, tmp_path, overrides, message):
    group, statuses = several(short(inputs, tmp_path / "runs", *overrides), tmp_path)
    together = group.said(0) + group.said(1)
    assert statuses == [2, 2] and together.count("error: ") == 1
    assert re.search(message, together), together


def test_a_broken_picture_ends_all_and_is_named(inputs, tmp_path):
    def disturb(rank):
        from mmadapter.vision import features

        def broken(path):
            raise InputError(f"{path} is no picture")

        if rank == 1:
            features.read_image = broken

    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, disturb)
    assert statuses == [2, 2] and ".png is no picture" in group.said(1)


@pytest.mark.parametrize("cache", [True, False])
def test_each_picture_is_encoded_by_one_process(inputs, tmp_path, cache):
    def disturb(rank):
        from mmadapter.vision import features

        original = features.FeatureStore.encode_pixels

        def counted(self, pixels):
            pixels = list(pixels)
            with open(tmp_path / f"encoded-{rank}", "a") as file:
                file.write(f"{len(pixels)}\n")
            return original(self, pixels)

        features.FeatureStore.encode_pixels = counted

    overrides = [f"vision.cache={tmp_path / 'cache'}"] if cache else []
    group, statuses = several(short(inputs, tmp_path / "runs", *overrides), tmp_path, disturb)
    assert statuses == [0, 0], group.said(0) + group.said(1)
    counts = [sum(map(int, (tmp_path / f"encoded-{rank}").read_text().split())) for rank in range(2)]
    assert abs(counts[0] - counts[1]) <= 1
    assert sum(counts) <= len({image_digest(path) for path in (inputs / "world").rglob("*.*g")})


def journal_is_untouched(rank):
    if rank == 1:
        Journal.__init__ = None  # would fail


def test_the_second_process_opens_no_journal(inputs, tmp_path):
    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, journal_is_untouched)
    assert statuses == [0, 0], group.said(1)
