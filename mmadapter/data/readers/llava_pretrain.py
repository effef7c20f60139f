"""LLaVA's pre-training captions: a JSON list of {id, image, conversations}, one question and one caption each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmadapter.data.readers.captions import WHOLE, CaptionFiles, caption_samples, check_choice, named_file
from mmadapter.data.readers.defects import ID_TWICE, BadEntry, entry_field
from mmadapter.data.readers.images_on_disk import ImageFolders, check_missing_image
from mmadapter.data.readers.instruction_items import MARKER
from mmadapter.data.readers.json_file import read_json
from mmadapter.data.readers.many_objects import collection_paused
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError

INSTRUCTIONS = ("own", "caption")
OTHER_DIALOG = "dialogs that are not one human and one gpt turn"
OTHER_MARKS = "items whose human turn has not <image> once"


def read_llava_pretrain(
    root: Path,
    split: str = WHOLE,
    *,
    training: bool,
    source: str = "llava_pretrain",
    limit: int | None = None,
    template: str = "alpaca",
    instruction: str = "own",
    missing_image: str = "error",
    with_images: bool = True,
    path: Path | None = None,
    on_bad: str = "error",
) -> list[Sample]:
    """The captioned pictures of one JSON file, named by `path` or the only one under the root; one split, train.

    `instruction`: each item's own question ("own", in Alpaca's template), or "caption", the caption instruction in
    either template. `<image>` is no text: it is removed. See `caption_samples`.
    """
    check_missing_image(missing_image)
    check_choice("instruction", instruction, INSTRUCTIONS)
    return caption_samples(
        llava_files(Path(root), path, instruction),
        split,
        training=training,
        source=source,
        limit=limit,
        template=template,
        missing_image=missing_image,
        with_images=with_images,
        on_bad=on_bad,
    )


@collection_paused()
def llava_files(root: Path, path: Path | None, instruction: str = "own") -> CaptionFiles:
    """All items of the file."""
    file = named_file(root, path, (".json",), "list of dialogs")
    content = read_json(file)
    if not isinstance(content, list):
        raise InputError(
            f"{file}: expected a list of items with id, image, conversations; got {type(content).__name__}."
        )
    found = CaptionFiles([file], ImageFolders(root.parent if root.is_file() else root))
    seen: set[str] = set()
    for number, item in enumerate(content):
        try:
            name, picture, question, caption = _parts(item)
            if name in seen:
                raise BadEntry(f"id {name} stands there twice", ID_TWICE)
        except BadEntry as error:
            found.lose(error.reason, f"{file.name}, item {number}: {error}", 1)
            continue
        seen.add(name)
        asked = question if instruction == "own" else None
        where = f"{file.name}, item {number} (id {name})"
        found.add(WHOLE, name, found.folders.find(picture), [(1, caption)], where, asked)
    return found


def _parts(item: Any) -> tuple[str, str, str, str]:
    """(id, picture, question without its mark, caption)."""
    name = str(entry_field(item, "id", str if isinstance(item, dict) and isinstance(item.get("id"), str) else int))
    picture, turns = entry_field(item, "image", str), entry_field(item, "conversations", list)
    roles = [entry_field(turn, "from", str) for turn in turns]
    texts = [entry_field(turn, "value", str) for turn in turns]
    if roles != ["human", "gpt"]:
        raise BadEntry(f"id {name}: the turns are {', '.join(roles[:6]) or 'none'}; allowed: human, gpt", OTHER_DIALOG)
    question, caption = texts
    if question.count(MARKER) != 1 or MARKER in caption:
        marks = question.count(MARKER) + caption.count(MARKER)
        raise BadEntry(f"id {name}: it stands there {marks} times; allowed is once, in the human turn", OTHER_MARKS)
    question = question.replace(MARKER, "").strip()
    if not question:
        raise BadEntry(f"id {name}: the human turn asks nothing beside {MARKER}")
    return name, picture, question, caption
