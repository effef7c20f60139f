"""What is read and how it is mixed: a settings class a reader (data.sources.NAME), and conf/data itself. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mmadapter.data.templates import PAPER, SCIENCEQA_TEMPLATES, SINGLE, TEMPLATES, chosen_template, scienceqa_format
from mmadapter.errors import InputError
from mmadapter.settings import Register, choice, entries, input_path, listing, number, plain

READERS = Register("reader")
OWN = "data.sources.own"  # of conf/data/own.yaml: its path is data.path, and validation and task follow its settings


@dataclass
class ReaderSettings:
    """What is read to train on, in the layout that `reader` names."""

    # Each reader derives its own class, from which a task's settings may derive again.

    reader: str = ""  # which layout the files have
    root: str | None = input_path()  # folder that is read; null = data.root
    path: str | None = input_path()  # a file, in place of the folder; captions: a file with the pictures in root
    split: str = "train"  # train, val, test; ScienceQA also minitrain, ...; instructions: train, val, all
    limit: int | None = number(None, at_least=1)  # take the first so many samples (captions: pictures); null = all
    images: bool = True  # false = the pictures are left out (text only)
    # where a picture is missing: stop, skip the sample, go without it
    missing_image: str = choice("error", "skip", "no_image")
    # whether pictures may lie outside of the data's folder, and of root
    pictures_anywhere: bool = plain(False, influence=False)
    # of training: its share of the steps; null = every sample once an epoch
    weight: float | None = number(None, above=0)
    # of training: samples of this source in every step; null = whole steps in turns, or with disjoint groups equal
    # shares
    samples_per_step: int | None = number(None, at_least=1)

    has_pictures: ClassVar[bool] = True  # False: no sample of this reader ever has a picture
    needs_pictures: ClassVar[bool] = False  # True: without the picture nothing is left to learn or to score
    reads_file: ClassVar[bool] = False  # True: reads one file, `path`; False: the folder `root`
    splits: ClassVar[tuple[str, ...] | None] = None  # the splits that its files have; None: what the files say
    EXPERIMENT: ClassVar[str | None] = None  # of conf/experiment, that is made for its data

    @property
    def uses_pictures(self) -> bool:
        """Whether samples may come with a picture."""
        return self.images and self.has_pictures

    @property
    def keeps_pictures_together(self) -> bool:
        """Whether samples of one picture come one behind the other in training, and not each by itself."""
        return False

    @property
    def may_leave(self) -> bool:
        """Whether pictures outside of the data's folder are no matter: allowed, or never read."""
        return self.pictures_anywhere or not self.uses_pictures

    def contradictions(self, key: str) -> Iterator[str]:
        if self.splits is not None and self.split not in self.splits:
            if len(self.splits) == 1:
                wanted = f"have one split. Set {key}.split={self.splits[0]}"
            else:
                wanted = f"are split into {', '.join(self.splits)}. Set {key}.split to one of these."
            yield f"{key}.split={self.split}: the files of {self.reader} {wanted}"
        if self.needs_pictures and self.images and self.missing_image == "no_image":
            yield (
                f"{key}.missing_image=no_image: captions are nothing without their picture. Set "
                f"{key}.missing_image=error or {key}.missing_image=skip"
            )


@dataclass
class ScienceqaSettings(ReaderSettings):
    EXPERIMENT: ClassVar[str | None] = "scienceqa"

    reader: str = "scienceqa"
    prompt_format: str = "QCM-A"  # what prompt and answer hold: QCM-A (paper), QCM-LEA, QCM-ALE, CQM-A, ...
    template: str = choice(*SCIENCEQA_TEMPLATES)  # paper: the authors' prompt; else its text is one user turn
    captions: str | None = input_path()  # captions.json; captions are put into the context; paper: none
    problems: str | None = input_path()  # another problems.json than root's
    pid_splits: str | None = input_path()  # another pid_splits.json than root's

    def contradictions(self, key: str) -> Iterator[str]:
        yield from super().contradictions(key)
        try:
            scienceqa_format(self.prompt_format)
        except InputError as error:
            yield f"{key}.{error}"


@dataclass
class CaptionSettings(ReaderSettings):
    """What the readers of captioned pictures share."""

    template: str = choice(*TEMPLATES)  # frame of the caption request: alpaca as V2, plain as V1's caption demo
    on_bad: str = choice("error", "skip")  # where items cannot be used: stop, or leave them out

    OTHERWISE: ClassVar[str] = "alpaca"  # what template=auto is where the host has no chat template
    needs_pictures: ClassVar[bool] = True


@dataclass
class CocoSettings(CaptionSettings):
    EXPERIMENT: ClassVar[str | None] = "coco_caption"

    reader: str = "coco_captions"
    # in training. one = the seed decides which; together = all, those of a picture one behind the other in the same
    # steps, where picture and question are computed once: faster, but a step has fewer pictures
    captions_per_image: str = choice("all", "one", "together")
    split_lists: str | None = input_path()  # folder of karpathy_{val,test}_images.txt; null = beside the captions

    @property
    def keeps_pictures_together(self) -> bool:
        return self.captions_per_image == "together"


@dataclass
class CaptionTableSettings(CaptionSettings):
    reader: str = "caption_table"
    # in training. one = the seed decides which; together = all, those of a picture one behind the other in the same
    # steps, where picture and question are computed once: faster, but a step has fewer pictures
    captions_per_image: str = choice("all", "one", "together")

    splits: ClassVar[tuple[str, ...] | None] = ("train",)

    @property
    def keeps_pictures_together(self) -> bool:
        return self.captions_per_image == "together"


@dataclass
class CaptionShardsSettings(CaptionSettings):
    reader: str = "caption_shards"

    splits: ClassVar[tuple[str, ...] | None] = ("train",)


@dataclass
class LlavaPretrainSettings(CaptionSettings):
    reader: str = "llava_pretrain"
    instruction: str = choice("own", "caption")  # what is asked: each item's own question, or the caption request

    splits: ClassVar[tuple[str, ...] | None] = ("train",)

    def contradictions(self, key: str) -> Iterator[str]:
        yield from super().contradictions(key)
        if self.template == "plain" and self.instruction != "caption":
            yield (
                f"{key}.template=plain asks one fixed question, but each item of llava_pretrain has its own. "
                f"Set {key}.instruction=caption, or {key}.template=alpaca"
            )


@dataclass
class InstructionSettings(ReaderSettings):
    """What the readers of files of instructions and dialogs share."""

    val_size: int = number(200, at_least=1)  # at most so many items are held out for val
    val_fraction: float = number(0.1, above=0, at_most=0.5)  # and at most this fraction of all
    on_bad: str = choice("error", "skip")  # where items cannot be used: stop, or leave them out; both count them
    ignore: list[str] = listing()  # read items without these fields, which say what no adapter learns (tools, weight)
    # auto = the host's chat template, else Alpaca's frame (ShareGPT: chat)
    template: str = choice(*TEMPLATES)  # frame of the turns
    system: str | None = None  # system text of items without one; null = the template's, "" = none

    reads_file: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...] | None] = ("train", "val", "all")
    OTHERWISE: ClassVar[str] = "alpaca"  # what template=auto is where the host has no chat template

    def contradictions(self, key: str) -> Iterator[str]:
        yield from super().contradictions(key)
        if self.template in SINGLE and self.system:
            yield (
                f"{key}.system is set, but template={self.template} has no place for a system text. Set "
                f"{key}.template=auto or {key}.system=null"
            )


@dataclass
class AlpacaSettings(InstructionSettings):
    EXPERIMENT: ClassVar[str | None] = "alpaca"

    reader: str = "alpaca"

    has_pictures: ClassVar[bool] = False


@dataclass
class V2InstructionsSettings(InstructionSettings):
    reader: str = "v2_instructions"


@dataclass
class LlavaSettings(InstructionSettings):
    EXPERIMENT: ClassVar[str | None] = "llava_instruct"

    reader: str = "llava"


@dataclass
class SharegptSettings(InstructionSettings):
    EXPERIMENT: ClassVar[str | None] = "sharegpt"

    reader: str = "sharegpt"

    has_pictures: ClassVar[bool] = False
    OTHERWISE: ClassVar[str] = "chat"


@dataclass
class ColumnNames:
    """The names of one's own fields or columns, where they are not the usual ones (docs/own-data.md lists these)."""

    question: str | None = None  # what is asked
    answer: str | None = None  # what is answered; of multiple choice: index, letter or text of the right one
    context: str | None = None  # what the question is about, an input, a hint
    image: str | None = None  # file name of a picture
    caption: str | None = None  # a text, or a list of them
    choices: str | None = None  # of multiple choice: a list of texts
    system: str | None = None  # what the model is told in front of all
    split: str | None = None  # train, val or test


# How people write their own data down, as `layout` and messages call it.
LAYOUTS = (
    *("alpaca", "sharegpt", "llava", "messages", "question_answer", "multiple_choice", "captions"),
    *("coco", "scienceqa"),
)


@dataclass
class OwnSettings(InstructionSettings):
    """Files of one's own, whose layout is seen from their content; `path` is a file or a folder."""

    EXPERIMENT: ClassVar[str | None] = "finetune"

    reader: str = "own"
    layout: str = choice("auto", *LAYOUTS)  # auto = as the content says
    columns: ColumnNames = field(default_factory=ColumnNames)  # where the usual names do not tell

    splits: ClassVar[tuple[str, ...] | None] = ("train", "val", "test", "all")


@dataclass
class VisualInstructionsSettings(ReaderSettings):
    reader: str = "visual_instructions"
    split: str = "test"
    template: str = choice(*TEMPLATES)  # frame of the question; auto = the host's chat template, else Alpaca's frame

    reads_file: ClassVar[bool] = True
    needs_pictures: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...] | None] = ("test",)


READERS.add("scienceqa", ScienceqaSettings, "mmadapter.data.readers.scienceqa:read_scienceqa")
READERS.add("alpaca", AlpacaSettings, "mmadapter.data.readers.instructions:read_alpaca")
READERS.add("coco_captions", CocoSettings, "mmadapter.data.readers.coco:read_coco_captions")
READERS.add("caption_table", CaptionTableSettings, "mmadapter.data.readers.caption_table:read_caption_table")
READERS.add("caption_shards", CaptionShardsSettings, "mmadapter.data.readers.caption_shards:read_caption_shards")
READERS.add("llava_pretrain", LlavaPretrainSettings, "mmadapter.data.readers.llava_pretrain:read_llava_pretrain")
READERS.add("llava", LlavaSettings, "mmadapter.data.readers.instructions:read_llava")
READERS.add("sharegpt", SharegptSettings, "mmadapter.data.readers.instructions:read_sharegpt")
READERS.add("v2_instructions", V2InstructionsSettings, "mmadapter.data.readers.instructions:read_v2_instructions")
READERS.add("own", OwnSettings, "mmadapter.data.readers.own:read_own")
READERS.add(
    "visual_instructions",
    VisualInstructionsSettings,
    "mmadapter.data.readers.visual_instructions:read_visual_instructions",
)


@dataclass
class DataConf:
    """What is read to train and to validate."""

    path: str | None = input_path()  # file or folder of your own, for data=own (experiment=finetune)
    root: str | None = input_path()  # folder of all sources that have no root of their own
    # this made-up world is made in data.root when it is missing
    made: str | None = choice(None, "shapes", "interference", "observatory")
    sources: dict[str, ReaderSettings] = entries(READERS, chosen_by="reader")  # name -> what is trained on
    long_answers: str = choice("error", "cut")  # where an answer does not fit host.max_tokens: stop, or cut it
    validation: dict[str, ReaderSettings] = entries(READERS, chosen_by="reader")  # name -> what is never trained on

    def contradictions(self, key: str) -> Iterator[str]:
        if not self.sources:
            yield (
                f"{key}.sources is empty: there is nothing to train on. Choose data=shapes, data=scienceqa or "
                "data=alpaca."
            )
        for name, held_out in self.validation.items():
            for source, trained in self.sources.items():
                places = [(one.reader, one.root, one.path, one.split) for one in (held_out, trained)]
                if places[0] == places[1]:
                    yield (
                        f"{key}.validation.{name} and {key}.sources.{source} both read split {trained.split!r} of the "
                        f"same files; validation must not be trained on. Set {key}.validation.{name}.split=val"
                    )
            if held_out.weight is not None or held_out.samples_per_step is not None:
                yield (
                    f"{key}.validation.{name} has weight or samples_per_step, but validation reads all. Set it to null."
                )


def trained_template(sources: Mapping[str, ReaderSettings], tokenizer: Any, asks: ReaderSettings | None = None) -> str:
    """The template that an adapter of these sources is asked in: that of its first instructions, else of its captions.

    The other way round where `asks` (a task) asks for captions. Questions of ScienceQA are asked in the template of the
    first such source, "paper" where there is none. An adapter of these alone is asked in their template, and as `auto`
    says where that is "paper".
    """
    of_questions = (source.template for source in sources.values() if isinstance(source, ScienceqaSettings))
    framed = next(of_questions, PAPER)
    if isinstance(asks, ScienceqaSettings):
        return framed
    kinds: tuple[type[ReaderSettings], ...] = (InstructionSettings, CaptionSettings)
    for kind in reversed(kinds) if isinstance(asks, CaptionSettings) else kinds:
        for source in sources.values():
            if isinstance(source, kind) and isinstance(source, (InstructionSettings, CaptionSettings)):
                found = chosen_template(source.template, tokenizer, source.OTHERWISE)
                if found not in SINGLE or asks is None or isinstance(asks, CaptionSettings):
                    return found
    return chosen_template("auto" if framed == PAPER else framed, tokenizer)


def trained_system(sources: Mapping[str, ReaderSettings]) -> str | None:
    """The system text that the settings of the first instructions give; None where they give none."""
    return next((source.system for source in sources.values() if isinstance(source, InstructionSettings)), None)


# How the sources share the steps: fixed samples of every source in each step, or whole steps of one source in turns.

GroupSources = Mapping[str, Sequence[str] | None]
"""Group of parameters -> the sources that move it; None: all."""


def samples_per_step(
    sources: Mapping[str, ReaderSettings], batch_size: int, groups: GroupSources
) -> dict[str, int] | None:
    """Source -> samples in every step; None where whole steps of one source come in turns.

    Disjoint groups without numbers of their own give every source the same share of `batch_size`.
    """
    given = {name: source.samples_per_step for name, source in sources.items() if source.samples_per_step is not None}
    if given:
        return given
    narrowed = sources and narrowed_group(sources, groups)
    return dict.fromkeys(sources, batch_size // len(sources)) if narrowed else None


def narrowed_group(sources: Mapping[str, ReaderSettings], groups: GroupSources) -> str | None:
    """The first group that does not learn from all sources; None where all sources train the same groups."""
    return next((name for name, own in groups.items() if own is not None and set(own) != set(sources)), None)


def sharing_problems(sources: Mapping[str, ReaderSettings], batch_size: int, groups: GroupSources) -> Iterator[str]:
    """Weights and samples per step that contradict each other, the groups or the batch."""
    weighted = [name for name, source in sources.items() if source.weight is not None]
    counted = {name: source.samples_per_step for name, source in sources.items() if source.samples_per_step is not None}
    narrowed = narrowed_group(sources, groups)

    # One of the two ways, for all sources; whole steps in turns only where all sources train the same groups.
    if weighted and counted:
        yield (
            f"data.sources.{next(iter(counted))}.samples_per_step puts samples of every source into each step, "
            f"data.sources.{weighted[0]}.weight lets whole steps of one source come in turns. Set one of them to null."
        )
    for setting, given in (("weight", weighted), ("samples_per_step", list(counted))):
        if missing := [name for name in sources if given and name not in given]:
            yield (
                f"data.sources.{missing[0]}.{setting} is not set, but {given[0]} has one. Set it on all sources or "
                "none."
            )
    if weighted and narrowed:
        nulls = " ".join(f"data.sources.{name}.weight=null" for name in weighted)
        yield (
            f"data.sources.{weighted[0]}.weight lets whole steps of one source come in turns, but "
            f"adapter.groups.{narrowed}.sources lets only some sources move a group: every step must hold samples of "
            f"every source. Remove the weights: {nulls} (then equal shares of optimizer.batch_size, or "
            "data.sources.NAME.samples_per_step=N on each)"
        )

    # The shares make up the batch.
    total = sum(counted.values())
    if len(counted) == len(sources) and total != batch_size:
        yield (
            f"data.sources.*.samples_per_step add up to {total}, but optimizer.batch_size={batch_size} is what the "
            f"learning rate is taken from. Set optimizer.batch_size={total}, or other shares."
        )
    elif not counted and narrowed and batch_size % len(sources):
        fitting = max(batch_size // len(sources), 1) * len(sources)
        yield (
            f"optimizer.batch_size={batch_size} cannot be shared equally by the {len(sources)} sources "
            f"({', '.join(sources)}), of which each step needs samples. Set optimizer.batch_size={fitting}, or "
            "data.sources.NAME.samples_per_step on each."
        )
    for name in sources:
        if groups and not any(own is None or name in own for own in groups.values()):
            yield (
                f"data.sources.{name} moves no group: no adapter.groups.NAME.sources has it. Add it to one of "
                f"{', '.join(groups)}, or remove it: ~data.sources.{name}"
            )
