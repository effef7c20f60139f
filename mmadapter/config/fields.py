"""Config fields that carry what is allowed, so that one check can refuse everything else by name.

`influence=False`: the field changes no number of the result, but for rounding, and is left out of the settings digest.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

BOUNDS = ("at_least", "above", "at_most")


def plain(default: Any, influence: bool = True) -> Any:
    """A field that takes whatever its type allows."""
    return field(default=default, metadata=_influence(influence))


def choice(default: str | None, *others: str | None, influence: bool = True) -> Any:
    """A text field with a closed set of values; the first is the default."""
    return field(default=default, metadata={"allowed": (default, *others), **_influence(influence)})


def number(default: float | int | None, *, influence: bool = True, **bounds: float) -> Any:
    """A numeric field with BOUNDS; None as the default says that the field may be empty."""
    assert set(bounds) <= set(BOUNDS), f"unknown bound in {bounds}"
    return field(default=default, metadata={**bounds, **_influence(influence)})


def input_path() -> Any:
    """A file or folder that the user gives; only the last part of it counts in the digest."""
    return field(default=None, metadata={"input_path": True})


def listing(*items: Any) -> Any:
    """A list field with these items as the default."""
    return field(default_factory=lambda: list(items))


def named() -> Any:
    """A field that maps names to config objects; empty by default."""
    return field(default_factory=dict)


def _influence(influence: bool) -> dict[str, bool]:
    return {} if influence else {"without_influence": True}
