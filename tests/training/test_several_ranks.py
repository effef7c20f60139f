"""Whole runs of two ranks: one folder, one voice, the result of one process; stopped, killed, refused together."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from mmadapter.runs import journal
from mmadapter.vision.images import content_digest, image_content
from tests.training.launched import adapter, at_step, folder_of, losses, run_here, several, short
from tests.training.tiny_run import save_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", autouse=True)
def alone(inputs, tmp_path_factory):
    """The runs folder of the same run in one process."""
    return run_here(inputs, tmp_path_factory.mktemp("one"))


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


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(inputs, undisturbed, tmp_path, killed):
    def disturb(rank):
        if rank == killed:
            at_step(6, lambda: os.kill(os.getpid(), signal.SIGKILL))

    conf = short(inputs, tmp_path / "runs")
    group, statuses = several(conf, tmp_path / "killed", disturb)
    assert statuses[killed] == -9 and statuses[1 - killed] == 1, group.said(0) + group.said(1)
    lost = f"stopped: rank {1 - killed} of 2 has lost the connection to another rank in zero.py, line "
    assert lost in group.said(1 - killed)
    assert "Traceback" not in group.said(1 - killed)
    if killed == 0:
        return
    assert several(conf, tmp_path / "again")[1] == [0, 0]
    assert losses(tmp_path / "runs") == losses(undisturbed[0])
    one, other = adapter(tmp_path / "runs"), adapter(undisturbed[0])
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("cache", [True, False])
def test_each_picture_is_encoded_by_one_process(inputs, tmp_path, cache):
    def disturb(rank):
        from mmadapter.vision.encoder import VisionEncoder

        original = VisionEncoder.encode_one

        def counted(self, pixels):
            with open(tmp_path / f"encoded-{rank}", "a") as file:
                file.write("1\n")
            return original(self, pixels)

        VisionEncoder.encode_one = counted

    overrides = [f"vision.cache={tmp_path / 'cache'}"] if cache else []
    group, statuses = several(short(inputs, tmp_path / "runs", *overrides), tmp_path, disturb)
    assert statuses == [0, 0], group.said(0) + group.said(1)
    counts = [sum(map(int, (tmp_path / f"encoded-{rank}").read_text().split())) for rank in range(2)]
    assert abs(counts[0] - counts[1]) <= 1
    assert sum(counts) <= len({content_digest(image_content(path)) for path in (inputs / "world").rglob("*.*g")})


def journal_is_untouched(rank):
    if rank == 1:
        vars(journal)["open"] = None  # would fail


def test_the_second_process_opens_no_journal(inputs, tmp_path):
    group, statuses = several(short(inputs, tmp_path / "runs"), tmp_path, journal_is_untouched)
    assert statuses == [0, 0], group.said(1)
