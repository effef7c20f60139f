"""The table of commands: `mmadapter COMMAND ...`, or `python -m mmadapter ...`. Only what is asked for is loaded."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NoReturn

from mmadapter.errors import exit_status

# command -> (a line of help, what is called with the words after it); or its kinds: mmadapter convert meta ...
COMMANDS: dict[str, tuple[str, str | dict[str, str]]] = {
    "train": ("train an adapter, evaluate it, write the report", "mmadapter.cli:train"),
    "eval": ("evaluate a run again, or score a file of predictions", "mmadapter.cli:evaluate"),
    "chat": ("talk to a trained model", "mmadapter.chat:main"),
    "runs": ("the state of all runs", "mmadapter.runs.__main__:main"),
    "sweep": ("write a sweep's table and page anew", "mmadapter.sweeps.__main__:main"),
    "check": (
        "look for what is wrong in data, before a training",
        {
            "own": "data_prep.own:main",
            "scienceqa": "data_prep.scienceqa:main",
            "coco_caption": "data_prep.coco_caption:main",
            "instruct": "data_prep.instruct:main",
        },
    ),
    "settings": ("what a setting means, may be, and is by default", "mmadapter.settings_reference:main"),
    "pretrained": ("fetch a pretrained host or image encoder", "mmadapter.interop.pretrained:main"),
    "convert": (
        "other programs' weights into a folder that host.path takes",
        {"meta": "mmadapter.interop.meta:main", "gguf": "mmadapter.interop.gguf:main"},
    ),
    "export": ("a trained adapter and its host as one plain transformers model", "mmadapter.interop.export:main"),
    "doctor": ("versions, devices, memory, and what works on this machine", "mmadapter.doctor:main"),
}


def main() -> NoReturn:
    """Leaves with the command's exit status; with 2 after bad input, or for a command that there is not."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        import mmadapter

        print(f"mmadapter {mmadapter.__version__}")
        sys.exit(0)
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        _refuse("command", "mmadapter", name, list(COMMANDS))
    called = COMMANDS[name][1]
    if isinstance(called, dict):
        if not rest or rest[0] in ("-h", "--help"):
            print(f"usage: mmadapter {name} {{{','.join(called)}}} ...\n\n{COMMANDS[name][0]}", end="\n\n")
            print("\n".join(f"  mmadapter {name} {kind} --help" for kind in called))
            sys.exit(0 if rest else 2)
        if rest[0] not in called:
            _refuse("kind", f"mmadapter {name}", rest[0], list(called))
        name, called, rest = f"{name} {rest[0]}", called[rest[0]], rest[1:]
    sys.argv = [f"mmadapter {name}", *rest]  # the program's name, as argparse shows it; the words, as Hydra reads them
    module, _, function = called.partition(":")
    sys.exit(exit_status(lambda: getattr(importlib.import_module(module), function)(rest)))


def overview() -> str:
    """What `mmadapter --help` prints."""
    lines = [f"  {name:<12}{about}" for name, (about, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mmadapter COMMAND ...",
            "",
            "Train LLaMA-Adapter, V1 and V2, on frozen language models. Quick start, offline, on CPU: mmadapter train",
            "",
            *lines,
            "",
            "mmadapter COMMAND --help says more; mmadapter --version names the version.",
        ]
    )


def _refuse(what: str, before: str, got: str, known: list[str]) -> NoReturn:
    near = difflib.get_close_matches(got, known, n=1)
    meant = f" Did you mean {before} {near[0]}?" if near else ""
    print(
        f"error: There is no {what} {got!r}.{meant}\n  {before} can be followed by: {', '.join(known)}", file=sys.stderr
    )
    sys.exit(2)


if __name__ == "__main__":
    main()
