"""Config fields that carry what is allowed, so that one check can refuse everything else by name."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def choice(default: str | None, *others: str | None) -> Any:
    """A text field with a closed set of values; the first is the default."""
    return field(default=default, metadata={"allowed": (default, *others)})


def number(default: float | int | None, *, at_least: float | None = None, above: float | None = None,
           below: float | None = None, at_most: float | None = None) -> Any:
    """A numeric field with bounds; None as the default says that the field may be empty."""
    bounds = {"at_least": at_least, "above": above, "below": below, "at_most": at_most}
    return field(default=default, metadata={name: bound for name, bound in bounds.items() if bound is not None})


def input_path(default: str | None = None) -> Any:
    """A file or folder that the user gives; it must exist when it is used."""
    return field(default=default, metadata={"input_path": True})


def without_influence(default: Any) -> Any:
    """A field that changes no number of the result: it is left out of the settings digest."""
    return field(default=default, metadata={"without_influence": True})


def listing(*items: Any) -> Any:
    """A list field with these items as the default."""
    return field(default_factory=lambda: list(items))
