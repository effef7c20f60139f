"""No process of a run outlives another one's failure: each keeps a connection to the first, and its end is a word.

A connection that closes without one is a death (an exception that nobody reported, kill -9, a lost machine); the kernel
tells that at once, however long a step holds the interpreter, so there are no heart-beats that could come late. The
first process's `hub` is the other end of all connections.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

OTHERS_SECONDS = 1.0  # a failure may be the consequence of a death that shows a moment later
LEAVE_SECONDS = 10.0  # for the others to end, once they know
SILENT_SECONDS = 30  # a machine that does not answer is lost
GONE = "it is gone without a word (killed? out of memory? its machine lost?)"
NOBODY = -1  # number of a process


@dataclass(frozen=True)
class Failure:
    """Why a run ends: the process that failed first, the exit status for all, what there is to read."""

    rank: int  # NOBODY where some have never come
    status: int
    message: str


class Watch:
    """One process's connection. While it is open, another one's failure ends this process from a thread.

    Connects within `timeout` seconds, else raises OSError. `meet` comes next.
    """

    def __init__(self, address: Mapping[str, Any], rank: int, timeout: float) -> None:
        self.rank = rank
        self._connection = socket.create_connection((address["host"], address["port"]), timeout=timeout)
        self._connection.settimeout(None)
        keep_alive(self._connection)
        send(self._connection, {"token": address["token"], "rank": rank})
        self._lines = Lines(self._connection)
        self._failure: Failure | None = None
        self._has_failed = False
        self._heard, self._answered = threading.Event(), threading.Event()
        self._answer: Callable[[int], bool] = lambda number: False
        self._is_asked, self._can_answer = False, threading.Event()
        os.register_at_fork(after_in_child=self._connection.close)

    def meet(self) -> Failure | None:
        """Waits until all are connected, from then on listens; returns why that has failed."""
        messages: list[dict[str, Any]] | None = []
        while messages is not None:
            if told := [message for message in messages if "failure" in message]:  # perhaps together with "met"
                return Failure(**told[0]["failure"])
            if any("met" in message for message in messages):
                threading.Thread(target=self._listen, name="watch", daemon=True).start()
                return None
            messages = self._lines.read()
        return Failure(0, 1, GONE)

    def leave(self) -> None:
        """Waits until every process has come to its end; another one's failure in the meantime ends this one, too."""
        send(self._connection, {"done": True})
        self._heard.wait()
        self._connection.close()

    def fail(self, status: int, message: str) -> Failure:
        """Tells the others; returns the failure that came first, this one or another's."""
        own = Failure(self.rank, status, message)
        self._has_failed = True
        send(self._connection, {"failure": asdict(own)})
        self._heard.wait(OTHERS_SECONDS + 2 * LEAVE_SECONDS)
        self._connection.close()
        return self._failure or own

    def ask(self, number: int, seconds: float) -> bool:
        """Has what the first process answers with called, whatever its main thread waits for.

        Returns whether that has been True within `seconds`.
        """
        send(self._connection, {"asked": number})
        return self._answered.wait(seconds)

    def answer_with(self, answer: Callable[[int], bool]) -> None:
        """In the first process: what `ask` calls, on a thread. A question that came before waits for this."""
        self._answer = answer
        self._can_answer.set()

    def _answer_one(self, number: int) -> None:
        self._can_answer.wait()
        if self._answer(number):
            send(self._connection, {"answered": number})
        else:
            self._is_asked = False

    def _hear(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if "asked" in message and not self._is_asked:  # several ask for the same
                self._is_asked = True
                threading.Thread(target=self._answer_one, args=(message["asked"],), name="answer", daemon=True).start()
            if "answered" in message:
                self._answered.set()

    def _listen(self) -> None:
        while not self._heard.is_set():
            messages = self._lines.read()
            self._hear(messages or [])
            if messages is None:
                self._failure = Failure(0, 1, GONE)
            elif told := [message for message in messages if "failure" in message]:
                self._failure = Failure(**told[0]["failure"])
            elif not any("done" in message for message in messages):
                continue
            if self._failure is not None and not self._has_failed:
                if self.rank == 0 or messages is None:  # one voice; without the first process each has its own
                    speak(stopped_line(self._failure))
                os._exit(self._failure.status or 1)  # whatever the main thread waits for
            self._heard.set()


class Lines:
    """One JSON object a line from a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._rest = connection, b""

    def read(self) -> list[dict[str, Any]] | None:
        """What has come, waiting for some; None where the other side is gone."""
        try:
            piece = self._connection.recv(65_536)
        except OSError:
            return None
        if not piece:
            return None
        *lines, self._rest = (self._rest + piece).split(b"\n")
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:  # not one of ours
            return None
        return [message for message in found if isinstance(message, dict)]


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends one line; a side that is gone is noticed where it is read from."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return


def keep_alive(connection: socket.socket) -> None:
    """Lets the kernel close the connection where the other machine does not answer for SILENT_SECONDS."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    settings = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": SILENT_SECONDS * 1000}
    for name, value in settings.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def stopped_line(failure: Failure) -> str:
    """What a process that ends because of another one says."""
    return f"stopped, because process {failure.rank} ended: {failure.message}"


def speak(text: str) -> None:
    """One line on stderr, past locks that a blocked thread may hold; the cursor comes back where bars had hidden it."""
    shown = "\x1b[?25h" if sys.stdout.isatty() else ""
    os.write(2, f"{shown}{text}\n".encode())
