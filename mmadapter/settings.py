"""What a settings class is: a dataclass whose fields carry what is allowed; and registers of what settings can choose.

A component's settings are one dataclass, in `settings.py` of its room. The YAML files fill it, the component takes it,
and a saved adapter stores it. This module knows no component: it gives fields with bounds, registers, the way from
nested mappings to typed objects with a message for whatever does not fit, and back. It loads no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    def name_of(self, settings: object) -> str:
        """The name under which the class of a settings object was registered (the first, where there are several)."""
        return next(name for name, component in self._components.items() if component.settings is type(settings))

    def refusal(self, name: str) -> str:
        """What to say of a name that is not registered."""
        return f"{meant(name, self.names())}Registered {self.kind}s: {', '.join(self.names())}."

    def _find(self, name: str) -> Component:
        if name not in self._components:
            raise InputError(f"There is no {self.kind} {name!r}. {self.refusal(name)}")
        return self._components[name]


# Walking settings.


@dataclass(frozen=True)
class Leaf:
    key: str  # dotted, as it is typed on the command line
    value: Any
    metadata: Mapping[str, Any]  # of the field, and of the fields above it


def leaves(settings: Any, prefix: str = "", inherited: Mapping[str, Any] | None = None) -> Iterator[Leaf]:
    """Every value of a settings object that is no settings object itself; names in mappings are parts of the key."""
    for item in fields(settings):
        metadata = {**(inherited or {}), **{k: v for k, v in item.metadata.items() if k not in _STRUCTURE}}
        key = prefix.rstrip(".") if item.metadata.get("beside") else f"{prefix}{item.name}"
        yield from _leaves_of(getattr(settings, item.name), key, metadata)


_STRUCTURE = ("register", "chosen_by", "beside", "single")


def _leaves_of(value: Any, key: str, metadata: Mapping[str, Any]) -> Iterator[Leaf]:
    if is_dataclass(value):
        yield from leaves(value, f"{key}.", metadata)
    elif isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _leaves_of(child, f"{key}.{name}", metadata)
    elif not (isinstance(value, dict) and metadata.get("beside")):
        yield Leaf(key, value, metadata)


def problems_of(settings: Any, key: str = "") -> Iterator[str]:
    """Every value outside of what its field allows, and what each settings object below says of itself.

    A settings class may have a method `contradictions(key)`, which yields what does not fit among its own values; `key`
    is where the object stands (adapter.lora).
    """
    outside = list(values_outside(settings, f"{key}." if key else ""))
    yield from outside
    if not outside:  # a contradiction is judged among values that are allowed
        yield from _own_problems(settings, key)


def values_outside(settings: Any, prefix: str = "") -> Iterator[str]:
    """Every value outside of what its field allows."""
    for leaf in leaves(settings, prefix):
        allowed = leaf.metadata.get("allowed")
        if allowed is not None and leaf.value not in allowed:
            listed = ", ".join("null" if value is None else str(value) for value in allowed)
            yield f"{leaf.key}={leaf.value}: allowed are {listed}."
        elif isinstance(leaf.value, int | float):
            for bound, (words, holds) in BOUNDS.items():
                limit = leaf.metadata.get(bound)
                if limit is not None and not holds(leaf.value, limit):
                    yield f"{leaf.key}={leaf.value}: must be {words} {limit:g}."


def _own_problems(value: Any, key: str) -> Iterator[str]:
    if is_dataclass(value):
        if hasattr(value, "contradictions"):
            yield from value.contradictions(key)
        for item in fields(value):
            below = key if item.metadata.get("beside") else f"{key}.{item.name}".lstrip(".")
            yield from _own_problems(getattr(value, item.name), below)
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _own_problems(child, f"{key}.{name}".lstrip("."))


# From nested mappings to typed settings, and back.


@cache
def field_types(schema: type) -> dict[str, Any]:
    """Field name -> type of a settings class."""
    hints = get_type_hints(schema)
    return {item.name: hints[item.name] for item in fields(schema)}


@cache
def composed_schema(schema: type) -> Any:
    """What Hydra sees of a settings class: the same fields, but mappings without a type where a register decides."""
    if any(item.metadata.get("beside") for item in fields(schema)):
        return dict[str, Any]
    made = []
    for item in fields(schema):
        kind = field_types(schema)[item.name]
        default: Any = item.default_factory if item.default is MISSING else item.default
        if "register" in item.metadata:
            kind, default = dict[str, Any], dict
        elif is_dataclass(kind):
            kind = composed_schema(kind)  # type: ignore[arg-type]
            default = dict if get_origin(kind) is dict else kind
        is_factory = item.default is MISSING
        made.append((item.name, kind, field(default_factory=default) if is_factory else field(default=default)))
    return make_dataclass(schema.__name__, made)


def composed_node(schema: type) -> DictConfig:
    """What Hydra starts from: `composed_schema`, whose registered entries take any key (`typed` judges them later)."""
    node = OmegaConf.structured(composed_schema(schema))
    _open_entries(node, schema)
    return node


def _open_entries(node: DictConfig, schema: type) -> None:
    for item in fields(schema):
        kind = field_types(schema)[item.name]
        is_open = is_dataclass(kind) and get_origin(composed_schema(kind)) is dict  # type: ignore[arg-type]
        if "register" in item.metadata or is_open:
            OmegaConf.set_struct(node[item.name], False)
        elif is_dataclass(kind):
            _open_entries(node[item.name], kind)  # type: ignore[arg-type]


def typed(schema: type[Settings], content: Mapping[str, Any], key: str = "", entry: str = "train.py") -> Settings:
    """`content`, a nested mapping without interpolations, as an object of the settings class `schema`.

    Raises InputError for unknown keys (all at once, each with the nearest names), for an unknown component of a
    register and for a value of a wrong type; `key` is where the object stands.
    """
    if unknown := list(unknown_keys(content, schema, f"{key}." if key else "")):
        known = list(known_keys(schema, content, f"{key}." if key else ""))
        raise InputError("\n".join(unknown_message(name, known, entry) for name in unknown))
    return _build(schema, content, key, entry)


def _build(schema: type[Settings], content: Mapping[str, Any], key: str, entry: str) -> Settings:
    own, registered = _split(schema, content)
    values: dict[str, Any] = {}
    plain_fields = {}
    for item in fields(schema):  # type: ignore[arg-type]
        kind, below = field_types(schema)[item.name], f"{key}.{item.name}".lstrip(".")  # type: ignore[arg-type]
        register = item.metadata.get("register")
        if register is not None and "single" in item.metadata:
            given = own.get(item.name) or {}
            values[item.name] = _build(_chosen_class(item.metadata, given, below), given, below, entry)
        elif register is not None:
            place = key if item.metadata["beside"] else below
            chosen_by = item.metadata["chosen_by"]
            values[item.name] = {}
            for name, child in registered[item.name].items():
                if child is not None:
                    component = component_settings(register, name, child, chosen_by, place, registered[item.name])
                    given = child if chosen_by is None else _without_nulls(child)
                    values[item.name][name] = _build(component, given, f"{place}.{name}", entry)
        elif is_dataclass(kind):
            values[item.name] = _build(kind, own.get(item.name) or {}, below, entry)  # type: ignore[arg-type]
        elif (of_each := entry_schema(kind)) is not None:
            given = own.get(item.name) or {}
            values[item.name] = {n: _build(of_each, c or {}, f"{below}.{n}", entry) for n, c in given.items()}
        else:
            plain_fields[item.name] = (kind, item)
    values |= _plain_values(schema, plain_fields, own, key, entry)
    return schema(**values)


def _plain_values(schema: type, plain_fields: Mapping[str, Any], own: Mapping[str, Any], key: str, entry: str) -> Any:
    """The values of the fields that hold no settings, converted to their types by OmegaConf."""
    made = []
    for name, (kind, item) in plain_fields.items():
        factory = item.default is MISSING
        made.append(
            (name, kind, field(default_factory=item.default_factory) if factory else field(default=item.default))
        )
    given = {name: own[name] for name in plain_fields if name in own}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(make_dataclass(schema.__name__, made)), given)
        return OmegaConf.to_container(merged)
    except OmegaConfBaseException as error:
        raise InputError(explained(error, schema, own, key, entry)) from error


def _split(schema: type, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The values of a class's own fields, and the entries of each of its register fields."""
    registers = [item for item in fields(schema) if "beside" in item.metadata]
    own_names = {item.name for item in fields(schema)} - {item.name for item in registers}
    registered: dict[str, dict[str, Any]] = {}
    for item in registers:
        if item.metadata["beside"]:
            registered[item.name] = {name: child for name, child in content.items() if name not in own_names}
        else:
            registered[item.name] = dict(content.get(item.name) or {})
    return {name: value for name, value in content.items() if name in own_names}, registered


def _chosen_class(metadata: Mapping[str, Any], content: Any, key: str) -> type:
    """The settings class of a `chosen` field. Raises InputError where its content names no component."""
    name = content.get(metadata["chosen_by"]) if isinstance(content, Mapping) else None
    if name is None:
        return metadata["single"]
    if name not in metadata["register"]:
        raise InputError(f"{key}.{metadata['chosen_by']}={name!r}. {metadata['register'].refusal(name)}")
    return metadata["register"].settings(name)


def _without_nulls(content: Mapping[str, Any]) -> dict[str, Any]:
    """An entry that chooses its component: null is the component's default, also for a key that another one has.

    So data.sources.captions.reader=caption_shards works on top of a file of settings for another reader.
    """
    return {name: value for name, value in content.items() if value is not None}


def component_settings(
    register: Register, name: str, content: Any, chosen_by: str | None, key: str, entries: Iterable[str] = ()
) -> type:
    """The settings class of one of the `entries`. Raises InputError where it names no component, or is no mapping."""
    if not isinstance(content, Mapping):
        raise InputError(f"{key}.{name}={content}: it must be a mapping of settings, or null.")
    if chosen_by is None:
        return register.settings(name)
    chosen = content.get(chosen_by)
    if not isinstance(chosen, str) or chosen not in register:
        if not chosen:
            if near := get_close_matches(name, [other for other in entries if other != name], n=1):
                raise InputError(f"There is no setting '{key}.{name}'. Did you mean {key}.{near[0]}?")
            raise InputError(f"{key}.{name}.{chosen_by} is not set. {register.refusal('')}")
        raise InputError(f"{key}.{name}.{chosen_by}={chosen!r}. {register.refusal(str(chosen))}")
    return register.settings(chosen)


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


def entry_schema(kind: Any) -> type | None:
    """The settings class of the values of `dict[str, CLASS]`, if it is such a type."""
    arguments = get_args(kind)
    if get_origin(kind) is dict and len(arguments) == 2 and is_dataclass(arguments[1]):
        return arguments[1]  # type: ignore[return-value]
    return None


# Messages for what does not fit.


def explained(
    error: OmegaConfBaseException, schema: type, content: Any = None, key: str = "", entry: str = "train.py"
) -> str:
    """One sentence for an OmegaConf error: an unknown key with its nearest name, a wrong type with its key."""
    full = ".".join(part for part in (key, error.full_key) if part)
    if type(error).__name__ in ("ConfigKeyError", "ConfigAttributeError") and full:
        return unknown_message(full, list(known_keys(schema, content, f"{key}." if key else "")), entry)
    first = str(error).strip().splitlines()[0]
    if "is not Optional" in first or "Incompatible value 'None'" in first:
        return f"{full}=null: it needs a value."
    return f"{full}: {first}" if full and full not in first else first


def unknown_keys(node: Any, schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of `node` (a nested mapping) that the settings class has no field and no component for."""
    if not isinstance(node, Mapping):
        return
    types, own_and_registered = field_types(schema), _split(schema, node)
    singles = {item.name: item.metadata for item in fields(schema) if "single" in item.metadata}
    for item in fields(schema):
        if "beside" not in item.metadata:
            continue
        place = prefix if item.metadata["beside"] else f"{prefix}{item.name}."
        register, chosen_by = item.metadata["register"], item.metadata["chosen_by"]
        for name, child in own_and_registered[1][item.name].items():
            chosen = name if chosen_by is None else (child or {}).get(chosen_by)
            if chosen in register:
                child = child or {} if chosen_by is None else _without_nulls(child)
                yield from unknown_keys(child, register.settings(chosen), f"{place}{name}.")
            elif chosen_by is None:
                yield f"{place}{name}"
    open_mapping = any(item.metadata.get("beside") for item in fields(schema))
    for name, value in node.items():
        if name not in types:
            if not open_mapping:
                yield f"{prefix}{name}"
        elif name in singles:
            schema_here = _chosen_class(singles[name], value, f"{prefix}{name}")
            yield from unknown_keys(value or {}, schema_here, f"{prefix}{name}.")
        elif is_dataclass(types[name]):
            yield from unknown_keys(value or {}, types[name], f"{prefix}{name}.")  # type: ignore[arg-type]
        elif (of_each := entry_schema(types[name])) is not None and name in own_and_registered[0]:
            for label, child in (value or {}).items():
                yield from unknown_keys(child or {}, of_each, f"{prefix}{name}.{label}.")


def known_keys(schema: type, node: Any = None, prefix: str = "") -> Iterator[str]:
    """Every dotted key that may be set; the names inside mappings are those of `node`, or of the register."""
    node = node if isinstance(node, Mapping) else {}
    for item in fields(schema):
        kind, key = field_types(schema)[item.name], f"{prefix}{item.name}"
        register, chosen_by = item.metadata.get("register"), item.metadata.get("chosen_by")
        if register is not None and chosen_by is None:
            place = prefix if item.metadata["beside"] else f"{key}."
            for name in register.names():
                yield f"{place}{name}"
                yield from known_keys(register.settings(name), None, f"{place}{name}.")
            continue
        yield key
        if "single" in item.metadata:
            content = node.get(item.name)
            name = (content or {}).get(chosen_by)
            here = register.settings(name) if register and name in register else item.metadata["single"]
            yield from known_keys(here, content, f"{key}.")
            continue
        if is_dataclass(kind):
            yield from known_keys(kind, node.get(item.name), f"{key}.")  # type: ignore[arg-type]
            continue
        for label, child in (node.get(item.name) or {}).items() if register or entry_schema(kind) else ():
            chosen = (child or {}).get(chosen_by) if register else None
            yield f"{key}.{label}"
            if register is None:
                yield from known_keys(entry_schema(kind), child, f"{key}.{label}.")  # type: ignore[arg-type]
            elif chosen in register:
                yield from known_keys(register.settings(chosen), child, f"{key}.{label}.")


def unknown_message(key: str, known: list[str], entry: str = "train.py") -> str:
    """What to say of a key that does not exist: the nearest names, and where to see all of them."""
    near = nearest(key, known)
    parent = key.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    lines = [f"There is no setting {key!r}." + (f" Did you mean {' or '.join(near)}?" if near else "")]
    if siblings:
        lines.append(f"  {parent or 'top level'} has: {', '.join(siblings)}")
    return "\n".join([*lines, f"  All settings: python {entry} --cfg job"])


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
