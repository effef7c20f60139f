"""Samples as a forest, against brute force: every token sees exactly what stands in front of it in its own sample."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from mmadapter.data import forest
from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.forest import make_forest_batch
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.tokens import Encoded


def made(ids: list[int], spans, number: int = 0, image: str | None = None, source: str = "s") -> Encoded:
    sample = Sample(str(number), source, (Segment("x", "answer"),), image and Path(image), f"sample {number}")
    return Encoded(sample, array("i", ids), tuple(spans))


def drawn_samples(seed: int) -> list[Encoded]:
    """Few different tokens, so that much is shared; answers anywhere, also two in a sample, also none."""
    drawn = random.Random(seed)
    stems = [[drawn.randrange(3) for _ in range(drawn.randrange(0, 25))] for _ in range(3)]
    found = []
    for number in range(drawn.randrange(1, 9)):
        stem = drawn.choice(stems)
        ids = [*stem[: drawn.randrange(len(stem) + 1)], *(drawn.randrange(3) for _ in range(drawn.randrange(1, 9)))]
        cuts = sorted(drawn.sample(range(len(ids) + 1), min(drawn.choice([0, 2, 4]), len(ids) + 1) // 2 * 2))
        spans = zip(cuts[::2], cuts[1::2], strict=True)
        found.append(made(ids, spans, number, drawn.choice([None, "one.png", "two.png"])))
    return found


def paths(batch: Batch) -> list[tuple[tuple[int, ...], Path | None]]:
    """What each row sees, itself among it, as tokens; and its picture."""
    assert batch.forest is not None
    tokens, rows, seen = batch.input_ids[0].tolist(), [], []
    for segment in batch.forest.segments:
        start = len(seen)
        before = [row for ancestor in segment.ancestors for row in rows[ancestor]]
        rows.append(range(start, start + segment.length))
        assert segment.length > 0 and segment.before == len(before)
        seen += [tuple(tokens[row] for row in (*before, *range(start, last + 1))) for last in rows[-1]]
    assert len(seen) == len(tokens) == sum(batch.forest.group_sizes)
    assert batch.forest.positions[0].tolist() == [len(path) - 1 for path in seen]
    pictures = [image for image, size in zip(batch.images, batch.forest.group_sizes, strict=True) for _ in range(size)]
    return list(zip(seen, pictures, strict=True))


def brute_force(samples: list[Encoded]) -> list[tuple]:
    """(sample, what is seen, picture, target) of every supervised token but a first one."""
    return sorted(
        (number, tuple(item.ids[:place]), str(item.sample.image), item.ids[place])
        for number, item in enumerate(samples)
        for begin, end in item.spans
        for place in range(max(begin, 1), end)
    )


@pytest.mark.parametrize("worth", [1, 8])
@pytest.mark.parametrize("seed", range(40))
def test_each_target_is_predicted_from_what_stands_before_it_in_its_sample(seed, worth, monkeypatch):
    monkeypatch.setattr(forest, "WORTH_SHARING", worth)
    samples = drawn_samples(seed)
    batch = make_forest_batch(samples)
    seen = paths(batch)
    pairs = zip(batch.pair_sample.tolist(), batch.rows.tolist(), batch.targets.tolist(), strict=True)
    found = sorted((number, seen[row][0], str(seen[row][1]), target) for number, row, target in pairs)
    assert found == brute_force(samples) and batch.supervised_tokens == len(found)
    assert batch.samples == make_batch(samples, 0).samples
    if worth == 1 and found:  # nothing is computed twice, and nothing that teaches nothing
        needed = {(path[: n + 1], image) for _, path, image, _ in found for n in range(len(path))}
        assert sorted((path, str(image)) for path, image in seen) == sorted(needed)


def test_a_beginning_is_shared_only_where_that_saves_more_than_its_attention_call_costs():
    stem = list(range(10, 10 + forest.WORTH_SHARING))
    for length, segments in ((len(stem), 3), (len(stem) - 1, 2)):
        batch = make_forest_batch([made([*stem[:length], n, n, n], [(length + 1, length + 3)], n) for n in (1, 2)])
        assert len(batch.forest.segments) == segments


def test_five_captions_of_a_picture_stand_behind_one_question_and_their_first_tokens_hang_on_one_row():
    asked = list(range(10, 22))
    samples = [made([*asked, 30 + n, 2], [(12, 14)], n, "one.png") for n in range(5)]
    batch = make_forest_batch([*samples, made([*asked, 30, 2], [(12, 14)], 5)])
    assert batch.images == (Path("one.png"), None) and batch.forest.group_sizes == (12 + 5, 12 + 1)
    assert batch.rows[batch.targets >= 30].tolist() == [11] * 5 + [17 + 11]


def test_an_answer_that_is_only_its_end_has_no_rows_of_its_own():
    asked = list(range(10, 22))
    batch = make_forest_batch([made([*asked, 2], [(12, 13)]), made([*asked, 30, 2], [(12, 14)], 1)])
    assert batch.input_ids[0].tolist() == [*asked, 30]
    assert sorted(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)) == [(11, 2), (11, 30), (12, 2)]


def test_without_a_supervised_token_there_is_still_something_to_run():
    batch = make_forest_batch([made([5, 6, 7], [], image="one.png")])
    assert batch.supervised_tokens == 0 and batch.input_ids.tolist() == [[5]] and batch.images == (Path("one.png"),)


def test_tokens_of_several_sources_are_refused_and_the_batch_moves_as_a_whole():
    one = made([5, 6, 7], [(1, 3)])
    with pytest.raises(ValueError, match="exactly one source"):
        make_forest_batch([one, replace(one, sample=replace(one.sample, source="other"))])
    moved = make_forest_batch([one]).to("meta")
    assert moved.input_ids.is_meta and moved.forest.positions.is_meta
