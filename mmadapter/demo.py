"""mmadapter demo: the adapter that comes with the package answers questions about shipped pictures, at once.

The same question is asked of several pictures, and each is described, so that one sees the answer follow the picture.
Pictures are of the test split, and drawn with a seed; every answer is scored.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import tarfile
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmadapter.data.embedded import ARCHIVES
from mmadapter.distributed.start import set_threads
from mmadapter.errors import InputError
from mmadapter.evaluation import SHIPPED
from mmadapter.hosts.settings import GenerationConf

if TYPE_CHECKING:
    from mmadapter.tasks.task import Task

PICTURES = 4
# Each question is asked of every picture; its options are what is true of the pictures.
QUESTIONS = {"color": "What color is the shape?", "ground": "What color is behind the shape?"}
CELLS = 16  # a picture's width at the terminal, in characters


def main(arguments: list[str]) -> None:
    """The command."""
    options = parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="mmadapter-demo-"))
    console = Console(highlight=False)
    pictures = draw_pictures(folder / "data", options.seed)
    with console.status("loading the shipped adapter"):
        captions, rows = answers_of_the_shipped_adapter(folder)
    show(console, [folder / "data" / "images" / "test" / pid / "image.png" for pid in pictures], captions, rows)

    from mmadapter.reports.report import write_report

    report = write_report(folder).resolve()
    console.print(f"report: {report}", soft_wrap=True, markup=False)
    console.print("next:\n  mmadapter chat          ask it yourself\n  mmadapter train         train such an adapter")
    if not options.no_open:
        webbrowser.open(report.as_uri())


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("mmadapter demo", description=__doc__.partition("\n")[0])
    found.add_argument("--seed", type=int, default=0, metavar="N", help="other pictures (default 0)")
    found.add_argument("--no-open", action="store_true", help="do not open the report in a browser")
    return found


def draw_pictures(folder: Path, seed: int) -> list[str]:
    """Write `PICTURES` test pictures into `folder`, as a ScienceQA with each question of each, and with their captions.

    The pictures differ in colour and background. Returns their ids, under which the first question stands.
    """
    archive = ARCHIVES / "shapes.tar.gz"
    if not archive.is_file():
        raise InputError(f"{archive}, which comes with the package, is not there. Install the package again.")
    with tarfile.open(archive) as packed:

        def content(name: str) -> bytes:
            member = packed.extractfile(name)
            assert member is not None
            return member.read()

        problems = json.loads(content("scienceqa/problems.json"))
        captions: dict[str, str] = json.loads(content("scienceqa/captions.json"))["captions"]
        about = {pid: attributes(text) for pid, text in captions.items() if problems[pid]["split"] == "test"}
        order = random.Random(f"demo {seed}").sample(sorted(about), len(about))
        chosen: list[str] = []
        for pid in order:
            if len(chosen) < PICTURES and all(
                about[pid][name] not in {about[other][name] for other in chosen} for name in QUESTIONS
            ):
                chosen.append(pid)

        # One problem for each question and picture; the options are in the same order for every picture.
        asked: dict[str, dict[str, Any]] = {}
        for place, (name, question) in enumerate(QUESTIONS.items()):
            options = sorted(about[pid][name] for pid in chosen)
            for pid in chosen:
                number = pid if place == 0 else f"{pid}-{name}"
                asked[number] = problems[pid] | {
                    "question": question,
                    "choices": options,
                    "answer": options.index(about[pid][name]),
                    "hint": "",
                    "lecture": "",
                    "solution": "",
                }
                target = folder / "images" / "test" / number / "image.png"
                target.parent.mkdir(parents=True)
                target.write_bytes(content(f"scienceqa/images/test/{pid}/image.png"))
    (folder / "problems.json").write_text(json.dumps(asked, indent=1), encoding="utf-8")
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(asked)}), encoding="utf-8")
    described = [
        {
            "filepath": f"images/test/{pid}",
            "filename": "image.png",
            "cocoid": int(pid),
            "split": "test",
            "sentences": [
                {"sentid": int(pid), "raw": "A {color} {shape} on a {ground} background.".format_map(about[pid])}
            ],
        }
        for pid in chosen
    ]
    (folder / "captions.json").write_text(json.dumps({"images": described}, indent=1), encoding="utf-8")
    return chosen


def attributes(caption: str) -> dict[str, str]:
    """What a caption of the made-up world says: "a large striped purple circle on the right of a white background"."""
    words = caption.split()
    return {"size": words[1], "pattern": words[2], "color": words[3], "shape": words[4], "ground": words[-2]}


def answers_of_the_shipped_adapter(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ask the shipped adapter about the pictures of FOLDER/data, and write FOLDER as an evaluated run.

    Returns the captions and the answers, with what is true and whether they are right.
    """
    set_threads(None)
    import mmadapter
    from mmadapter.distributed.ranks import Ranks
    from mmadapter.hosts.load import hide_library_bars
    from mmadapter.tasks.coco_caption import CocoCaption
    from mmadapter.tasks.scienceqa import ScienceQA
    from mmadapter.tasks.settings import CocoCaptionTaskSettings, ScienceqaTaskSettings
    from mmadapter.tasks.task import evaluate

    hide_library_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    shutil.copyfile(SHIPPED / "config.yaml", folder / "config.yaml")
    model = mmadapter.load(SHIPPED, device="cpu")
    data, generation = folder / "data", GenerationConf(max_new_tokens=24)
    captions = CocoCaption(
        CocoCaptionTaskSettings(
            root=str(data),
            path=str(data / "captions.json"),
            template="alpaca",
            exact=True,
            generation=generation,
            looked_at=0,  # where the adapter looks takes half a second a sample: two of the questions show it
        )
    )
    questions = ScienceQA(
        ScienceqaTaskSettings(
            root=str(data),
            prompt_format="QCM-EA",
            template="paper",
            likelihood=False,
            generation=generation,
            looked_at=2,
        )
    )

    def rows(task: Task) -> list[dict[str, Any]]:
        samples = task.read(model.tokenizer, model.template)
        model.prepare_images([sample.image for sample in samples if sample.image is not None])
        return evaluate(model, task, samples, folder / "eval" / task.settings.name, Ranks()).rows

    return rows(captions), rows(questions)


def show(
    console: Console, pictures: Sequence[Path], captions: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> None:
    """The pictures side by side, and below them their captions and one line of answers for each question."""
    columns = len(pictures)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(max_width=24)
    if console.is_terminal and console.color_system in ("256", "truecolor"):
        table.add_row("", *map(drawing, pictures))
    table.add_row("What is in the picture?", *map(answer, captions))
    for start in range(0, len(rows), columns):
        part = rows[start : start + columns]
        options = " ".join(f"({'ABCDE'[index]}) {choice}" for index, choice in enumerate(part[0]["choices"]))
        table.add_row(f"{part[0]['question']} {options}", *map(answer, part))
    console.print(table)
    everything = [*captions, *rows]
    console.print(f"{sum(row['correct'] for row in everything)} of {len(everything)} right\n")


def answer(row: dict[str, Any]) -> Text:
    """What was answered, and whether it is right."""
    text = " ".join(str(row["output"]).split())
    return Text(f"{text} ✓") if row["correct"] else Text(f"{text} ✗", "red")


def drawing(picture: Path) -> Text:
    """A picture as characters: two points, one above the other, in each."""
    with Image.open(picture) as opened:
        small = opened.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX)
    text = Text()
    for y in range(0, CELLS, 2):
        for x in range(CELLS):
            upper, lower = (small.tobytes()[3 * (CELLS * row + x) :][:3].hex() for row in (y, y + 1))
            text.append("▀", f"#{upper} on #{lower}")
        text.append("\n" if y + 2 < CELLS else "")
    return text
