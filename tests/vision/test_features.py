"""Frozen features are computed once per content and encoder, and kept bit by bit, in memory or in a folder."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
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


def test_a_cache_on_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def full(path, content):
        path.write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    one = picture(tmp_path, 1)
    monkeypatch.setattr("mmadapter.files.write_durably", full)
    with pytest.raises(InputError, match=r"vision\.cache: .*No space left on device.*vision\.cache=null"):
        FeatureStore(random_encoder(), tmp_path / "cache").feature(one)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


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


def test_packs_are_written_on_the_way_and_what_is_packed_leaves_the_memory(tmp_path, monkeypatch):
    paths = [picture(tmp_path, seed) for seed in range(5)]
    monkeypatch.setattr(module, "PACK_BYTES", 2 * 5 * 32 * 4)
    store = FeatureStore(all_tokens(), tmp_path / "cache", memory_limit_bytes=1)
    paths[4].write_bytes(b"no picture")
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
