"""Inputs picked by hand: every layout as it should be, and what strangers, slips and broken disks make of it."""

from __future__ import annotations

import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from mmadapter.errors import InputError
from tests.hostile import layouts
from tests.hostile.judging import Case
from tests.hostile.layouts import Layout, mark, own, put, read_as

BIG = "9" * 5000
DEEP = "[" * 100_000


def picked(shared: Path) -> Iterator[Case]:
    """All of them; `shared` is a folder that several may use."""
    yield from valid()
    yield from settings()
    yield from commands(shared)
    yield from data()
    yield from pictures()
    yield from predictions()
    yield from runs()
    yield from models()
    yield from calls()


# What must be taken, and nothing of it lost.


def valid() -> Iterator[Case]:
    data = list(layouts.data_layouts())
    for layout in [*data, *layouts.other_layouts()]:
        given = partial(contents, layout) if layout in data else None
        yield Case("valid", layout.name, partial(as_it_is, layout), "accepted", given=given)
    texts = {
        "right to left": "שלום \u202e abc",
        "emoji": "👩‍👩‍👧 🏳️‍🌈",
        "controls": "a\u2028b\x0bc\x7f",
        "markup": "</s><s>[INST]<image0>",
    }
    for name, text in texts.items():
        items = [{"question": f"{text} {mark(n)}", "answer": f"{text} {mark(9 + n)}"} for n in range(4)]
        yield Case("valid", name, partial(own_items, items), "accepted", given=lambda f: (f / "a.jsonl").read_text())
    yield Case(
        "valid",
        "half of an emoji in a caption",
        partial(own_items, [{"question": "a", "answer": "\ud83d b"}] * 2),
        "either",
    )


def as_it_is(layout: Layout, folder: Path) -> str:
    layout.write(folder)
    return layout.read(folder)


def contents(layout: Layout, folder: Path) -> str:
    return " ".join(file.read_bytes().decode(errors="ignore") for one in layout.files for file in folder.glob(one))


def own_items(items: Sequence[Any], folder: Path, **settings: Any) -> str:
    return own(put(folder / "a.jsonl", list(items)), **settings)


# Settings, as the command line gives them.

SETTINGS = {
    "optimizer.base_lr=inf": "base_lr=inf: must be a finite",
    "optimizer.base_lr=1e400": "finite",
    "optimizer.base_lr=nan": "base_lr=nan",
    "optimizer.base_lr=-1": "above 0",
    "optimizer.weight_decay=inf": "weight_decay=inf: must be a finite",
    "optimizer.warmup_epochs=inf": "finite",
    "optimizer.epochs=inf": "finite",
    "optimizer.clip_norm=inf": "finite",
    "optimizer.betas=[0.9,nan]": "betas",
    "optimizer.betas=[inf,0.9]": "betas",
    "adapter.prompts.std=inf": "finite|no setting",
    "data.sources.questions.weight=inf": "weight=inf: must be a finite",
    "tasks.scienceqa.generation.temperature=inf": "temperature=inf",
    "tasks.scienceqa.generation.temperature=nan": "temperature=nan",
    "tasks.scienceqa.generation.top_p=nan": "top_p",
    "optimizer.batch_size=1000000000000": "at most 1,000,000",
    "optimizer.micro_batch_size=1000000000000": "at most 1,000,000",
    "tasks.scienceqa.batch_size=1000000000000": "at most 1,000,000",
    "optimizer.batch_size=0": "at least 1",
    f"seed={2**63}": "seed=9223372036854775808: must be at most 9,223,372,036,854,775,807",
    f"seed={10**23}": "seed=.*at most",
    f"seed={'9' * 4000}": "seed=a number of some",
    "seed=-1": "at least 0",
    "seed=1.5": "seed",
    "seed=abc": "seed",
    "seed=null": "seed=null: it needs a value",
    f"tasks.scienceqa.seed={2**64}": "seed=",
    "threads=100000000": "threads=",
    "host.max_tokens=-1": "max_tokens",
    "experiment=scienceqa/../x": "experiment|no",
    "run=.": "run='.'",
    "run=..": "run='..'",
    "run=' '": "run=",
    "optimizer=null": "optimizer|null",
    "optimizer=5": "optimizer",
    "data.sources=[]": "data.sources|must be a mapping",
    "data.sources.questions=5": "data.sources.questions",
    "data.sources.questions.reader=nothing": "reader",
    "data.sources.questions.missing_image=black": "allowed are",
    "adapter=none": "adapter",
    "adapter.prompts.layers=-3": "layers",
    "adapter.prompts.length=ten": "length",
    "host.path=/dev/null": "host.path",
    "host.dtype=int8": "allowed are",
    "vision.layers=[1,x]": "layers",
    "evaluate=[nothing]": "evaluate names nothing",
    "training.save_every_steps=0": "at least 1",
    "launch.processes=0": "at least 1",
    "engine=zero9": "zero9",
    "optimizer.bas_lr=1": "base_lr",
}  # fmt: skip
ODD_BUT_RIGHT = (
    "optimizer={}",
    "seed=9223372036854775807",
    "optimizer.max_nonfinite_steps=0",
    "threads=1",
    "optimizer.base_lr=1e-300",
)


def settings() -> Iterator[Case]:
    for word, says in SETTINGS.items():
        yield Case("settings", word[:60], partial(checked, [word]), says=says)
    for word in ODD_BUT_RIGHT:
        yield Case("settings", word, partial(checked, [word]), "accepted")
    captions = ["experiment=coco_caption", "embedded=coco_caption", "data.sources.captions.missing_image=no_image"]
    yield Case(
        "settings", "captions without pictures", partial(checked, captions), says="nothing without their picture"
    )


def checked(words: Sequence[str], folder: Path) -> None:
    """What the command does before it loads anything; without Hydra's own part of the command line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from mmadapter.cli import composition_message
    from mmadapter.config import RunConf, validate
    from tests.config.composing import run_conf

    before, sys.argv = sys.argv, ["mmadapter train", *words]
    try:
        validate(run_conf(*words))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(composition_message(error, RunConf)) from error
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        raise InputError(composition_message(error, RunConf)) from error
    finally:
        sys.argv = before


# The command itself.

WORDS = {
    "~optimizer.base_lr": "a setting cannot be taken away",
    "~seed": "a setting cannot be taken away",
    "~optimizer": "cannot be taken away|Could not|delete",
    "~data.sources.nothing": "nothing",
    "=1": "=1",
    "": "key=value|settings",
    "key": "key=value|settings",
    "optimizer.base_lr": "key=value|settings",
    "run=a\0b": "run=",
    "run=\x1b]0;title\x07": "run=|parse|key=value",
    "run=${oc.env:NOT_THERE}": "NOT_THERE",
    f"seed={BIG}": "seed",
    f"run={'r' * 5000}": "too long|run=",
    "+seed=1": "seed",
    "experiment=\x1b[31mred": "experiment",
    "'": "key=value|settings|quote",
    "a=[": "key=value|settings|a",
    "data.sources.questions.root=\ud800": "root|surrogate|characters",
}


def commands(shared: Path) -> Iterator[Case]:
    for word, says in WORDS.items():
        yield Case("command", repr(word[:40]), partial(command, [word]), says=says)
    odd = shared / "a 'quoted' \"folder\" $(id)"
    yield Case("command", "a folder with quotes", partial(command, [f"runs_root={odd}"]), "either")


def command(words: Sequence[str], folder: Path) -> None:
    """`mmadapter train WORDS`, up to where torch would be loaded, and the run's folder would be made."""
    from hydra.core.global_hydra import GlobalHydra

    from mmadapter import cli
    from mmadapter.config import RunConf
    from mmadapter.runs.folder import run_folder

    before, sys.argv = sys.argv, ["mmadapter train", *words]
    os.environ["HYDRA_FULL_ERROR"] = "0"  # the command sets it
    here = os.getcwd()
    os.chdir(folder)
    try:
        cli.command("train", RunConf, lambda conf: void(run_folder(conf).mkdir(parents=True)))
    finally:
        os.chdir(here)
        sys.argv = before
        GlobalHydra.instance().clear()
        _signals_as_before()


def void(_: object) -> None:
    return None


def _signals_as_before() -> None:
    """A command leaves its signals ignored, as it is about to end."""
    import signal

    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# Data: a valid layout, changed in one place.

Change = Callable[[Any], Any]


def spoiled(layout: Layout, file: str, change: Change | str | bytes, folder: Path) -> str:
    """`change`: a function on the JSON of the file, which may change it or return another; or what is written."""
    layout.write(folder)
    target = folder / file
    if isinstance(change, bytes):
        target.write_bytes(change)
    elif isinstance(change, str):
        target.write_text(change, encoding="utf-8", errors="surrogatepass")
    else:
        content = json.loads(target.read_text())
        changed = change(content)
        target.write_text(json.dumps(content if changed is None else changed))
    return layout.read(folder)


def at(*path: Any, to: Any) -> Change:
    """Sets what stands at a path of keys."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


PRIVATE = ("../private.png", "/etc/hostname", "a/../../private.png", "val2014/../../private.png")
BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": (b"", "empty"),
    "null": ("null", "expected|no "),
    "a number": ("5", "expected|no item"),
    "deep": (DEEP, "nested|damaged|early|no JSON|expected"),
    "deep and closed": ("[" * 50_000 + "]" * 50_000, "nested|expected|object|item"),
    "a number of 5,000 digits": (f'[{{"a": {BIG}}}]', "digits|one JSON list"),
    "cut off": ('[{"instruction": "a", "output": "b"}, {"instr', "byte|line"),
    "utf-16": ('[{"a": 1}]'.encode("utf-16"), "UTF-16"),
    "latin-1": ('[{"a": "é"}]'.encode("latin-1"), "not UTF-8"),
    "zeros": (b"\0" * 100, "JSON|layout|damaged|item|expected"),
    "twice the same key": ('[{"a": 1, "a": 2}]', "twice|one JSON list"),
    "an object of nothing": ("{}", "expected|no |none|got"),
    "a list of nothing": ("[]", "no |none|empty|usable|expected|one JSON list"),
    "a pickle": (
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "UTF-8|JSON",
    ),
}


def data() -> Iterator[Case]:
    by_name = {layout.name: layout for layout in layouts.data_layouts()}
    coco, llava, science = by_name["coco, karpathy"], by_name["llava"], by_name["scienceqa"]

    # Files that are none, in four layouts of different readers.
    targets = (("coco, karpathy", "dataset_coco.json"), ("alpaca", "a.json"), ("scienceqa", "problems.json"))
    for name, file in (*targets, ("own dialogs.jsonl", "dialogs.jsonl")):
        for what, (content, says) in BAD_FILES.items():
            yield Case("data", f"{name}: {what}", partial(spoiled, by_name[name], file, content), says=says)

    # Pictures that are not the data's.
    for name in PRIVATE:
        for layout, file, path in (
            (coco, "dataset_coco.json", ("images", 0, "filename")),
            (by_name["coco, official"], "annotations/captions_train2014.json", ("images", 0, "file_name")),
            (by_name["coco, lavis"], "annotations/coco_karpathy_train.json", (0, "image")),
            (llava, "data.json", (1, "image")),
            (by_name["llava pretrain"], "chat.json", (0, "image")),
            (by_name["visual instructions"], "items.json", (0, "image")),
            (science, "problems.json", ("q1", "image")),
            (by_name["v2 instructions"], "dialogs.json", (1, "image")),
        ):
            outside = partial(with_private, partial(spoiled, layout, file, at(*path, to=name)))
            yield Case("data", f"{layout.name}: a picture {name}", outside, says="outside|bare file name|image")
        rows = f"file_name,text\n{name},a dog\n0.png,a cat\n"
        folder_of = partial(spoiled, by_name["own folder of pictures"], "metadata.csv", rows)
        yield Case("data", f"own: a picture {name}", partial(with_private, folder_of), says="outside")
    names = {
        "5,000 letters": "a" * 5000,
        "NUL": "a\0b.png",
        "nothing": "",
        "a folder": ".",
        "an address": "http://x/a.png",
    }
    for what, name in names.items():
        says = "picture|image|file name"
        yield Case(
            "data",
            f"llava: {what} as a picture",
            partial(spoiled, llava, "data.json", at(1, "image", to=name)),
            "either" if not name else "refused",
            says,
        )
        changed = partial(spoiled, coco, "dataset_coco.json", at("images", 0, "filename", to=name))
        yield Case("data", f"coco: {what} as a picture", changed, says=says)
    yield Case(
        "data",
        "scienceqa: an id that climbs",
        partial(spoiled, science, "problems.json", climbing),
        "refused",
        "q1|leads out|ids",
    )
    allowed = partial(with_private, partial(anywhere, llava))
    yield Case("data", "a picture elsewhere that is allowed", allowed, "accepted")

    # Items of a wrong kind, everywhere.
    wrong: tuple[Any, ...] = (None, 5, True, [], {}, ["a"], 1e300)
    for value in wrong:
        for layout, file, path in (
            (coco, "dataset_coco.json", ("images", 0, "sentences")),
            (science, "problems.json", ("q0", "choices")),
            (llava, "data.json", (0, "conversations")),
        ):
            yield Case(
                "data",
                f"{layout.name}: {path[-1]} {value}",
                partial(spoiled, layout, file, at(*path, to=value)),
                "either",
            )
    yield Case(
        "data", "own: weights", partial(own_items, [{"question": "a", "answer": "b", "weight": 0.5}] * 3), says="weight"
    )
    yield Case("data", "own: infinite", partial(infinite), says="too large")
    yield Case("data", "own: no layout", partial(own_items, [{"x": 1, "y": 2}] * 3), says="no layout")
    yield Case("data", "own: a column by name", partial(own_items, [{"q": "a", "answer": "b"}] * 3), says="columns")
    yield Case("data", "own: a file of another kind", lambda f: own(put(f / "a.exe", "x")), says="one's own data")
    latin = partial(other_bytes, by_name["own parquet"], "data.parquet", b"w00x00", b"w\xff0x00")
    yield Case("data", "own: Parquet that is not UTF-8", latin, says="cannot be read as Parquet")
    yield Case("data", "own: no such file", lambda f: own(f / "gone.json"), says="no such file")
    yield Case("data", "own: a folder of nothing", lambda f: own(f), says="no file")
    for what, table in {
        "fields too many": "question,answer\na,b,c\n",
        "a quote that stays open": 'question,answer\n"a,b\n',
        "the same column twice": "question,question\na,b\n",
        "a header alone": "question,answer\n",
        "no header": "1,2\n3,4\n",
    }.items():
        yield Case(
            "data", f"own: {what}", lambda f, table=table: own(put(f / "a.csv", table)), says="line|column|no |layout"
        )
    for what, meta in {
        "no list": "META: 5",
        "no YAML": "META: [",
        "a tag": "META: !!python/object/apply:os.system [id]",
        "a loop": "META: &a [*a]",
    }.items():
        yield Case(
            "data",
            f"list of files: {what}",
            partial(spoiled, by_name["caption table"], "list.yaml", meta),
            says="META|YAML",
        )
    yield Case(
        "data",
        "caption shards: no archive",
        partial(spoiled, by_name["caption shards"], "00000.tar", b"no tar" * 200),
        says="cut off",
    )
    yield Case(
        "data",
        "prompt of 200,000 letters",
        partial(own_items, [{"question": "why " * 50_000, "answer": "b"}] * 3),
        "either",
    )


def other_bytes(layout: Layout, file: str, old: bytes, new: bytes, folder: Path) -> str:
    layout.write(folder)
    content = (folder / file).read_bytes()
    assert content.count(old) == 1
    (folder / file).write_bytes(content.replace(old, new))
    return layout.read(folder)


def with_private(act: Callable[[Path], str], folder: Path) -> str:
    """The same one folder further down, with somebody's picture above it."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "private.png")
    (folder / "data").mkdir()
    return act(folder / "data")


def anywhere(layout: Layout, folder: Path) -> str:
    layout.write(folder)
    content = json.loads((folder / "data.json").read_text())
    content[1]["image"] = str(folder.parent / "private.png")
    put(folder / "data.json", content)
    return read_as("llava", folder / "data.json", ("all",), pictures_anywhere=True)


def climbing(content: Any) -> None:
    content["../../../q1"] = {**content.pop("q1")}


def infinite(folder: Path) -> str:
    return own(put(folder / "a.json", '[{"question": "a", "answer": 1e999}, {"question": "b", "answer": "c"}]'))


# Pictures.


def pictures() -> Iterator[Case]:
    for name, content in {
        "empty": b"",
        "text": b"no picture",
        "a header alone": b"\x89PNG\r\n\x1a\n",
        "html": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "eps that starts a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (r) file\n",
        "60,000 x 60,000": png_header(60_000, 60_000),
        "0 x 0": png_header(0, 0),
        "gif of 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + b"\0" * 20,
        "tiff that points at itself": b"II*\0\x08\0\0\0\x01\0" + b"\0" * 12 + b"\x08\0\0\0",
    }.items():
        yield Case("pictures", name, partial(read_picture, content), says="picture|image file")
    for name, make in {
        "a folder": lambda file: file.mkdir(),
        "a pipe": lambda file: os.mkfifo(file),
        "a link in a circle": lambda file: file.symlink_to(file),
        "a link to nothing": lambda file: file.symlink_to(file.with_name("gone")),
        "a device that never ends": lambda file: file.symlink_to("/dev/zero"),
        "nothing": lambda file: None,
    }.items():
        yield Case("pictures", name, partial(made_picture, make), says="image|picture")
    whole = picture_bytes(Image.new("RGB", (40, 40), (9, 9, 9)), "PNG")
    yield Case("pictures", "cut off", partial(read_picture, whole[: len(whole) // 2]), says="cut off or damaged")
    for name, image in {
        "1 x 1": Image.new("RGB", (1, 1)),
        "1 x 4,000": Image.new("RGB", (1, 4000)),
        "black and white": Image.new("1", (8, 8)),
        "palette": Image.new("P", (8, 8)),
        "16 bit": Image.new("I;16", (8, 8)),
    }.items():
        yield Case("pictures", name, partial(read_picture, picture_bytes(image, "PNG")), "accepted")
    yield Case(
        "pictures", "floating point", partial(read_picture, picture_bytes(Image.new("F", (8, 8)), "TIFF")), says="float"
    )


def read_picture(content: bytes, folder: Path) -> str:
    from mmadapter.vision.images import read_image

    (folder / "a.png").write_bytes(content)
    return str(read_image(folder / "a.png").size)


def made_picture(make: Callable[[Path], object], folder: Path) -> str:
    from mmadapter.vision.images import read_image

    make(folder / "a.png")
    return str(read_image(folder / "a.png").size)


def picture_bytes(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + zlib.crc32(head).to_bytes(4, "big") + b"\0\0\0\0IEND\xaeB`\x82"


# Files of answers.


def predictions() -> Iterator[Case]:
    by_name = {layout.name: layout for layout in layouts.other_layouts()}
    results, marked = by_name["predictions results.json"], by_name["predictions marked.json"]
    for value in (None, "A", 7, -2, True, 0.5, [], BIG):
        changed = partial(spoiled, results, "results.json", at("results", "q0", to=value))
        yield Case(
            "predictions", f"an index {str(value)[:20]}", changed, "either" if value is None else "refused", "q0"
        )
    for value in (None, "x", 5, {"a": 1}, [5], [None]):
        yield Case(
            "predictions",
            f"incorrect {value}",
            partial(spoiled, marked, "marked.json", at("incorrect", to=value)),
            "either",
        )
    for what, (content, says) in BAD_FILES.items():
        yield Case(
            "predictions", what, partial(spoiled, results, "results.json", content), says=says + "|layout|holds no"
        )
    lines = by_name["predictions answers.jsonl"]
    yield Case("predictions", "deep lines", partial(spoiled, lines, "answers.jsonl", DEEP + "\n"), says="line 1")
    yield Case(
        "predictions",
        "a list as id",
        partial(spoiled, lines, "answers.jsonl", '{"question_id": [], "text": "A"}\n'),
        says="ids|id",
    )
    captions = by_name["predictions captions.json"]
    for value in (
        None,
        5,
        "x",
        [],
        [5],
        [{}],
        [{"image_id": None, "caption": "a"}],
        [{"image_id": 4, "caption": None}],
        [{"image_id": 4, "caption": "a"}] * 2,
    ):
        yield Case(
            "predictions",
            f"captions {str(value)[:40]}",
            partial(spoiled, captions, "captions.json", json.dumps(value)),
            says=".",
        )


# Run folders.


def runs() -> Iterator[Case]:
    layout = next(one for one in layouts.other_layouts() if one.name == "run folder")
    for file in ("attempt.json", "metrics.jsonl", "summary.json", "finished.json", "trainable.json", "versions.json"):
        for what in ("empty", "null", "a number", "deep", "zeros", "a list of nothing"):
            content = BAD_FILES[what][0]
            yield Case("run folders", f"{file}: {what}", partial(spoiled, layout, f"run/{file}", content), "either")
    for what in ("empty", "null", "zeros", "deep"):
        yield Case(
            "run folders",
            f"config.yaml: {what}",
            partial(spoiled, layout, "run/config.yaml", BAD_FILES[what][0]),
            says="config.yaml",
        )
    tag = "experiment: !!python/object/apply:os.system ['id']\n"
    yield Case("run folders", "config.yaml: a tag", partial(spoiled, layout, "run/config.yaml", tag), says="YAML")
    lines = {
        "no step": '{"kind": "train", "loss": 1}',
        "a step of text": '{"kind": "train", "step": "x", "loss": 1}',
        "no loss": '{"kind": "train", "step": 1}',
        "infinite": '{"kind": "train", "step": 1, "loss": Infinity, "lr": NaN}',
        "gates that are none": '{"kind": "train", "step": 1, "loss": null, "gates": [[null, null], [null, 0.5]]}',
        "a validation of text": '{"kind": "validation", "step": 1, "loss": "low"}',
        "digits": f'{{"kind": "train", "step": {BIG}, "loss": 1}}',
    }
    for what, line in lines.items():
        yield Case(
            "run folders",
            f"metrics.jsonl: {what}",
            partial(spoiled, layout, "run/metrics.jsonl", f"{line}\n" * 3),
            "accepted",
        )
    for what, content in {
        "a list": [],
        "text": {"started": "yesterday", "attempts": None},
        "infinite": {"started": 1e308},
    }.items():
        yield Case("run folders", f"the next attempt behind {what}", partial(next_attempt, content), "accepted")
    sweep = next(one for one in layouts.other_layouts() if one.name == "sweep")
    for what in ("empty", "null", "a number", "deep", "an object of nothing"):
        yield Case(
            "run folders",
            f"sweep.json: {what}",
            partial(spoiled, sweep, "sweeps/made/sweep.json", BAD_FILES[what][0]),
            says="damaged",
        )


def next_attempt(content: Any, folder: Path) -> str:
    from mmadapter.runs.attempt import attempt, wall_time

    put(folder / "attempt.json", content)
    with attempt(folder, 1):
        told = wall_time(folder)
    assert 0 <= told["wall_seconds"] < float("inf"), told
    return str(told)


# Adapters and hosts of strangers.


def models() -> Iterator[Case]:
    by_name = {layout.name: layout for layout in layouts.other_layouts()}
    adapter, host = by_name["adapter"], by_name["host"]
    for what in ("empty", "null", "a number", "deep", "zeros", "a list of nothing", "an object of nothing"):
        content = BAD_FILES[what][0]
        yield Case(
            "adapters",
            f"adapter.json: {what}",
            partial(spoiled, adapter, "adapter/adapter.json", content),
            says="adapter.json",
        )
    for key, value in (
        ("format", 99),
        ("host", None),
        ("host", "text"),
        ("host", {}),
        ("adapter", None),
        ("adapter", {}),
        ("vision", {}),
        ("vision", [1]),
        ("encoder", "x"),
        ("max_tokens", "many"),
        ("max_tokens", 0),
        ("tensors", None),
        ("adapter", {"prompts": {"length": "ten"}}),
        ("adapter", {"prompts": {"length": -5}}),
        ("adapter", {"prompts": {"length": 10**9}}),
        ("adapter", {"nothing": {}}),
        ("template", 5),
    ):
        changed = partial(spoiled, adapter, "adapter/adapter.json", at(key, to=value))
        yield Case("adapters", f"{key} {value}", changed, says=".")
    for what, content in {
        "empty": b"",
        "cut": b"\x10\0\0\0\0\0\0\0{",
        "a pickle": b"\x80\x04.",
        "a lying header": b"\xff" * 7 + b"\x7f{}",
    }.items():
        yield Case(
            "adapters",
            f"tensors: {what}",
            partial(spoiled, adapter, "adapter/adapter.safetensors", content),
            says="adapter",
        )
    for kind in ("nan", "int"):
        yield Case("adapters", f"tensors: {kind}", partial(other_tensors, adapter, kind), says=".")
    for what in ("empty", "null", "a number", "deep", "a list of nothing", "an object of nothing"):
        yield Case(
            "hosts",
            f"config.json: {what}",
            partial(spoiled, host, "host/config.json", BAD_FILES[what][0]),
            says="config.json|host",
        )
    for key, value in (
        ("model_type", None),
        ("model_type", ["llama"]),
        ("model_type", "nothing"),
        ("hidden_size", "big"),
        ("hidden_size", -1),
        ("num_attention_heads", 0),
        ("num_attention_heads", 7),
        ("num_hidden_layers", None),
        ("hidden_act", "nonsense"),
        ("quantization_config", 5),
        ("vocab_size", 10**12),
        ("rms_norm_eps", float("nan")),
    ):
        yield Case("hosts", f"{key} {value}", partial(spoiled, host, "host/config.json", at(key, to=value)), says=".")
    code = at("auto_map", to={"AutoTokenizer": ["evil.EvilTokenizer", None]})
    yield Case(
        "hosts",
        "code of its own",
        partial(with_code, partial(spoiled, host, "host/tokenizer_config.json", code)),
        "either",
    )


def other_tensors(layout: Layout, kind: str, folder: Path) -> str:
    import torch
    from safetensors.torch import load_file, save_file

    layout.write(folder)
    file = folder / "adapter" / "adapter.safetensors"
    found = load_file(file)
    spoiled = {n: torch.full_like(one, float("nan")) if kind == "nan" else one.int() for n, one in found.items()}
    save_file(spoiled, file)
    return layout.read(folder)


def with_code(act: Callable[[Path], str], folder: Path) -> str:
    """Fails where code out of a host's folder has run."""
    ran = folder / "RAN"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    try:
        return act(folder)
    finally:
        assert not ran.exists(), "code out of the host's folder has run"


# Calls of the library.


@cache
def model() -> Any:
    import mmadapter
    from mmadapter.evaluation import SHIPPED

    return mmadapter.load(SHIPPED, device="cpu")


def calls() -> Iterator[Case]:
    ask = {
        "temperature nan": {"temperature": float("nan")},
        "temperature inf": {"temperature": float("inf")},
        "temperature -1": {"temperature": -1},
        "top_p nan": {"temperature": 1, "top_p": float("nan")},
        "top_p 0": {"temperature": 1, "top_p": 0},
        "seed 2**64": {"seed": 2**64},
        "seed -1": {"seed": -(2**70)},
        "beams 0": {"beams": 0},
        "beams 1.5": {"beams": 1.5},
        "max_new_tokens 0": {"max_new_tokens": 0},
        "max_new_tokens of text": {"max_new_tokens": "5"},
        "max_new_tokens None": {"max_new_tokens": None},
        "max_new_tokens 10**9": {"max_new_tokens": 10**9},
        "batch_size 0": {"batch_size": 0},
        "batch_size 1.5": {"batch_size": 1.5},
        "template": {"template": "nothing"},
        "a picture that is none": {"images": "gone.png"},
        "a number as picture": {"images": 5},
        "a picture of 5,000 letters": {"images": "a" * 5000},
        "a picture of nobody": {"images": "~nosuchuser/x.jpg"},
        "two pictures": {"images": ["a.png", "b.png"]},
    }
    for name, settings in ask.items():
        yield Case("calls", f"generate: {name}", lambda f, s=settings: generated("Hello", **s), says=".")
    for name, prompts in {
        "nothing": None,
        "a number": 5,
        "empty": "",
        "blank": "  ",
        "a list of numbers": [5],
        "a dict": {"a": 1},
        "a lone surrogate": "a \ud800",
    }.items():
        yield Case("calls", f"generate: {name}", lambda f, p=prompts: generated(p), says=".")
    for name, prompt in {"right to left": "שלום", "emoji": "👩‍👩‍👧", "long": "why " * 5000, "none": []}.items():
        yield Case("calls", f"generate: {name}", lambda f, p=prompt: generated(p), "either")
    yield Case("calls", "load: nothing", lambda f: loaded(f / "gone"), says="neither")
    yield Case("calls", "load: a folder of nothing", lambda f: loaded(f), says="neither")
    yield Case("calls", "load: a name of 5,000 letters", lambda f: loaded(f / ("a" * 5000)), says=".")
    yield Case("calls", "chat: nothing", lambda f: model().chat("")[0], says=".")
    yield Case("calls", "loss: nothing", lambda f: str(model().loss_of([])), says=".")
    yield Case("calls", "loss: no answer", lambda f: str(model().loss_of([("a", "", None)])), says=".")


def generated(prompts: Any, **settings: Any) -> str:
    return str(model().generate(prompts, **{"max_new_tokens": 2, **settings}))


def loaded(folder: Path) -> str:
    import mmadapter

    return str(mmadapter.load(folder))
