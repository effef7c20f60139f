"""conf/task: one evaluation: what is read, how it is generated, how it is scored."""

from dataclasses import dataclass, field, fields

from mmadapter.data.settings import READERS, ReaderSettings
from mmadapter.settings import choice, field_types, input_path, number

TASKS = ("scienceqa", "coco_caption", "instruct", "visual_instruct")


@dataclass
class GenerationConf:
    max_new_tokens: int = number(64, at_least=1)  # tokens of the answer
    temperature: float = number(0.0, at_least=0)  # 0 = greedy (ScienceQA); paper: 0.1 for instructions
    top_p: float = number(1.0, above=0, at_most=1)  # nucleus; paper: 0.75 for instructions
    beams: int = number(1, at_least=1)  # 1 = no beam search


@dataclass
class ReadingConf:
    """The keys of all readers at once: until each task has a settings class of its own."""

    reader: str = ""
    root: str | None = input_path()
    path: str | None = input_path()
    split: str = "train"
    limit: int | None = number(None, at_least=1)
    prompt_format: str | None = None
    captions: str | None = input_path()
    template: str | None = choice(None, "alpaca", "plain", "chat")
    system: str | None = None
    instruction: str | None = choice(None, "own", "caption")
    captions_per_image: str | None = choice(None, "all", "one")
    split_lists: str | None = input_path()
    on_bad: str | None = choice(None, "error", "skip")
    images: bool = True
    missing_image: str = choice("error", "skip", "no_image")
    problems: str | None = input_path()
    pid_splits: str | None = input_path()

    def as_reader(self) -> ReaderSettings:
        """The settings of the reader that is named."""
        schema = READERS.settings(self.reader)
        return schema(
            **{
                f.name: getattr(self, f.name)
                for f in fields(ReadingConf)
                if getattr(self, f.name) is not None and (f.name in field_types(schema))
            }
        )


@dataclass
class TaskConf(ReadingConf):
    name: str = ""  # of TASKS; the results go to RUN/eval/NAME
    split: str = "test"  # what is scored
    generation: GenerationConf = field(default_factory=GenerationConf)
    # with temperature > 0 it decides, as the seed does, which words are drawn
    batch_size: int = number(32, at_least=1, influence=False)  # samples generated at a time
    likelihood: bool = True  # also score by the most likely option (scienceqa)
    fallback: str = choice("none", "random")  # unanswered = wrong; random = guessed, to compare with old tables
    seed: int = number(0, at_least=0)  # of sampling and of the random fallback
    attach_images: str | None = input_path()  # folder; every sample without a picture gets one of it, by its id
    annotations: str | None = input_path()  # coco_caption with predictions=: captions_*.json or dataset_coco.json
    split_list: str | None = input_path()  # coco_caption: the images that count, e.g. karpathy_test_images.txt
    allow_subset: bool = False  # coco_caption: score a part of the images too, labelled so; false = one caption each
    java_metrics: bool = False  # coco_caption: METEOR and SPICE too (slow), where Java and their files are there
    predictions_from: str = choice("results", "outputs")  # of a file with both: its indices, or its texts parsed anew
