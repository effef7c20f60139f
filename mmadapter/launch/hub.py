"""The other end of all watches, in the first process: it collects what is said, decides which failure was the first,
and tells everybody.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mmadapter.launch.watch import GONE, LEAVE_SECONDS, NOBODY, OTHERS_SECONDS, Failure, Lines, keep_alive, send

LOOPBACK = ("127.0.0.1", "localhost", "::1")


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


def first_failure(failures: list[Failure]) -> Failure:
    """The one that was reported first; where several said the same, that of the lowest process."""
    same = [failure for failure in failures if failure.message == failures[0].message]
    return min(same, key=lambda failure: failure.rank)
