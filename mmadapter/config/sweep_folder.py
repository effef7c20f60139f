"""The name of a sweep's folder: the same for the same settings, so that the same command goes on where it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

# how and where the jobs run, and how long a search goes on: not which sweep it is
ANYWHERE = ("cluster", "engine", "launch", "hydra", "runs_root", "threads", "dry_run", "resume")
NOT_THE_SWEEP = (*ANYWHERE, "sweep.trials", "sweep.parallel")


def sweep_name(experiment: str, overrides: Iterable[str]) -> str:
    """EXPERIMENT-DIGEST over what the command line sets (in any order); a search is another sweep than a grid.

    `experiment` is the composed one; several experiments give "sweep-DIGEST".
    """
    told = sorted(str(override) for override in overrides)
    counted = [override for override in told if not _is_left_out(override.lstrip("+~").partition("=")[0])]
    counted += ["search"] * any(override.startswith("sweep.trials=") for override in told)
    swept = any(override.startswith("experiment=") and override != f"experiment={experiment}" for override in told)
    digest = hashlib.sha256("\n".join(counted).encode()).hexdigest()[:8]
    return f"{'sweep' if swept else experiment}-{digest}"


def _is_left_out(key: str) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in NOT_THE_SWEEP)
