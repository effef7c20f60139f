"""Random states as plain values, random streams of their own, deterministic algorithms: same run, same bits.

A resumed run draws the numbers that the uninterrupted one would have drawn. On a GPU `engine.deterministic` makes torch
choose deterministic algorithms; on a CPU all of them are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmadapter.errors import InputError

CUBLAS_VARIABLE, CUBLAS_FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # read by cuBLAS when a process first uses a GPU


def seed_all(seed: int) -> None:
    """Seeds torch, Python and (where it is already in use) numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


@contextlib.contextmanager
def own_stream(device: torch.device, *key: object) -> Iterator[None]:
    """Inside, torch draws the numbers of `key` alone; outside, everything goes on as if nothing had been drawn."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of all generators: torch's as tensors, the others as JSON values."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    version, numbers, gauss = random.getstate()
    values: dict[str, Any] = {"python": [version, list(numbers), gauss]}
    if "numpy" in sys.modules:
        name, keys, position, has_gauss, cached = sys.modules["numpy"].random.get_state()
        values["numpy"] = [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)]
    return tensors, values


def restore_random_state(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Puts back what `random_state` gave; states of GPUs that are not here are left out."""
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in values:
        import numpy

        name, keys, *rest = values["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))


@contextlib.contextmanager
def deterministic(asked: bool, strictly: bool = True) -> Iterator[None]:
    """While inside, torch uses deterministic algorithms if `asked` (engine.deterministic); afterwards all is as before.

    `strictly`: raises InputError where something has none; else torch warns.
    """
    if not asked:
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
        raise InputError(
            f"engine.deterministic=true: {str(error).splitlines()[0]} To fix: engine.deterministic=false"
        ) from error
    finally:
        torch.set_deterministic_debug_mode(before)
        if set_here:
            os.environ.pop(CUBLAS_VARIABLE, None)
