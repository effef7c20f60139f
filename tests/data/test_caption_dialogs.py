"""LLaVA's pre-training captions: the question is the instruction, the answer the caption."""

from __future__ import annotations

import pytest

from mmadapter.errors import InputError
from tests.data.reading import read_llava_pretrain
from tests.data.small_captions import dialog, write_dialogs, write_json


def test_the_question_is_the_instruction_without_its_mark(tmp_path):
    samples = read_llava_pretrain(write_dialogs(tmp_path), training=True)
    assert [sample.segments[1].text for sample in samples] == ["What is this?", "Describe it."]
    assert samples[0].answer == "a red square" and samples[0].where == "chat.json, item 0 (id 000000001), caption 1"
    assert samples[0].image == tmp_path / "images/00000/000000001.jpg"


def test_the_caption_instruction_instead(tmp_path):
    write_dialogs(tmp_path)
    for template, prompt in (("alpaca", "Generate caption of this image\n"), ("plain", "Generate caption of this im")):
        settings = {"training": True, "instruction": "caption", "template": template}
        samples = read_llava_pretrain(tmp_path, **settings)
        assert len(samples) == 2 and all(prompt in sample.prompt for sample in samples)
    with pytest.raises(InputError, match="template=plain asks one fixed question"):
        read_llava_pretrain(tmp_path, training=True, template="plain")


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (dialog(3, "What is this?"), "whose human turn has not <image> once.*item 2: id 000000003: .* 0 times"),
        (dialog(3, "<image> or <image>?"), "it stands there 2 times"),
        (dialog(3, caption="<image>"), "it stands there 2 times"),
        (dialog(3, "<image>\n"), "asks nothing beside <image>"),
        (dialog(1), "id 000000001 stands there twice"),
        (dialog(3) | {"conversations": dialog(3)["conversations"] * 2}, "turns are human, gpt, human, gpt"),
        (dialog(3) | {"conversations": [{"from": "system", "value": "x"}]}, "the turns are system"),
        (dialog(3) | {"conversations": []}, "the turns are none"),
        ({"id": "3", "conversations": []}, "the field `image` is missing"),
        ("text", "expected an object"),
    ],
)
def test_items_that_cannot_be_used(tmp_path, caplog, item, told):
    write_dialogs(tmp_path, [dialog(1), dialog(2), item])
    with pytest.raises(InputError, match=told):
        read_llava_pretrain(tmp_path, training=True)
    assert len(read_llava_pretrain(tmp_path, training=True, on_bad="skip")) == 2
    assert ": 1, the first: chat.json" in caplog.text and "they are left out" in caplog.text


def test_an_empty_caption_is_left_out_with_a_count(tmp_path, caplog):
    write_dialogs(tmp_path, [dialog(1), dialog(2, caption=" \n")])
    assert len(read_llava_pretrain(tmp_path, training=True)) == 1
    assert "empty captions: 1, the first: chat.json, item 1 (id 000000002)" in caplog.text


def test_other_files(tmp_path):
    write_dialogs(tmp_path)
    write_json(tmp_path / "other.json", {})
    with pytest.raises(InputError, match="found chat.json, other.json. Name the file with `path`"):
        read_llava_pretrain(tmp_path, training=True)
    with pytest.raises(InputError, match="expected a list of .*got dict"):
        read_llava_pretrain(tmp_path, training=True, path="other.json")
    with pytest.raises(InputError, match="instruction=none: allowed are own, caption"):
        read_llava_pretrain(tmp_path, training=True, instruction="none", path="chat.json")
