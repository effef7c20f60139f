"""Frozen features are computed once per content and encoder, and kept bit by bit, in memory or in a folder."""

import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.files import LEFTOVERS
from mmadapter.vision import features as module
from mmadapter.vision.features import FeatureStore
from tests.models import picture, random_encoder
from tests.vision.towers import encoder_on


def all_tokens(seed=0):
    return encoder_on(random_encoder(seed).tower, [1, 2], tokens="all")


def counted(store):
    """What the store's encoder is given from now on, one entry a picture."""
    calls, encode = [], store.encoder.encode_one
    store.encoder.encode_one = lambda pixels: calls.append(pixels.shape) or encode(pixels)
    return calls


def read_files(monkeypatch):
    """The picture files that are read from now on."""
    read, content = [], module.image_content
    monkeypatch.setattr(module, "image_content", lambda path: read.append(path) or content(path))
    return read


def packs(cache):
    return sorted(cache.rglob("*.safetensors"))


def test_features_are_kept_by_content_and_encoder(tmp_path):
    one = picture(tmp_path, 1)
    copy = tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    store = FeatureStore(random_encoder(), tmp_path / "cache")
    calls = counted(store)
    store.add([one, copy, picture(tmp_path, 2)])
    assert len(calls) == 2, "the copy has the same content"
    assert torch.equal(store.feature(one), store.feature(copy))

    again = FeatureStore(random_encoder(), tmp_path / "cache")
    again.encoder.encode_one = None  # must come from the disk
    again.add([one])
    assert torch.equal(again.feature(one), store.feature(one))
    other = FeatureStore(random_encoder(seed=5), tmp_path / "cache")
    assert not torch.equal(other.feature(one), store.feature(one)), "another encoder never reads these files"


@pytest.mark.parametrize("cached", [False, True])
def test_each_picture_is_read_once(tmp_path, monkeypatch, cached):
    paths = [picture(tmp_path, seed) for seed in range(4)]
    store = FeatureStore(random_encoder(), tmp_path / "cache" if cached else None)
    read = read_files(monkeypatch)
    store.add(paths)
    store.add(paths[::-1])
    store.of([*paths, None])
    assert read == paths


@pytest.mark.parametrize("left", [0, 20, -1])
def test_a_damaged_cache_file_is_computed_again(tmp_path, left, caplog):
    one = picture(tmp_path, 1)
    first = FeatureStore(random_encoder(), tmp_path / "cache").feature(one).clone()
    (file,) = packs(tmp_path / "cache")
    whole = file.read_bytes()
    damaged = file.with_name("copy")
    damaged.write_bytes(whole[:left])
    damaged.replace(file)
    again = FeatureStore(random_encoder(), tmp_path / "cache")
    again.add([one])
    assert torch.equal(again.feature(one), first)
    assert "is damaged" in caplog.text and packs(tmp_path / "cache") == [file] and file.read_bytes() == whole


def test_a_half_written_file_of_a_killed_process_is_never_read(tmp_path):
    one = picture(tmp_path, 1)
    store = FeatureStore(random_encoder(), tmp_path / "cache")
    store.folder.mkdir(parents=True)
    (store.folder / ".0123.safetensors.machine.7.writing").write_bytes(b"half")
    store.add([one])
    assert torch.equal(store.feature(one), FeatureStore(random_encoder()).feature(one))


def full(path, content):
    path.write_bytes(content[:10])
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("trouble", ["full", "nearly full", "no folder"])
def test_a_cache_that_cannot_be_written_is_told_once_and_the_features_stay_in_memory(
    tmp_path, monkeypatch, caplog, trouble
):
    paths, cache = [picture(tmp_path, seed) for seed in range(3)], tmp_path / "cache"
    if trouble == "full":
        monkeypatch.setattr("mmadapter.files.write_durably", full)
    elif trouble == "nearly full":
        monkeypatch.setattr(module, "LEFT_FREE", 2**60)
    else:
        cache.write_text("a file")
    store = FeatureStore(random_encoder(), cache)
    calls = counted(store)
    store.add(paths[:2])
    store.add(paths)
    assert all(torch.equal(store.feature(path), FeatureStore(random_encoder()).feature(path)) for path in paths)
    assert len(calls) == 3
    (record,) = caplog.records
    said = {
        "full": "No space left on device",
        "nearly full": "GiB would be left on the disk",
        "no folder": "File exists",
    }
    assert said[trouble] in record.getMessage() and "vision.cache=FOLDER" in record.getMessage()
    assert not [path for path in cache.rglob("*") if path.is_file()], "nothing half-written is left"


def test_a_disk_that_is_full_later_leaves_what_was_written_before(tmp_path, monkeypatch):
    paths = [picture(tmp_path, seed) for seed in range(4)]
    store = FeatureStore(random_encoder(), tmp_path / "cache", memory_limit_bytes=32 * 4)
    store.add(paths[:2])
    monkeypatch.setattr("mmadapter.files.write_durably", full)
    store.add(paths)
    monkeypatch.undo()
    again = FeatureStore(random_encoder(), tmp_path / "cache")
    calls = counted(again)
    again.add(paths)
    assert len(calls) == 2, "the first two lie there"
    assert all(torch.equal(store.feature(path), again.feature(path)) for path in paths)


FILL = """
import os
import signal
import sys
from pathlib import Path
import mmadapter.files
from mmadapter.vision import features
from tests.models import random_encoder

folder, half = Path(sys.argv[1]), len(sys.argv) > 2
features.PACK_BYTES = 3 * 32 * 4  # three pictures
if half:  # killed in the middle of its third write
    whole, written = mmadapter.files.write_durably, []

    def write(path, content):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(content[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, content)

    mmadapter.files.write_durably = write
features.FeatureStore(random_encoder(), folder / "cache").add(sorted(folder.glob("*.png")))
"""


def filling(folder, *more):
    return subprocess.Popen([sys.executable, "-c", FILL, str(folder), *more])


def test_two_processes_that_fill_one_folder_leave_whole_packs(tmp_path):
    paths = [picture(tmp_path, seed) for seed in range(20)]
    both = [filling(tmp_path), filling(tmp_path)]
    assert [one.wait(120) for one in both] == [0, 0]
    assert not list((tmp_path / "cache").rglob(LEFTOVERS))
    store = FeatureStore(random_encoder(), tmp_path / "cache")
    calls = counted(store)
    store.add(paths)
    assert calls == []
    assert all(torch.equal(store.feature(path), FeatureStore(random_encoder()).feature(path)) for path in paths)


def test_a_process_that_is_killed_while_it_writes_leaves_no_pack_that_is_not_whole(tmp_path, caplog):
    paths = sorted(picture(tmp_path, seed) for seed in range(10))
    assert filling(tmp_path, "half").wait(120) == -signal.SIGKILL
    (left,) = (tmp_path / "cache").rglob(LEFTOVERS)
    assert left.stat().st_size == 100 and len(packs(tmp_path / "cache")) == 2
    store = FeatureStore(random_encoder(), tmp_path / "cache")
    calls = counted(store)
    store.add(paths)
    assert len(calls) == 4 and not caplog.records
    assert all(torch.equal(store.feature(path), FeatureStore(random_encoder()).feature(path)) for path in paths)
    os.utime(left, (0, 0))  # of long ago: nobody writes it any more
    store.add(paths)
    assert not left.exists()


def test_what_another_run_has_written_meanwhile_is_not_written_again(tmp_path):
    paths, more = [picture(tmp_path, seed) for seed in range(3)], picture(tmp_path, 3)
    store, other = (FeatureStore(random_encoder(), tmp_path / "cache") for _ in range(2))
    encode = store.encoder.encode_one

    def encode_beside_another(pixels):
        other.add([*paths, more])
        return encode(pixels)

    store.encoder.encode_one = encode_beside_another
    store.add(paths)
    assert len(packs(tmp_path / "cache")) == 1


def test_many_features_are_announced_with_their_size_and_folder(tmp_path):
    store = FeatureStore(all_tokens(), tmp_path / "cache")
    assert store.size_on_disk(1_000_000) is None, "0.6 GB"
    said = store.size_on_disk(10_000_000)
    assert said.startswith(f"image features: 10,000,000 pictures take up to 6.4 GB in {store.folder}, ")
    assert FeatureStore(all_tokens()).size_on_disk(10_000_000) is None, "in memory"


@pytest.mark.parametrize("cached", [False, True])
def test_features_of_all_tokens_are_kept_bit_by_bit(tmp_path, cached):
    one, two = picture(tmp_path, 1), picture(tmp_path, 2)
    cache = tmp_path / "cache" if cached else None
    FeatureStore(all_tokens(), cache).add([one, two])
    store = FeatureStore(all_tokens(), cache)
    store.add([one, two])
    fresh = FeatureStore(all_tokens()).feature(two)
    assert fresh.shape == (5, 32) and fresh.dtype == torch.float32
    assert torch.equal(store.feature(two), fresh)
    assert store.bytes_per_image == 5 * 32 * 4


def test_features_of_the_class_token_and_of_all_tokens_have_folders_of_their_own(tmp_path):
    one = picture(tmp_path, 1)
    assert FeatureStore(random_encoder(), tmp_path / "cache").feature(one).shape == (32,)
    assert FeatureStore(all_tokens(), tmp_path / "cache").feature(one).shape == (5, 32)


@pytest.mark.parametrize("at_least", [1, 64])
def test_packs_are_written_on_the_way_and_what_is_packed_leaves_the_memory(tmp_path, monkeypatch, at_least):
    paths = [picture(tmp_path, seed) for seed in range(5)]
    monkeypatch.setattr(module, "PACK_BYTES", 2 * 5 * 32 * 4)
    store = FeatureStore(all_tokens(), tmp_path / "cache", memory_limit_bytes=1)
    paths[4].write_bytes(b"no picture")
    monkeypatch.setattr(module, "WORTH_BATCHES", at_least)
    with pytest.raises(InputError, match="no picture"):
        store.add(paths)
    assert len(packs(tmp_path / "cache")) == 2 and not store._kept, "work is kept up to the error"
    again = FeatureStore(all_tokens(), tmp_path / "cache")
    calls = counted(again)
    again.add(paths[:4])
    assert calls == [] and all(torch.equal(again.feature(p), store.feature(p)) for p in paths[:4])


def test_a_long_encoding_is_saved_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PACK_SECONDS", 0.0)
    FeatureStore(random_encoder(), tmp_path / "cache").add([picture(tmp_path, seed) for seed in range(3)])
    assert len(packs(tmp_path / "cache")) == 3


def test_packed_features_are_mapped_from_the_file(tmp_path):
    store = FeatureStore(random_encoder(), tmp_path / "cache")
    store.add([picture(tmp_path, 1)])
    assert str(packs(tmp_path / "cache")[0]) in Path("/proc/self/maps").read_text()


def test_past_the_limit_without_a_folder_features_are_computed_again_and_that_is_said_once(tmp_path, caplog):
    paths = [picture(tmp_path, seed) for seed in range(5)]
    expected = [FeatureStore(all_tokens()).feature(path) for path in paths]
    store = FeatureStore(all_tokens(), memory_limit_bytes=2 * 5 * 32 * 4)
    calls = counted(store)
    with caplog.at_level(logging.WARNING):
        store.add(paths)
        store.add(paths)
    (record,) = caplog.records
    assert "5 pictures" in record.getMessage() and "those of 3 pictures" in record.getMessage()
    assert "vision.cache=FOLDER" in record.getMessage()
    assert len(calls) == 2, "no work for what would be dropped at once"
    for _ in range(2):
        assert all(torch.equal(store.feature(path), feature) for path, feature in zip(paths, expected, strict=True))
    assert len(calls) == 2 + 2 * 3, "what is kept stays"
    assert len(store._kept) == 2


def test_features_larger_than_the_limit_are_still_given(tmp_path):
    one = picture(tmp_path, 1)
    store = FeatureStore(all_tokens(), memory_limit_bytes=100)
    assert torch.equal(store.feature(one), FeatureStore(all_tokens()).feature(one))
    assert not store._kept


def test_a_kept_feature_does_not_hold_on_to_what_was_computed_beside_it(tmp_path):
    one = picture(tmp_path, 1)
    for encoder in (random_encoder(), all_tokens()):
        store = FeatureStore(encoder)
        store.add([one])
        assert store.feature(one).untyped_storage().nbytes() == store.bytes_per_image


def test_many_pictures_go_through_the_encoder_together_and_each_gets_the_bits_that_it_has_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_BATCHES", 16)
    paths = [picture(tmp_path, seed) for seed in range(27)]
    alone = {path: FeatureStore(all_tokens()).feature(path) for path in paths}
    store, sizes, done = FeatureStore(all_tokens()), [], []
    encode = store.encoder.encode
    store.encoder.encode = lambda pixels: sizes.append(len(pixels)) or encode(pixels)
    store.add(paths, lambda *counts: done.append(counts))
    assert all(torch.equal(store.feature(path), alone[path]) for path in paths)
    assert sizes[:9] == [8, *[1] * 8], "the first batch is compared with its pictures alone"
    assert sizes[9:] in ([8, 8, 1, 1, 1], [1] * 19), "where a bit differs on this machine, alone"
    assert done == [(8, 27), (16, 27), (24, 27), (27, 27)]


def test_an_encoder_whose_numbers_depend_on_the_batch_is_given_one_picture_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_BATCHES", 16)
    paths = [picture(tmp_path, seed) for seed in range(20)]
    alone = {path: FeatureStore(random_encoder()).feature(path) for path in paths}
    store, sizes = FeatureStore(random_encoder()), []
    encode = store.encoder.encode
    last_bit = 1 + 2.0**-22
    store.encoder.encode = lambda pixels: (
        sizes.append(len(pixels)) or encode(pixels) * (last_bit if len(pixels) > 1 else 1)
    )
    store.add(paths)
    assert all(torch.equal(store.feature(path), alone[path]) for path in paths)
    assert sizes == [8, *[1] * 20]


@pytest.mark.parametrize("encoder", [random_encoder, all_tokens])
@pytest.mark.parametrize("threads", [1, 2])
def test_features_of_one_picture_do_not_depend_on_its_neighbours(tmp_path, encoder, threads):
    """Else a run that fills its cache in two goes would differ from one that fills it in one."""
    paths = [picture(tmp_path, seed) for seed in range(8)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = {path: FeatureStore(encoder()).feature(path) for path in paths}
        for together in (paths[:2], paths[1:], paths[::-1], paths[3:4]):
            store = FeatureStore(encoder())
            store.add(together)
            assert all(torch.equal(store.feature(path), alone[path]) for path in together)
            in_memory = store.encode([module.decoded(module.image_content(path), path) for path in together])
            assert torch.equal(in_memory, torch.stack([alone[path] for path in together]))
    finally:
        torch.set_num_threads(before)


class Thread(Ranks):
    """A rank that is a thread of this process, and notes what it sends."""

    def __init__(self, rank, meeting, sent):
        super().__init__(rank, 2)
        self.meeting, self.sent = meeting, sent

    def barrier(self):
        self.meeting.wait(60)

    def gather_bytes(self, content):
        self.sent[self.rank].append(content)
        self.barrier()
        found = [contents[-1] for contents in self.sent]
        self.barrier()
        return found


@pytest.mark.parametrize("cached", [False, True])
def test_ranks_take_over_what_others_encoded(tmp_path, cached):
    paths = [picture(tmp_path, seed) for seed in range(5)]
    cache = tmp_path / "cache" if cached else None
    meeting, sent = Barrier(2), ([], [])
    stores = [FeatureStore(all_tokens(), cache) for _ in range(2)]
    calls = [counted(store) for store in stores]
    with ThreadPoolExecutor(2) as pool:
        ranks = [Thread(rank, meeting, sent) for rank in range(2)]
        list(pool.map(FeatureStore.add_together, stores, [paths, paths], ranks))
    assert (max(map(len, [*sent[0], *sent[1]])) > 2 * 5 * 32 * 4) == (not cached), "what lies in the folder is not sent"
    for path in paths:
        path.unlink()
    assert all(store.feature(path).shape == (5, 32) for store in stores for path in paths)
    assert [len(each) for each in calls] == [3, 2]
