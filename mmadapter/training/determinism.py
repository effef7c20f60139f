"""engine.deterministic: on a GPU, the same run gives the same bits each time (law 6); on a CPU it does so anyhow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from mmadapter.errors import InputError

CUBLAS_VARIABLE, CUBLAS_FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # read by cuBLAS when a process first uses a GPU


@contextlib.contextmanager
def deterministic(conf: Any, strictly: bool = True) -> Iterator[None]:
    """While inside, torch takes deterministic algorithms if `engine.deterministic` says so; then all is as before.

    `strictly`: raises InputError where something has none; else torch warns.
    """
    if not conf.engine.deterministic:
        yield
        return
    set_here = CUBLAS_VARIABLE not in os.environ
    before = torch.get_deterministic_debug_mode()  # off, warns or raises
    os.environ.setdefault(CUBLAS_VARIABLE, CUBLAS_FIXED)
    torch.use_deterministic_algorithms(True, warn_only=not strictly)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise InputError(f"engine.deterministic=true: {str(error).splitlines()[0]} Leave it away.") from error
    finally:
        torch.set_deterministic_debug_mode(before)
        if set_here:
            os.environ.pop(CUBLAS_VARIABLE, None)
