"""Checks that several processes make together, one after the other: starting takes longer than a check."""

from __future__ import annotations

import faulthandler
import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.distributed.several import Several, here, joined

HELD = "held"
HANGS = 150.0  # seconds on a busy machine; then every process says where it stands
Checks = Mapping[str, Callable[[], None]]


def outcomes(checks: Callable[[Path], Checks], folder: Path, processes: int = 2) -> dict[str, str]:
    """Check -> "held", or what went wrong; "the end" says whether all processes ended well.

    The first check that fails on some process is the last one: the others cannot go on without it.
    """
    group = Several(processes, carry_out, checks, folder, folder=folder)
    statuses = group.end(HANGS + 20)
    found: dict[str, str] = {}
    for file in sorted(folder.glob("outcome-*.json")):
        for check, outcome in json.loads(file.read_text()).items():
            found[check] = outcome if found.get(check, HELD) == HELD else found[check]
    said = "\n".join(group.said(rank)[-3000:] for rank in range(processes))
    return found | {"the end": HELD if statuses == [0] * processes else f"{statuses}\n{said}"}


def carry_out(checks: Callable[[Path], Checks], folder: Path) -> None:
    """Runs the checks in this process."""
    faulthandler.dump_traceback_later(HANGS, exit=True)
    found: dict[str, str] = {}
    with joined():
        for name, check in checks(folder).items():
            try:
                check()
                found[name] = HELD
            except BaseException:
                found[name] = traceback.format_exc()
                raise
            finally:
                (folder / f"outcome-{here().rank}.json").write_text(json.dumps(found))
            here().barrier()
