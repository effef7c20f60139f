"""evaluate(): answers and option likelihoods of a model into predictions.jsonl and metrics.json."""

import json

import pytest
import torch

from mmadapter.data.batches import batches_by_length
from mmadapter.data.samples import ANSWER, Segment
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.tasks import task_of
from mmadapter.tasks.asking import most_likely_options
from mmadapter.tasks.settings import CocoCaptionTaskSettings, ScienceqaTaskSettings
from mmadapter.tasks.task import evaluate
from tests.data.small_files import problem, write_karpathy, write_scienceqa
from tests.models import model_on
from tests.tasks.asked import StandIn, evaluated, rows_of


class Parrot(StandIn):
    """Says what it is told for a question, and finds one letter of each likely."""

    def __init__(self, says, likes=None):
        super().__init__()
        self.says, self.likes = says, likes or {}
        self.max_tokens, self.training = 200, True
        self.batches = []

    def answer(self, samples, settings, seed=None, features=None, visual=None, at_once=None):
        assert not self.training and settings.temperature == 0
        self.batches.append([len(sample.prompt) for sample in samples])
        return [self.says[sample.id] for sample in samples]

    def log_likelihood(self, batch):
        return torch.tensor([
            0.0 if f" {self.likes.get(sample.id, 'A')}." in sample.answer else -1.0 for sample in batch.samples
        ])  # fmt: skip


def task(root, **changes):
    return ScienceqaTaskSettings(**{"root": str(root), "batch_size": 2, **changes})


@pytest.fixture
def root(tmp_path):
    problems = {
        "5": problem(split="test", image="image.png", hint="Look."),
        "6": problem(split="test", grade="grade12", subject="language science", answer=1),
        "7": problem(split="test", question="A much longer question, " * 9, choices=["x", "y", "z"], answer=2),
    }
    return write_scienceqa(tmp_path / "data", problems)


def test_answers_are_parsed_scored_and_written(root, tmp_path):
    parrot = Parrot({"5": "The answer is A.", "6": "hm", "7": "C"}, likes={"6": "B", "7": "C"})
    told = []
    metrics = evaluated(parrot, task(root), tmp_path / "out", lambda *what: told.append(what))
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy"]["Avg"] == 66.67 and metrics["accuracy"]["LAN"] == 0.0
    assert metrics["likelihood_accuracy"]["Avg"] == 100.0
    assert metrics["unanswered"] == 1 and metrics["coverage"] == {"scored": 3, "split": 3, "complete": True}
    first, second, _ = rows_of(tmp_path / "out")
    assert first["prediction"] == 0 and first["correct"] and first["image"].endswith("image.png")
    assert first["prompt"].endswith("Answer:") and first["hint"] == "Look."
    assert second["prediction"] is None and second["likelihood_prediction"] == 1 and not second["correct"]
    assert ("answers", 3, 3) in told and ("option likelihoods", 7, 7) in told
    assert parrot.training  # as it was before


def test_the_results_come_back_as_they_were_written(root, tmp_path):
    asked = task_of(task(root, likelihood=False))
    scored = evaluate(Parrot({"5": "A", "6": "B", "7": "C"}), asked, asked.read(), tmp_path, Ranks())
    assert scored.rows == rows_of(tmp_path) and len(scored.rows) == 3
    assert scored.metrics == json.loads((tmp_path / "metrics.json").read_text())


def test_batches_hold_similar_lengths_and_outputs_keep_their_order(root, tmp_path):
    parrot = Parrot({"5": "A", "6": "A", "7": "A"})
    evaluated(parrot, task(root, likelihood=False), tmp_path)
    lengths = [length for batch in parrot.batches for length in batch]
    assert lengths == sorted(lengths, reverse=True) and [len(batch) for batch in parrot.batches] == [2, 1]
    assert [row["id"] for row in rows_of(tmp_path)] == ["5", "6", "7"]
    assert [list(batch) for batch in batches_by_length([3, 9, 3], 2)] == [[1, 0], [2]]


def test_a_limit_makes_it_a_subset(root, tmp_path):
    limited = task(root, limit=1)
    metrics = evaluated(Parrot({"5": "A"}), limited, tmp_path)
    assert metrics["coverage"] == {"scored": 1, "split": 3, "complete": False}
    assert metrics["label"].startswith("subset: 1 of the 3")


def test_the_random_fallback_is_labelled_and_kept_apart(root, tmp_path):
    guessing = task(root, fallback="random", seed=4)
    metrics = evaluated(Parrot({"5": "", "6": "", "7": "C"}), guessing, tmp_path)
    assert metrics["fallback"] == "random, seed 4" and metrics["guessed"] == metrics["unanswered"] == 2
    rows = rows_of(tmp_path)
    assert [row["prediction"] for row in rows] == [None, None, 2]
    assert sum(row["correct"] for row in rows) == metrics["correct"]["Avg"]


def test_what_was_written_can_be_scored_again_without_the_model(root, tmp_path):
    evaluated(Parrot({"5": "A", "6": "", "7": "B"}), task(root), tmp_path / "out")
    again = task_of(task(root)).score_file(tmp_path / "out" / "predictions.jsonl")
    assert {row["id"]: row["prediction"] for row in again.rows} == {"5": 0, "6": None, "7": 1}
    assert again.metrics["accuracy"]["Avg"] == 33.33


def test_the_first_of_equally_likely_options_is_taken(root):
    class Undecided(Parrot):
        def log_likelihood(self, batch):
            return torch.zeros(len(batch.samples))

    samples = task_of(task(root)).read()
    options = [[(Segment(text, ANSWER),) for text in (" yes", " no", " perhaps")]] * len(samples)
    assert most_likely_options(Undecided({}), samples, options, task(root), Ranks()) == [0, 0, 0]


def test_captions_are_written_in_the_coco_results_format(tmp_path):
    root = write_karpathy(tmp_path / "coco")
    captions = CocoCaptionTaskSettings(root=str(root))
    samples = task_of(captions).read()
    says = {sample.id: " a dog\r\non\u2028a\x0bhill " for sample in samples}
    metrics = evaluated(Parrot(says), captions, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert [result["caption"] for result in results] == ["a dog on a hill"] * len(samples)
    assert {result["image_id"] for result in results} == {sample.meta["image_id"] for sample in samples}
    assert metrics["images"] == len(samples) and "accuracy" not in metrics
    assert rows_of(tmp_path / "out")[0]["references"]


def test_an_unknown_task_and_an_empty_one_are_refused(root, tmp_path):
    with pytest.raises(InputError, match="There is no task 'vqa'. Registered tasks: scienceqa, coco_caption"):
        task_of(task(root, name="vqa"))
    with pytest.raises(InputError, match="no sample"):
        evaluate(Parrot({}), task_of(task(root)), [], tmp_path, Ranks())


def test_a_whole_model_answers_and_does_not_depend_on_the_batch(root, tmp_path):
    model = model_on()
    rows = []
    for size in (1, 3):
        wanted = task(root, batch_size=size)
        wanted.generation.max_new_tokens = 4
        evaluated(model, wanted, tmp_path / str(size))
        rows.append(rows_of(tmp_path / str(size)))
    assert rows[0] == rows[1] and len(rows[0]) == 3


def test_a_place_that_cannot_be_written_to_shows_before_the_first_question_is_asked(root, tmp_path):
    (tmp_path / "file").write_text("")
    parrot = Parrot({})
    with pytest.raises(OSError):
        evaluated(parrot, task(root), tmp_path / "file")
    assert parrot.batches == []


def test_prompts_that_are_cut_are_counted(root, tmp_path):
    parrot = Parrot({"5": "The answer is A.", "6": "B", "7": "C"})
    samples = task_of(task(root)).read()
    lengths = sorted(len(sample.prompt.encode()) + 1 for sample in samples)
    assert lengths[-1] > lengths[-2] + 20, "one question is by far the longest"
    parrot.max_tokens = lengths[-2] + 10 + 64
    metrics = evaluated(parrot, task(root, likelihood=False), tmp_path / "out")
    assert metrics["cut_prompts"] == 1 == json.loads((tmp_path / "out" / "metrics.json").read_text())["cut_prompts"]


def test_an_answer_length_that_leaves_no_room_for_a_prompt_is_refused(root, tmp_path):
    parrot = Parrot({})
    parrot.max_tokens = 64
    with pytest.raises(InputError, match=r"max_new_tokens=64 leaves no room for a prompt in host\.max_tokens=64"):
        evaluated(parrot, task(root), tmp_path / "out")
    assert parrot.batches == []
