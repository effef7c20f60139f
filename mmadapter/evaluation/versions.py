"""What the numbers of an evaluation depend on; written beside them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("mmadapter", "torch", "transformers", "open_clip_torch")
Answered = tuple[dict[str, Any], list[dict[str, Any]]]
"""(the content of metrics.json, the lines of predictions.jsonl)."""


def versions(*others: str) -> dict[str, str]:
    """Versions of Python, our packages and the `others`, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *others):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
