"""Unknown config keys: found wherever they come from, and refused with the name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
            for label, grandchild in (child or {}).items():
                yield f"{key}.{label}"
                yield from known_keys(entry, grandchild, f"{key}.{label}.")


def unknown_message(key: str, known: list[str], entry: str = "train.py") -> str:
    """What to say about a key that does not exist: the nearest names, and where to see all of them."""
    near = nearest(key, known)
    parent = key.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    lines = [f"There is no setting {key!r}." + (f" Did you mean {' or '.join(near)}?" if near else "")]
    if siblings:
        lines.append(f"  {parent or 'top level'} has: {', '.join(siblings)}")
    return "\n".join([*lines, f"  All settings: python {entry} --cfg job"])


def meant(wanted: str, allowed: Sequence[str]) -> str:
    """A question that names the allowed value that is nearest to `wanted`; empty where none is near."""
    near = get_close_matches(wanted, allowed, n=1)
    return f"Did you mean {near[0]}? " if near else ""


def nearest(wanted: str, known: list[str], most: int = 3) -> list[str]:
    """The known dotted keys that `wanted` probably means, best first."""
    parent, _, last = wanted.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}

    def similar_siblings(cutoff: float) -> list[str]:
        return [siblings[name] for name in get_close_matches(last, siblings, n=1, cutoff=cutoff)]

    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    near = similar_siblings(0.75) or elsewhere or similar_siblings(0.6)
    if not near and not siblings:
        near = get_close_matches(wanted, known, n=most, cutoff=0.7)
    near = near or [name for name in known if SequenceMatcher(None, name.rpartition(".")[2], last).ratio() >= 0.75]
    return list(dict.fromkeys(near))[:most]
