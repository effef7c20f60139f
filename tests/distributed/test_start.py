"""launch.processes: one command that starts, ends and fails as a single process would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mmadapter.distributed.launchers import OTHER_LAUNCHERS
from mmadapter.distributed.start import start_ranks

CHILD = """
import os, signal, sys, time
from mmadapter.distributed.start import end_with_parent

end_with_parent(os.environ)
rank, does = os.environ["RANK"], sys.argv[1]
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(138))
line = [rank, os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], os.environ["OMP_NUM_THREADS"], str(os.getpid())]
os.write(1, (" ".join(line) + "\\n").encode())  # at once: `print` writes word by word under PYTHONUNBUFFERED
if does == "end":
    sys.exit(0)
if rank == "1" and does.isdigit():
    sys.exit(int(does))
if rank == "1" and does == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
PARENT = f"""
import os, signal, sys
from mmadapter.distributed import start

start.GRACE_SECONDS = 2.0
command = [sys.executable, "-c", {CHILD!r}, sys.argv[1]]
sys.exit(start.start_ranks(command, 2, os.environ | {{"OMP_NUM_THREADS": "1"}}))
"""


def parent(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PARENT, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_of_both(process: subprocess.Popen) -> list[list[str]]:
    return sorted(process.stdout.readline().split() for _ in range(2))


def is_alive(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def wait_until_gone(numbers: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(is_alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [number for number in numbers if is_alive(number)]


def test_each_process_knows_its_place_and_all_end_well():
    process = parent("end")
    assert [line[:4] for line in lines_of_both(process)] == [["0", "2", "0", "1"], ["1", "2", "1", "1"]]
    assert process.wait(20) == 0 and process.stderr.read() == ""


@pytest.mark.parametrize("does,status", [("2", 2), ("1", 1), ("kill", 137)])
def test_one_that_ends_badly_takes_the_others_with_it_and_gives_its_status(does, status):
    process = parent(does)
    numbers = [int(line[4]) for line in lines_of_both(process)]
    assert process.wait(20) == status
    assert not any(map(is_alive, numbers))
    assert ("rank 1 was ended by SIGKILL" in process.stderr.read()) == (does == "kill")


@pytest.mark.parametrize("name,status", [("SIGUSR1", 138), ("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR2", 140)])
def test_a_signal_is_passed_on_once_and_the_status_is_that_of_a_single_process(name, status):
    process = parent("wait")
    lines_of_both(process)
    process.send_signal(getattr(signal, name))
    assert process.wait(20) in (status, 1 if name == "SIGINT" else status)  # bare Python ends with 1 at Ctrl-C


def test_handlers_that_were_there_before_are_there_again():
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        mine = signal.getsignal(signal.SIGUSR1)
        assert start_ranks([sys.executable, "-c", ""], 1, os.environ) == 0
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_processes_do_not_outlive_a_killed_parent():
    process = parent("wait")
    numbers = [int(line[4]) for line in lines_of_both(process)]
    process.kill()
    process.wait(20)
    wait_until_gone(numbers)


ORPHAN = """
import os, sys, time
from mmadapter.distributed import start

start.PARENT_SECONDS = 0.05
start.end_with_parent(os.environ)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("variable,ends", [("TORCHELASTIC_RUN_ID", True), ("CROSS_RANK", True), ("SOME_OTHER", False)])
def test_only_what_a_launcher_has_started_ends_with_it(variable, ends):
    """A run that somebody started alone goes on when the shell is closed."""
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ORPHAN!r}])"
    environment = {k: v for k, v in os.environ.items() if k not in OTHER_LAUNCHERS} | {variable: "0"}
    process = subprocess.Popen([sys.executable, "-c", launcher], env=environment, stdout=subprocess.PIPE, text=True)
    number = int(process.stdout.readline())
    process.kill()
    process.wait(20)
    if ends:
        wait_until_gone([number])
    else:
        time.sleep(0.5)
        assert is_alive(number)
        os.kill(number, signal.SIGKILL)


STUBBORN = """
import os, signal, sys, time
from mmadapter.distributed import start

start.PARENT_SECONDS, start.SAVE_SECONDS = 0.05, 0.5
signal.signal(signal.SIGTERM, lambda number, frame: print("asked to stop", flush=True))
start.end_with_parent(os.environ)
print(os.getpid(), flush=True)
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize("launcher", ["torchrun", "launch.processes"])
def test_without_its_launcher_a_process_is_asked_to_save_before_it_is_ended(launcher):
    if launcher == "torchrun":
        started_by = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}])"
    else:
        started_by = f"""
import os, sys
from mmadapter.distributed.start import start_ranks
start_ranks([sys.executable, '-c', {STUBBORN!r}], 1, os.environ)
"""
    environment = {k: v for k, v in os.environ.items() if k not in OTHER_LAUNCHERS}
    if launcher == "torchrun":
        environment["TORCHELASTIC_RUN_ID"] = "0"
    process = subprocess.Popen([sys.executable, "-c", started_by], env=environment, stdout=subprocess.PIPE, text=True)
    number = int(process.stdout.readline())
    process.kill()
    process.wait(20)
    assert process.stdout.read() == "asked to stop\n"  # once; it ends with the process
    wait_until_gone([number])


def test_a_command_that_is_not_there_ends_what_has_started():
    with pytest.raises(FileNotFoundError):
        start_ranks(["/no/such/program"], 2, os.environ)
