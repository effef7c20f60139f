"""Orders and mixtures: nothing lost, a pure function of (seed, step), each source apart from the others."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import chain

import pytest

from mmadapter.data.batches import Batch
from mmadapter.data.mixture import JointMixture, LengthBucketedOrder, Mixture, StepShape, TurnsMixture
from mmadapter.data.tokens import Encoded
from mmadapter.errors import InputError
from tests.data.test_batches import PAD, encoded, ids_of


def source_of(name: str, count: int) -> list[Encoded]:
    return [encoded(number, 3 + (7 * number) % 23, source=name) for number in range(count)]


def turns(sources, weights=None, batch_size: int = 4, micro: int | None = None, seed: int = 0) -> TurnsMixture:
    return TurnsMixture(sources, StepShape(batch_size, micro or batch_size, seed), PAD, weights)


def only_batch(mixture: Mixture, step: int) -> Batch:
    [batch] = mixture.step_batches(step)
    return batch


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


def test_samples_that_belong_together_come_one_behind_the_other_and_all_once_an_epoch():
    lengths = [10 + (37 * number) % 50 for number in range(503)]
    units = [list(range(first, min(first + 5, 503))) for first in range(0, 503, 5)]
    order = LengthBucketedOrder(lengths, 20, seed=3, units=units)
    batches = [order.batch_indices(2, index) for index in range(order.batches_per_epoch)]
    assert sorted(number for batch in batches for number in batch) == list(range(503))
    pictures = [[number // 5 for number in batch] for batch in batches]
    changes = [sum(one != other for one, other in zip(batch, batch[1:], strict=False)) for batch in pictures]
    assert max(changes) <= 4  # at most the ends of two torn units and three whole ones
    assert batches != [order.batch_indices(3, index) for index in range(order.batches_per_epoch)]


def test_order_stays_as_it_was_in_earlier_versions():
    """A changed order would make a resumed run differ from the run it goes on with."""
    order = LengthBucketedOrder([3, 1, 2, 5, 4, 9, 8], 2, seed=0)
    assert [order.batch_indices(1, index) for index in range(4)] == [[6, 5], [4, 3], [1, 2], [0]]


def test_one_source_keeps_its_smaller_last_batch():
    mixture = turns({"a": source_of("a", 10)})
    assert mixture.steps_per_epoch == 3
    sizes = [len(only_batch(mixture, index).samples) for index in range(6)]
    assert sizes == [4, 4, 2, 4, 4, 2]
    for epoch in range(2):
        seen = [name for index in range(3) for name in ids_of(only_batch(mixture, 3 * epoch + index))]
        assert Counter(seen) == Counter(str(number) for number in range(10))


def test_any_batch_can_be_asked_for_first():
    sources = {"a": source_of("a", 50), "b": source_of("b", 21)}
    run = turns(sources, {"a": 1.0, "b": 3.0}, seed=3)
    walked = [ids_of(only_batch(run, index)) for index in range(60)]
    for index in (59, 7, 31, 0):
        fresh = turns(sources, {"a": 1.0, "b": 3.0}, seed=3)
        assert ids_of(only_batch(fresh, index)) == walked[index]


def test_without_weights_each_source_comes_whole_once_an_epoch():
    mixture = turns({"a": source_of("a", 10), "b": source_of("b", 23)}, {"a": None, "b": None})
    assert mixture.steps_per_epoch == 3 + 6
    for epoch in range(3):
        batches = [only_batch(mixture, epoch * 9 + index) for index in range(9)]
        assert all(len({sample.source for sample in batch.samples}) == 1 for batch in batches)
        seen = Counter((sample.source, sample.id) for batch in batches for sample in batch.samples)
        assert set(seen.values()) == {1} and len(seen) == 33


def test_weights_share_out_the_steps_and_a_source_that_ends_starts_again():
    mixture = turns({"a": source_of("a", 40), "b": source_of("b", 6)}, {"a": 1.0, "b": 1.0})
    assert mixture.steps_per_epoch == 12
    batches = [only_batch(mixture, index) for index in range(24)]
    assert Counter(batch.source for batch in batches) == {"a": 12, "b": 12}
    assert {len(batch.samples) for batch in batches} == {4}
    seen = Counter(sample.id for batch in batches for sample in batch.samples if batch.source == "b")
    assert set(seen) == {str(number) for number in range(6)} and max(seen.values()) - min(seen.values()) <= 6
    assert {sample.id for batch in batches for sample in batch.samples if batch.source == "a"} == {
        str(number) for number in range(40)
    }


def test_a_light_source_still_comes():
    mixture = turns({"a": source_of("a", 40), "b": source_of("b", 40)}, {"a": 1000.0, "b": 0.001})
    assert Counter(only_batch(mixture, index).source for index in range(mixture.steps_per_epoch))["b"] == 1


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 2.0}])
def test_a_steps_samples_do_not_depend_on_the_micro_batch(weights):
    sources = {"a": source_of("a", 45), "b": source_of("b", 18)}

    def steps(micro: int) -> list[list[str]]:
        mixture = turns(sources, weights, 8, 8 // micro, seed=1)
        found = []
        for step in range(2 * mixture.steps_per_epoch):
            batches = mixture.step_batches(step)
            found.append([f"{batch.source}{name}" for batch in batches for name in ids_of(batch)])
        return found

    assert steps(1) == steps(2) == steps(8)


def test_a_source_without_a_sample_is_refused():
    for make in (turns, lambda sources: JointMixture(sources, StepShape(1, 1, 0), PAD, {"a": 1})):
        with pytest.raises(InputError, match="source 'a' holds no sample"):
            make({"a": []})


@pytest.mark.parametrize(
    "weights,digest", [({"questions": 1.0, "captions": 1.0}, "bea3b34f3b0eeb42"), (None, "b62292e26e93b014")]
)
def test_turns_stay_as_they_were_in_earlier_versions(weights, digest):
    """300 micro-batches, as the first version with mixtures drew them: a run goes on, and is repeated, as it began."""
    sources = {"questions": source_of("questions", 205), "captions": source_of("captions", 77)}
    mixture, drawn = turns(sources, weights, 16, 8), hashlib.sha256()
    for batch in list(chain.from_iterable(mixture.step_batches(step) for step in range(300)))[:300]:
        drawn.update("|".join([batch.source, *ids_of(batch), ""]).encode())
    assert drawn.hexdigest()[:16] == digest


def joint(sizes: dict[str, int], shares: dict[str, int], micro: int = 4, seed: int = 0) -> JointMixture:
    sources = {name: source_of(name, size) for name, size in sizes.items()}
    return JointMixture(sources, StepShape(sum(shares.values()), micro, seed), PAD, shares)


def drawn_of(mixture: JointMixture, source: str, steps: int) -> list[list[str]]:
    return [
        [name for batch in mixture.step_batches(step) if batch.source == source for name in ids_of(batch)]
        for step in range(steps)
    ]


def test_every_joint_step_holds_its_number_of_every_source_in_batches_of_one():
    mixture = joint({"captions": 50, "instructions": 21}, {"captions": 6, "instructions": 3})
    for step in range(40):
        batches = mixture.step_batches(step)
        assert [(batch.source, len(batch.samples)) for batch in batches] == [
            ("captions", 4),
            ("captions", 2),
            ("instructions", 3),
        ]
        assert all({sample.source for sample in batch.samples} == {batch.source} for batch in batches)


def test_a_joint_epoch_lasts_until_every_source_has_come_whole_and_smaller_ones_start_again_reshuffled():
    mixture = joint({"captions": 40, "instructions": 10}, {"captions": 4, "instructions": 4})
    assert mixture.steps_per_epoch == 10
    assert "4 captions, 4 instructions; an epoch is 10 steps" in mixture.describe()
    assert "captions 1 times, instructions 3.33 times" in mixture.describe()
    seen = [name for step in drawn_of(mixture, "captions", 10) for name in step]
    assert Counter(seen) == Counter(str(number) for number in range(40))
    instructions = drawn_of(mixture, "instructions", 9)
    passes = [instructions[begin : begin + 3] for begin in (0, 3, 6)]
    assert all({name for step in one for name in step} == {str(number) for number in range(10)} for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_sources_samples_in_a_joint_step_do_not_depend_on_the_other_sources():
    alone = joint({"instructions": 21}, {"instructions": 3})
    beside = joint({"captions": 50, "instructions": 21, "more": 9}, {"captions": 6, "instructions": 3, "more": 1})
    assert drawn_of(alone, "instructions", 30) == drawn_of(beside, "instructions", 30)
    assert drawn_of(joint({"instructions": 21}, {"instructions": 3}, seed=1), "instructions", 7) != drawn_of(
        alone, "instructions", 7
    )


def test_any_joint_step_can_be_asked_for_first_and_cut_as_one_likes():
    sizes, shares = {"captions": 50, "instructions": 21}, {"captions": 6, "instructions": 3}
    walked = [drawn_of(joint(sizes, shares), name, 40) for name in sizes]
    for step in (39, 7, 0):
        fresh = joint(sizes, shares, micro=1)
        assert [ids_of(batch) for batch in fresh.step_batches(step)] == [
            [name] for source in walked for name in source[step]
        ]
