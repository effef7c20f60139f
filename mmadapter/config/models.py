"""What can be known of an image tower without loading it: its small configuration file only."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmadapter.hosts.settings import TINY

SHIPPED = Path(__file__).parents[1] / "tiny"  # the models that come with the package: llama/, clip/


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
