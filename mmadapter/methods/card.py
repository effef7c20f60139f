"""What may stand on an adapter's card (adapter.json): people pass cards around, so none of it is believed unseen."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError

log = logging.getLogger(__name__)
Rule = tuple[str, Callable[[Any], bool]]  # what is allowed, in words; whether a value is so

LARGEST = 2**40  # of a tensor's dimension


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _is_shape(value: Any) -> bool:
    return type(value) is list and all(type(one) is int and 0 <= one <= LARGEST for one in value)


def _is_digest(value: Any, digits: int) -> bool:
    return type(value) is str and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


COUNT: Rule = ("a whole number above 0", _is_count)
TEXT: Rule = ("a text", lambda value: type(value) is str)
TEXT_OR_NULL: Rule = ("a text or null", lambda value: value is None or type(value) is str)
OBJECT: Rule = ("an object", lambda value: type(value) is dict)
OBJECT_OR_NULL: Rule = ("an object or null", lambda value: value is None or type(value) is dict)
DIGEST: Rule = ("16 hexadecimal digits", lambda value: _is_digest(value, 16))

ENTRIES: dict[str, Rule] = {
    "format": COUNT,
    "adapter": OBJECT,
    "host": OBJECT,
    "vision": OBJECT_OR_NULL,
    "encoder": OBJECT_OR_NULL,
    "max_tokens": COUNT,
    "begin_of_text": ("auto, always or never", lambda value: value in ("auto", "always", "never")),
    "quantization": ("null, int8 or nf4", lambda value: value in (None, "int8", "nf4")),
    "template": TEXT,
    "chat_template": TEXT_OR_NULL,
    "system": TEXT_OR_NULL,
    "versions": OBJECT,
    "training": OBJECT,
    "tensors": (
        "an object of names and shapes",
        lambda value: type(value) is dict and all(_is_shape(shape) for shape in value.values()),
    ),
    "parameters": ("a whole number", lambda value: type(value) is int and value >= 0),
    "sha256": ("64 hexadecimal digits", lambda value: _is_digest(value, 64)),
}
HOST_ENTRIES: dict[str, Rule] = {
    "model_type": TEXT,
    **dict.fromkeys(("width", "layers", "heads", "kv_heads", "vocabulary"), COUNT),
    "config_digest": DIGEST,
    "tokenizer_digest": DIGEST,
    "weights_digest": DIGEST,
}
HOST_NEEDS = [name for name in HOST_ENTRIES if name != "weights_digest"]


def refuse_wrong_entries(file: Path, card: dict[str, Any]) -> None:
    """Raises InputError that names every entry of the card that is none; entries of other names are told and unused."""
    wrong = list(_wrong_entries(card, ENTRIES, ""))
    if not wrong:
        host = card["host"]
        wrong = [f"host.{name} is missing" for name in HOST_NEEDS if name not in host]
        wrong += _wrong_entries(host, HOST_ENTRIES, "host.")
        is_old = card.get("format", 1) == 1  # version 0.1 had one kind of encoder
        if card.get("encoder") is not None and not is_old and type(card["encoder"].get("encoder")) is not str:
            wrong.append("encoder.encoder is missing: the name of an image encoder")
    if wrong:
        raise InputError(
            f"{file}: {'; '.join(wrong[:5])}. It is no card of mmadapter's. Copy the adapter folder again."
        )
    if unknown := [name for name in card if name not in ENTRIES]:
        log.warning("%s: %s mean nothing here and are not used.", file, ", ".join(map(shown, unknown[:5])))


def _wrong_entries(content: dict[str, Any], rules: dict[str, Rule], above: str) -> Iterator[str]:
    for name, (allowed, holds) in rules.items():
        if name in content and not holds(content[name]):
            yield f"{above}{name} is {shown(content[name])}, allowed: {allowed}"


def shown(value: Any) -> str:
    """A value for a message, not too long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
