"""What goes wrong in one of two processes, or cannot work, ends both with one message."""

from __future__ import annotations

import errno
import re

import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.runs.journal import read_metrics
from tests.training.launched import folder_of, run_here, several, short
from tests.training.tiny_run import save_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    run_here(folder, tmp_path_factory.mktemp("one"))
    return folder


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
        from mmadapter.training import run as page

        def missing(*_, **__):
            raise InputError("items.json is missing on this machine")

        page.read_samples = missing


def test_what_one_process_cannot_read_ends_all_with_status_2(inputs, tmp_path):
    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, broken_for_one)
    assert statuses == [2, 2]
    assert group.said(1).count("error: rank 1: items.json is missing on this machine") == 1
    assert "error: " not in group.said(0) and "stopped" not in group.said(0)


def not_finite_for_one(rank):
    if rank == 1:
        from mmadapter.model import AdaptedModel

        usual = AdaptedModel.forward

        def forward(self, batch, *rest):
            print("read", batch.samples[0].where)
            return usual(self, batch, *rest) * torch.nan

        AdaptedModel.forward = forward


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

        def broken(content, path):
            raise InputError(f"{path} is no picture")

        if rank == 1:
            features.decoded = broken

    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, disturb)
    assert statuses == [2, 2] and ".png is no picture" in group.said(1)
