"""Batches, their order, and mixtures: nothing lost, nothing padded beyond need, a pure function of (seed, index)."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmadapter.data.batches import LengthBucketedOrder, Mixture, make_batch
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.tokens import Encoded
from mmadapter.errors import InputError

PAD = 99


def encoded(number: int, length: int, supervised: int = 1, source: str = "a", image: str | None = None) -> Encoded:
    sample = Sample(str(number), source, (Segment("x", "template"),), Path(image) if image else None, f"item {number}")
    spans = ((length - supervised, length),) if supervised else ()
    return Encoded(sample, array("i", range(1, length + 1)), spans)


def source_of(name: str, count: int) -> list[Encoded]:
    return [encoded(number, 3 + (7 * number) % 23, source=name) for number in range(count)]


def ids_of(batch) -> list[str]:
    return [sample.id for sample in batch.samples]


def test_rows_are_padded_on_the_left_to_the_longest_only():
    batch = make_batch([encoded(0, 2), encoded(1, 5)], PAD)
    assert batch.input_ids.tolist() == [[PAD, PAD, PAD, 1, 2], [1, 2, 3, 4, 5]]
    assert batch.attention_mask.tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64


def test_pairs_name_the_position_before_each_label():
    batch = make_batch([encoded(0, 4, 2), encoded(1, 6, 3), encoded(2, 3, 0)], PAD)
    flat = batch.input_ids.flatten()
    assert flat[batch.rows].tolist() == [2, 3, 3, 4, 5]
    assert flat[batch.rows + 1].tolist() == batch.targets.tolist() == [3, 4, 4, 5, 6]
    assert batch.pair_sample.tolist() == [0, 0, 1, 1, 1]
    assert (batch.rows // batch.input_ids.shape[1]).tolist() == batch.pair_sample.tolist()
    assert batch.supervised_tokens == 5


def test_every_span_of_a_dialog_is_supervised():
    first, second = encoded(0, 9), encoded(1, 5, 2)
    batch = make_batch([replace(first, spans=((2, 4), (7, 9))), second], PAD)
    assert batch.targets.tolist() == [3, 4, 8, 9, 4, 5]
    assert batch.pair_sample.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.input_ids.flatten()[batch.rows].tolist() == [2, 3, 7, 8, 3, 4]


def test_a_batch_without_labels_has_no_pairs():
    batch = make_batch([encoded(0, 4, 0)], PAD)
    assert batch.supervised_tokens == 0 and batch.rows.shape == batch.targets.shape == (0,)


def test_a_first_token_has_nothing_to_be_predicted_from():
    assert make_batch([encoded(0, 3, 3)], PAD).targets.tolist() == [2, 3]


def test_images_and_samples_stand_by_row_and_survive_a_move():
    batch = make_batch([encoded(0, 4, image="one.png"), encoded(1, 4)], PAD).to("cpu")
    assert batch.images == (Path("one.png"), None)
    assert ids_of(batch) == ["0", "1"] and batch.source == "a"


def test_a_batch_has_one_source():
    with pytest.raises(ValueError, match="one source"):
        make_batch([encoded(0, 4, source="a"), encoded(1, 4, source="b")], PAD)


@pytest.mark.parametrize("count", [1, 4, 7, 1000, 1003])
def test_every_sample_comes_once_an_epoch(count):
    order = LengthBucketedOrder([5] * count, 4, seed=1)
    for epoch in (0, 3):
        batches = [order.batch_indices(epoch, index) for index in range(order.batches_per_epoch)]
        assert sorted(number for batch in batches for number in batch) == list(range(count))
        assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)


def test_lengths_within_a_batch_are_close_and_batches_stay_shuffled():
    lengths = [10 + (37 * number) % 200 for number in range(2048)]
    order = LengthBucketedOrder(lengths, 16, seed=0)
    batches = [[lengths[number] for number in order.batch_indices(0, index)] for index in range(128)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    firsts = [batch[0] for batch in batches]
    assert sum(left < right for left, right in zip(firsts, firsts[1:], strict=False)) in range(45, 83)


def test_order_is_a_pure_function_of_seed_and_epoch():
    lengths = [number % 17 for number in range(300)]
    first = LengthBucketedOrder(lengths, 8, seed=5)
    there_and_back = [first.batch_indices(epoch, 3) for epoch in (0, 1, 0)]
    assert there_and_back[0] == there_and_back[2] != there_and_back[1]
    assert LengthBucketedOrder(lengths, 8, seed=5).batch_indices(1, 3) == there_and_back[1]
    assert LengthBucketedOrder(lengths, 8, seed=6).batch_indices(1, 3) != there_and_back[1]


def test_order_stays_as_it_was_in_earlier_versions():
    """A changed order would make a resumed run differ from the run it goes on with."""
    order = LengthBucketedOrder([3, 1, 2, 5, 4, 9, 8], 2, seed=0)
    assert [order.batch_indices(1, index) for index in range(4)] == [[6, 5], [4, 3], [1, 2], [0]]


def test_one_source_keeps_its_smaller_last_batch():
    mixture = Mixture({"a": source_of("a", 10)}, None, 4, seed=0, pad_id=PAD)
    assert len(mixture) == 3
    sizes = [len(mixture.batch(index).samples) for index in range(6)]
    assert sizes == [4, 4, 2, 4, 4, 2]
    for epoch in range(2):
        seen = [name for index in range(3) for name in ids_of(mixture.batch(3 * epoch + index))]
        assert Counter(seen) == Counter(str(number) for number in range(10))


def test_any_batch_can_be_asked_for_first():
    sources = {"a": source_of("a", 50), "b": source_of("b", 21)}
    run = Mixture(sources, {"a": 1.0, "b": 3.0}, 4, seed=3, pad_id=PAD)
    walked = [ids_of(run.batch(index)) for index in range(60)]
    for index in (59, 7, 31, 0):
        fresh = Mixture(sources, {"a": 1.0, "b": 3.0}, 4, seed=3, pad_id=PAD)
        assert ids_of(fresh.batch(index)) == walked[index]


def test_without_weights_each_source_comes_whole_once_an_epoch():
    mixture = Mixture({"a": source_of("a", 10), "b": source_of("b", 23)}, {"a": None, "b": None}, 4, 0, PAD)
    assert len(mixture) == 3 + 6
    for epoch in range(3):
        batches = [mixture.batch(epoch * 9 + index) for index in range(9)]
        assert all(len({sample.source for sample in batch.samples}) == 1 for batch in batches)
        seen = Counter((sample.source, sample.id) for batch in batches for sample in batch.samples)
        assert set(seen.values()) == {1} and len(seen) == 33


def test_weights_share_out_the_steps_and_a_source_that_ends_starts_again():
    mixture = Mixture({"a": source_of("a", 40), "b": source_of("b", 6)}, {"a": 1.0, "b": 1.0}, 4, 0, PAD)
    assert len(mixture) == 12
    batches = [mixture.batch(index) for index in range(24)]
    assert Counter(batch.source for batch in batches) == {"a": 12, "b": 12}
    assert {len(batch.samples) for batch in batches} == {4}
    seen = Counter(sample.id for batch in batches for sample in batch.samples if batch.source == "b")
    assert set(seen) == {str(number) for number in range(6)} and max(seen.values()) - min(seen.values()) <= 6
    assert {sample.id for batch in batches for sample in batch.samples if batch.source == "a"} == {
        str(number) for number in range(40)
    }


def test_a_light_source_still_comes():
    mixture = Mixture({"a": source_of("a", 40), "b": source_of("b", 40)}, {"a": 1000.0, "b": 0.001}, 4, 0, PAD)
    assert Counter(mixture.batch(index).source for index in range(len(mixture)))["b"] == 1


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 2.0}])
def test_a_steps_samples_do_not_depend_on_the_micro_batch(weights):
    sources = {"a": source_of("a", 45), "b": source_of("b", 18)}

    def steps(micro: int) -> list[list[str]]:
        mixture = Mixture(sources, weights, 8 // micro, seed=1, pad_id=PAD, micro_batches=micro)
        found = []
        for step in range(2 * mixture.steps_per_epoch):
            batches = [mixture.batch(index) for index in mixture.step_indices(step)]
            found.append([f"{batch.source}{name}" for batch in batches for name in ids_of(batch)])
        return found

    assert steps(1) == steps(2) == steps(8)
    mixture = Mixture(sources, weights, 4, seed=1, pad_id=PAD, micro_batches=2)
    indices = [index for step in range(3 * mixture.steps_per_epoch) for index in mixture.step_indices(step)]
    assert indices == list(range(3 * len(mixture)))


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ({}, None, "no data source"),
        ({"a": []}, None, "source 'a' holds no sample"),
        ({"a": source_of("a", 3)}, {"c": 1.0}, "unknown source 'c'"),
        ({"a": source_of("a", 3), "b": source_of("b", 3)}, {"a": 1.0}, "sources.b has no weight"),
        ({"a": source_of("a", 3)}, {"a": 0.0}, "weight is 0.0"),
        ({"a": source_of("a", 3)}, {"a": float("nan")}, "weight is nan"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(sources, weights, message):
    with pytest.raises(InputError, match=message):
        Mixture(sources, weights, 2, 0, PAD)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(InputError, match="batch size is 0"):
        Mixture({"a": source_of("a", 3)}, None, 0, 0, PAD)
