"""The learning rate is a pure function of the step."""

import math

import pytest

from mmadapter.training.schedule import Schedule
from mmadapter.training.settings import OptimizerConf


def test_base_rate_is_stated_for_256_samples():
    optimizer = OptimizerConf(base_lr=9e-3, batch_size=32).sized(1000, methods_lr=1.0)
    assert optimizer.lr == pytest.approx(1.125e-3)  # the official V1 run: 8 GPUs x 4


def test_warm_up_is_linear_then_half_a_cosine_down_to_the_minimum():
    schedule = Schedule(lr=1.0, steps_per_epoch=10, epochs=5, warmup_epochs=2, min_lr=0.1)
    assert [schedule.lr_of(step) for step in (0, 5, 10, 20)] == pytest.approx([0.0, 0.25, 0.5, 1.0])
    assert schedule.lr_of(35) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule.lr_of(49) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 29 / 30)))
    assert schedule.lr_of(50) == pytest.approx(0.1)


def test_epochs_may_be_fractions():
    schedule = Schedule(lr=1.0, steps_per_epoch=7, epochs=0.5, warmup_epochs=0.25)
    assert schedule.total_steps == 4
    assert schedule.lr_of(1) == pytest.approx((1 / 7) / 0.25)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Schedule(lr=0.3, steps_per_epoch=4, epochs=1, warmup_epochs=0).lr_of(0) == 0.3


def test_a_run_that_is_all_warm_up_never_divides_by_zero():
    schedule = Schedule(lr=1.0, steps_per_epoch=4, epochs=1, warmup_epochs=1)
    assert [schedule.lr_of(step) for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 0.0])


def test_a_whole_number_of_epochs_has_no_step_too_many():
    assert Schedule(lr=1.0, steps_per_epoch=49, epochs=3.0, warmup_epochs=0).total_steps == 147


def test_what_is_done_each_epoch_or_every_so_many_steps_is_also_done_at_the_end():
    schedule = Schedule(lr=1.0, steps_per_epoch=4, epochs=2.5, warmup_epochs=0)
    assert [step for step in range(11) if schedule.is_due(step, None, 0)] == [4, 8, 10]
    assert [step for step in range(11) if schedule.is_due(step, 3, 0)] == [3, 6, 9, 10]
    assert not schedule.is_due(8, None, last=8)


def test_in_steps_the_rates_are_the_same_whatever_an_epoch_is():
    one, other = (Schedule(1.0, epoch, 5.0, 1.0, steps=12, warmup_steps=3) for epoch in (5, 7))
    assert [one.lr_of(step) for step in range(13)] == [other.lr_of(step) for step in range(13)]
    assert [one.lr_of(step) for step in (0, 1, 3, 12)] == pytest.approx([0.0, 1 / 3, 1.0, 0.0])
    assert one.total_steps == 12 and one.total_epochs == pytest.approx(2.4)
    assert [step for step in range(13) if one.is_due(step, None, 0)] == [5, 10, 12]


def by_size(**given):
    """Settings that leave batch, length, warm-up and rate to the data's size, but for those that are given."""
    names = ("lr", "base_lr", "batch_size", "micro_batch_size", "steps", "epochs", "warmup_steps", "warmup_epochs")
    return OptimizerConf(**{**dict.fromkeys(names), **given})


@pytest.mark.parametrize(
    "samples,batch,steps",
    [
        (1, 1, 60),
        (15, 1, 60),
        (16, 2, 60),
        (100, 8, 60),
        (255, 16, 60),
        (256, 32, 60),
        (1000, 32, 94),
        (52_000, 32, 2000),
    ],
)
def test_batch_and_steps_follow_from_the_number_of_samples(samples, batch, steps):
    optimizer = by_size().sized(samples, methods_lr=0.01)
    assert (optimizer.batch_size, optimizer.steps, optimizer.lr) == (batch, steps, 0.01)
    assert optimizer.batch_size % optimizer.micro_batch_size == 0 and optimizer.micro_batch_size <= 8
    assert Schedule.of(optimizer, 10).warmup_steps == round(steps / 20)


def test_what_is_given_stands_and_the_rest_follows():
    assert by_size(batch_size=6).sized(100, 0.01).micro_batch_size == 6
    assert by_size(batch_size=12).sized(100, 0.01).micro_batch_size == 6  # divides 12, at most 8
    assert by_size(batch_size=4).sized(100, 0.01).steps == 75
    assert by_size(lr=0.5, base_lr=9e-3).sized(100, 0.01).lr == 0.5
    in_epochs = by_size(epochs=4).sized(100, 0.01)
    assert in_epochs.steps is None and Schedule.of(in_epochs, 13).warmup_epochs == pytest.approx(0.2)
    assert by_size(epochs=4, batch_size=8, warmup_epochs=0).by_size(100) == ""
    said = by_size().by_size(100)
    assert "n = 100" in said and "batch 8 " in said and "60 steps" in said and "optimizer.batch_size" in said


def test_a_warm_up_that_is_longer_than_the_run_is_cut_to_a_tenth_and_said():
    paper = OptimizerConf(epochs=1)  # warm-up of 2 epochs
    sized = paper.sized(100, 0.01)
    schedule = Schedule.of(sized, 20)
    assert schedule.warmup_epochs == 0.1 and schedule.lr_of(2) == schedule.lr
    assert schedule.cut_warmup(sized) == (
        "the warm-up of 2 epochs is longer than the run of 1; it is cut to 0.1 (optimizer.warmup_epochs)"
    )
    in_steps = OptimizerConf(steps=30, warmup_steps=31).sized(100, 0.01)
    assert Schedule.of(in_steps, 20).warmup_steps == 3
    assert "31 steps" in str(Schedule.of(in_steps, 20).cut_warmup(in_steps))
    whole = OptimizerConf(epochs=2).sized(100, 0.01)
    assert Schedule.of(whole, 20).warmup_epochs == 2 and Schedule.of(whole, 20).cut_warmup(whole) is None


def test_steps_and_warm_up_may_be_given_one_without_the_other():
    steps_alone = Schedule.of(OptimizerConf(steps=100).sized(100, 0.01), 20)  # warm-up of 2 epochs of 20
    assert (steps_alone.total_steps, steps_alone.warmup_steps) == (100, 40)
    warmup_alone = Schedule.of(OptimizerConf(warmup_steps=30).sized(100, 0.01), 20)
    assert (warmup_alone.total_steps, warmup_alone.warmup_epochs) == (100, 1.5)
