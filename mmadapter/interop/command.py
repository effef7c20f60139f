"""How a command of this room runs: what it prints, how it fails, its exit status."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from mmadapter.errors import InputError
from mmadapter.hosts.load import hide_library_bars


def command(convert: Callable[[], str], target: Path) -> int:
    """Run `convert`, which writes `target` and returns what it says; the exit status."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns when it is imported
    if not sys.stderr.isatty():
        hide_library_bars()
    try:
        print(convert())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:
        print(f"error: {target} cannot be written ({error}); nothing is left of it. Make room.", file=sys.stderr)
        return 2
    return 0
