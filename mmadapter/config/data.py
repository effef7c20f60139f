"""conf/data: which files are read, and how their samples are mixed."""

from dataclasses import dataclass

from mmadapter.settings import choice, input_path, named, number

CAPTION_READERS = ("coco_captions", "caption_table", "caption_shards", "llava_pretrain")  # nothing without pictures
DIALOG_READERS = ("llava", "sharegpt", "v2_instructions")
# mmadapter.data.READERS (not imported: it takes half a second)
READERS = ("scienceqa", "alpaca", *CAPTION_READERS, *DIALOG_READERS, "visual_instructions")


@dataclass
class ReadingConf:
    reader: str = ""  # of READERS
    root: str | None = input_path()  # folder to read; null = data.root
    path: str | None = input_path()  # a single file: instead of the folder, or beside its pictures (captions)
    split: str = "train"  # train, val, test; scienceqa has minitrain, ... too; alpaca: train, val; other pairs: train
    limit: int | None = number(None, at_least=1)  # samples (captions: pictures), the first of the split; null = all
    prompt_format: str | None = None  # scienceqa: QCM-A, QCM-LEA, QCM-ALE, CQM-A, ...; paper: QCM-A
    captions: str | None = input_path()  # scienceqa: captions.json, put into the context; paper: none
    template: str | None = choice(None, "alpaca", "plain", "chat")  # plain: captions, V1; chat: dialogs; null = usual
    system: str | None = None  # llava, sharegpt: the chat template's first line; null = a line of ours, "" = none
    instruction: str | None = choice(None, "own", "caption")  # llava_pretrain: its question, or the captions' one
    captions_per_image: str | None = choice(None, "all", "one")  # captions: of a picture, in training; null = all
    split_lists: str | None = input_path()  # coco_captions: folder of karpathy_{val,test}_images.txt; null = beside
    on_bad: str | None = choice(None, "error", "skip")  # captions: items that cannot be used; null = error
    images: bool = True  # false = the pictures are left out (text only)
    missing_image: str = choice("error", "skip", "no_image")  # a missing picture: stop, skip the sample, go without
    problems: str | None = input_path()  # scienceqa: another problems.json than root's
    pid_splits: str | None = input_path()  # scienceqa: another pid_splits.json than root's


@dataclass
class SourceConf(ReadingConf):
    weight: float | None = number(None, above=0)  # share of the whole steps; null = every sample once an epoch
    samples_per_step: int | None = number(None, at_least=1)  # of this source in every step; null: see docs/formats.md


@dataclass
class DataConf:
    root: str | None = input_path()  # folder that sources without a root of their own are read from
    made: str | None = choice(None, "shapes", "interference")  # the made-up world, made in data.root when it is missing
    sources: dict[str, SourceConf] = named()  # name -> what is trained on
    long_answers: str = choice("error", "cut")  # longer than host.max_tokens: stop, or cut (official)
    validation: dict[str, SourceConf] = named()  # name -> what is validated on, never trained on
