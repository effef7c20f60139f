"""conf/task: one evaluation: what is read, how it is generated, how it is scored."""

from dataclasses import dataclass, field

from mmadapter.config.data import ReadingConf
from mmadapter.hosts.settings import GenerationConf
from mmadapter.settings import choice, input_path, number

TASKS = ("scienceqa", "coco_caption", "instruct", "visual_instruct")


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
