"""Signals set a flag; the loop saves and leaves with the documented code; earlier handlers are back afterwards."""

import os
import signal
import threading

import pytest

from mmadapter.distributed.ranks import Ranks
from mmadapter.training.preemption import (
    RunStopped,
    end_interrupted,
    hold_signals,
    interrupts,
    release_signals,
    stop_on_signals,
)

ALONE = Ranks()


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGUSR1", 138), ("SIGUSR2", 140), ("SIGTERM", 143)])
def test_a_signal_sets_the_flag_and_gives_the_documented_code(name, code):
    with stop_on_signals(ALONE) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.agreed() and stop.signal.name == name
        with pytest.raises(RunStopped) as ended:
            stop.finish()
    assert ended.value.code == code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_outside_the_loop_a_signal_interrupts_and_inside_it_waits_for_the_save(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with interrupts():
        with pytest.raises(KeyboardInterrupt) as interrupted:
            os.kill(os.getpid(), number)
        assert interrupted.value.args == (number,)
        with stop_on_signals(ALONE) as stop:
            os.kill(os.getpid(), number)
            assert stop.agreed() and stop.signal == number
    assert signal.getsignal(number) is before


def test_the_end_of_a_stopped_run_is_not_interrupted_again():
    with interrupts():
        with stop_on_signals(ALONE) as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.agreed()
            with pytest.raises(RunStopped):
                stop.finish()
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a requeue sends it to the very process that asked for it
    with interrupts(), pytest.raises(KeyboardInterrupt):  # the next run in this process
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_was_held_back_interrupts_as_soon_as_the_run_sees_to_it():
    hold_signals()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)  # to the process, an earlier test's thread might take it
    with interrupts(), pytest.raises(KeyboardInterrupt) as interrupted:
        release_signals()
    assert interrupted.value.args == (signal.SIGUSR2,)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGUSR1", 138), ("SIGUSR2", 140), ("SIGTERM", 143)])
def test_outside_the_loop_a_run_ends_with_one_line_and_the_documented_code(name, code):
    said = []
    with interrupts(), pytest.raises(RunStopped) as ended:
        try:
            os.kill(os.getpid(), getattr(signal, name))
            signal.pause()
        except KeyboardInterrupt as error:
            if name != "SIGINT":
                os.kill(os.getpid(), signal.SIGTERM)  # a second one: it ends already
            end_interrupted(ALONE, error, "Run the same command again", said.append)
    assert ended.value.code == code
    assert said == [f"interrupted by {name}. Run the same command again to go on from the last checkpoint."]


def test_a_second_interrupt_aborts_at_once():
    with stop_on_signals(ALONE) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()


def test_a_second_termination_waits_for_the_save():
    with stop_on_signals(ALONE) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed() and stop.signal == signal.SIGTERM


def test_a_handler_that_was_there_before_is_back_afterwards_and_gets_a_signal_that_nobody_asked_for():
    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with stop_on_signals(ALONE) as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert called == [] and stop.agreed()
        assert called == []  # a stop that all ranks have agreed on
        with stop_on_signals(ALONE):
            os.kill(os.getpid(), signal.SIGUSR2)
        assert called == [signal.SIGUSR2]
        os.kill(os.getpid(), signal.SIGUSR2)
        assert called == [signal.SIGUSR2] * 2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_outside_the_main_thread_nothing_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body():
        with stop_on_signals(ALONE):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]
