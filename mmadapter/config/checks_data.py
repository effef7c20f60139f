"""Contradictions in what is read: sources, readers, files, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmadapter.config.data import CAPTION_READERS, READERS, ReadingConf
from mmadapter.config.mixture import mixture_problems
from mmadapter.config.run import RunConf
from mmadapter.errors import InputError
from mmadapter.settings import meant

TEXT_READERS = ("alpaca", "sharegpt")  # their samples never have a picture
FILE_READERS = ("alpaca", "llava", "sharegpt", "v2_instructions", "visual_instructions")  # they read one file, `path`
WHOLE_READERS = ("caption_table", "caption_shards", "llava_pretrain")  # their files know one split, train
CAPTION_SETTINGS = {  # setting -> the readers that have it
    "template": (*CAPTION_READERS, "llava", "sharegpt"),
    "on_bad": CAPTION_READERS,
    "captions_per_image": ("coco_captions", "caption_table"),
    "split_lists": ("coco_captions",),
    "instruction": ("llava_pretrain",),
}


def data_problems(conf: RunConf) -> Iterator[str]:
    """There is something to train on, its weights mean something, and its files exist."""
    data = conf.data
    if not data.sources:
        yield "data.sources is empty: there is nothing to train on. Choose data=shapes, data=scienceqa or data=alpaca."
    for part, readings in (("sources", data.sources), ("validation", data.validation)):
        for name, reading in readings.items():
            key = f"data.{part}.{name}"
            yield from reader_problems(reading, key)
            if not conf.dry_run:
                yield from reading_problems(reading, key, data.root, data.made is not None)
    yield from _overlap_problems(conf)
    yield from mixture_problems(conf)


def reader_problems(reading: ReadingConf, key: str) -> Iterator[str]:
    if reading.reader not in READERS:
        readers = ", ".join(READERS)
        yield f"{key}.reader={reading.reader!r}. {meant(reading.reader, READERS)}Readers are: {readers}."
        return
    yield from _caption_problems(reading, key)
    if reading.reader == "scienceqa" and reading.prompt_format is not None:
        from mmadapter.data.templates import scienceqa_format  # here: only settings that are about to run need it

        try:
            scienceqa_format(reading.prompt_format)
        except InputError as error:
            yield f"{key}.{error}"


def _caption_problems(reading: ReadingConf, key: str) -> Iterator[str]:
    """Settings of caption readers that the reader does not have or that exclude each other."""
    for name, readers in CAPTION_SETTINGS.items():
        value = getattr(reading, name)
        if value is not None and reading.reader not in readers:
            known = ", ".join(readers)
            yield f"{key}.{name}={value}: {reading.reader} has no such setting, only {known}. Set {key}.{name}=null"
    if reading.reader in WHOLE_READERS and reading.split != "train":
        yield f"{key}.split={reading.split}: the files of {reading.reader} have one split. Set {key}.split=train"
    if reading.reader == "llava_pretrain" and reading.template == "plain" and reading.instruction != "caption":
        yield (
            f"{key}.template=plain asks one fixed question, but each item of llava_pretrain has its own. "
            f"Set {key}.instruction=caption, or {key}.template=alpaca"
        )


def reading_problems(reading: ReadingConf, key: str, root: str | None, made: bool) -> Iterator[str]:
    """Files and folders that are named but do not exist; `made`: what lies below `root` is made when it is missing."""
    needed = reading.path if reading.reader in FILE_READERS else reading.root or root
    if reading.reader in CAPTION_READERS:
        needed = needed or reading.path
    if needed is None and not (reading.reader == "scienceqa" and reading.problems):
        wanted = f"{key}.path=FILE" if reading.reader in FILE_READERS else "data.root=FOLDER"
        yield f"{key} has nothing to read: set {wanted}"
    for field in ("root", "path", "captions", "problems", "pid_splits", "split_lists"):
        value = getattr(reading, field)
        if value is not None and not (field != "root" and lies_below(reading.root or root, value)):
            yield from _missing(f"{key}.{field}", value, root if made else None)
    attached = getattr(reading, "attach_images", None)
    if attached is not None:
        yield from _missing(f"{key}.attach_images", attached, root if made else None)
    if needed == root and root is not None:
        yield from _missing("data.root", root, root if made else None)


def lies_below(root: str | None, value: str) -> bool:
    """Whether a file is named as it lies in the folder that is read (upstream's data/scienceqa included)."""
    if root is None:
        return False
    folder = Path(root).expanduser()
    return any((folder / upstream / value).exists() for upstream in ("", "data/scienceqa", "scienceqa", "data"))


def _missing(key: str, value: str, made_below: str | None) -> Iterator[str]:
    path = Path(value).expanduser()
    made = made_below is not None and path.absolute().is_relative_to(Path(made_below).expanduser().absolute())
    if made or path.exists():
        return
    above = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    yield f"{key}={value}: no such file or folder ({above} is there, what follows is not)."


def _overlap_problems(conf: RunConf) -> Iterator[str]:
    """A validation entry that reads what a source trains on."""
    for name, held_out in conf.data.validation.items():
        for source, trained in conf.data.sources.items():
            same_place = (held_out.reader, held_out.root, held_out.path) == (trained.reader, trained.root, trained.path)
            if same_place and held_out.split == trained.split:
                yield (
                    f"data.validation.{name} and data.sources.{source} both read split {trained.split!r} of the same "
                    f"files; validation must not be trained on. Set data.validation.{name}.split=val"
                )


def picture_problems(conf: RunConf) -> Iterator[str]:
    """Pictures are read if and only if there is an encoder for them."""
    readings: dict[str, ReadingConf] = {f"data.sources.{name}": source for name, source in conf.data.sources.items()}
    readings |= {f"data.validation.{name}": held_out for name, held_out in conf.data.validation.items()}
    readings |= {f"tasks.{name}": conf.tasks[name] for name in conf.evaluate if name in conf.tasks}
    with_pictures = [key for key, reading in readings.items() if reading.images and reading.reader not in TEXT_READERS]
    attached = [key for key, reading in readings.items() if getattr(reading, "attach_images", None) is not None]
    if attached and not conf.vision.enabled:
        yield f"{attached[0]}.attach_images is set, but vision.enabled is false. Leave the task out of evaluate."
    if attached and not readings[attached[0]].images:
        yield f"{attached[0]}.attach_images is set, but {attached[0]}.images is false. Set {attached[0]}.images=true"
    if with_pictures and not conf.vision.enabled:
        keys = ", ".join(f"{key}.images" for key in with_pictures)
        yield (
            f"vision.enabled is false, but pictures are asked for by {keys}. "
            "Set these to false for text only, or choose an encoder: vision=clip_vit_l14"
        )
    learns = conf.vision.enabled and "visual_projection" not in conf.adapter.frozen
    if learns and conf.data.sources and not any(key.startswith("data.sources.") for key in with_pictures):
        yield (
            "vision.enabled is true, but no source in data.sources has pictures: the visual projection would never "
            "learn. Set vision=none adapter=v1, or images=true on a source."
        )
