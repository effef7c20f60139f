"""A few samples looked at closely: with another picture, with parts hidden, and what early fusion attends to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat

from mmadapter.hosts.settings import GenerationConf
from mmadapter.tasks.pictures import GRID, attention_to_tokens, looked_at, when_hidden, with_another_picture
from mmadapter.tasks.settings import InstructTaskSettings
from tests.models import batch_of, model_on, picture, sample

SETTINGS = InstructTaskSettings(generation=GenerationConf(max_new_tokens=4), looked_at=2, batch_size=7)


def asked(folder, numbers=(1, 2, 3)):
    samples = [sample("what colour is the circle", None, picture(folder, number), id=str(number)) for number in numbers]
    return [replace(one, meta={"instruction": "what colour", "output": word}) for one, word in
            zip(samples, ("red", "blue", "red"), strict=False)]  # fmt: skip


@pytest.mark.parametrize("name", ["llama_gqa", "v2 llama_gqa"])
def test_a_hidden_square_changes_the_likelihood_as_that_picture_itself_does(name, tmp_path):
    model = model_on(name)
    own = sample("what colour is the circle", "red", picture(tmp_path, 1))
    changes = when_hidden(model, own, 7)
    assert [len(row) for row in changes] == [GRID] * GRID
    shown = Image.open(own.image)
    hidden = shown.copy()  # 40 pixels, squares of 5, two of which are hidden around the one in row 3, column 2
    colour = tuple(round(value) for value in ImageStat.Stat(shown).mean)
    hidden.paste(colour, (round(1.5 * 5), round(2.5 * 5), round(3.5 * 5), round(4.5 * 5)))
    hidden.save(tmp_path / "hidden.png")
    rows = [own, replace(own, image=tmp_path / "hidden.png")]
    whole, covered = (model.log_likelihood(batch_of(model, [one])).item() for one in rows)
    assert changes[3][2] == pytest.approx(covered - whole, abs=1e-4) and changes[3][2] != 0


def test_the_attention_is_that_of_the_early_branch(tmp_path):
    model = model_on("v2 llama_gqa")
    own = sample("what colour is the circle", "red", picture(tmp_path, 1))
    (told,) = attention_to_tokens(model, own)
    assert len(told) == 3 and sum(told) == pytest.approx(1, abs=1e-4)
    part = next(iter(model.adapter["early_fusion"].values()))
    seen = {}

    def keep(_, inputs, output):
        seen["base"], seen["inputs"], seen["output"] = inputs[0](inputs[1])[0], inputs[1], output[0]
        seen["attention"] = part.attention_to(inputs[1])
        seen["values"] = inputs[1].project(inputs[1].call.visual.tokens, part.through)[1]

    handle, batch = part.register_forward_hook(keep), batch_of(model, [own])
    model.log_likelihood(batch)
    handle.remove()
    values = seen["values"].repeat_interleave(seen["attention"].shape[1] // seen["values"].shape[1], dim=1)
    branch = (seen["attention"] @ values) * part.gate_values()[:, None, None]
    assert torch.allclose(seen["output"] - seen["base"], branch.transpose(1, 2), atol=1e-5)
    mean = seen["attention"].mean(1)[0][batch.rows].mean(0)
    assert told == pytest.approx(mean.tolist(), abs=1e-5)
    assert attention_to_tokens(model_on("llama_gqa"), own) is None


def test_another_picture_is_one_of_the_same_question_with_another_answer(tmp_path):
    first, second, third = asked(tmp_path)
    other = with_another_picture(first, [first, second, third], seed=0)
    assert other.image == second.image and other.meta["truth"] == "blue" and other.segments == first.segments
    unlike = replace(third, meta={"instruction": "what is on the left", "output": "green"})
    other = with_another_picture(first, [first, unlike], seed=0)
    assert other.image == unlike.image and "truth" not in other.meta, "nobody knows the truth of another question"
    assert with_another_picture(first, [first, replace(first, id="9")], seed=0) is None


def test_a_few_samples_are_looked_at_as_often_as_asked_for_and_no_random_number_moves(tmp_path):
    model, samples = model_on("llama_gqa"), asked(tmp_path)
    answers = ["red", "", "blue"]
    before = torch.get_rng_state()
    found = looked_at(model, samples, answers, SETTINGS)
    assert torch.equal(before, torch.get_rng_state()) and found == looked_at(model, samples, answers, SETTINGS)
    assert len(found) == 2
    for one in found:
        own = next(sample for sample in samples if sample.id == one["id"])
        assert one["image"] == str(own.image) and one["answer"] == answers[samples.index(own)]
        other = replace(own, image=Path(one["other"]["image"]))
        assert other.image != own.image
        features = model.features.of([other.image])
        assert one["other"]["answer"] == model.answer([other], SETTINGS.generation, seed=0, features=features)[0]
        assert ("hidden" in one) == bool(one["answer"]), "an empty answer rests on nothing"
    assert looked_at(model, samples, answers, replace(SETTINGS, looked_at=0)) == []
    assert looked_at(model_on("llama_gqa", images=False), samples, answers, SETTINGS) == []
