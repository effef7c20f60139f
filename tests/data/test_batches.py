"""Batches: nothing padded beyond need, the supervised positions listed, one source."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmadapter.data.batches import make_batch
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.tokens import Encoded

PAD = 99


def encoded(number: int, length: int, supervised: int = 1, source: str = "a", image: str | None = None) -> Encoded:
    sample = Sample(str(number), source, (Segment("x", "template"),), Path(image) if image else None, f"item {number}")
    spans = ((length - supervised, length),) if supervised else ()
    return Encoded(sample, array("i", range(1, length + 1)), spans)


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
