"""From the config's sources to the batches of a step."""

import json

import pytest

from mmadapter.config import RunConf, SourceConf
from mmadapter.errors import InputError
from mmadapter.training.sources import encode, micro_batches, read_samples
from tests.assistants import tiny_tokenizer


@pytest.fixture
def items(tmp_path):
    """An Alpaca file of twelve items."""
    content = [{"instruction": f"what is {number}", "input": "", "output": f"red {number}"} for number in range(12)]
    (tmp_path / "items.json").write_text(json.dumps(content))
    return tmp_path / "items.json"


def make_conf(path, **optimizer):
    conf = RunConf()
    conf.data.sources = {"items": SourceConf(reader="alpaca", path=str(path), split="train")}
    conf.data.validation = {"items": SourceConf(reader="alpaca", path=str(path), split="val")}
    for key, value in ({"batch_size": 4, "micro_batch_size": 2} | optimizer).items():
        setattr(conf.optimizer, key, value)
    return conf


def read(conf):
    return encode(conf, read_samples(conf), tiny_tokenizer(), 128)


def step_ids(data, step):
    return sorted(sample.id for batch in data.step_batches(step) for sample in batch.samples)


def test_turns_that_do_not_fit_are_said(tmp_path):
    said = [{"from": role, "value": f"{role} says what is red"} for role in ("human", "gpt") * 9]
    (tmp_path / "dialogs.json").write_text(json.dumps([{"conversations": said}, {"conversations": said[:2]}]))
    conf = make_conf(tmp_path / "dialogs.json", micro_batch_size=4)
    conf.data.sources["items"].reader = "sharegpt"
    conf.data.sources["items"].split = "all"
    conf.data.validation = {}
    data = read(conf)
    kept = max(len(item.spans) for item in data.encoded["items"])
    assert 1 <= kept < 9
    assert f"; {9 - kept} last turns of dialogs did not fit and were left out" in data.describe()


def test_a_step_holds_the_effective_batch_in_micro_batches(items):
    batches = read(make_conf(items)).step_batches(0)
    assert [len(batch.samples) for batch in batches] == [2, 2]
    assert {batch.source for batch in batches} == {"items"}


def test_a_step_holds_the_same_samples_however_it_is_split(items):
    one, other = read(make_conf(items)), read(make_conf(items, micro_batch_size=4))
    assert [step_ids(one, step) for step in range(5)] == [step_ids(other, step) for step in range(5)]


def test_an_epoch_holds_every_training_sample_once_and_no_validation_sample(items):
    data = read(make_conf(items))
    seen = [sample for step in range(data.steps_per_epoch) for sample in step_ids(data, step)]
    validated = [sample.id for batch in data.validation for sample in batch.samples]
    assert len(seen) == len(set(seen)) and len(seen) + len(validated) == 12 and not set(seen) & set(validated)
    assert f"items {len(seen)}" in data.describe() and f"validation samples: {len(validated)}" in data.describe()


def test_validation_on_the_training_split_is_refused(items):
    conf = make_conf(items)
    conf.data.validation["items"].split = "train"
    with pytest.raises(InputError, match=r"data.validation.items: .*items.json.* is trained on"):
        read(conf)


def test_a_source_without_a_place_is_refused_by_name(items):
    conf = make_conf(items)
    conf.data.sources["items"].path = None
    with pytest.raises(InputError, match=r"data.sources.items has no place to read from"):
        read(conf)


def test_no_source_at_all_is_refused():
    with pytest.raises(InputError, match=r"data.sources is empty"):
        read(RunConf())


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"micro_batch_size=5 does not divide optimizer.batch_size=64"):
        micro_batches(64, 5)


def test_the_runs_seed_chooses_the_one_caption_of_a_picture(tmp_path):
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
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    conf = RunConf()
    source = SourceConf(reader="coco_captions", root=str(tmp_path), captions_per_image="one", images=False)
    conf.data.sources = {"captions": source}

    def chosen(seed):
        conf.seed = seed
        return [sample.answer for sample in read_samples(conf).training["captions"]]

    assert chosen(0) == chosen(0) and len(chosen(0)) == 20
    assert chosen(0) != chosen(1)
