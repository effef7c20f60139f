"""Valid files of every layout, each text with a mark of its own; and what is read of them, as text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from mmadapter.data import readers
from mmadapter.data.settings import READERS
from mmadapter.data.tokens import SampleEncoder
from mmadapter.errors import InputError
from mmadapter.hosts.load import load_tokenizer
from mmadapter.hosts.settings import TINY_HOST
from mmadapter.settings import typed
from mmadapter.vision.images import read_image
from tests.data.small_captions import coco_name, save_picture, web_pair, write_shard


@dataclass(frozen=True)
class Layout:
    """One way to write data down."""

    name: str
    write: Callable[[Path], None]
    """makes the files in an empty folder"""
    read: Callable[[Path], str]
    """all text that is read of them; warnings are logged, and InputErrors raised"""
    files: tuple[str, ...]
    """those that are worth spoiling, by their patterns"""


def mark(number: int) -> str:
    """A word that stands once in a data set; digits and letters, so that no parser takes it for a number."""
    return f"w{number // 100:02d}x{number % 100:02d}"


def put(file: Path, content: Any) -> Path:
    """JSON, JSON lines (of a list), or a text as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8", newline="")
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(one) + "\n" for one in content), encoding="utf-8")
    else:
        file.write_text(json.dumps(content), encoding="utf-8")
    return file


@cache
def encoder() -> SampleEncoder:
    """Of the tiny host; cuts what is too long, as runs on one's own data do."""
    return SampleEncoder(load_tokenizer(TINY_HOST, None), 512, long_answers="cut")


def read_as(reader: str, place: Path, splits: tuple[str, ...], **settings: Any) -> str:
    """Everything that a run would take of a place: samples, encoded, their pictures decoded; all their text."""
    told, refused = [], []
    for split in splits:
        given = {"path" if READERS.settings(reader).reads_file else "root": str(place), "split": split, **settings}
        conf = typed(READERS.settings(reader), given, reader)
        try:
            training = reader != "visual_instructions"
            samples = readers.read(conf, source="hostile", training=training, key=f"data.sources.{reader}")
        except InputError as error:
            refused.append(error)
            continue
        encoder().encode_many(samples)
        for picture in dict.fromkeys(one.image for one in samples if one.image is not None):
            read_image(picture)
        told += [f"{one.id} {one.where} {one.image} {[s.text for s in one.segments]} {one.meta}" for one in samples]
    if refused and (len(refused) == len(splits) or len(splits) > 1):
        raise refused[0]
    return "\n".join(told)


def own(place: Path, **settings: Any) -> str:
    return read_as("own", place, ("all",), **settings)


def dialog(number: int, picture: str | None = None) -> dict[str, Any]:
    first = f"<image>\nWhat is {mark(number)}?" if picture else f"What is {mark(number)}?"
    said = [first, f"It is {mark(number + 1)}.", f"And {mark(number + 2)}?", f"Also {mark(number + 3)}."]
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]
    return {"id": f"i{number}", "conversations": turns, **({"image": picture} if picture else {})}


def alpaca(count: int = 8) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Say {mark(3 * n)}", "input": f"in {mark(3 * n + 1)}", "output": f"so {mark(3 * n + 2)}"}
        for n in range(count)
    ]


def problems() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        at = 10 * number
        found[f"q{number}"] = {
            "question": f"Which is {mark(at)}?",
            "choices": [f"one {mark(at + 1)}", f"two {mark(at + 2)}"],
            "answer": number % 2,
            "hint": f"Look at {mark(at + 3)}.",
            "image": "image.png" if number in (1, 3) else None,
            "grade": "grade2",
            "subject": "natural science",
            "topic": "biology",
            "lecture": f"All about {mark(at + 4)}.",
            "solution": f"Because of {mark(at + 5)}.",
            "split": split,
        }
    return found


def write_scienceqa(root: Path) -> None:
    asked = problems()
    put(root / "problems.json", asked)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for pid, one in asked.items():
        splits[one["split"]].append(pid)
        if one["image"]:
            save_picture(root / "images" / one["split"] / pid / "image.png")
    put(root / "pid_splits.json", splits)
    put(root / "captions.json", {"captions": {pid: f"a picture of {mark(70 + n)}" for n, pid in enumerate(asked)}})


def write_karpathy(root: Path) -> None:
    images = []
    for number, split in enumerate(("train", "restval", "val", "test"), 1):
        name = coco_name(number)
        save_picture(root / "val2014" / name)
        said = [{"raw": f"A dog {mark(10 * number + k)}.", "sentid": 10 * number + k} for k in (0, 1)]
        images.append({"filepath": "val2014", "filename": name, "cocoid": number, "split": split, "sentences": said})
    put(root / "dataset_coco.json", {"dataset": "coco", "images": images})


def write_lavis(root: Path) -> None:
    for start, split in ((1, "train"), (5, "val"), (7, "test")):
        entries = []
        for number in (start, start + 1):
            save_picture(root / "val2014" / coco_name(number))
            said = [f"a hat {mark(10 * number)}", f"the hat {mark(10 * number + 1)}"]
            caption = said if split != "train" else said[0]
            entries.append({"image": f"val2014/{coco_name(number)}", "caption": caption, "image_id": f"coco_{number}"})
        put(root / f"annotations/coco_karpathy_{split}.json", entries)


def write_official(root: Path) -> None:
    for year, numbers in (("train2014", (1, 2)), ("val2014", (3, 4, 5))):
        content = {
            "images": [{"id": number, "file_name": coco_name(number, year)} for number in numbers],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "caption": f"seen {mark(10 * n + k)}"}
                for n in numbers
                for k in (1, 2)
            ],
        }
        put(root / f"annotations/captions_{year}.json", content)
        for number in numbers:
            save_picture(root / year / coco_name(number, year))
    for number, split in ((3, "val"), (4, "test")):
        put(root / f"karpathy_{split}_images.txt", f"val2014/{coco_name(number)} {number}\n")


def write_prepared(root: Path) -> None:
    for start, split in ((1, "train"), (3, "val")):
        entries = []
        for number in (start, start + 1):
            save_picture(root / "pictures" / f"{number}.png")
            captions = [{"id": f"c{number}", "caption": f"a cat {mark(number)}"}]
            entries.append({"image_id": number, "image": f"pictures/{number}.png", "captions": captions})
        put(root / f"{split}.jsonl", entries)


def write_table(root: Path) -> None:
    put(root / "list.yaml", "META:\n  - captions.csv\n  - {path: more.csv, type: image_text}\n")
    for place, name in enumerate(("captions.csv", "more.csv")):
        lines = [f"p{place}{n}.png\tone {mark(10 * place + n)}" for n in range(3)]
        put(root / name, "".join(f"{line}\n" for line in ["url\tcaption", *lines]))
        for n in range(3):
            save_picture(root / f"p{place}{n}.png")


def write_shards(root: Path) -> None:
    for shard in (0, 1):
        keys = [f"{shard:05d}{number:04d}" for number in (0, 1)]
        pairs = [web_pair(key, f"caption {mark(10 * shard + n)}") for n, key in enumerate(keys)]
        write_shard(root / f"{shard:05d}.tar", *pairs)


def write_pretrain(root: Path) -> None:
    items = []
    for number in (1, 2, 3):
        one = dialog(10 * number, f"00000/{number}.png")
        items.append({**one, "conversations": one["conversations"][:2]})
        save_picture(root / f"images/00000/{number}.png")
    put(root / "chat.json", items)


def write_visual(root: Path) -> None:
    texts = [{"instruction": f"Name {mark(n)}", "answer": "red", "attribute": "colour"} for n in range(3)]
    items = [{**one, "image": f"{n}.png", "wrong": ["blue"], "unasked": ["circle"]} for n, one in enumerate(texts)]
    put(root / "items.json", items)
    for n in range(3):
        save_picture(root / f"{n}.png")


def write_llava(root: Path) -> None:
    put(root / "data.json", [dialog(10 * n, f"{n}.png" if n % 2 else None) for n in range(5)])
    for n in (1, 3):
        save_picture(root / f"{n}.png")


def write_v2(root: Path) -> None:
    put(root / "data.yaml", "META:\n  - alpaca.json\n  - dialogs.json\n")
    put(root / "alpaca.json", alpaca(4))
    put(root / "dialogs.json", [dialog(100 + 10 * n, "a.png" if n else None) for n in range(3)])
    save_picture(root / "a.png")


def messages(number: int) -> dict[str, Any]:
    said = [f"Hello {mark(number)}", f"Good {mark(number + 1)}"]
    return {"messages": [{"role": ("user", "assistant")[place], "content": text} for place, text in enumerate(said)]}


def table_of(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def asked(count: int = 6) -> list[dict[str, Any]]:
    return [{"question": f"What, {mark(2 * n)}?", "answer": f'It "is" {mark(2 * n + 1)}'} for n in range(count)]


def choices(count: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Which {mark(5 * n)}?",
            "choices": [f"a {mark(5 * n + 1)}", f"b {mark(5 * n + 2)}"],
            "answer": "B",
        }
        for n in range(count)
    ]


def write_folder_of_pictures(root: Path) -> None:
    rows = [{"file_name": f"{n}.png", "text": f"a dog {mark(n)}"} for n in range(4)]
    put(root / "metadata.csv", table_of(rows))
    for n in range(4):
        save_picture(root / f"{n}.png")


def write_parquet(root: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    root.mkdir(parents=True, exist_ok=True)
    # Each text stands there once: the lowest and highest of a column would stand in its statistics, too.
    plain = {"compression": "none", "write_statistics": False, "use_dictionary": False}
    parquet.write_table(pyarrow.Table.from_pylist(asked()), root / "data.parquet", **plain)


def own_file(name: str, content: Callable[[], Any]) -> Layout:
    return Layout(f"own {name}", lambda root: void(put(root / name, content())), lambda root: own(root / name), (name,))


def void(_: Any) -> None:
    """For a function that is to return nothing."""


def split_reader(name: str, write: Callable[[Path], None], reader: str, *files: str, **settings: Any) -> Layout:
    return Layout(name, write, lambda root: read_as(reader, root, ("train", "val", "test"), **settings), files)


def whole_reader(name: str, write: Callable[[Path], None], reader: str, *files: str, split: str = "all") -> Layout:
    def read(root: Path) -> str:
        place = root / files[0] if READERS.settings(reader).reads_file else root
        return read_as(reader, place, (split,))

    return Layout(name, write, read, files)


def data_layouts() -> Iterator[Layout]:
    """Every layout of data."""
    yield split_reader(
        "scienceqa", write_scienceqa, "scienceqa", "problems.json", "pid_splits.json", "captions.json", "images/*/*/*",
        captions="captions.json", prompt_format="QCM-LEA",
    )  # fmt: skip
    yield split_reader("coco, karpathy", write_karpathy, "coco_captions", "dataset_coco.json", "val2014/*")
    yield split_reader("coco, lavis", write_lavis, "coco_captions", "annotations/*.json")
    yield Layout(
        "coco, official",
        write_official,
        lambda root: read_as("coco_captions", root, ("train", "val", "test")),
        ("annotations/*.json", "*.txt"),
    )
    yield Layout(
        "coco, prepared", write_prepared, lambda root: read_as("coco_captions", root, ("train", "val")), ("*.jsonl",)
    )
    yield whole_reader("caption table", write_table, "caption_table", "list.yaml", "*.csv", split="train")
    yield whole_reader("caption shards", write_shards, "caption_shards", "*.tar", split="train")
    yield whole_reader("llava pretrain", write_pretrain, "llava_pretrain", "chat.json", "images/*/*", split="train")
    yield whole_reader("visual instructions", write_visual, "visual_instructions", "items.json", split="test")
    yield whole_reader("alpaca", lambda root: void(put(root / "a.json", alpaca())), "alpaca", "a.json")
    yield whole_reader("llava", write_llava, "llava", "data.json")
    yield whole_reader(
        "sharegpt", lambda root: void(put(root / "s.json", [dialog(10 * n) for n in range(4)])), "sharegpt", "s.json"
    )
    yield whole_reader("v2 instructions", write_v2, "v2_instructions", "data.yaml", "*.json")
    yield own_file("alpaca.json", alpaca)
    yield own_file("dialogs.jsonl", lambda: [dialog(10 * n) for n in range(4)])
    yield own_file("messages.jsonl", lambda: [messages(2 * n) for n in range(5)])
    yield own_file("asked.csv", lambda: table_of(asked()))
    yield own_file("asked.tsv", lambda: table_of(asked(), "\t"))
    yield own_file("choices.jsonl", choices)
    yield Layout("own parquet", write_parquet, lambda root: own(root / "data.parquet"), ("data.parquet",))
    yield Layout("own folder of pictures", write_folder_of_pictures, own, ("metadata.csv", "*.png"))
    yield Layout("own coco", write_karpathy, own, ("dataset_coco.json",))
    yield Layout("own scienceqa", write_scienceqa, own, ("problems.json", "pid_splits.json"))


# Files of answers, of runs and of models.


def questions() -> dict[str, Any]:
    return {pid: {**one, "has_hint": True, "has_image": False} for pid, one in problems().items()}


def score(root: Path, name: str) -> str:
    from mmadapter.tasks.scienceqa_scores import read_predictions

    indices, outputs, remarks = read_predictions(root / name, questions())
    return f"{indices} {outputs} {remarks}"


def predictions() -> dict[str, Any]:
    pids = list(problems())
    texts = {pid: f"The answer is A. {mark(n)}" for n, pid in enumerate(pids)}
    return {
        "results.json": {"results": dict.fromkeys(pids, 0), "outputs": texts, "acc": 50.0},
        "marked.json": {
            "correct": [{"question_id": pid, "pred": texts[pid]} for pid in pids[:2]],
            "incorrect": [{"question_id": pid, "pred": texts[pid]} for pid in pids[2:]],
        },
        "answers.jsonl": [{"question_id": pid, "text": texts[pid]} for pid in pids],
        "predictions.jsonl": [{"id": pid, "prediction": 0, "output": texts[pid]} for pid in pids],
    }


def write_captions(root: Path) -> None:
    write_karpathy(root)
    put(root / "captions.json", [{"image_id": 4, "caption": f"a dog {mark(99)}"}])


def score_captions(root: Path) -> str:
    from mmadapter.tasks.coco_caption import CocoCaption
    from mmadapter.tasks.settings import CocoCaptionTaskSettings

    settings = CocoCaptionTaskSettings(annotations=str(root / "dataset_coco.json"), split="test")
    scored = CocoCaption(settings).score_file(root / "captions.json")
    return str(scored.rows)


def report(root: Path) -> str:
    """Everything that looks at a run's folder."""
    from mmadapter.config import load_run_config
    from mmadapter.reports.report import write_report
    from mmadapter.runs.__main__ import as_text, list_runs

    run = root / "run"
    told = as_text(list_runs([root], None, lambda text: None))
    told += write_report(run).read_text(encoding="utf-8")
    load_run_config(run)
    return told


def write_run(root: Path) -> None:
    """A finished run with a task, and all that its report is made of."""
    import shutil

    from mmadapter.evaluation import SHIPPED
    from tests.made_runs import made_run

    made_run(root / "run", "finished")
    shutil.copy(SHIPPED / "config.yaml", root / "run" / "config.yaml")
    rows = [
        {"id": f"q{n}", "question": "Which?", "choices": ["a", "b"], "answer": 0, "output": "A", "prediction": 0}
        | {"correct": True, "image": None, "subject": "natural science", "grade": "grade2", "topic": "biology"}
        for n in range(3)
    ]
    put(root / "run" / "eval" / "scienceqa" / "predictions.jsonl", rows)
    put(root / "run" / "trainable.json", [{"group": "all", "role": "prompt", "parameters": 12, "share": 0.1}])
    put(root / "run" / "versions.json", {"python": "3.11", "packages": {"torch": "2"}})


def sweep(root: Path) -> str:
    from mmadapter.sweeps.results import sweep_text, write_sweep

    return sweep_text(write_sweep(root / "sweeps" / "made"))


def write_sweep_folder(root: Path) -> None:
    from tests.made_runs import made_sweep

    made_sweep(root, {"seed=0": ("finished", 50.0), "seed=1": ("stopped", 40.0)})


def write_adapter(root: Path) -> None:
    import shutil

    from mmadapter.evaluation import SHIPPED

    shutil.copytree(SHIPPED / "adapter", root / "adapter")


def load_adapter(root: Path) -> str:
    import mmadapter

    model = mmadapter.load(root / "adapter", host="tiny", vision="tiny", device="cpu")
    return model.generate("What is it?", max_new_tokens=2)[0]


def write_host(root: Path) -> None:
    import shutil

    shutil.copytree(TINY_HOST, root / "host")


def load_host_folder(root: Path) -> str:
    import torch

    from mmadapter.hosts.load import load_host

    load_host(root / "host", torch.float32, "sdpa", "meta")
    load_tokenizer(root / "host", None)
    return ""


def picture_layout(name: str, **options: Any) -> Layout:
    def write(root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        colours = Image.effect_noise((24, 24), 40).convert("RGB")
        colours.save(root / name, **options)

    def read(root: Path) -> str:
        return str(read_image(root / name).size)

    return Layout(f"picture {name}", write, read, (name,))


def other_layouts() -> Iterator[Layout]:
    """Answers, run folders, sweeps, pictures, adapters and hosts."""
    for name, content in predictions().items():
        yield Layout(
            f"predictions {name}",
            lambda root, name=name, content=content: void(put(root / name, content)),  # type: ignore[misc]
            lambda root, name=name: score(root, name),  # type: ignore[misc]
            (name,),
        )
    yield Layout("predictions captions.json", write_captions, score_captions, ("captions.json", "dataset_coco.json"))
    yield Layout("run folder", write_run, report, ("run/*.json*", "run/config.yaml", "run/eval/*/*"))
    yield Layout("sweep", write_sweep_folder, sweep, ("sweeps/made/sweep.json",))
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.bmp"):
        yield picture_layout(name)
    yield Layout("adapter", write_adapter, load_adapter, ("adapter/*",))
    yield Layout("host", write_host, load_host_folder, ("host/config.json", "host/tokenizer*.json"))
