"""Each process's part of a step: together the whole step once, the same number of micro-batches, balanced tokens."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mmadapter.data.batches import Batch
from mmadapter.data.mixture import JointMixture, StepShape, TurnsMixture, deal, micro_batches
from mmadapter.data.tokens import Encoded
from tests.data.test_batches import PAD, encoded, ids_of

COUNTS = [1, 2, 3, 4]


def source_of(name: str, count: int, pictures: tuple[int, ...] = ()) -> list[Encoded]:
    items = [encoded(number, 3 + (7 * number) % 23, source=name) for number in range(count)]
    return [
        replace(item, sample=replace(item.sample, image=Path(f"{number}.png"))) if number in pictures else item
        for number, item in enumerate(items)
    ]


def turns(rank: int = 0, count: int = 1, micro: int = 4) -> TurnsMixture:
    sources = {"a": source_of("a", 45), "b": source_of("b", 18)}
    return TurnsMixture(sources, StepShape(8, micro, 1, rank, count), PAD)


def joint(rank: int = 0, count: int = 1, micro: int = 4) -> JointMixture:
    sources = {"captions": source_of("captions", 50), "instructions": source_of("instructions", 21)}
    return JointMixture(sources, StepShape(8, micro, 1, rank, count), PAD, {"captions": 7, "instructions": 1})


def parts_of(samples: list[Encoded], count: int, micro: int) -> list[list[Batch]]:
    return [micro_batches(samples, StepShape(8, micro, 1, rank, count), PAD) for rank in range(count)]


def whole_step(make, count: int, step: int) -> list[list[Batch]]:
    return [make(rank, count).step_batches(step) for rank in range(count)]


def samples_of(batches: list[Batch]) -> Counter:
    return Counter((batch.source, name) for batch in batches if not batch.filler for name in ids_of(batch))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", [turns, joint])
def test_the_parts_together_are_the_steps_samples_once(make, count):
    for step in range(12):
        parts = whole_step(make, count, step)
        everything = samples_of([batch for batches in parts for batch in batches])
        assert everything == samples_of(make().step_batches(step))
        assert set(everything.values()) == {1}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", [turns, joint])
def test_every_process_has_the_same_sources_at_the_same_places_and_at_most_one_sample_more(make, count):
    for step in range(12):
        parts = whole_step(make, count, step)
        assert len({tuple(batch.source for batch in batches) for batches in parts}) == 1
        for source in {batch.source for batch in parts[0]}:
            sizes = [sum(n for (name, _), n in samples_of(batches).items() if name == source) for batches in parts]
            assert max(sizes) - min(sizes) <= 1
        assert all(len(batch.samples) <= 4 for batches in parts for batch in batches)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", [1, 2, 5, 16, 61, 64])
def test_no_part_has_more_tokens_than_another_by_more_than_the_longest_sample(count, size):
    for shift in range(20):
        lengths = sorted(3 + (shift + 31 * number * number) % 197 for number in range(size))
        parts = deal([[encoded(number, length)] for number, length in enumerate(lengths)], count)
        tokens = [sum(len(item.ids) for item in part) for part in parts]
        assert max(tokens) - min(tokens) <= max(lengths)
        assert all([len(i.ids) for i in part] == sorted(len(i.ids) for i in part) for part in parts)


def test_micro_batches_at_the_same_place_are_about_as_long():
    samples = [encoded(number, 3 + number) for number in range(64)]
    parts = parts_of(samples, 4, 4)
    widths = [[batch.input_ids.shape[1] for batch in batches] for batches in parts]
    assert all(max(place) - min(place) < 4 for place in zip(*widths, strict=True))


@pytest.mark.parametrize("layout, expected", [("padded", [5, 3, 3, 1, 1]), ("forest", [6, 4, 2, 1])])
def test_a_micro_batch_has_no_more_tokens_than_allowed_unless_one_sample_has(layout, expected):
    samples = [encoded(number, length) for number, length in enumerate([3, 3, 4, 4, 6, 6, 6, 7, 8, 8, 9, 9, 40])]
    shape = StepShape(16, 16, 1, micro_batch_tokens=30)
    batches = micro_batches(samples, shape, PAD, layout)
    assert [len(batch.samples) for batch in batches] == expected
    assert [name for batch in batches for name in ids_of(batch)] == [str(number) for number in range(13)]
    assert [len(batch.samples) for batch in micro_batches(samples, replace(shape, micro_batch_size=2), PAD)][:2] == [
        2,
        2,
    ]
    assert len(micro_batches(samples, replace(shape, micro_batch_tokens=None), PAD)) == 1


@pytest.mark.parametrize("count", COUNTS)
def test_processes_whose_samples_are_cut_otherwise_have_as_many_micro_batches(count):
    samples = [encoded(number, 3 + number * number) for number in range(11)]
    shapes = [StepShape(11, 4, 1, rank, count, micro_batch_tokens=60) for rank in range(count)]
    parts = [micro_batches(samples, shape, PAD) for shape in shapes]
    assert len({len(batches) for batches in parts}) == 1
    assert samples_of([batch for batches in parts for batch in batches]) == Counter(
        {("a", str(n)): 1 for n in range(11)}
    )


@pytest.mark.parametrize("count", COUNTS)
def test_neighbours_with_one_picture_go_to_one_process_but_none_gets_more_than_its_share(count):
    items = source_of("a", 40)
    pictured = [replace(item, sample=replace(item.sample, image=Path(f"{n // 5}.png"))) for n, item in enumerate(items)]
    parts = parts_of(pictured, count, 5)
    homes: dict[Path | None, set[int]] = {}
    for rank, batches in enumerate(parts):
        for sample in (one for batch in batches if not batch.filler for one in batch.samples):
            homes.setdefault(sample.image, set()).add(rank)
    assert len(homes) == 8 and all(len(ranks) == 1 for ranks in homes.values())

    alike = [replace(item, sample=replace(item.sample, image=Path("one.png"))) for item in items]
    sizes = [sum(len(batch.samples) for batch in batches if not batch.filler) for batches in parts_of(alike, count, 5)]
    assert sum(sizes) == 40 and max(sizes) <= -(-40 // count)


def test_a_process_without_samples_gets_fillers_that_count_nothing():
    one, other = parts_of([encoded(0, 5)], 2, 4)
    assert not one[0].filler and one[0].supervised_tokens == 1
    assert other[0].filler and other[0].supervised_tokens == 0 and other[0].input_ids.shape == (1, 5)


def test_visual_says_whether_any_process_has_a_picture_at_that_place():
    samples = source_of("a", 12, pictures=(3,))
    parts = parts_of(samples, 3, 2)
    with_picture = [any(image is not None for b in place for image in b.images) for place in zip(*parts, strict=True)]
    assert sorted(with_picture) == [False, True]
    for batches in parts:
        assert [batch.visual for batch in batches] == with_picture


def test_a_fillers_own_picture_does_not_count():
    samples = source_of("a", 1, pictures=(0,))
    batches = [batches[0] for batches in parts_of(samples, 2, 2)]
    assert [batch.visual for batch in batches] == [True, True]
    assert [batch.filler for batch in batches] == [False, True]


def test_alone_nothing_is_added():
    assert all(batch.visual is None and not batch.filler for batch in turns().step_batches(0))


@pytest.mark.parametrize("make", [turns, joint])
def test_a_far_step_costs_what_the_first_costs(make):
    def seconds(step: int) -> float:
        mixture, started = make(1, 2), time.perf_counter()
        mixture.step_batches(step)
        return time.perf_counter() - started

    near, far = (min(seconds(step) for _ in range(5)) for step in (1, 1_000_000))
    assert far < 20 * near + 0.05
