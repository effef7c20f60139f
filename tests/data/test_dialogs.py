"""LLaVA-Instruct's, ShareGPT's and official V2's readers: turns, pictures, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmadapter.data.readers.instructions import places_of_split
from mmadapter.data.templates import CHAT_SYSTEM
from mmadapter.errors import InputError
from tests.data.reading import read, read_llava, read_sharegpt, read_v2_instructions


def conversation(*texts: str, **fields) -> dict:
    """An item whose texts are said by human and gpt in turn."""
    said = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": "7", "conversations": said} | fields


def write(file: Path, items) -> Path:
    file.write_text(json.dumps(items))
    return file


def with_picture(folder: Path, name: str = "a.jpg") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / name)
    return name


def answers(sample) -> list[str]:
    return [segment.text for segment in sample.segments if segment.kind == "answer"]


class TestLlava:
    @pytest.mark.parametrize("first", ["<image>\nWho?", "Who?\n<image>", "<image> Who?", "Who?"])
    def test_turns_are_read_without_the_mark(self, tmp_path, first):
        image = with_picture(tmp_path)
        file = write(tmp_path / "l.json", [conversation(first, "A dog.", "Why?", "So.", image=image)])
        (sample,) = read_llava(file, training=True, split="all")
        assert answers(sample) == ["A dog.", "So."] and "<image>" not in sample.prompt
        assert "### Instruction:\nWho?\n\n### Response:A dog.\n\n### Instruction:\nWhy?" in sample.prompt
        assert sample.image == tmp_path / "a.jpg" and sample.where == "l.json, item 0"

    def test_for_evaluation_the_last_turn_is_to_be_answered(self, tmp_path):
        file = write(tmp_path / "l.json", [conversation("Who?", "A dog.", "Why?", "So.")])
        (sample,) = read_llava(file, training=False, split="all", template="chat")
        assert sample.answer is None and answers(sample) == [" A dog."]
        assert sample.prompt.startswith(CHAT_SYSTEM) and sample.prompt.endswith("### Human: Why?\n### Assistant:")
        assert sample.meta == {"instruction": "Why?", "input": "", "output": "So.", "references": ["So."]}

    def test_rows_with_and_without_pictures_stand_in_one_source(self, tmp_path):
        image = with_picture(tmp_path, "pictures/train2017/a.jpg")
        items = [conversation("<image>\nWho?", "A dog.", image="a.jpg"), conversation("Who?", "I.")]
        file = write(tmp_path / "l.json", items)
        settings = {"path": file, "split": "all", "source": "x", "training": True}
        samples = read("llava", tmp_path / "pictures", **settings)
        assert [sample.image for sample in samples] == [tmp_path / image, None]
        assert [sample.image for sample in read("llava", images=False, **settings)] == [None, None]

    def test_missing_pictures(self, tmp_path, caplog):
        items = [conversation("Who?", "I.", image="gone.jpg"), conversation("Who?", "You.")]
        file = write(tmp_path / "l.json", items)
        with pytest.raises(InputError, match="1 of 1 pictures are missing"):
            read_llava(file, training=True, split="all")
        assert len(read_llava(file, training=True, split="all", missing_image="skip")) == 1
        assert "left out" in caplog.text
        assert len(read_llava(file, training=True, split="all", missing_image="no_image")) == 2
        with pytest.raises(InputError, match="missing_image=black"):
            read_llava(file, training=True, missing_image="black")

    def test_dialogs_about_one_picture_stand_on_one_side(self, tmp_path):
        items = [conversation(f"Who {number}?", "I.", image=f"{number % 30}.jpg") for number in range(90)]
        file = write(tmp_path / "l.json", items)
        sides = [
            {int(sample.id) % 30 for sample in read_llava(file, training=True, split=split, images=False)}
            for split in ("train", "val")
        ]
        assert len(sides[1]) == 3 and not sides[0] & sides[1] and len(sides[0]) == 27

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            (conversation("<image> a <image>", "b", image="a.jpg"), "item 1: <image> stands 2 times"),
            (conversation("<image> a", "b", "<image> c", "d", image="a.jpg"), "item 1: <image> stands 2 times"),
            (conversation("a <image> b", "c", image="a.jpg"), "<image> must stand first or last in the first human"),
            (conversation("a", "<image>", image="a.jpg"), "<image> must stand first or last in the first human"),
            (conversation("<image>\na", "b"), "names no `image`"),
            (conversation("a", "b", image=7), "`image` is int '7'; it must be a file name"),
            ({"id": "1"}, "the field `conversations` is missing"),
            ({"conversations": {"from": "human"}}, "`conversations` is dict"),
            ({"conversations": ["a"]}, r"conversations\[0\]: expected an object, got str"),
            ({"conversations": [{"from": "human", "value": None}]}, r"conversations\[0\]: `value` is null"),
            ({"conversations": [{"value": "a"}]}, r"conversations\[0\]: the field `from` is missing"),
            ([], "item 1: expected an object, got list"),
        ],
    )
    def test_bad_items_are_named(self, tmp_path, item, message):
        file = write(tmp_path / "l.json", [conversation("a", "b"), item])
        with pytest.raises(InputError, match=message):
            read_llava(file, training=True, split="all", images=False)

    def test_a_cut_off_file_is_told_with_its_last_whole_item(self, tmp_path):
        whole = json.dumps([conversation("a", "b"), conversation("c", "d")])
        (tmp_path / "l.json").write_text(whole[:-30])
        with pytest.raises(InputError, match=r"l\.json: the JSON ends too early at.*last whole entry is \[0\]"):
            read_llava(tmp_path / "l.json", training=True)


class TestShareGpt:
    @pytest.mark.parametrize(
        ("item", "reason"),
        [
            ({"conversations": [{"from": "tool", "value": "Be."}]}, "another role than human and gpt: 1"),
            ({"conversations": [{"from": "system", "value": "Be."}]}, "no answered turn: 1"),
            ({"conversations": [{"from": "gpt", "value": "Hi."}]}, "starts with gpt: 1"),
            ({"conversations": [{"from": "human", "value": "a"}] * 2}, "human and gpt do not alternate: 1"),
            (conversation("a", " \n"), "empty turn: 1"),
            (conversation("", "a"), "empty turn: 1"),
            (conversation("a"), "no answered turn: 1"),
            (conversation(), "no answered turn: 1"),
        ],
    )
    def test_what_cannot_be_used_is_left_out_with_reason_and_count(self, tmp_path, caplog, item, reason):
        file = write(tmp_path / "s.json", [item, conversation("a", "b")])
        (sample,) = read_sharegpt(file, training=True, split="all")
        assert sample.id == "1" and f"{reason}, the first: s.json, item 0; they are left out" in caplog.text

    def test_a_last_question_without_answer_is_left_out_and_counted(self, tmp_path, caplog):
        file = write(tmp_path / "s.json", [conversation("a", "b", "c")])
        (sample,) = read_sharegpt(file, training=True, split="all")
        assert answers(sample) == [" b"] and "1 dialogs end with a question" in caplog.text

    def test_the_system_line_is_a_setting(self, tmp_path):
        file = write(tmp_path / "s.json", [conversation("a", "b")])
        settings = {"path": file, "split": "all", "source": "x", "training": True}
        assert read("sharegpt", system="Be kind.", **settings)[0].prompt.startswith("Be kind.\n\n### Human: a\n")
        assert read("sharegpt", system="", **settings)[0].prompt.startswith("\n### Human: a\n")
        assert read("sharegpt", **settings)[0].prompt.startswith(CHAT_SYSTEM)
        with pytest.raises(InputError, match="template=plain has place for only one turn"):
            read(
                "sharegpt",
                template="plain",
                **{**settings, "path": write(tmp_path / "t.json", [conversation(*"abcd")])},
            )
        with pytest.raises(InputError, match="template=plain has no place for a system text"):
            read("sharegpt", template="plain", system="Be kind.", **settings)

    def test_a_system_turn_a_system_field_and_other_names_of_the_roles_are_read(self, tmp_path):
        turns = [{"from": "system", "value": "Be kind."}, *conversation("a", "b")["conversations"]]
        users = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        items = [{"conversations": turns}, conversation("a", "b", system="Be kind."), {"conversations": users}]
        samples = read_sharegpt(write(tmp_path / "s.json", items), training=True, split="all", template="chat")
        assert samples[0].prompt == samples[1].prompt and samples[0].prompt.startswith("Be kind.\n\n### Human: a\n")
        assert answers(samples[2]) == [" b"] and samples[2].prompt.startswith(CHAT_SYSTEM)

    def test_what_the_reader_does_not_use_is_told(self, tmp_path, caplog):
        items = [conversation("a", "b", image="a.png", model="x"), conversation("c", "d", tools=["f"])]
        file = write(tmp_path / "s.json", items)
        with pytest.raises(InputError, match=r"items with `tools` .*: 1, the first: s.json, item 1.* set on_bad=skip"):
            read_sharegpt(file, training=True, split="all")
        assert len(read_sharegpt(file, training=True, split="all", on_bad="skip")) == 1
        assert "these fields are not used: `model` (1 items, the first: item " in caplog.text
        assert "1 items have a picture, which reader=sharegpt leaves out. Set reader=own" in caplog.text
        assert len(read_sharegpt(file, training=True, split="all", ignore=["tools"])) == 2

    def test_dialogs_that_all_begin_alike_are_split_by_the_whole_item(self, tmp_path):
        file = write(tmp_path / "s.json", [conversation("Hello", "Hi", f"{n}?", "x") for n in range(30)])
        assert [len(read_sharegpt(file, training=True, split=split)) for split in ("train", "val")] == [27, 3]


class TestV2Lists:
    def test_all_listed_files_are_one_source(self, tmp_path):
        image = with_picture(tmp_path)
        write(tmp_path / "l.json", [conversation("<image>\nWho?", "A dog.", "Why?", "So.", image=image)])
        items = [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "x", "output": ""}]
        write(tmp_path / "a.json", items)
        (tmp_path / "data.yaml").write_text("META:\n  - a.json\n  - l.json\n")
        samples = read("v2_instructions", tmp_path, path="data.yaml", split="all", source="x", training=True)
        assert [sample.id for sample in samples] == ["a-0", "l-0"]
        assert samples[0].image is None and "### Input:\n1 2" in samples[0].prompt and samples[0].answer == "3"
        assert samples[1].image == tmp_path / image and answers(samples[1]) == ["A dog.", "So."]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("META: [gone.json]", r"META\[0\]: there is no file gone.json. Looked at"),
            ("META: [a.json, a.json]", r"META\[1\]: a.json stands there twice"),
            ("META: []", "expected `META:` with a list of files"),
            ("META: [{root: a}]", r"META\[0\]: expected a path, or an object with `path`"),
            ("- a.json", "expected `META:`"),
            ("META: [a.json", "this is no YAML"),
        ],
    )
    def test_bad_lists_are_refused(self, tmp_path, content, message):
        write(tmp_path / "a.json", [{"instruction": "a", "output": "b"}])
        (tmp_path / "data.yaml").write_text(content)
        with pytest.raises(InputError, match=message):
            read_v2_instructions(tmp_path / "data.yaml", training=True)
        with pytest.raises(InputError, match=r"no\.yaml: no such file or folder"):
            read_v2_instructions(tmp_path / "no.yaml", training=True)


def test_the_limit_counts_the_samples_of_the_split(tmp_path):
    file = write(tmp_path / "s.json", [conversation(f"a {number}", "b") for number in range(30)])
    everything = read_sharegpt(file, training=True, split="train")
    assert read_sharegpt(file, training=True, split="train", limit=5) == everything[:5]


def test_splits_share_out_every_key_once():
    keys = [(str(number % 50), "") for number in range(200)]
    train, val = (places_of_split(keys, split, 3) for split in ("train", "val"))
    assert sorted(train + val) == places_of_split(keys, "all", 3) == list(range(200))
    assert {keys[place] for place in train}.isdisjoint(keys[place] for place in val) and len(val) == 12
