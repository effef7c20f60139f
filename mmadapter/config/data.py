"""conf/data: which files are read, and how their samples are mixed."""

from dataclasses import dataclass

from mmadapter.config.fields import choice, input_path, named, number

# mmadapter.data.READERS (not imported: it needs torch)
READERS = ("scienceqa", "alpaca", "coco_captions", "llava", "sharegpt", "v2_instructions")


@dataclass
class ReadingConf:
    reader: str = ""  # of READERS
    root: str | None = input_path()  # folder to read; null = data.root
    path: str | None = input_path()  # a single file instead of a folder (alpaca, llava, sharegpt, v2_instructions)
    split: str = "train"  # train, val, test; scienceqa has minitrain, ... too; alpaca: train, val
    limit: int | None = number(None, at_least=1)  # samples, the first ones of the split; null = all
    prompt_format: str | None = None  # scienceqa: QCM-A, QCM-LEA, QCM-ALE, CQM-A, ...; paper: QCM-A
    captions: str | None = input_path()  # scienceqa: captions.json, put into the context; paper: none
    template: str | None = choice(None, "alpaca", "plain", "chat")  # plain: coco_captions; chat: dialogs; null = usual
    system: str | None = None  # llava, sharegpt: the chat template's first line; null = a line of ours, "" = none
    images: bool = True  # false = the pictures are left out (text only)
    missing_image: str = choice("error", "skip", "no_image")  # a missing picture: stop, skip the sample, go without
    problems: str | None = input_path()  # scienceqa: another problems.json than root's
    pid_splits: str | None = input_path()  # scienceqa: another pid_splits.json than root's


@dataclass
class SourceConf(ReadingConf):
    weight: float | None = number(None, above=0)  # share of the samples drawn; null = every sample once an epoch


@dataclass
class DataConf:
    root: str | None = input_path()  # folder that sources without a root of their own are read from
    made: str | None = choice(None, "shapes")  # shapes = the made-up world; made in data.root when it is missing
    sources: dict[str, SourceConf] = named()  # name -> what is trained on
    long_answers: str = choice("error", "cut")  # longer than host.max_tokens: stop, or cut (official)
    validation: dict[str, SourceConf] = named()  # name -> what is validated on, never trained on
