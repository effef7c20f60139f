"""Imports point one way (docs/architecture.md), and everything that is imported is a declared dependency."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "mmadapter"

# The rooms from low to high: a room imports those before it and itself. Settings (`settings.py` of a room, and the
# registers in a room's `__init__.py`) load nothing heavy and are lower than all rooms: config.py is made of them.
ORDER = [
    *("errors", "files", "terminal", "settings", "SETTINGS OF ROOMS"),
    *("distributed", "vision", "hosts", "methods", "data", "decoding", "model", "tasks", "config"),
    "settings_reference",
    *("runs", "interop", "reports", "training", "evaluation", "chat", "demo", "doctor", "sweeps", "cli", "__main__"),
]
# who may know what from outside; a package that is not named here may be imported anywhere
KNOWN_ONLY_BY = {
    "hydra": {"cli", "sweeps"},
    "omegaconf": {"settings", "config", "cli", "sweeps"},
    "transformers": {"hosts", "model", "interop"},
    "huggingface_hub": {"hosts"},
    "gguf": {"interop"},
    "open_clip": {"vision"},
    "data_prep": set(),
}
DISTRIBUTION = {  # import name -> the name in setup.cfg, where they differ
    "PIL": "pillow",
    "yaml": "pyyaml",
    "open_clip": "open_clip_torch",
    "hydra": "hydra-core",
    "omegaconf": "hydra-core",
    "markupsafe": "jinja2",
    "google": "protobuf",
    "hydra_plugins": "hydra-submitit-launcher",
}


def imports_of(file: Path) -> list[tuple[str, int]]:
    """(dotted module, line) of every import in a file, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; write the whole name"
            inner = [f"mmadapter.{alias.name}" for alias in node.names] if node.module == "mmadapter" else [node.module]
            found += [(name or "", node.lineno) for name in inner]
    return found


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level_of(module: str) -> int:
    """The place of a dotted module of ours in ORDER."""
    parts = module.split(".")[1:]
    own_settings = len(parts) > 1 and parts[1] == "settings"
    is_room = len(parts) == 1 and (PACKAGE / parts[0]).is_dir()
    return ORDER.index("SETTINGS OF ROOMS" if own_settings or is_room else parts[0])


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if room_of(f) != "__init__"]
OURS = [*FILES, *sorted((CHECKOUT / "data_prep").rglob("*.py")), CHECKOUT / "train.py", CHECKOUT / "eval.py"]


def test_every_room_has_its_place_in_the_order():
    assert {room_of(file) for file in FILES} <= {*ORDER}


def test_no_import_points_up():
    wrong = []
    for file in FILES:
        module = "mmadapter." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for imported, line in imports_of(file):
            if imported.startswith("mmadapter.") and imported != "mmadapter.__version__":
                name = imported if (CHECKOUT / imported.replace(".", "/")).with_suffix(".py").is_file() else imported
                same_room = imported.split(".")[1] == room_of(file)
                if not same_room and level_of(name) > level_of(module):
                    wrong.append(f"{file.relative_to(CHECKOUT)}:{line}: {module} must not import {imported}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package,rooms", KNOWN_ONLY_BY.items())
def test_only_some_rooms_know(package, rooms):
    knowing = {room_of(file) for file in FILES if any(m.split(".")[0] == package for m, _ in imports_of(file))}
    assert knowing <= rooms


def test_the_entries_compose_check_and_call():
    for name in ("train.py", "eval.py"):
        modules = {module for module, _ in imports_of(CHECKOUT / name)}
        assert modules <= {"mmadapter.cli"}


def test_no_room_is_called_by_what_could_be_anything():
    vague = {"utils", "util", "common", "misc", "helpers", "helper", "tools"}
    assert not [file for file in OURS if file.stem in vague or file.parent.name in vague]


def test_every_foreign_import_is_a_declared_dependency():
    options = configparser.ConfigParser()
    options.read(CHECKOUT / "setup.cfg")
    declared = names_of(options["options"]["install_requires"])
    for extra in ("data", "gguf", "wandb", "mlflow", "cluster", "search"):
        declared |= names_of(options["options.extras_require"][extra])
    undeclared = set()
    for file in OURS:
        for module, line in imports_of(file):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("mmadapter", "data_prep", "tests"):
                continue
            if DISTRIBUTION.get(top, top).lower() not in declared:
                undeclared.add(f"{file.relative_to(CHECKOUT)}:{line} imports {top}")
    assert not undeclared, "\n".join(sorted(undeclared))


def test_settings_are_read_without_torch():
    code = "import mmadapter.config, mmadapter.cli, sys; print([m for m in HEAVY if m in sys.modules])"
    heavy = "HEAVY = ['torch', 'transformers', 'open_clip', 'numpy', 'PIL', 'torchvision', 'deepspeed']; "
    told = subprocess.run([sys.executable, "-c", heavy + code], capture_output=True, text=True, cwd=CHECKOUT)
    assert told.stdout.strip() == "[]", told.stdout + told.stderr


def names_of(requirements: str) -> set[str]:
    return {re.split(r"[<>=!\[; ]", line.strip())[0].lower() for line in requirements.splitlines() if line.strip()}
