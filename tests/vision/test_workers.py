"""Pictures are read by other processes: the same bits, the same errors; nothing hangs, and nothing outlives the run."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.vision import reading
from mmadapter.vision.features import FeatureStore
from mmadapter.vision.reading import in_order
from tests.models import picture, random_encoder


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch):
    monkeypatch.setattr(reading, "WORTH_A_WORKER", 1)


def who_read(path: Path) -> int:
    return os.getpid()


def die_at_the_third(path: Path) -> str:
    if path.name == "3":
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_features_are_the_same_to_the_bit_whatever_the_number_of_workers(tmp_path):
    paths = [picture(tmp_path, seed) for seed in range(7)]
    stores = [FeatureStore(random_encoder(), workers=workers) for workers in (0, 1, 3)]
    random = torch.get_rng_state()
    for store in stores:
        store.add(paths)
    assert torch.equal(torch.get_rng_state(), random), "no random number of the run's is drawn"
    for path in paths:
        assert all(torch.equal(store.feature(path), stores[0].feature(path)) for store in stores[1:])


def test_others_read_and_are_gone_afterwards(tmp_path):
    paths = [tmp_path / str(number) for number in range(40)]
    readers = set(in_order(who_read, paths, 2))
    assert len(readers) == 2 and os.getpid() not in readers
    with closing(in_order(who_read, paths, 2)) as going:
        readers |= {next(going)}
    assert gone(readers, within=10)
    assert set(in_order(who_read, paths[:1], 0)) == {os.getpid()}


def test_few_pictures_need_no_other_process(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WORTH_A_WORKER", 64)
    assert set(in_order(who_read, [tmp_path] * 63, 4)) == {os.getpid()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_told_as_ever(tmp_path, workers):
    paths = [picture(tmp_path, seed) for seed in range(5)]
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    with pytest.raises(InputError) as told:
        FeatureStore(random_encoder(), workers=workers).add(paths)
    assert str(told.value).startswith(f"{paths[3]}: the image file is cut off or damaged")
    assert str(told.value).count("\n") == 0


def test_a_worker_that_is_killed_ends_the_reading_with_a_message_within_seconds(tmp_path):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"reads pictures .* has ended by itself, with status -9.*vision.workers=0"):
        list(in_order(die_at_the_third, [tmp_path / str(number) for number in range(60)], 2))
    assert time.monotonic() - started < 30


def gone(pids, within: float) -> bool:
    deadline = time.monotonic() + within
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_there, pids))
