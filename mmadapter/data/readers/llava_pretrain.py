"""LLaVA's pre-training captions: a JSON list of {id, image, conversations}, one question and one caption each."""

from __future__ import annotations

from pathlib import Path

from mmadapter.data.readers import Purpose, only_file
from mmadapter.data.readers.captions import ID_TWICE, WHOLE, CaptionFiles, caption_samples
from mmadapter.data.readers.defects import BadEntry, entry_field
from mmadapter.data.readers.items import MARKER, turns_of
from mmadapter.data.readers.json_file import read_items
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.data.samples import Sample
from mmadapter.data.settings import LlavaPretrainSettings

OTHER_DIALOG = "dialogs that are not one human and one gpt turn"
OTHER_MARKS = "items whose human turn has not <image> once"


def read_llava_pretrain(settings: LlavaPretrainSettings, purpose: Purpose) -> list[Sample]:
    """The captioned pictures of one JSON file, named by `path` or the only one under the root.

    `instruction`: each item's own question ("own", in any template but plain), or "caption", the caption instruction in
    any. `<image>` is no text: it is removed. See `caption_samples`.
    """
    assert settings.root is not None
    found = pretrain_files(Path(settings.root), settings.path, settings.instruction, settings.may_leave)
    return caption_samples(found, settings, purpose)


def pretrain_files(
    root: Path, path: str | Path | None, instruction: str = "own", may_leave: bool = False
) -> CaptionFiles:
    """All items of the file. `may_leave`: whether pictures may lie outside of the root."""
    file = Path(path) if path is not None else only_file(root, (".json",), "one list of dialogs")
    found = CaptionFiles([file], ImageFolders(root), may_leave)
    seen: set[str] = set()
    for number, item in enumerate(read_items(file)):
        try:
            name, picture = str(entry_field(item, "id", str, int)), entry_field(item, "image", str)
            turns = turns_of(item)
            roles = [role for role, _ in turns]
            if roles != ["human", "gpt"]:
                got = ", ".join(roles[:6]) or "none"
                raise BadEntry(f"id {name}: the turns are {got}; allowed: human, gpt", OTHER_DIALOG)
            question, caption = (text for _, text in turns)
            if question.count(MARKER) != 1 or MARKER in caption:
                marks = question.count(MARKER) + caption.count(MARKER)
                told = f"id {name}: it stands there {marks} times; allowed is once, in the human turn"
                raise BadEntry(told, OTHER_MARKS)
            question = question.replace(MARKER, "").strip()
            if not question:
                raise BadEntry(f"id {name}: the human turn asks nothing beside {MARKER}")
            if name in seen:
                raise BadEntry(f"id {name} stands there twice", ID_TWICE)
        except BadEntry as error:
            found.lose(error.reason, f"{file.name}, item {number}: {error}", 1)
            continue
        seen.add(name)
        asked = question if instruction == "own" else None
        found.add(WHOLE, name, picture, [(1, caption)], f"{file.name}, item {number} (id {name})", asked)
    return found
