"""The embedded default: its data is made on first use, with a line that says what and why; its models are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.terminal import Display


def make_missing_data(conf: Any, display: Display) -> bool:
    """Makes the world that `data.made` names where `data.root` is missing; True if it was made now."""
    if conf.data.made is None or conf.data.root is None or Path(conf.data.root).exists():
        return False
    root = Path(conf.data.root)
    try:
        from data_prep.interference import ensure_interference_world
        from data_prep.shapes import ensure_world
    except ImportError as error:
        raise InputError(
            f"{root} is missing, and the program that makes it (data_prep) is not here: run train.py from a checkout "
            "of mmadapter, or give data of your own with data=NAME data.root=FOLDER."
        ) from error
    display.say(
        f"{root} is missing: making the world of coloured shapes there, so that training needs no download "
        f"(pictures, questions, captions, instructions; python -m data_prep.{conf.data.made} does the same)"
    )
    ensure = ensure_interference_world if conf.data.made == "interference" else ensure_world
    made = ensure(root, progress=lambda done, total: display.report("pictures", done, total))
    display.close()
    return made
