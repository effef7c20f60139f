"""What a settings class is: a dataclass whose fields carry what is allowed; and registers of what settings can choose.

A component's settings are one dataclass, in `settings.py` of its room. The YAML files fill it, the component takes it,
and a saved adapter stores it. This module knows no component: it gives fields with bounds, registers, the way from
nested mappings to typed objects with a message for whatever does not fit, and back. It loads no torch.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmadapter.errors import InputError

Settings = TypeVar("Settings")

# Fields. `influence=False`: the field changes no number of a result beyond rounding, so the run's digest leaves it out.

BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
}
LARGEST = 2**63 - 1  # of whole numbers: seeds and counts are 64 bits wide in torch


def plain(default: Any, influence: bool = True) -> Any:
    """A field that takes whatever its type allows."""
    return field(default=default, metadata=_influence(influence))


def choice(default: str | None, *others: str | None, influence: bool = True, came_later: bool = False) -> Any:
    """A text field with a closed set of values; the first is the default.

    `came_later`: at its default the run's digest leaves it out, so that runs of earlier versions keep their names.
    """
    metadata = {"allowed": (default, *others), **_influence(influence)}
    return field(default=default, metadata=metadata | ({"came_later": True} if came_later else {}))


def number(default: float | int | None, *, influence: bool = True, **bounds: float) -> Any:
    """A numeric field with BOUNDS; None as the default says that the field may be empty."""
    assert set(bounds) <= set(BOUNDS), f"unknown bound in {bounds}"
    return field(default=default, metadata={**bounds, **_influence(influence)})


def input_path() -> Any:
    """A file or folder that the user gives; only the last part of it counts in the run's digest."""
    return field(default=None, metadata={"input_path": True})


def listing(*items: Any) -> Any:
    """A list field with these items as the default."""
    return field(default_factory=lambda: list(items))


def named() -> Any:
    """A field that maps names to settings or values; empty by default."""
    return field(default_factory=dict)


def entries(register: Register, chosen_by: str | None = None, beside: bool = False) -> Any:
    """A field that maps names to settings of registered components; empty by default, an entry of null is left out.

    The component is the one of the entry's own name, or the one that the entry's key `chosen_by` names
    (data.sources.NAME.reader). With `beside` the entries stand beside the other fields of their class instead of below
    the field's name (adapter.lora beside adapter.groups).
    """
    return field(default_factory=dict, metadata={"register": register, "chosen_by": chosen_by, "beside": beside})


def chosen(register: Register, by: str, default: type) -> Any:
    """A field that holds one settings object, whose class the register gives by the object's own key `by`.

    `default` is the class of an object that does not say (vision.encoder=open_clip).
    """
    return field(default_factory=default, metadata={"register": register, "chosen_by": by, "single": default})


def _influence(influence: bool) -> dict[str, bool]:
    return {} if influence else {"without_influence": True}


# Registers.


@dataclass(frozen=True)
class Component:
    """One name of a register: its settings class, and where its implementation is ("package.module:Name")."""

    settings: Any  # a dataclass
    implementation: str | Any


class Register:
    """The components of one kind that settings can choose by name, in the order in which they were added.

    An implementation is given as text, so that a register imports nothing heavy; a test may give the object itself.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind  # "method", "reader", ...: as messages call it
        self._components: dict[str, Component] = {}

    def add(self, name: str, settings: type, implementation: str | Any) -> None:
        """Add a component; a name can be added once."""
        assert name not in self._components, f"the {self.kind} {name!r} is registered twice"
        self._components[name] = Component(settings, implementation)

    def remove(self, name: str) -> None:
        """Take a component out again (for tests)."""
        del self._components[name]

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def names(self) -> list[str]:
        return list(self._components)

    def settings(self, name: str) -> Any:
        """The settings class of a component. Raises InputError for an unknown name."""
        return self._find(name).settings

    def load(self, name: str) -> Any:
        """The implementation of a component, imported now. Raises InputError for an unknown name."""
        implementation = self._find(name).implementation
        if not isinstance(implementation, str):
            return implementation
        module, _, attribute = implementation.partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded

    def refusal(self, name: str) -> str:
        """What to say of a name that is not registered."""
        return f"{meant(name, self.names())}Registered {self.kind}s: {', '.join(self.names())}."

    def settings_or_none(self, name: object) -> type | None:
        """The settings class of a component; None where there is none of that name."""
        return self._components[name].settings if isinstance(name, str) and name in self._components else None

    def _find(self, name: str) -> Component:
        if name not in self._components:
            raise InputError(f"There is no {self.kind} {name!r}. {self.refusal(name)}")
        return self._components[name]


# Walking settings.


def joined(key: str, name: str) -> str:
    """The dotted key of what stands as `name` below `key`; `key` is empty at the top."""
    return f"{key}.{name}" if key else name


@dataclass(frozen=True)
class Leaf:
    key: str  # dotted, as it is typed on the command line
    value: Any
    metadata: Mapping[str, Any]  # of the field, and of the fields above it


def leaves(value: Any, key: str = "", metadata: Mapping[str, Any] | None = None) -> Iterator[Leaf]:
    """Every value of a settings object that is no settings object itself; names in mappings are parts of the key."""
    metadata = metadata or {}
    if is_dataclass(value):
        for item in fields(value):
            child, beside = getattr(value, item.name), item.metadata.get("beside")
            if child or not beside:
                yield from leaves(child, key if beside else joined(key, item.name), {**metadata, **item.metadata})
    elif isinstance(value, dict) and value:
        for name, child in value.items():
            yield from leaves(child, joined(key, name), metadata)
    else:
        yield Leaf(key, value, metadata)


def problems_of(settings: Any, key: str = "") -> Iterator[str]:
    """Every value outside of what its field allows, and what each settings object below says of itself.

    A settings class may have a method `contradictions(key)`, which yields what does not fit among its own values; `key`
    is where the object stands (adapter.lora).
    """
    outside = list(values_outside(settings, key))
    yield from outside
    if not outside:  # a contradiction is judged among values that are allowed
        yield from _contradictions(settings, key)


def values_outside(settings: Any, key: str = "") -> Iterator[str]:
    """Every value outside of what its field allows."""
    for leaf in leaves(settings, key):
        allowed = leaf.metadata.get("allowed")
        if allowed is not None and leaf.value not in allowed:
            listed = ", ".join("null" if value is None else str(value) for value in allowed)
            yield f"{leaf.key}={leaf.value}: allowed are {listed}."
            continue
        for value in leaf.value if isinstance(leaf.value, list) else [leaf.value]:
            if isinstance(value, str) and not value.isascii() and value.encode("utf-8", "replace").decode() != value:
                yield f"{leaf.key}={value.encode('utf-8', 'replace').decode()}: it holds bytes that are no UTF-8 text."
            if isinstance(value, int | float) and (wrong := _wrong_number(value, leaf.metadata)):
                yield f"{leaf.key}={wrong}."


def _wrong_number(value: float, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with a number: outside of its field's bounds, not finite, or larger than anything counts to."""
    is_long = isinstance(value, int) and abs(value) > 10**30
    shown = f"a number of some {int(value).bit_length() * 3 // 10} digits" if is_long else str(value)
    for bound, (words, holds) in BOUNDS.items():
        limit = metadata.get(bound)
        if limit is not None and not holds(value, limit):
            return (
                f"{shown}: must be {words} {limit:g}" if abs(limit) < 10**6 else f"{shown}: must be {words} {limit:,}"
            )
    if isinstance(value, float) and not math.isfinite(value):
        return f"{shown}: must be a finite number"
    if abs(value) > LARGEST and isinstance(value, int):
        return f"{shown}: must be at most {LARGEST:,}"
    return None


def _contradictions(value: Any, key: str) -> Iterator[str]:
    if is_dataclass(value):
        if hasattr(value, "contradictions"):
            yield from value.contradictions(key)
        for item in fields(value):
            below = key if item.metadata.get("beside") else joined(key, item.name)
            yield from _contradictions(getattr(value, item.name), below)
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _contradictions(child, joined(key, name))


# From nested mappings to typed settings, and back.


@cache
def field_types(schema: type) -> dict[str, Any]:
    """Field name -> type of a settings class."""
    hints = get_type_hints(schema)
    return {item.name: hints[item.name] for item in fields(schema)}


def entry_schema(kind: Any) -> type | None:
    """The settings class of the values of `dict[str, CLASS]`, if it is such a type."""
    arguments = get_args(kind)
    if get_origin(kind) is dict and len(arguments) == 2 and is_dataclass(arguments[1]):
        return arguments[1]  # type: ignore[return-value]
    return None


def open_defaults(schema: type) -> DictConfig:
    """What Hydra starts from: every default, in mappings that take any key. `typed` judges keys and types afterwards.

    A mapping whose keys a register decides is empty. Where any name would be right (comparison.NAME), Hydra itself
    asks for a + in front of a new one.
    """

    def defaults(schema: type) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for item in fields(schema):
            kind = field_types(schema)[item.name]
            if "register" in item.metadata:
                found |= {} if item.metadata.get("beside") else {item.name: {}}
            elif is_dataclass(kind):
                found[item.name] = defaults(kind)  # type: ignore[arg-type]
            else:
                found[item.name] = item.default if item.default_factory is MISSING else item.default_factory()
        return found

    node = OmegaConf.create(defaults(schema))
    for item in fields(schema):
        child, names_anything = node.get(item.name), get_origin(field_types(schema)[item.name]) is dict
        if isinstance(child, DictConfig) and ("register" in item.metadata or not names_anything):
            OmegaConf.set_struct(child, False)
    return node


@dataclass(frozen=True)
class Below:
    """A settings object that stands directly below another one, as nested mappings describe it."""

    field: str  # of the object above
    entry: str | None  # its name, where the field maps names to settings objects
    key: str
    content: Any  # None where nothing is given
    schema: type | None  # None where the register has no such component
    chosen: Any = None  # the name that the register was asked for
    chosen_by: str | None = None  # the key of the content that chooses; None: the entry's own name does


def settings_below(schema: type, content: Mapping[str, Any], key: str) -> Iterator[Below]:
    """The settings objects directly below the one of class `schema` at `key` that `content` describes.

    Raises InputError where a mapping of names to settings is none.
    """
    own = [item.name for item in fields(schema) if not item.metadata.get("beside")]
    for item in fields(schema):
        kind, given, below = field_types(schema)[item.name], content.get(item.name), joined(key, item.name)
        register, chosen_by = item.metadata.get("register"), item.metadata.get("chosen_by")
        is_mapping = get_origin(kind) is dict and (register is not None or entry_schema(kind) is not None)
        if is_mapping and given is not None and not isinstance(given, Mapping):
            raise InputError(f"{below}={given}: it must be a mapping of names to settings.")
        if register is None and is_dataclass(kind):
            yield Below(item.name, None, below, given, kind)  # type: ignore[arg-type]
        elif register is None and (of_each := entry_schema(kind)) is not None:
            for name, child in (given or {}).items():
                yield Below(item.name, name, joined(below, name), child or {}, of_each)
        elif register is not None and "single" in item.metadata:
            chosen = given.get(chosen_by) if isinstance(given, Mapping) else None
            found = item.metadata["single"] if chosen is None else register.settings_or_none(chosen)
            yield Below(item.name, None, below, given, found, chosen, chosen_by)
        elif register is not None:
            if item.metadata["beside"]:
                below, given = key, {name: child for name, child in content.items() if name not in own}
            for name, child in (given or {}).items():
                chosen = name
                if chosen_by is not None and isinstance(child, Mapping):
                    # Null is a component's default, also for a key that only another component has. So
                    # data.sources.captions.reader=caption_shards works on top of a file of settings for another reader.
                    child = {known: value for known, value in child.items() if value is not None}
                    chosen = child.get(chosen_by)
                found = register.settings_or_none(chosen)
                yield Below(item.name, name, joined(below, name), child, found, chosen, chosen_by)


def typed(schema: type[Settings], content: Mapping[str, Any], key: str = "") -> Settings:
    """`content`, a nested mapping without interpolations, as an object of the settings class `schema`.

    Raises InputError for unknown keys (all at once, each with the nearest names), for an unknown component of a
    register and for a value of a wrong type; `key` is where the object stands.
    """
    if unknown := list(unknown_keys(content, schema, key)):
        known = list(known_keys(schema, content, key))
        raise InputError("\n".join(unknown_message(name, known) for name in unknown))
    return _build(schema, content, key)


def _build(schema: type[Settings], content: Mapping[str, Any], key: str) -> Settings:
    values: dict[str, Any] = {}
    for below in settings_below(schema, content, key):
        if below.entry is not None:
            values.setdefault(below.field, {})
            if below.content is None:  # an entry of null is left out
                continue
        given = {} if below.content is None else below.content
        if below.schema is None or not isinstance(given, Mapping):
            raise InputError(_refusal(schema, below, content))
        built: Any = _build(below.schema, given, below.key)
        if below.entry is None:
            values[below.field] = built
        else:
            values[below.field][below.entry] = built

    # The fields that hold plain values: OmegaConf converts them to their types.
    made = []
    for item in fields(schema):  # type: ignore[arg-type]
        kind = field_types(schema)[item.name]  # type: ignore[arg-type]
        if item.name not in values and "register" not in item.metadata and entry_schema(kind) is None:
            factory = item.default_factory is not MISSING
            default = field(default_factory=item.default_factory) if factory else field(default=item.default)
            made.append((item.name, kind, default))
    plain_values = {name: content[name] for name, *_ in made if name in content}
    for name, kind, _ in made:
        value = plain_values.get(name)
        if (get_origin(kind) or kind) is list and value is not None and not isinstance(value, list | tuple):
            raise InputError(f"{joined(key, name)}={value}: it must be a list. To fix: {joined(key, name)}=[{value}]")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(make_dataclass(schema.__name__, made)), plain_values)
        return schema(**values, **OmegaConf.to_container(merged))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise InputError(explained(error, schema, content, key)) from error


def _refusal(schema: type, below: Below, content: Mapping[str, Any]) -> str:
    """What to say of something that is no settings object."""
    if not isinstance(below.content, Mapping):
        return f"{below.key}={below.content}: it must be a mapping of settings, or null."
    register = next(item.metadata["register"] for item in fields(schema) if item.name == below.field)
    if below.chosen:
        return f"{below.key}.{below.chosen_by}={below.chosen!r}. {register.refusal(str(below.chosen))}"
    others = [name for name in content[below.field] if name != below.entry]
    if near := get_close_matches(below.entry or "", others, n=1):
        place = below.key.rpartition(".")[0]
        return f"There is no setting '{below.key}'. Did you mean {place}.{near[0]}?"
    return f"{below.key}.{below.chosen_by} is not set. {register.refusal('')}"


def to_plain(settings: Any) -> Any:
    """A settings object as nested dicts and lists, as YAML has it: what `typed` turns into an equal object."""
    if is_dataclass(settings):
        found: dict[str, Any] = {}
        for item in fields(settings):
            value = to_plain(getattr(settings, item.name))
            found |= value if item.metadata.get("beside") else {item.name: value}
        return found
    if isinstance(settings, Mapping):
        return {name: to_plain(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_plain(value) for value in settings]
    return settings


def with_overrides(settings: Settings, overrides: Sequence[str], where: str) -> Settings:
    """A copy with `key=value` strings applied; raises InputError, beginning with `where`, for what does not fit."""
    try:
        changed = OmegaConf.create(to_plain(settings))
        for override in overrides:
            key, _, value = override.partition("=")
            parsed = OmegaConf.from_dotlist([f"value={value}"])["value"]
            OmegaConf.update(changed, key, parsed, merge=True, force_add=True)
        return typed(type(settings), OmegaConf.to_container(changed))  # type: ignore[arg-type]
    except (OmegaConfBaseException, InputError) as error:
        raise InputError(f"{where}: {error}") from error


# Messages for what does not fit.


def explained(error: OmegaConfBaseException, schema: type, content: Any = None, key: str = "") -> str:
    """One sentence for an OmegaConf error: an unknown key with its nearest name, a wrong type with its key."""
    full = ".".join(part for part in (key, error.full_key) if part)
    if type(error).__name__ in ("ConfigKeyError", "ConfigAttributeError") and full:
        there = [joined(full.rpartition(".")[0], str(name)) for name in error.parent_node or ()]
        return unknown_message(full, [*known_keys(schema, content, key), *there])
    first = str(error).strip().splitlines()[0]
    if "is not Optional" in first or "Incompatible value 'None'" in first:
        return f"{full}=null: it needs a value."
    return f"{full}: {first}" if full and full not in first else first


def unknown_keys(content: Any, schema: type, key: str = "") -> Iterator[str]:
    """Dotted keys of `content` (a nested mapping) that the settings class has no field and no component for."""
    if not isinstance(content, Mapping):
        return
    for below in settings_below(schema, content, key):
        if below.schema is not None:
            yield from unknown_keys(below.content, below.schema, below.key)
        elif below.chosen_by is None:  # else `typed` refuses what was chosen
            yield below.key
    if not any(item.metadata.get("beside") for item in fields(schema)):
        yield from (joined(key, name) for name in content if name not in field_types(schema))


def known_keys(schema: type, content: Any = None, key: str = "") -> Iterator[str]:
    """Every dotted key that may be set; the names inside mappings are those of `content`, or of the register."""
    content = content if isinstance(content, Mapping) else {}
    for item in fields(schema):
        place = key if item.metadata.get("beside") else joined(key, item.name)
        if not item.metadata.get("beside"):
            yield place
        if "register" in item.metadata and item.metadata["chosen_by"] is None:
            for name in item.metadata["register"].names():
                yield joined(place, name)
                yield from known_keys(item.metadata["register"].settings(name), None, joined(place, name))
    for below in settings_below(schema, content, key):
        if below.entry is not None and (below.chosen_by or below.chosen is None):
            yield below.key
        if below.schema is not None and (below.chosen_by or below.chosen is None):
            yield from known_keys(below.schema, below.content, below.key)


def unknown_message(key: str, known: list[str]) -> str:
    """What to say of a key that does not exist: the nearest names, and where to see all of them."""
    near = nearest(key, known)
    parent = key.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    lines = [f"There is no setting {key!r}." + (f" Did you mean {' or '.join(near)}?" if near else "")]
    if siblings:
        lines.append(f"  {parent or 'top level'} has: {', '.join(siblings)}")
    return "\n".join([*lines, "  All settings: the same command with --cfg job"])


def meant(wanted: str, allowed: Sequence[str]) -> str:
    """A question that names the allowed value nearest to `wanted`; empty where none is near."""
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
