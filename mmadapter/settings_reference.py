"""`mmadapter settings`: what every setting means, in the terminal, and as the page docs/settings.md. Loads no torch.

Keys, types, defaults and bounds are those of the settings classes. A meaning is the comment beside or above a field, so
it stands in one place. An option of a group (host=smollm2) means what the first sentence of its file says.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from mmadapter.config import CONF, EvalConf, RunConf
from mmadapter.errors import InputError
from mmadapter.settings import BOUNDS, Register, entry_schema, field_types, joined, unknown_message

NAME = "NAME"  # stands for any name in a key: data.sources.NAME.path
WORDS = {bool: "true, false", int: "whole number", float: "number", str: "text", Any: "value"}
HEAD = """\
# Settings

Every setting of `mmadapter train` and `mmadapter eval`. This page is written from the code, by
`mmadapter settings --markdown > docs/settings.md`.

A setting is given as `key=value`, a list as `key=[a,b]`, an empty value as `key=null`. `NAME` in a key stands for a
name that the experiment, or you, chose. The default holds where neither the command line nor a file of `conf/` says
otherwise.

- `mmadapter settings optimizer.lr` says in the terminal what a setting means; `mmadapter settings optimizer` shows all
  of a part, `mmadapter settings host` also the options of that group.
- `mmadapter train experiment=alpaca --cfg job` prints all settings with the values that this command line gives them.

## Groups

A group is chosen as `group=option`, and each option is a file of `conf/` with a set of settings and their reasons. An
experiment chooses options of the other groups; what you name comes on top.
"""


@dataclass(frozen=True)
class Setting:
    key: str
    allowed: str  # its type, or what it may be: "whole number, at least 1; or null"
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The settings of one class at one place."""

    key: str  # data.sources.NAME; empty at the top
    title: str
    about: str  # one sentence
    settings: tuple[Setting, ...]


# From a settings class to sections.


@cache
def meanings(schema: type) -> Mapping[str, str]:
    """Field -> the comment beside it, and behind that the comment lines right above it; of this class alone."""
    source = textwrap.dedent(inspect.getsource(schema))
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# type:"):
            comments[token.start[0]] = token.string.partition("  # type:")[0].removeprefix("#").strip()
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = [comments[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments]
            above: list[str] = []
            line = node.lineno - 1
            while line in comments and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, comments[line])
                line -= 1
            found[node.target.id] = "; ".join(part for part in (" ".join(beside), " ".join(above)) if part)
    return found


def meaning_of(schema: type, name: str) -> str:
    """What a field means: as its class says, else as the nearest class says from which it is inherited."""
    own = (meanings(one).get(name, "") for one in schema.__mro__ if is_dataclass(one))
    return next((text for text in own if text), "")


def about(schema: type) -> str:
    """The first paragraph of a settings class's docstring; empty where it has none of its own."""
    text = inspect.cleandoc(schema.__doc__ or "")
    return "" if text.startswith(f"{schema.__name__}(") else " ".join(text.split("\n\n")[0].split())


def sections(schema: type = RunConf, key: str = "") -> Iterator[Section]:
    """The settings of a class and of all below it, in the order of its fields."""
    title = f"`{key}`" if key else "At the top"
    yield Section(key, title, about(schema), tuple(_plain_settings(schema, key)))
    for item in fields(schema):
        kind, below = field_types(schema)[item.name], joined(key, item.name)
        register = item.metadata.get("register")
        if register is not None:
            if not item.metadata.get("beside"):
                below = below if "single" in item.metadata else f"{below}.{NAME}"
            yield from _of_components(item, key if item.metadata.get("beside") else below, register, kind)
        elif (of_each := entry_schema(kind)) is not None:
            yield from sections(of_each, f"{below}.{NAME}")
        elif is_dataclass(kind):
            yield from sections(kind, below)  # type: ignore[arg-type]


def _of_components(item: Field[Any], key: str, register: Register, kind: Any) -> Iterator[Section]:
    """What all components of a register share, then what each has besides, or has other defaults for."""
    shared: Any = entry_schema(kind) or (kind if is_dataclass(kind) else None)
    chosen_by = item.metadata["chosen_by"]
    common: dict[str, Setting] = {}
    if shared is not None:
        allowed = {chosen_by: ", ".join(register.names())}
        common = {one.key: one for one in _flat_settings(shared, key, allowed)}
        yield Section(key, f"`{key}`", about(shared), tuple(common.values()))
    alike: dict[tuple[Setting, ...], list[str]] = {}
    for name in register.names():
        component, place = register.settings(name), key if chosen_by else joined(key, name)
        skipped = (f"{key}.{chosen_by}", f"{key}.reader")  # who chose the component has chosen these
        own = (one for one in _flat_settings(component, place) if one.key not in skipped)
        alike.setdefault(tuple(one for one in own if common.get(one.key) != one), []).append(name)
    for settings, names in alike.items():
        component, place = register.settings(names[0]), key if chosen_by else joined(key, names[0])
        title = f"`{place}` with `{chosen_by}={', '.join(names)}`" if chosen_by else f"`{place}`"
        if settings:
            yield Section(place, title, about(component) if len(names) == 1 else "", settings)


def _plain_settings(schema: type, key: str, allowed: Mapping[str, str] | None = None) -> Iterator[Setting]:
    """The fields that hold values, not settings objects."""
    for item in fields(schema):
        kind = field_types(schema)[item.name]
        if "register" in item.metadata or is_dataclass(kind) or entry_schema(kind) is not None:
            continue
        default = item.default if item.default_factory is MISSING else item.default_factory()
        words = (allowed or {}).get(item.name) or _allowed(kind, item.metadata)
        yield Setting(joined(key, item.name), words, _written(default), meaning_of(schema, item.name))


def _flat_settings(schema: type, key: str, allowed: Mapping[str, str] | None = None) -> Iterator[Setting]:
    """The fields of a component, with those of the settings objects below it."""
    yield from _plain_settings(schema, key, allowed)
    for item in fields(schema):
        if is_dataclass(kind := field_types(schema)[item.name]):
            yield from _flat_settings(kind, joined(key, item.name))  # type: ignore[arg-type]


def _allowed(kind: Any, metadata: Mapping[str, Any]) -> str:
    """A type and its bounds in words."""
    if "allowed" in metadata:
        return ", ".join(map(_written, metadata["allowed"]))
    arguments = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = ["path" if metadata.get("input_path") else _type_words(one) for one in arguments if one is not NoneType]
    words += [f"{text} {metadata[bound]:g}" for bound, (text, _) in BOUNDS.items() if bound in metadata]
    return ", ".join(words) + (", or null" if NoneType in arguments else "")


def _type_words(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"list of {_type_words(get_args(kind)[0])}s"
    if get_origin(kind) is dict:
        return f"name → {_type_words(get_args(kind)[1])}"
    return WORDS[kind]


def _written(value: Any) -> str:
    """A value as one types it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{}"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


# The groups of conf/.


def groups(folder: Path = CONF) -> dict[str, dict[str, str]]:
    """Group -> option -> the first sentence of its file."""
    return {
        place.name: {file.stem: first_sentence(file) for file in sorted(place.glob("*.yaml"))}
        for place in sorted(folder.iterdir())
        if place.is_dir() and place.name != "local" and any(place.glob("*.yaml"))
    }


def first_sentence(file: Path) -> str:
    """The first sentence of the comment with which a YAML file begins."""
    said = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            said.append(line.lstrip("#").strip())
    text = " ".join(said)
    ends = (text.find(mark) for mark in (". ", ": mmadapter ", ": data.", ":   "))  # the rest is a command to copy
    return text[: min((place for place in ends if place >= 0), default=len(text))].removesuffix(".")


# The page and the terminal.


def page() -> str:
    """docs/settings.md."""
    parts = [HEAD]
    for group, options in groups().items():
        rows = "".join(f"| `{name}` | {_cell(text)} |\n" for name, text in options.items())
        parts.append(f"### `{group}=`\n\n| option | means |\n|---|---|\n{rows}")
    parts.append("## `mmadapter train`\n\n`data.validation.NAME` has the settings of `data.sources.NAME`.\n")
    parts += [_table(one) for one in sections(RunConf) if one.settings and one.key != f"data.validation.{NAME}"]
    parts.append("## `mmadapter eval`\n\n`task` has the settings of `tasks.NAME` above.\n")
    parts += [_table(one) for one in sections(EvalConf) if one.settings and one.key.partition(".")[0] != "task"]
    return "\n".join(parts)


def _table(section: Section) -> str:
    text = f"{_cell(section.about)}\n\n" if section.about else ""
    rows = "".join(
        f"| `{one.key}` | {_cell(one.meaning)} | {_cell(one.allowed)} | `{one.default}` |\n" for one in section.settings
    )
    return f"### {section.title}\n\n{text}| setting | means | can be | default |\n|---|---|---|---|\n{rows}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


# In the terminal.


def main(words: list[str]) -> None:
    """`mmadapter settings [KEY ...]`. Raises InputError for a key that does not exist."""
    parser = argparse.ArgumentParser(
        description="What a setting means, what it may be, and its default: mmadapter settings optimizer.lr"
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="a setting, a part of them (optimizer), a group (host)")
    parser.add_argument("--markdown", action="store_true", help="all of them as the page docs/settings.md")
    asked = parser.parse_args(words)
    if asked.markdown:
        print(page(), end="")
        return
    if not asked.keys:
        print(overview())
    for key in asked.keys:
        print(explained(key))


def overview() -> str:
    """The parts, for somebody who does not know what to ask for."""
    parts: dict[str, str] = {}
    for section in sections():
        name = section.key.partition(".")[0]
        if name and name not in parts:
            parts[name] = section.about
    top = next(sections()).settings
    lines = [f"  {name:<14}{text}" for name, text in parts.items()]
    return "\n".join(
        ["mmadapter settings KEY says what a setting means. The parts:", *lines]
        + ["at the top: " + ", ".join(one.key for one in top)]
        + ["groups: " + ", ".join(groups())]
    )


def explained(key: str) -> str:
    """What is to be said of a key, a part or a group. Raises InputError where there is none of that name."""
    options = groups().get(key, {})
    lines = [f"  {key}={name}\n      {text}" for name, text in options.items()]
    for title, settings in _matching(key, RunConf, "train") + _matching(key, EvalConf, "eval"):
        lines += [title, *(_lines(one) for one in settings)]
    if not lines:
        known = {one.key: None for schema in (RunConf, EvalConf) for part in sections(schema) for one in part.settings}
        raise InputError(unknown_message(key, list(dict.fromkeys([*known, *groups()]))))
    return "\n".join(lines)


def _matching(key: str, schema: type, command: str) -> list[tuple[str, list[Setting]]]:
    """Title and settings of every section that has the key, or that lies below it."""
    found = []
    for section in sections(schema):
        fitting = [one for one in section.settings if _fits(key, one.key)]
        if fitting:
            found.append((f"{section.title.replace('`', '')} (mmadapter {command})", fitting))
    return found


def _fits(asked: str, key: str) -> bool:
    """Whether a key is the asked one or lies below it; NAME in the key stands for any name."""
    wanted, parts = asked.split("."), key.split(".")
    return len(wanted) <= len(parts) and all(part in (NAME, word) for word, part in zip(wanted, parts, strict=False))


def _lines(one: Setting) -> str:
    return f"  {one.key}={one.default}\n      {one.meaning}\n      ({one.allowed})"
