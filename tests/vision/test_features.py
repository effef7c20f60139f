"""Frozen features are computed once per content and encoder, kept bit by bit, within a limit of memory."""

import logging

import numpy
import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.vision.clip import ImageEncoder
from mmadapter.vision.features import FeatureStore
from tests.assistants import picture, random_encoder


def all_tokens(seed=0):
    return ImageEncoder(random_encoder(seed).tower, [1, 2], tokens="all")


def counted(store):
    """The sizes of the batches that the store's encoder sees from now on."""
    calls, encode = [], store.encode_pixels
    store.encode_pixels = lambda pixels: calls.append(len(pixels)) or encode(pixels)
    return calls


def held(store):
    """Pictures whose features are in memory."""
    return len(store._kept)


def test_features_are_kept_by_content_and_encoder(tmp_path):
    one = picture(tmp_path, 1)
    copy = tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    store = FeatureStore(random_encoder(), tmp_path / "cache")
    calls = counted(store)
    store.add([one, copy, picture(tmp_path, 2)])
    assert calls == [2], "the copy has the same content"
    assert torch.equal(store.feature(one), store.feature(copy))

    again = FeatureStore(random_encoder(), tmp_path / "cache")
    again.encode_pixels = None  # must come from the disk
    assert torch.equal(again.feature(one), store.feature(one))
    other = FeatureStore(random_encoder(seed=5), tmp_path / "cache")
    assert not torch.equal(other.feature(one), store.feature(one)), "another encoder never reads these files"


@pytest.mark.parametrize("left", [0, 20, -1])
def test_a_damaged_cache_file_is_computed_again(tmp_path, left):
    one = picture(tmp_path, 1)
    first = FeatureStore(random_encoder(), tmp_path / "cache").feature(one)
    (file,) = (tmp_path / "cache").rglob("*.npy")
    file.write_bytes(file.read_bytes()[:left])
    assert torch.equal(FeatureStore(random_encoder(), tmp_path / "cache").feature(one), first)


def test_a_cache_on_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    one = picture(tmp_path, 1)
    monkeypatch.setattr("numpy.save", full)
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


def test_past_the_limit_features_come_back_from_the_disk(tmp_path, caplog):
    paths = [picture(tmp_path, seed) for seed in range(5)]
    expected = [FeatureStore(all_tokens()).feature(path) for path in paths]
    store = FeatureStore(all_tokens(), tmp_path / "cache", memory_limit_bytes=2 * 5 * 32 * 4)
    calls = counted(store)
    with caplog.at_level(logging.WARNING):
        store.add(paths)
    assert held(store) == 2 and not caplog.records
    for _ in range(2):
        assert all(torch.equal(store.feature(path), feature) for path, feature in zip(paths, expected, strict=True))
    assert calls == [5], "nothing is computed a second time"
    assert held(store) == 2


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
    assert calls == [2], "no work for what would be dropped at once"
    for _ in range(2):
        assert all(torch.equal(store.feature(path), feature) for path, feature in zip(paths, expected, strict=True))
    assert calls == [2, 1, 1, 1, 1, 1, 1], "what is kept stays"
    assert held(store) == 2


def test_the_least_recently_used_features_go_first(tmp_path, monkeypatch):
    one, two, three = (picture(tmp_path, seed) for seed in range(3))
    store = FeatureStore(all_tokens(), tmp_path / "cache", memory_limit_bytes=2 * 5 * 32 * 4)
    store.add([one, two])
    store.feature(one)
    store.feature(three)
    read, load = [], numpy.load
    monkeypatch.setattr("numpy.load", lambda file: read.append(file) or load(file))
    store.feature(one), store.feature(three)
    assert read == []
    store.feature(two)
    assert len(read) == 1


def test_features_of_one_picture_have_the_same_bits_in_every_batch(tmp_path):
    """Else a run that fills its cache in two goes would differ from one that fills it in one (law 6)."""
    paths = [picture(tmp_path, seed) for seed in range(5)]
    for encoder in (random_encoder(), all_tokens()):
        together = FeatureStore(encoder, batch_size=5)
        together.add(paths)
        for size in (1, 2, 3, 4):
            store = FeatureStore(encoder, batch_size=size)
            store.add(paths)
            assert all(torch.equal(store.feature(path), together.feature(path)) for path in paths), size


def test_features_larger_than_the_limit_are_still_given(tmp_path):
    one = picture(tmp_path, 1)
    store = FeatureStore(all_tokens(), memory_limit_bytes=100)
    assert torch.equal(store.feature(one), FeatureStore(all_tokens()).feature(one))
    assert held(store) == 0


def test_a_kept_feature_does_not_hold_on_to_its_batch(tmp_path):
    paths = [picture(tmp_path, seed) for seed in range(4)]
    store = FeatureStore(all_tokens())
    store.add(paths)
    assert store.feature(paths[0]).untyped_storage().nbytes() == store.bytes_per_image
