"""What can be known of a host or an image tower without loading it: its small configuration file only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
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


def tower_blocks(model: str) -> int | None:
    """Blocks of the image tower that open_clip builds under this name; None where its file does not say."""
    file = SHIPPED / "clip" / "open_clip_config.json" if model == TINY else Path(model) / "open_clip_config.json"
    listed = open_clip_files().get(model)
    content = _json(listed if listed is not None else file)
    if content is None:
        return None
    vision = content.get("model_cfg", content).get("vision_cfg", {})
    return vision["layers"] if isinstance(vision.get("layers"), int) else None


def open_clip_files() -> dict[str, Path]:
    """Model name -> configuration file, for every model that the installed open_clip knows (it is not imported)."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        return {}
    return {file.stem: file for file in sorted((Path(spec.origin).parent / "model_configs").glob("*.json"))}


def _json(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _first_number(content: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((content[key] for key in keys if isinstance(content.get(key), int)), None)
