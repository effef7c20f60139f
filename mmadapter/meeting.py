"""How the processes of a run find each other: one store says where the first one's watch is, to which all connect."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

from mmadapter.errors import InputError
from mmadapter.launch.environment import Place
from mmadapter.launch.hub import Hub
from mmadapter.launch.watch import NOBODY, Watch, speak, stopped_line

FIRST_HAS_ENDED = "Process 0 ended while the processes met. Look for its first error."


@cache
def meeting_place(place: Place, seconds: float) -> dist.Store:
    """The store at which all meet: in the first process, or in the launcher. It stays as long as the process."""
    serves = place.rank == 0 and not place.port_is_taken
    try:
        return dist.TCPStore(
            place.address,
            place.port,
            place.count,
            is_master=serves,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, OSError) as error:
        what = "cannot listen" if serves else f"did not find process 0 within {seconds:.0f} s"
        raise InputError(
            f"Process {place.rank} of {place.count} {what} at {place.address}:{place.port} ({error}). Is the address "
            "right (MASTER_ADDR), the port free (MASTER_PORT), and has process 0 said what stopped it? Where "
            "machines start slowly: launch.meet_seconds=300"
        ) from error


def meet(place: Place, store: dist.Store, seconds: float) -> Watch:
    """Waits for all processes and connects them to the watch.

    Raises InputError where some do not come or cannot reach process 0, SystemExit where one has died; of those that
    came the first one speaks for all.
    """
    if place.rank == 0:
        store.set("watch", json.dumps(Hub(place.address, place.count, seconds).address))
    watch = _connect(place, store, seconds)
    failure = watch.meet()
    if failure is None:
        return watch
    if place.rank == 0 and failure.rank == NOBODY:
        raise InputError(failure.message)
    if place.rank == 0 or failure.rank == 0:
        speak(stopped_line(failure))
    raise SystemExit(failure.status)


def _connect(place: Place, store: dist.Store, seconds: float) -> Watch:
    try:
        store.wait(["watch"], timedelta(seconds=seconds))
        address = json.loads(store.get("watch"))
    except RuntimeError as error:
        raise InputError(_why_silent(place, store, seconds)) from error
    try:
        return Watch(address, place.rank, seconds)
    except OSError as error:
        raise InputError(_why_unreached(place, store, address, error)) from error


def _answers(store: dist.Store) -> bool:
    try:
        store.check(["watch"])
    except RuntimeError:
        return False
    return True


def _why_silent(place: Place, store: dist.Store, seconds: float) -> str:
    if not _answers(store):
        return FIRST_HAS_ENDED
    return (
        f"Process {place.rank} of {place.count} waited {seconds:.0f} s for process 0, which did not come. Look for its "
        "first error. Where machines start slowly: launch.meet_seconds=300"
    )


def _why_unreached(place: Place, store: dist.Store, address: dict[str, Any], error: OSError) -> str:
    if not _answers(store):
        return FIRST_HAS_ENDED
    # A store in the launcher (torchrun) outlives process 0.
    ended = "Has process 0 ended (look for its first error)? Else it" if place.port_is_taken else "Process 0 lives; it"
    return (
        f"Process {place.rank} of {place.count} could not reach process 0 at {address['host']}:{address['port']} "
        f"({error}). {ended} may be a firewall: the machines of a run must reach each other at all ports."
    )
