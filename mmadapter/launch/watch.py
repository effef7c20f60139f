"""No process of a run outlives another one's failure: each keeps a connection to the first, and its end is a word.

A connection that closes without one is a death (an exception that nobody reported, kill -9, a lost machine); the kernel
tells that at once, however long a step holds the interpreter, so there are no heart-beats that could come late. The
first process's thread collects what is said, decides which failure was the first, and tells everybody.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

OTHERS_SECONDS = 1.0  # a failure may be the consequence of a death that shows a moment later
LEAVE_SECONDS = 10.0  # for the others to end, once they know
SILENT_SECONDS = 30  # a machine that does not answer is lost
GONE = "it is gone without a word (killed? out of memory? its machine lost?)"
NOBODY = -1  # number of a process
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Failure:
    """Why a run ends: the process that failed first, the exit status for all, what there is to read."""

    rank: int  # NOBODY where some have never come
    status: int
    message: str


class Hub:
    """In the first process: knows all connections. `address` is where the others find it, within `seconds`."""

    def __init__(self, host: str, count: int, seconds: float) -> None:
        self.count, self.seconds, self.token = count, seconds, secrets.token_hex(8)
        # Every interface, unless all processes are on this machine.
        self._listener = socket.create_server(("127.0.0.1" if host in LOOPBACK else "", 0), backlog=count)
        self.address = {"host": host, "port": self._listener.getsockname()[1], "token": self.token}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._lines: dict[socket.socket, Lines] = {}
        self._ranks: dict[socket.socket, int] = {}
        self._done: set[int] = set()
        self._failures: dict[int, Failure] = {}
        os.register_at_fork(after_in_child=self._close_all)
        threading.Thread(target=self._listen, name="watch", daemon=True).start()

    def _listen(self) -> None:
        if (failure := self._gather()) is not None:
            return self._tell_failure(failure)
        deadline: float | None = None
        while len(self._done) < self.count:
            died = self._read(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if died is not None:
                return self._tell_failure(died)
            if self._failures:
                deadline = deadline or time.monotonic() + OTHERS_SECONDS
                if time.monotonic() >= deadline or len(self._failures) + len(self._done) == self.count:
                    return self._tell_failure(first_failure(list(self._failures.values())))
        for connection in self._in_order():
            send(connection, {"done": True})
        self._close_all()

    def _gather(self) -> Failure | None:
        """Waits until all have connected and tells them so; a failure where one dies, or some do not come."""
        deadline = time.monotonic() + self.seconds
        while len(self._ranks) < self.count:
            if (left := deadline - time.monotonic()) <= 0:
                return Failure(NOBODY, 2, self._absent())
            if (died := self._read(left)) is not None:
                return died
        for connection in self._in_order():
            send(connection, {"met": True})
        return None

    def _absent(self) -> str:
        ranks = ", ".join(str(rank) for rank in sorted({*range(self.count)} - {*self._ranks.values()}))
        return (
            f"Of {self.count} processes these did not come within {self.seconds:.0f} s: {ranks}. Look for their first "
            "error; on several machines, whether all started, and whether the ports between them are open (here "
            f"{self.address['host']}:{self.address['port']}). Slow ones: launch.meet_seconds=300"
        )

    def _read(self, timeout: float | None) -> Failure | None:
        """Takes in what has come; a process that is gone without a word comes back as a failure."""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                keep_alive(connection)
                self._lines[connection] = Lines(connection)
                self._selector.register(connection, selectors.EVENT_READ)
                continue
            connection = key.fileobj  # type: ignore[assignment]
            messages = self._lines[connection].read()
            for message in messages or ():
                self._take(connection, message)
            if messages is None:
                rank = self._forget(connection)
                if rank is not None and rank not in self._done and rank not in self._failures:
                    return Failure(rank, 1, GONE)
        return None

    def _take(self, connection: socket.socket, message: Mapping[str, Any]) -> None:
        if message.get("token") == self.token:
            self._ranks[connection] = message["rank"]
        elif (rank := self._ranks.get(connection)) is None:
            self._forget(connection)  # a stranger
        elif "failure" in message:
            self._failures.setdefault(rank, Failure(**message["failure"]))
        elif "done" in message:
            self._done.add(rank)
        elif "asked" in message or "answered" in message:  # to the first process, and from there to all others
            for other, number in self._ranks.items():
                if (number == 0) == ("asked" in message):
                    send(other, message)

    def _tell_failure(self, failure: Failure) -> None:
        """The others first; this process hears of it when they are gone, so that it ends last."""
        self._refuse_others()
        own = None
        for connection in self._in_order():
            if self._ranks[connection] == 0:
                own = connection
            else:
                send(connection, {"failure": asdict(failure)})
        if own is not None:
            self._selector.unregister(own)
        deadline = time.monotonic() + LEAVE_SECONDS
        while (waiting := [c for c in self._ranks if c is not own]) and time.monotonic() < deadline:
            for key, _ in self._selector.select(deadline - time.monotonic()):
                if key.fileobj in waiting and self._lines[key.fileobj].read() is None:  # type: ignore[index]
                    self._forget(key.fileobj)  # type: ignore[arg-type]
        if own is not None:
            send(own, {"failure": asdict(failure)})

    def _refuse_others(self) -> None:
        """Those that come too late must not wait for a word."""
        self._selector.unregister(self._listener)
        self._listener.close()
        for connection in self._lines.keys() - self._ranks.keys():
            self._forget(connection)

    def _in_order(self) -> list[socket.socket]:
        """All connections, that of this very process last."""
        return sorted(self._ranks, key=lambda connection: -self._ranks[connection])

    def _forget(self, connection: socket.socket) -> int | None:
        if connection in self._lines:
            self._selector.unregister(connection)
            self._lines.pop(connection)
            connection.close()
        return self._ranks.pop(connection, None)

    def _close_all(self) -> None:
        """Also in a forked child, which must not keep a dead process's connection open."""
        for connection in [self._listener, *self._lines]:
            connection.close()


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
        self.answer: Callable[[int], bool] = lambda number: False  # in the first process, on a thread; see `ask`
        self._is_asked = False
        os.register_at_fork(after_in_child=self._connection.close)

    def meet(self) -> Failure | None:
        """Waits until all are connected, from then on listens; returns why that has failed."""
        messages: list[dict[str, Any]] | None = []
        while messages is not None:
            for message in messages:
                if "failure" in message:
                    return Failure(**message["failure"])
                if "met" in message:
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
        """Has the first process's `answer(number)` called, whatever its main thread waits for.

        Returns whether that has been True within `seconds`.
        """
        send(self._connection, {"asked": number})
        return self._answered.wait(seconds)

    def _answer(self, number: int) -> None:
        if self.answer(number):
            send(self._connection, {"answered": number})

    def _hear(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if "asked" in message and not self._is_asked:  # several ask for the same
                self._is_asked = True
                threading.Thread(target=self._answer, args=(message["asked"],), name="answer", daemon=True).start()
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


def first_failure(failures: list[Failure]) -> Failure:
    """The one that was reported first; where several said the same, that of the lowest process."""
    same = [failure for failure in failures if failure.message == failures[0].message]
    return min(same, key=lambda failure: failure.rank)


def stopped_line(failure: Failure) -> str:
    """What a process that ends because of another one says."""
    return f"stopped, because process {failure.rank} ended: {failure.message}"


def speak(text: str) -> None:
    """One line on stderr, past locks that a blocked thread may hold; the cursor comes back where bars had hidden it."""
    shown = "\x1b[?25h" if sys.stdout.isatty() else ""
    os.write(2, f"{shown}{text}\n".encode())
