"""What can be known of a host or an image tower without loading it: its small configuration file only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.config.host import TINY

SHIPPED = Path(__file__).parents[1] / "tiny"  # the models that come with the package: llama/, clip/
HOST_FILES = ("config.json", "params.json")  # transformers layout, Meta's layout
LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
POSITION_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


@dataclass(frozen=True)
class HostFacts:
    file: Path
    layers: int | None  # None: the file does not say
    positions: int | None  # tokens of context that the host was built for


def host_folder(path: str) -> Path:
    return SHIPPED / "llama" if path == TINY else Path(path).expanduser()


def host_file(path: str) -> Path | None:
    """The file that describes the host in folder `path`, or None."""
    files = [host_folder(path) / name for name in HOST_FILES]
    return next((file for file in files if file.is_file()), None)


def host_facts(path: str) -> HostFacts | None:
    """Layers and context of the host in folder `path`; None where no readable description lies there."""
    file = host_file(path)
    content = _json(file) if file is not None else None
    if file is None or content is None:
        return None
    content = {**content.get("text_config", {}), **content}
    return HostFacts(file, _first_number(content, LAYER_KEYS), _first_number(content, POSITION_KEYS))


def _json(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _first_number(content: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((content[key] for key in keys if isinstance(content.get(key), int)), None)
