"""Unknown config keys: found wherever they come from, and refused with the name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from mmadapter.config.walk import entry_schema, field_types
from mmadapter.errors import InputError


def refuse_unknown(composed: Mapping[str, Any], schema: type, entry: str = "train.py") -> None:
    """Raises InputError for keys that the schema does not know: `+key=value` slips through Hydra's own check."""
    unknown = list(unknown_keys(composed, schema))
    if unknown:
        known = list(known_keys(schema, composed))
        raise InputError("\n".join(unknown_message(key, known, entry) for key in unknown))


def unknown_keys(node: Any, schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of `node` (a nested mapping) that the dataclass `schema` has no field for."""
    types = field_types(schema)
    for name in node:
        key = f"{prefix}{name}"
        if name not in types:
            yield key
        elif is_dataclass(types[name]):
            yield from unknown_keys(node[name] or {}, types[name], f"{key}.")  # type: ignore[arg-type]
        elif (entry := entry_schema(types[name])) is not None:
            for child in node[name] or {}:
                yield from unknown_keys(node[name][child] or {}, entry, f"{key}.{child}.")


def known_keys(schema: type, node: Any = None, prefix: str = "") -> Iterator[str]:
    """Every dotted key that may be set; the names inside dicts are those that `node` holds."""
    for name, kind in field_types(schema).items():
        key, child = f"{prefix}{name}", (node or {}).get(name)
        yield key
        if is_dataclass(kind):
            yield from known_keys(kind, child, f"{key}.")  # type: ignore[arg-type]
        elif (entry := entry_schema(kind)) is not None:
            for label in child or {}:
                yield f"{key}.{label}"
                yield from known_keys(entry, child[label], f"{key}.{label}.")


def unknown_message(key: str, known: list[str], entry: str = "train.py") -> str:
    """What to say about a key that does not exist: the nearest names, and where to see all of them."""
    near = nearest(key, known)
    parent = key.rpartition(".")[0]
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    allowed = f"\n  {parent or 'top level'} has: {', '.join(name.rpartition('.')[2] for name in siblings)}" if siblings else ""
    return f"There is no setting {key!r}.{meant}{allowed}\n  All settings: python {entry} --cfg job"


def nearest(wanted: str, known: list[str], most: int = 3) -> list[str]:
    """The known dotted keys that `wanted` probably means, best first."""
    parent, _, last = wanted.rpartition(".")
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    close = [f"{parent}.{name}" if parent else name
             for name in get_close_matches(last, [name.rpartition(".")[2] for name in siblings], n=1, cutoff=0.6)]
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    near = close or elsewhere or get_close_matches(wanted, known, n=most, cutoff=0.7)
    near = near or [name for name in known if SequenceMatcher(None, name.rpartition(".")[2], last).ratio() >= 0.75]
    return list(dict.fromkeys(near))[:most]
