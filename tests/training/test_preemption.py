"""Signals set a flag; the loop saves and leaves with the documented code; earlier handlers are called."""

import os
import signal
import threading

import pytest

from mmadapter.config.entry import hold_signals
from mmadapter.training.preemption import (
    RunStopped,
    end_attempt,
    interrupt,
    release_signals,
    stop_on_signals,
    termination_interrupts,
)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGUSR1", 138), ("SIGUSR2", 140), ("SIGTERM", 143)])
def test_a_signal_sets_the_flag_and_gives_the_documented_code(name, code):
    with stop_on_signals() as stop:
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
    with termination_interrupts():
        with pytest.raises(KeyboardInterrupt) as interrupted:
            os.kill(os.getpid(), number)
        assert interrupted.value.args == (number,)
        with stop_on_signals() as stop:
            os.kill(os.getpid(), number)
            assert stop.agreed() and stop.signal == number
    assert signal.getsignal(number) is before


def test_the_end_of_an_attempt_is_not_interrupted_again():
    with termination_interrupts():
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.agreed()
            with pytest.raises(RunStopped):
                stop.finish()
        os.kill(os.getpid(), signal.SIGTERM)  # a requeue sends it to the very process that asked for it
    with termination_interrupts(), pytest.raises(KeyboardInterrupt):  # the next run in this process
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_was_held_back_interrupts_as_soon_as_the_run_sees_to_it():
    hold_signals()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)  # to the process, an earlier test's thread might take it
    with termination_interrupts(), pytest.raises(KeyboardInterrupt) as interrupted:
        release_signals()
    assert interrupted.value.args == (signal.SIGUSR2,)


@pytest.mark.parametrize("within_the_loop", [True, False])
def test_the_handler_of_a_launcher_is_called_before_the_run_ends(within_the_loop):
    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with termination_interrupts(), pytest.raises(RunStopped) as ended:
            if within_the_loop:
                with stop_on_signals() as stop:
                    os.kill(os.getpid(), signal.SIGUSR2)
                    assert called == [] and stop.agreed()
                    stop.finish()
            try:
                os.kill(os.getpid(), signal.SIGUSR2)
            except KeyboardInterrupt as error:
                end_attempt(error.args[0], interrupt, print)
        assert called == [signal.SIGUSR2] and ended.value.code == 140
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_second_interrupt_aborts_at_once():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()


def test_a_second_termination_waits_for_the_save():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed() and stop.signal == signal.SIGTERM


def test_the_earlier_handler_is_called_after_the_save_and_is_back_afterwards():
    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert called == [] and stop.agreed()
            with pytest.raises(RunStopped):
                stop.finish()
        assert called == [signal.SIGUSR2]
        os.kill(os.getpid(), signal.SIGUSR2)
        assert called == [signal.SIGUSR2] * 2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_outside_the_main_thread_nothing_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body():
        with stop_on_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]
