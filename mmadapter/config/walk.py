"""Walking a configuration field by field, with what each field says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Leaf:
    key: str  # dotted, as it is typed on the command line
    value: Any
    metadata: Mapping[str, Any]  # of the field, and of the fields above it


def leaves(conf: Any, prefix: str = "", inherited: Mapping[str, Any] | None = None) -> Iterator[Leaf]:
    """Every value of a config object that is no config object itself; names of dicts become parts of the key."""
    for item in fields(conf):
        metadata = {**(inherited or {}), **item.metadata}
        yield from _leaves_of(getattr(conf, item.name), f"{prefix}{item.name}", metadata)


def _leaves_of(value: Any, key: str, metadata: Mapping[str, Any]) -> Iterator[Leaf]:
    if is_dataclass(value):
        yield from leaves(value, f"{key}.", metadata)
    elif isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _leaves_of(child, f"{key}.{name}", metadata)
    else:
        yield Leaf(key, value, metadata)


@cache
def field_types(schema: type) -> dict[str, Any]:
    """Field name -> type of a config dataclass."""
    hints = get_type_hints(schema)
    return {item.name: hints[item.name] for item in fields(schema)}


def entry_schema(kind: Any) -> type | None:
    """The dataclass that the values of `dict[str, DATACLASS]` have, if it is such a type."""
    arguments = get_args(kind)
    if get_origin(kind) is dict and len(arguments) == 2 and is_dataclass(arguments[1]):
        return arguments[1]  # type: ignore[return-value]
    return None
