"""From the config's sources to the batches of a step."""

import json

import pytest

from mmadapter.data.mixture import StepShape
from mmadapter.data.settings import AlpacaSettings, CocoSettings, DataConf, SharegptSettings
from mmadapter.data.tokens import SampleEncoder
from mmadapter.data.training import RunData, read_samples
from mmadapter.errors import InputError
from mmadapter.settings import problems_of
from tests.models import tiny_tokenizer


@pytest.fixture
def items(tmp_path):
    """An Alpaca file of twelve items."""
    content = [{"instruction": f"what is {number}", "input": "", "output": f"red {number}"} for number in range(12)]
    (tmp_path / "items.json").write_text(json.dumps(content))
    return tmp_path / "items.json"


def alpaca(path) -> DataConf:
    return DataConf(
        sources={"items": AlpacaSettings(path=str(path))},
        validation={"items": AlpacaSettings(path=str(path), split="val")},
    )


def read(conf: DataConf, micro_batch_size: int = 2, images: bool = False) -> RunData:
    samples, encoder = read_samples(conf, images=images, seed=0), SampleEncoder(tiny_tokenizer(), 128)
    return RunData(conf, samples, encoder, StepShape(4, micro_batch_size, seed=0), {})


def step_ids(data, step):
    return sorted(sample.id for batch in data.step_batches(step) for sample in batch.samples)


def test_turns_that_do_not_fit_are_said(tmp_path):
    said = [{"from": role, "value": f"{role} says what is red"} for role in ("human", "gpt") * 9]
    (tmp_path / "dialogs.json").write_text(json.dumps([{"conversations": said}, {"conversations": said[:2]}]))
    source = SharegptSettings(path=str(tmp_path / "dialogs.json"), split="all")
    data = read(DataConf(sources={"items": source}), micro_batch_size=4)
    kept = max(len(item.spans) for item in data.encoded["items"])
    assert 1 <= kept < 9
    assert f"; {9 - kept} last turns of dialogs did not fit and were left out" in data.describe()


def test_a_step_holds_the_effective_batch_in_micro_batches(items):
    batches = read(alpaca(items)).step_batches(0)
    assert [len(batch.samples) for batch in batches] == [2, 2]
    assert {batch.source for batch in batches} == {"items"}


def test_a_step_holds_the_same_samples_however_it_is_split(items):
    one, other = read(alpaca(items)), read(alpaca(items), micro_batch_size=4)
    assert [step_ids(one, step) for step in range(5)] == [step_ids(other, step) for step in range(5)]


def test_an_epoch_holds_every_training_sample_once_and_no_validation_sample(items):
    data = read(alpaca(items))
    seen = [sample for step in range(data.steps_per_epoch) for sample in step_ids(data, step)]
    validated = [sample.id for batch in data.validation for sample in batch.samples]
    assert len(seen) == len(set(seen)) and len(seen) + len(validated) == 12 and not set(seen) & set(validated)
    assert f"items {len(seen)}" in data.describe() and f"validation samples: {len(validated)}" in data.describe()


def test_validation_on_the_training_split_is_refused(items):
    conf = alpaca(items)
    conf.validation["items"].split = "train"
    with pytest.raises(InputError, match=r"data.validation.items: .*items.json.* is trained on"):
        read(conf)


def test_a_source_without_a_place_is_refused_by_name(items):
    conf = alpaca(items)
    conf.sources["items"].path = None
    with pytest.raises(InputError, match=r"data.sources.items has nothing to read. Set data.sources.items.path=FILE"):
        read(conf)


def test_a_place_that_is_not_there_is_refused_by_its_key(items):
    conf = alpaca(items)
    conf.validation["items"].path = "/no/items.json"
    with pytest.raises(InputError, match=r"data.validation.items.path=/no/items.json: no such file or folder \(/ is"):
        read(conf)


def test_no_source_at_all_is_refused():
    assert "data.sources is empty: there is nothing to train on" in next(problems_of(DataConf(), "data"))


def test_more_ranks_than_samples_in_a_step_are_refused():
    assert StepShape(4, 2, seed=0, rank=3, world_size=4).world_size == 4
    with pytest.raises(InputError, match=r"optimizer.batch_size=4 is shared out over 5 processes.*Start at most 4"):
        StepShape(4, 2, seed=0, world_size=5)


def test_ranks_share_every_step_and_the_validation(items):
    samples, encoder = read_samples(alpaca(items), images=False, seed=0), SampleEncoder(tiny_tokenizer(), 128)
    ranks = [RunData(alpaca(items), samples, encoder, StepShape(4, 2, 0, rank, 2), {}) for rank in (0, 1)]
    alone = read(alpaca(items))
    assert all(sorted(step_ids(ranks[0], n) + step_ids(ranks[1], n)) == step_ids(alone, n) for n in range(3))
    assert ranks[0].digests == ranks[1].digests == alone.digests and ranks[0].describe() == alone.describe()


def write_coco(folder):
    """Twenty pictures with five captions each."""
    images = [
        {
            "filepath": "",
            "filename": f"{number}.jpg",
            "cocoid": number,
            "split": "train",
            "sentences": [{"raw": f"caption {which} of {number}", "sentid": 5 * number + which} for which in range(5)],
        }
        for number in range(20)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    for image in images:
        (folder / image["filename"]).touch()


def test_the_runs_seed_chooses_the_one_caption_of_a_picture(tmp_path):
    write_coco(tmp_path)
    conf = DataConf(sources={"captions": CocoSettings(captions_per_image="one")}, root=str(tmp_path))

    def chosen(seed):
        return [sample.answer for sample in read_samples(conf, images=False, seed=seed).training["captions"]]

    assert chosen(0) == chosen(0) and len(chosen(0)) == 20
    assert chosen(0) != chosen(1)


def test_captions_together_bring_the_same_samples_and_few_pictures_a_step(tmp_path):
    write_coco(tmp_path)

    def steps(together):
        source = CocoSettings(captions_per_image="together" if together else "all")
        data = read(DataConf(sources={"captions": source}, root=str(tmp_path)), images=True)
        return [[one for batch in data.mixture.step_batches(step) for one in batch.samples] for step in range(25)]

    alone, together = steps(False), steps(True)
    assert sorted(one.answer for step in alone for one in step) == sorted(
        one.answer for step in together for one in step
    )
    pictures = [[len({one.image for one in step}) for step in steps] for steps in (alone, together)]
    assert sum(pictures[1]) <= 45 and sum(pictures[0]) > 80
