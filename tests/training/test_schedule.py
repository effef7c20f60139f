"""The learning rate is a pure function of the step."""

import math

import pytest

from mmadapter.training.schedule import Schedule
from mmadapter.training.settings import OptimizerConf


def test_base_rate_is_stated_for_256_samples():
    assert OptimizerConf(base_lr=9e-3, batch_size=32).lr == pytest.approx(1.125e-3)  # the official V1 run: 8 GPUs x 4


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
