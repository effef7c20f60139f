"""Signals set a flag; the loop saves and leaves with the documented code; earlier handlers are called."""

import os
import signal
import threading

import pytest

from mmadapter.training.preemption import RunStopped, stop_on_signals, termination_interrupts


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGUSR1", 138), ("SIGUSR2", 140), ("SIGTERM", 143)])
def test_a_signal_sets_the_flag_and_gives_the_documented_code(name, code):
    with stop_on_signals() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.agreed() and stop.signal.name == name
        with pytest.raises(RunStopped) as ended:
            stop.finish()
    assert ended.value.code == code


def test_outside_the_loop_a_termination_interrupts_and_inside_it_waits_for_the_save():
    before = signal.getsignal(signal.SIGTERM)
    with termination_interrupts():
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.agreed() and stop.signal == signal.SIGTERM
            with pytest.raises(RunStopped) as ended:
                stop.finish()
        assert ended.value.code == 143
        with pytest.raises(KeyboardInterrupt) as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted.value.args == (signal.SIGTERM,)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_a_launcher_is_left_alone():
    called = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        with termination_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
        assert called == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


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
