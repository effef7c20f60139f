"""`mmadapter doctor`: what this machine has, what works on it, and how to get what is missing."""

from __future__ import annotations

import argparse
import getpass
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mmadapter
from mmadapter.distributed.start import set_threads, thread_count
from mmadapter.hosts.settings import TINY, TINY_HOST, models_folder
from mmadapter.terminal import default_console, readable_bytes
from mmadapter.vision.settings import TINY_CLIP

# What stands first in the list of versions; the other requirements follow.
FIRST = ("torch", "torchvision", "transformers", "tokenizers", "timm", "open_clip_torch", "deepspeed")
ONLY_FOR = {  # required packages without which all but this works
    "deepspeed": "engine=zero*",
    "pycocotools": "scores of captions",
    "pycocoevalcap": "scores of captions",
    "tensorboard": "training.tensorboard=true",
    "torchvision": "image encoders",
    "open_clip_torch": "CLIP as image encoder",
    "timm": "timm models as image encoder",
    "sentencepiece": "hosts with a tokenizer.model",
    "protobuf": "hosts with a tokenizer.model",
}
EXTRAS = {  # what an extra is for
    "cluster": "cluster=slurm",
    "search": "searches with Optuna (sweep)",
    "wandb": "training.wandb=true",
    "mlflow": "training.mlflow=true",
    "data": "data in Parquet files",
    "gguf": "GGUF files as hosts",
    "quant": "host.quantization=nf4",
    "test": "the tests",
    "notebook": "the notebook",
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "bf16", "sve")  # that are shown; bf16, sve: ARM
WORLD_BYTES = 200e6  # the quick start's world, features and run, with room to spare
DESCRIPTION = """What this machine has: versions, processors, memory, folders; what works here, and how to get the rest.

Builds the tiny model that ships with the package, trains one step and asks it once. Status 1 only where something is
broken that everything needs. Names of users and machines are left out, so that --json can go into a bug report.
"""


@dataclass
class Check:
    """Something that works here, or does not."""

    what: str
    works: bool
    detail: str = ""
    fix: str = ""  # how to get it, where it does not work
    needed: bool = False  # nothing works without it

    def __post_init__(self) -> None:
        self.fix = "" if self.works else self.fix


@dataclass
class Findings:
    """All that doctor knows. Sizes in bytes; None where the system does not tell."""

    mmadapter: str
    python: str
    system: str
    versions: dict[str, str | None]  # required packages; None = not there
    optional: dict[str, dict[str, Any]]  # package -> version, extras that bring it
    cpu: dict[str, Any]
    gpus: list[dict[str, Any]]
    memory: dict[str, int | None]
    folder: dict[str, Any]  # the working folder
    places: dict[str, str | None]
    programs: dict[str, str | None]  # java, slurm
    pretrained: list[str]
    self_test: dict[str, Any]
    checks: list[Check] = field(default_factory=list)


def main(arguments: list[str]) -> None:
    """The command. Leaves with status 1 where something that everything needs is broken."""
    parser = argparse.ArgumentParser(
        "mmadapter doctor", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="for programs, and for bug reports")
    options = parser.parse_args(arguments)
    found = findings()
    content = without_names(asdict(found))
    if options.json:
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        show(content)
    if any(check.needed and not check.works for check in found.checks):
        raise SystemExit(1)


def findings() -> Findings:
    """What this machine has, and what works on it."""
    set_threads(None)
    required, optional, unfit = packages()
    gpus, gpu_trouble = graphics()
    found = Findings(
        mmadapter=mmadapter.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=required,
        optional=optional,
        cpu=processor(),
        gpus=gpus,
        memory=usable_memory(),
        folder={"writable": os.access(".", os.W_OK), "free": shutil.disk_usage(".").free},
        places=package_folders(),
        programs={"java": java_version(), "slurm": slurm_version()},
        pretrained=models_at_hand(),
        self_test=self_test(),
    )
    found.checks = list(checks(found, unfit, gpu_trouble))
    return found


# What is there.


def packages() -> tuple[dict[str, str | None], dict[str, dict[str, Any]], list[str]]:
    """Required packages with their versions, optional ones with the extras that bring them; and which of the required
    ones are not there or of a version that is not supported, as the package's own metadata say."""
    from packaging.requirements import Requirement

    required: dict[str, str | None] = {}
    optional: dict[str, dict[str, Any]] = {}
    unfit: list[str] = []
    try:
        lines = importlib.metadata.requires("mmadapter") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that nobody installed
        lines = list(FIRST)
    for line in lines:
        wanted = Requirement(line)
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra[1] if extra else ""}):
            continue  # of another system
        version = version_of(wanted.name)
        if extra is None:
            required[wanted.name] = version
            if version is None or not wanted.specifier.contains(version, prereleases=True):
                unfit.append(f"{wanted.name}{wanted.specifier}")
        else:
            optional.setdefault(wanted.name, {"version": version, "extras": []})["extras"].append(extra[1])
    ordered = [*(name for name in FIRST if name in required), *sorted(set(required) - {*FIRST})]
    return {name: required[name] for name in ordered}, optional, unfit


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> dict[str, Any]:
    """Model, the flags that matter for speed, usable cores, the threads that a command here would use, and which
    instructions for bfloat16 torch finds (None where torch is broken)."""
    told = system_file("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", told, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", told, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fast: list[str] | None = None
    with suppress(Exception):  # whatever a broken installation raises; the self-test tells it
        from mmadapter.hosts.load import fast_bfloat16

        fast = fast_bfloat16()
    return {
        "model": model[1].strip() if model else platform.processor() or None,
        "flags": [flag for flag in CPU_FLAGS if flag in has] if flags else None,
        "cores": usable,
        "threads": int(thread_count(None)),
        "fast_bfloat16": fast,
    }


def graphics() -> tuple[list[dict[str, Any]], str]:
    """The GPUs that torch can use, and why there are none."""
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        return [], f"torch cannot be imported: {first_line(error)}"
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            return [], "none here; a host of billions of parameters wants one"
        kind = "is built for CPUs only" if torch.version.cuda is None else f"(CUDA {torch.version.cuda}) finds no GPU"
        return [], f"there is a driver, but torch {kind}"
    found = []
    for number in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found.append(
            {
                "name": told.name,
                "memory": total,
                "free": free,
                "capability": f"{told.major}.{told.minor}",
                "bfloat16": told.major >= 8,  # Ampere and later; before, torch emulates it
                "cuda": torch.version.cuda,
            }
        )
    return found, ""


def usable_memory() -> dict[str, int | None]:
    """This machine's memory, or the part of it that this process may use (a container's limit)."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", system_file("/proc/meminfo"), re.MULTILINE))
    total = int(sizes["MemTotal"]) * 1024 if "MemTotal" in sizes else None
    free = int(sizes["MemAvailable"]) * 1024 if "MemAvailable" in sizes else None
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in (  # version 2 and 1 of Linux's control groups
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        text = system_file(limit).strip()
        if text.isdigit() and total is not None and int(text) < total:
            total = int(text)
            if (usage := system_file(used).strip()).isdigit() and free is not None:
                free = min(free, max(0, total - int(usage)))
    return {"total": total, "available": free}


def package_folders() -> dict[str, str | None]:
    """Where the package, its settings, the models that ship with it and prepared ones lie; None: not there."""
    package = Path(mmadapter.__file__).parent
    conf = [folder for folder in (package / "conf", package.parent / "conf") if (folder / "train.yaml").is_file()]
    tiny = [folder for folder in (TINY_HOST, TINY_CLIP) if (folder / "config.json").is_file() or any(folder.glob("*"))]
    return {
        "package": str(package),
        "conf": str(conf[0]) if conf else None,
        "tiny models": str(TINY_HOST.parent) if len(tiny) == 2 else None,
        "prepared models": str(models_folder().absolute()),
    }


def models_at_hand() -> list[str]:
    """The folders of models that `mmadapter pretrained` has written, or somebody else."""
    known = ("config.json", "open_clip_config.json")
    folders = sorted(models_folder().glob("*/")) if models_folder().is_dir() else []
    return [folder.name for folder in folders if any((folder / name).is_file() for name in known)]


def java_version() -> str | None:
    """The version of Java, which METEOR and SPICE need; None where there is none that runs."""
    version = re.search(r'version "([^"]+)"', output_of("java", "-version"))
    return version[1] if version else None


def slurm_version() -> str | None:
    """The version of SLURM; None where its programs are not there, or find no cluster."""
    return output_of("squeue", "--version").removeprefix("slurm ") or None


def output_of(*command: str) -> str:
    """What a program says; empty where it is not there or fails (its message may name machines)."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (told.stdout or told.stderr).strip() if told.returncode == 0 else ""


def self_test() -> dict[str, Any]:
    """Train the shipped model for a step and ask it about a picture: seconds by device, or what went wrong."""
    started = time.monotonic()
    try:
        import torch
        from PIL import Image

        from mmadapter.hosts.load import hide_library_bars
        from mmadapter.hosts.settings import HostConf
        from mmadapter.methods import AdapterConf
        from mmadapter.methods.settings import ProjectionConf, PromptsConf
        from mmadapter.model import AdaptedModel
        from mmadapter.vision.settings import OpenClipSettings

        hide_library_bars()
        imported = time.monotonic()
        vision = OpenClipSettings(model=TINY, layers=[1, 2])
        methods = {"prompts": PromptsConf(length=4, layers=2), "projection": ProjectionConf(hidden=16)}
        model = AdaptedModel.build(HostConf(path=TINY, max_tokens=128), vision, AdapterConf(methods))
        picture = Image.new("RGB", (64, 64), "red")
        optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-2)
        loss = model.train().loss_of([("What is it?", "red", picture)])
        loss.backward()
        optimizer.step()
        model.eval().generate("What is it?", picture, max_new_tokens=4)
    except Exception as error:  # whatever a broken installation raises: this is the place that tells
        return {"works": False, "error": f"{type(error).__name__}: {first_line(error)}"}
    return {
        "works": bool(torch.isfinite(loss)),
        "device": str(model.device),
        "loss": round(float(loss.detach()), 4),
        "import_seconds": round(imported - started, 2),
        "seconds": round(time.monotonic() - imported, 2),
    }


# What works.


def checks(found: Findings, unfit: list[str], gpu_trouble: str) -> Iterator[Check]:
    """What works on this machine; what everything needs comes first."""
    # What everything needs.
    names = {wanted: re.split(r"[^\w.-]", wanted)[0] for wanted in unfit}
    broken = [wanted for wanted, name in names.items() if name not in ONLY_FOR]
    yield Check("required packages", not broken, ", ".join(broken), pip_install(broken), needed=True)
    yield Check("settings (conf/)", found.places["conf"] is not None, "", reinstall(), needed=True)
    yield Check("the models that ship with it", found.places["tiny models"] is not None, "", reinstall(), needed=True)
    test = found.self_test
    told = (
        f"a step and an answer in {test['seconds']} s on {test['device']}" if test["works"] else test.get("error", "")
    )
    yield Check("self-test", test["works"], told, "the packages above, in a fresh environment", needed=True)

    # Devices.
    if found.gpus:
        slow = [gpu["name"] for gpu in found.gpus if not gpu["bfloat16"]]
        fix = "host.dtype=float32" if slow else ""
        yield Check("GPU", not slow, f"no bfloat16: {', '.join(slow)}" if slow else f"{len(found.gpus)} usable", fix)
    else:
        fix = "a build of torch for this driver, https://pytorch.org/get-started" if "driver" in gpu_trouble else ""
        yield Check("GPU", False, gpu_trouble, fix)
    if (fast := found.cpu["fast_bfloat16"]) is not None:
        told = f"by {', '.join(fast)}" if fast else "this processor has no AMX, AVX512-BF16 or ARM BF16"
        yield Check("fast bfloat16 on the CPU", bool(fast), told, "" if fast else "host.dtype=auto takes float32")

    # The working folder.
    folder = found.folder
    yield Check("writing into this folder", folder["writable"], "", "another folder, or its permissions")
    yield Check(
        "room for the quick start",
        folder["free"] > WORLD_BYTES,
        f"{readable_bytes(folder['free'])} free",
        f"{readable_bytes(WORLD_BYTES)} on this disk, or another folder",
    )

    # What only some commands need.
    for wanted, name in names.items():
        if name in ONLY_FOR:
            yield Check(ONLY_FOR[name], False, f"{name} is missing or too old", pip_install([wanted]))
    if "deepspeed" in found.versions and found.versions["deepspeed"] is not None:
        yield Check("engine=zero*", True, f"deepspeed {found.versions['deepspeed']}")
    by_extra: dict[str, list[str]] = {}
    for name, told_of in found.optional.items():
        for extra in told_of["extras"]:
            by_extra.setdefault(extra, []).append(name)
    for extra, members in by_extra.items():
        missing = [name for name in members if found.optional[name]["version"] is None]
        told = f"missing: {', '.join(missing)}" if missing else ""
        yield Check(EXTRAS.get(extra, f"[{extra}]"), not missing, told, f"pip install 'mmadapter[{extra}]'")
    java = found.programs["java"]
    yield Check(
        "METEOR and SPICE of captions", java is not None, f"Java {java}" if java else "no Java", "a Java runtime (JRE)"
    )
    slurm = found.programs["slurm"]
    yield Check("jobs on this cluster", slurm is not None, f"SLURM {slurm}" if slurm else "no SLURM that answers")
    yield Check(
        "pretrained models",
        bool(found.pretrained),
        ", ".join(found.pretrained) or f"none in {models_folder()}/",
        "mmadapter pretrained smollm2 (mmadapter pretrained --help lists them)",
    )


def pip_install(requirements: list[str]) -> str:
    return "pip install " + " ".join(f"'{one}'" for one in requirements)


def reinstall() -> str:
    return "pip install --force-reinstall --no-deps WHEEL (mmadapter-*.whl), or run it from a whole checkout"


# What is shown.


def show(content: dict[str, Any]) -> None:
    """The findings for people."""
    console = default_console()

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    say(f"mmadapter {content['mmadapter']}, Python {content['python']}, {content['system']}", "bold")
    say(", ".join(f"{name} {version or '(missing)'}" for name, version in content["versions"].items() if name in FIRST))
    say("")
    cpu, memory_of, folder = content["cpu"], content["memory"], content["folder"]
    flags = f" ({', '.join(cpu['flags'])})" if cpu["flags"] else ""
    say(f"CPU      {cpu['model'] or 'unknown'}{flags}, {cpu['cores']} cores usable, {cpu['threads']} threads set")
    for gpu in content["gpus"]:
        kind = "bfloat16" if gpu["bfloat16"] else "no bfloat16"
        say(
            f"GPU      {gpu['name']}, {readable_bytes(gpu['memory'])} ({readable_bytes(gpu['free'])} free), compute "
            f"capability {gpu['capability']}, {kind}, CUDA {gpu['cuda']}"
        )
    total, free = (memory_of[key] for key in ("total", "available"))
    say(f"memory   {readable_bytes(total) if total else '?'}, available {readable_bytes(free) if free else '?'}")
    say(f"disk     {readable_bytes(folder['free'])} free in this folder")
    for name, place in content["places"].items():
        say(f"{name}: {place or 'missing'}")
    say("\nWhat works here", "bold")
    for check in content["checks"]:
        sign, style = ("✓", "green") if check["works"] else ("✗", "red" if check["needed"] else "yellow")
        detail = f": {check['detail']}" if check["detail"] else ""
        fix = f". To get it: {check['fix']}" if check["fix"] else ""
        say(f"{sign} {check['what']}{detail}{fix}", style)
    broken = [check["what"] for check in content["checks"] if check["needed"] and not check["works"]]
    say("\nBroken: " + ", ".join(broken) if broken else "\nAll that a training needs is here.", "bold")


def without_names(content: Any) -> Any:
    """The same without the user's name, the machine's name and the home folder, wherever they stand."""
    if isinstance(content, dict):
        return {key: without_names(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_names(value) for value in content]
    if not isinstance(content, str):
        return content
    home = str(Path.home())
    text = re.sub(rf"{re.escape(home)}(?=/|$|[\s'\":])", "~", content) if len(home) > 1 else content
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, in a container
        user = ""
    for name, sign in ((user, "USER"), (socket.gethostname(), "HOST")):
        if name and name != "root":
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", sign, text)
    return text


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def system_file(path: str) -> str:
    """The text of a file that the system keeps (/proc, /sys); empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1:])
