"""conf/task: the settings of each task, which are those of its reader, and how it is asked and scored. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from mmadapter.data.settings import (
    LAYOUTS,
    READERS,
    SCIENCEQA_TEMPLATES,
    TEMPLATES,
    CocoSettings,
    ColumnNames,
    InstructionSettings,
    ReaderSettings,
    ScienceqaSettings,
    VisualInstructionsSettings,
)
from mmadapter.hosts.settings import GenerationConf
from mmadapter.settings import choice, input_path, number


@dataclass
class TaskSettings(ReaderSettings):
    """What every evaluation has; weight and samples_per_step are for training alone."""

    # A task's class derives from this one first, then from the class of its reader.

    name: str = ""  # which task; the results go to RUN/eval/NAME
    split: str = "test"  # which samples are scored
    generation: GenerationConf = field(default_factory=GenerationConf)
    # with temperature > 0 it decides, as the seed does, which words are drawn
    batch_size: int = number(32, at_least=1, at_most=1_000_000, influence=False)  # samples generated at a time
    seed: int = number(0, at_least=0)  # of the words that are drawn, with temperature > 0
    # samples with a picture that are also asked with another one, and with parts of it hidden, for the report; 0 = none
    looked_at: int = number(4, at_least=0, influence=False)
    attach_images: str | None = input_path()  # folder; each sample without a picture gets one of these, by its id

    @property
    def uses_pictures(self) -> bool:
        return self.images and self.reader in READERS and READERS.settings(self.reader).has_pictures

    def contradictions(self, key: str) -> Iterator[str]:
        yield from super().contradictions(key)
        for name in ("weight", "samples_per_step"):
            if getattr(self, name, None) is not None:
                yield f"{key}.{name} is for data.sources: a task reads everything once. Leave it away."

    def as_reader(self) -> ReaderSettings:
        """The settings of the task's reader alone."""
        reader = READERS.settings(self.reader)
        own = {item.name: getattr(self, item.name) for item in fields(reader) if hasattr(self, item.name)}
        return reader(**{name: value for name, value in own.items() if value is not None})

    def prediction_problems(self, key: str, has_predictions: bool) -> Iterator[str]:
        """What lacks for scoring a file of predictions without a model; where there is none, what is set in vain."""
        if has_predictions:
            yield f"predictions= cannot be scored for task={self.name}: it needs a model. Give run=RUN_FOLDER instead."


@dataclass
class ScienceqaTaskSettings(TaskSettings, ScienceqaSettings):
    name: str = "scienceqa"
    reader: str = choice("scienceqa")
    # frame of the question; null = as the questions were trained; paper where none were
    template: str | None = choice(None, *SCIENCEQA_TEMPLATES)  # type: ignore[assignment]
    likelihood: bool = True  # score by the most likely option, too
    fallback: str = choice("none", "random")  # no answer: none = wrong, random = guessed (to compare with old tables)
    # of a file that has both: its indices, or its texts parsed anew
    predictions_from: str = choice("results", "outputs")

    def prediction_problems(self, key: str, has_predictions: bool) -> Iterator[str]:
        if has_predictions and self.problems is None and self.root is None:
            places = f"{key}.problems=problems.json or {key}.root=FOLDER"
            yield f"predictions= needs the questions they answer: give {places}"
        if has_predictions and self.captions is not None:
            yield f"{key}.captions is for a model's questions; predictions= needs none. Leave it away."


@dataclass
class CocoCaptionTaskSettings(TaskSettings, CocoSettings):
    name: str = "coco_caption"
    reader: str = choice("coco_captions")
    annotations: str | None = input_path()  # with predictions=: captions_*.json or dataset_coco.json
    split_list: str | None = input_path()  # with predictions=: the images that count, e.g. karpathy_test_images.txt
    # frame of the request; null = as the captions were trained
    template: str | None = choice(None, *TEMPLATES)  # type: ignore[assignment]
    allow_subset: bool = False  # score a part of the images, labelled so; false = all must have a caption
    java_metrics: bool = False  # METEOR and SPICE as well (slow); they need Java
    # percent of captions that equal a reference, too: for a made world, where what is not a reference is wrong
    exact: bool = False

    def prediction_problems(self, key: str, has_predictions: bool) -> Iterator[str]:
        if has_predictions and self.annotations is None:
            yield (
                f"predictions= needs the captions that they are scored against: give {key}.annotations=FILE "
                f"(captions_val2014.json, or dataset_coco.json with {key}.split=test)"
            )
        if not has_predictions and (self.annotations is not None or self.split_list is not None):
            yield f"{key}.annotations and {key}.split_list go with predictions=; a run reads {key}.root, or {key}.path."


@dataclass
class InstructTaskSettings(TaskSettings, InstructionSettings):
    name: str = "instruct"
    reader: str = "alpaca"  # any reader of instructions or dialogs
    split: str = "val"  # what data=alpaca keeps out of training: 200 items, at most a tenth
    # frame of the turns; null = as the instructions were trained
    template: str | None = choice(None, *TEMPLATES)  # type: ignore[assignment]
    layout: str = choice("auto", *LAYOUTS)  # of reader=own: as the content says, or one by name
    columns: ColumnNames = field(default_factory=ColumnNames)  # of reader=own: fields where the usual names do not tell

    def contradictions(self, key: str) -> Iterator[str]:
        yield from super().contradictions(key)
        fitting = [name for name in READERS.names() if issubclass(READERS.settings(name), InstructionSettings)]
        if self.reader not in fitting:
            yield f"{key}.reader={self.reader}: allowed are {', '.join(fitting)}."


@dataclass
class VisualInstructTaskSettings(TaskSettings, VisualInstructionsSettings):
    name: str = "visual_instruct"
    reader: str = choice("visual_instructions")
    # frame of the turns; null = as the instructions were trained
    template: str | None = choice(None, *TEMPLATES)  # type: ignore[assignment]
