"""A process that ends takes the others with it, with its message; a common end is silent. No torch: quick processes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mmadapter.launch.hub import Hub
from mmadapter.launch.watch import GONE, NOBODY, Failure, Watch

PROCESS = """
import json, os, signal, sys, time
from mmadapter.launch.watch import Watch

address, rank, does = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if rank == 0:
    from mmadapter.launch.hub import Hub
    hub = Hub("127.0.0.1", address["count"], 20)
    print(json.dumps(hub.address), flush=True)
    address = hub.address
watch = Watch(address, rank, 20)
assert watch.meet() is None
print("ready", flush=True)
sys.stdin.readline()
if does == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if does.startswith("fail"):
    first = watch.fail(int(does[5]), does[7:])
    print(f"first was {first.rank}: {first.message}", file=sys.stderr, flush=True)
    sys.exit(first.status)
if does == "worker":  # dies, while a forked worker of its own lives on
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(20)
    os.kill(os.getpid(), signal.SIGKILL)
if does == "wait":
    signal.sigwait([signal.SIGUSR1])
watch.leave()
print("left", flush=True)
"""


class Group:
    """Processes that each do one thing when told; `end` gives exit statuses, what they said, and the seconds."""

    def __init__(self, *does: str) -> None:
        self.processes: list[subprocess.Popen] = []
        address: dict = {"count": len(does)}
        for rank, what in enumerate(does):
            command = [sys.executable, "-c", PROCESS, json.dumps(address), str(rank), what]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self.processes.append(subprocess.Popen(command, text=True, **pipes))
            if rank == 0:
                address = json.loads(self.processes[0].stdout.readline())
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def end(self) -> tuple[list[int], list[str], float]:
        started = time.monotonic()
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=50)[1] for process in self.processes]
        return [process.returncode for process in self.processes], said, time.monotonic() - started


def test_a_common_end_is_silent():
    statuses, said, _ = Group("leave", "leave", "leave").end()
    assert statuses == [0, 0, 0] and said == ["", "", ""]


@pytest.mark.parametrize("does", ["kill", "worker"])
def test_a_killed_process_ends_the_others_at_once_and_only_the_first_speaks(does):
    statuses, said, seconds = Group("wait", does, "wait").end()
    assert statuses == [1, -signal.SIGKILL, 1] and seconds < 20
    assert said == [f"stopped, because process 1 ended: {GONE}\n", "", ""]


def test_a_killed_first_process_ends_the_others_and_each_of_them_says_so():
    statuses, said, _ = Group("kill", "wait", "wait").end()
    assert statuses == [-signal.SIGKILL, 1, 1]
    assert said[1:] == [f"stopped, because process 0 ended: {GONE}\n"] * 2


def test_the_first_failures_message_and_status_reach_everybody():
    statuses, said, _ = Group("wait", "wait", "fail 2 no such file").end()
    assert statuses == [2, 2, 2]
    assert said == ["stopped, because process 2 ended: no such file\n", "", "first was 2: no such file\n"]


def test_what_all_find_is_the_first_processes_to_say():
    statuses, said, _ = Group("fail 2 bad", "fail 2 bad", "fail 2 bad").end()
    assert statuses == [2, 2, 2] and said == ["first was 0: bad\n"] * 3


def test_a_broken_connection_is_not_taken_for_the_first_error_when_a_process_was_killed():
    statuses, said, _ = Group("fail 1 Connection closed by peer", "kill", "fail 1 Connection closed by peer").end()
    assert statuses == [1, -signal.SIGKILL, 1] and said[0] == f"first was 1: {GONE}\n"


def test_those_that_are_at_their_end_wait_for_the_others_and_fail_with_them():
    statuses, said, _ = Group("fail 2 no room for the report", "leave", "leave").end()
    assert statuses == [2, 2, 2] and said == ["first was 0: no room for the report\n", "", ""]


def test_strangers_that_knock_at_the_port_change_nothing():
    hub = Hub("127.0.0.1", 2, 20)
    for knock in (b"GET / HTTP/1.1\r\n\r\n", b'{"token": "guessed", "rank": 0}\n', b"[1]\n"):
        with socket.create_connection((hub.address["host"], hub.address["port"])) as stranger:
            stranger.sendall(knock)
    watches = [Watch(hub.address, rank, 5) for rank in (0, 1)]
    assert [watch.meet() for watch in watches] == [None, None]
    others = threading.Thread(target=watches[0].leave)
    others.start()
    watches[1].leave()
    others.join(5)
    assert not others.is_alive()


def test_a_question_waits_until_it_can_be_answered_and_may_be_asked_again():
    hub = Hub("127.0.0.1", 2, 20)
    first, other = (Watch(hub.address, rank, 5) for rank in (0, 1))
    assert [first.meet(), other.meet()] == [None, None]
    assert not other.ask(10, 0.2)  # too early
    asked = []

    def answer(number):
        asked.append(number)
        return len(asked) > 1

    first.answer_with(answer)  # the one that came too early: no
    time.sleep(0.2)
    assert asked == [10] and other.ask(10, 5) and asked == [10, 10]
    others = threading.Thread(target=first.leave)
    others.start()
    other.leave()
    others.join(5)


def test_those_that_never_come_are_named_and_a_late_one_does_not_wait():
    hub = Hub("127.0.0.1", 3, 0.5)
    watch = Watch(hub.address, 1, 5)
    knocking = socket.create_connection((hub.address["host"], hub.address["port"]))
    failure = watch.meet()
    assert failure.rank == NOBODY and failure.status == 2 and "within 0 s: 0, 2. Look" in failure.message
    knocking.settimeout(5)
    assert knocking.recv(1) == b""
    with pytest.raises(OSError):
        Watch(hub.address, 2, 5)


def test_one_that_dies_before_all_have_come_is_told_at_once():
    hub = Hub("127.0.0.1", 3, 60)
    watches = [Watch(hub.address, rank, 5) for rank in (1, 2)]
    watches[1]._connection.close()
    assert watches[0].meet() == Failure(2, 1, GONE)


def test_a_death_that_is_told_together_with_the_meeting_is_not_lost():
    server = socket.create_server(("127.0.0.1", 0))
    watch = Watch({"host": "127.0.0.1", "port": server.getsockname()[1], "token": ""}, 0, 5)
    told = json.dumps({"failure": {"rank": 1, "status": 1, "message": GONE}})
    server.accept()[0].sendall(f'{{"met": true}}\n{told}\n'.encode())
    assert watch.meet() == Failure(1, 1, GONE)
