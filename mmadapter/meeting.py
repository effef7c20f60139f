"""How the processes of a run find each other: one store, at which each says that it is here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import torch.distributed as dist

from mmadapter.errors import InputError
from mmadapter.launch.environment import Place
from mmadapter.launch.watch import Hub, Watch

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
    """Waits for all processes and connects them to the watch. Raises InputError naming those that did not come."""
    if place.rank == 0:
        store.set("watch", json.dumps(Hub(place.address, place.count).address))
    names = [f"here {rank}" for rank in range(place.count)]
    store.set(names[place.rank], "1")
    try:
        store.wait([*names, "watch"], timedelta(seconds=seconds))
    except RuntimeError as error:
        absent = _absent(store, names)
        raise InputError(
            f"Of {place.count} processes these did not come within {seconds:.0f} s: {absent or 'unknown'}. Look for "
            "their first error; on several machines, whether all started. Slow ones: launch.meet_seconds=300"
        ) from error
    try:
        return Watch(json.loads(store.get("watch")), place.rank, seconds)
    except (RuntimeError, OSError) as error:
        raise InputError(FIRST_HAS_ENDED) from error


def _absent(store: dist.Store, names: Sequence[str]) -> str:
    """The processes that have not come. Raises InputError where the first one, which keeps the list, has gone."""
    try:
        return ", ".join(str(rank) for rank, name in enumerate(names) if not store.check([name]))
    except RuntimeError as error:
        raise InputError(FIRST_HAS_ENDED) from error
