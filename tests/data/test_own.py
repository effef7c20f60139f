"""The reader of one's own data: every layout with its values, splits, pictures, and what is said of unused fields."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmadapter.data.readers.own import Layout, own_data
from mmadapter.data.settings import LAYOUTS, OwnSettings
from mmadapter.errors import InputError
from tests.data.reading import read


def own(path: Path, split: str = "all", training: bool = True, **settings: Any):
    return read("own", path, training=training, split=split, **settings)


def recognised(path: Path) -> Layout:
    return own_data(OwnSettings(path=str(path))).layout


def write(file: Path, content: Any, encoding: str = "utf-8") -> Path:
    """JSON, JSON lines, or a text as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        content = "\n".join(json.dumps(one, ensure_ascii=False) for one in content)
    elif not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    file.write_bytes(content.encode(encoding))
    return file


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(file)
    return file


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def messages(*texts: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def answers(sample) -> list[str]:
    return [segment.text.strip() for segment in sample.segments if segment.kind == "answer"]


class TestLayouts:
    def test_alpaca_with_system_and_history(self, tmp_path):
        item = {
            "instruction": "Add one.",
            "input": "2",
            "output": "3",
            "system": "Be brief.",
            "history": [["Hi", "Ho"]],
        }
        for name in ("a.json", "a.jsonl"):
            (sample,) = own(write(tmp_path / name, [item]))
            assert answers(sample) == ["Ho", "3"] and sample.prompt.index("Hi") < sample.prompt.index("Add one.")
            assert "2" in sample.prompt and sample.meta == {
                "instruction": "Add one.", "input": "2", "output": "3", "references": ["3"], "layout": "alpaca",
            }  # fmt: skip
            assert recognised(tmp_path / name).line == f"{name}: Alpaca instructions, 1 items"

    def test_a_system_text_is_part_of_the_prompt(self, tmp_path):
        turns = said("Hello", "Hi")
        items = [
            {"system": "Speak French.", "conversations": turns},
            {"conversations": [{"from": "system", "value": "Speak French."}, *turns]},
        ]
        samples = own(write(tmp_path / "s.json", items), template="chat")
        assert samples[0].prompt == samples[1].prompt and samples[0].prompt.startswith("Speak French.")
        assert samples[0].meta["layout"] == "sharegpt"

    @pytest.mark.parametrize("image", ["a.png", ["a.png"], [{"path": "a.png", "bytes": None}]])
    def test_llava_with_a_picture_in_any_form(self, tmp_path, image):
        picture(tmp_path / "images" / "a.png")
        item = {"id": "7", "image": image, "conversations": said("<image>\nWho?", "A dog.", "Why?", "So.")}
        (sample,) = own(write(tmp_path / "my.json", [item]))
        assert sample.image == tmp_path / "images/a.png" and answers(sample) == ["A dog.", "So."]
        assert "<image>" not in sample.prompt and sample.meta["instruction"] == "Why?"
        assert recognised(tmp_path / "my.json").line == "my.json: LLaVA dialogs, 1 items, pictures in images/"

    @pytest.mark.parametrize(
        "item",
        [
            {"messages": messages("<image>Who?", "A dog."), "images": ["a.png"]},
            {
                "messages": messages(
                    [{"type": "image"}, {"type": "text", "text": "Who?"}], [{"type": "text", "text": "A dog."}]
                ),
                "images": ["a.png"],
            },
            {"messages": messages([{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who?"}], "A dog.")},
            {
                "messages": messages(
                    [{"type": "text", "text": "Who?"}, {"type": "image_url", "image_url": {"url": "a.png"}}], "A dog."
                )
            },
        ],
    )
    def test_messages_as_swift_llama_factory_trl_and_openai_write_them(self, tmp_path, item):
        picture(tmp_path / "a.png")
        (sample,) = own(write(tmp_path / "m.jsonl", [item]))
        assert (sample.meta["instruction"], answers(sample)) == ("Who?", ["A dog."])
        assert sample.image == tmp_path / "a.png" and sample.meta["layout"] == "messages"

    def test_history_is_read_of_questions_and_choices_as_well(self, tmp_path):
        swift = {"query": "And now?", "response": "Ho", "history": [["Hi", "Hello"], ["Who?", "I."]]}
        (sample,) = own(write(tmp_path / "swift.jsonl", [swift]))
        assert answers(sample) == ["Hello", "I.", "Ho"]
        choice = {"question": "And now?", "choices": ["x", "y"], "answer": "B", "history": [["Hi", "Hello"]]}
        (sample,) = own(write(tmp_path / "choice.jsonl", [choice]))
        assert answers(sample) == ["Hello", "The answer is B."] and sample.meta["answer"] == 1
        with pytest.raises(InputError, match=r"item 0: history\[0\] is str 'Hi'; it must be .question, answer."):
            own(write(tmp_path / "bad.jsonl", [{**swift, "history": ["Hi"]}]))

    def test_a_table_that_tells_excel_its_delimiter(self, tmp_path):
        for ends in ("\n", "\r\n"):
            text = "sep=;" + ends + "question;answer" + ends + "a, b, c;d" + ends
            (sample,) = own(write(tmp_path / "a.csv", text, "utf-8-sig"))
            assert (sample.meta["instruction"], sample.meta["output"]) == ("a, b, c", "d")

    def test_questions_in_csv_with_bom_semicolons_and_quoted_newlines(self, tmp_path):
        text = '\ufeffPrompt;Completion;image_path\r\n"Was ist das?\nGenau.";"Ein ""Hund"".";a.png\r\n你好;很好;\r\n'
        picture(tmp_path / "a.png")
        first, second = own(write(tmp_path / "q.csv", text))
        assert (first.meta["instruction"], answers(first)) == ("Was ist das?\nGenau.", ['Ein "Hund".'])
        assert first.image == tmp_path / "a.png" and second.image is None
        assert (second.meta["instruction"], answers(second)) == ("你好", ["很好"])

    @pytest.mark.parametrize(
        ("name", "text"), [("q.tsv", "q\ta\nWho, me?\tYes; you\n"), ("q.csv", "q|a\nWho, me?|Yes; you\n")]
    )
    def test_other_delimiters_and_columns_of_other_names(self, tmp_path, name, text):
        (sample,) = own(write(tmp_path / name, text), columns={"question": "q", "answer": "a"})
        assert (sample.meta["instruction"], answers(sample)) == ("Who, me?", ["Yes; you"])

    def test_parquet(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        rows = [{"question": "2+2?", "answer": 4, "context": None}, {"question": "世界?", "answer": 5, "context": "海"}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
        first, second = own(tmp_path)
        assert (answers(first), first.meta["input"], second.meta["input"]) == (["4"], "", "海")
        damaged = write(tmp_path / "b.parquet", "text")
        with pytest.raises(InputError, match=r"b\.parquet: it cannot be read as Parquet"):
            own(damaged)

    @pytest.mark.parametrize("answer", [1, "B", "(b)", "a hat", 1.0, "1"])
    def test_multiple_choice_needs_question_choices_and_answer_alone(self, tmp_path, answer):
        item = {"question": "What is it?", "choices": ["a cup", "a hat"], "answer": answer}
        (sample,) = own(write(tmp_path / "c.jsonl", [item]))
        assert sample.meta["instruction"] == "What is it?\nOptions: (A) a cup (B) a hat"
        assert answers(sample) == ["The answer is B."]
        assert (sample.meta["choices"], sample.meta["answer"]) == (["a cup", "a hat"], 1)

    @pytest.mark.parametrize(
        "table",
        [
            "question,A,B,C,answer\nWhich?,red,blue,,B\n",
            'question,options,answer_key\nWhich?,"[""red"", ""blue""]",B\n',
        ],
    )
    def test_multiple_choice_in_a_table(self, tmp_path, table):
        (sample,) = own(write(tmp_path / "c.csv", table))
        assert sample.meta["choices"] == ["red", "blue"] and sample.meta["answer"] == 1

    def test_multiple_choice_with_labels_of_its_own(self, tmp_path):
        item = {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": "1"}
        (sample,) = own(write(tmp_path / "arc.json", [item]))
        assert sample.meta["answer"] == 0

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (2, "which names none of the choices; it must be an index from 0 to 1, a letter from A to B"),
            ("C", "which names none of the choices"),
            ("A", "which names more than one of the choices"),
            (None, "`answer` is null; it must be an index"),
            (True, "`answer` is bool"),
        ],
    )
    def test_a_wrong_choice_is_named(self, tmp_path, answer, message):
        items = [{"question": "Which?", "choices": ["B", "A"], "answer": answer}]
        with pytest.raises(InputError, match=f"c.json, item 0: .*{message}"):
            own(write(tmp_path / "c.json", items))

    def test_captions_in_several_rows_are_one_picture(self, tmp_path):
        for name in ("a.png", "b.png"):
            picture(tmp_path / "train" / name)
        rows = [
            {"file_name": "a.png", "text": "A  dog."},
            {"file_name": "b.png", "text": "A cat."},
            {"file_name": "a.png", "text": "A pet."},
        ]
        write(tmp_path / "train" / "metadata.jsonl", rows)
        samples = own(tmp_path)
        assert [answers(one) for one in samples] == [["A dog."], ["A pet."], ["A cat."]]
        asked = own(tmp_path, training=False)
        assert [one.meta["references"] for one in asked] == [["A dog.", "A pet."], ["A cat."]]
        assert asked[0].image == tmp_path / "train/a.png" and asked[0].meta["instruction"].startswith(
            "Generate caption"
        )

    def test_a_folder_of_pictures_with_metadata_csv(self, tmp_path):
        picture(tmp_path / "a.png")
        write(tmp_path / "metadata.csv", "file_name,prompt\na.png,A red square\n")
        (sample,) = own(tmp_path)
        assert answers(sample) == ["A red square"] and sample.meta["layout"] == "captions"

    def test_a_folder_of_pictures_with_questions_in_its_splits(self, tmp_path):
        for split in ("train", "validation"):
            picture(tmp_path / split / "a.png")
            write(tmp_path / split / "metadata.csv", f"file_name,question,answer\na.png,Which {split}?,Red\n")
        (train,), (val,) = own(tmp_path, "train"), own(tmp_path, "val")
        assert train.image == tmp_path / "train/a.png" and val.image == tmp_path / "validation/a.png"
        assert val.meta["instruction"] == "Which validation?" and answers(val) == ["Red"]

    def test_coco_captions_without_a_val_file(self, tmp_path):
        images = [{"id": number, "file_name": f"{number}.png"} for number in range(20)]
        for one in images:
            picture(tmp_path / "train" / one["file_name"])
        captions = [{"id": n, "image_id": n // 2, "caption": f"Caption {n}"} for n in range(40)]
        write(tmp_path / "annotations/captions_train.json", {"images": images, "annotations": captions})
        train, val = own(tmp_path, "train"), own(tmp_path, "val", training=False)
        assert len(train) == 36 and len(val) == 2 and len(val[0].meta["references"]) == 2
        assert not {one.image for one in train} & {one.image for one in val} and val[0].image.is_file()
        assert recognised(tmp_path).name == "coco"
        assert len(own(tmp_path / "annotations/captions_train.json", "train")) == 36

    def test_scienceqas_folder_with_the_fields_that_are_needed(self, tmp_path):
        picture(tmp_path / "images/train/q1/image.png")
        problems = {
            "q1": {"question": "What?", "choices": ["x", "y"], "answer": 1, "image": "image.png", "split": "train"},
            "q2": {"question": "Who?", "choices": ["x", "y"], "answer": 0, "hint": "Look.", "split": "val"},
        }
        write(tmp_path / "problems.json", problems)
        (train,), (val,) = own(tmp_path, "train"), own(tmp_path, "val")
        assert train.image == tmp_path / "images/train/q1/image.png" and answers(train) == ["The answer is B."]
        assert val.image is None and val.meta["input"] == "Look."

    def test_an_object_with_data_or_with_splits(self, tmp_path):
        items = [{"question": f"{number}?", "answer": "x"} for number in range(4)]
        assert len(own(write(tmp_path / "d.json", {"version": 1, "data": items}))) == 4
        file = write(tmp_path / "s.json", {"train": items[:3], "validation": items[3:]})
        assert [one.meta["instruction"] for one in own(file, "val")] == ["3?"] and len(own(file, "train")) == 3

    def test_json_lines_in_a_file_named_json(self, tmp_path):
        lines = "\n".join(json.dumps({"prompt": f"{n}?", "completion": "x"}) for n in range(3))
        assert len(own(write(tmp_path / "l.json", lines))) == 3


class TestWhatIsNotUsed:
    def test_fields_that_nobody_reads_are_named_once(self, tmp_path, caplog):
        items = [{"id": n, "prompt": f"{n}?", "completion": "x", "score": 0.5 if n % 2 else None} for n in range(20)]
        file = write(tmp_path / "f.jsonl", items)
        own(file, "train")
        assert (
            caplog.text.count("these fields are not used: `score` (10 items, the first: item 1).") == 1
            and "`id`" not in caplog.text
        )

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"tools": "[{...}]"}, r"items with `tools` \(calls of functions cannot be learned\): 1"),
            ({"videos": ["a.mp4"]}, r"items with `videos` \(moving pictures cannot be learned\): 1"),
            ({"rejected": "no"}, r"items with `rejected` \(preferences between answers cannot be learned\): 1"),
            ({"label": False}, r"items with `label` \(judgements of answers cannot be learned\): 1"),
            ({"weight": 0.0}, r"items with `weight` \(weights of items or turns cannot be learned\): 1"),
            ({"images": ["a.png", "b.png"]}, "items with several pictures: 1"),
            ({"image": "https://x.org/a.png"}, "pictures that are no file: 1"),
            ({"image": {"bytes": "...", "path": None}}, "pictures that are no file: 1"),
        ],
    )
    def test_what_cannot_be_learned_is_refused_or_left_out_with_a_count(self, tmp_path, caplog, fields, reason):
        items = [{"conversations": said("a", "b")}, {"conversations": said("c", "d"), **fields}]
        file = write(tmp_path / "d.json", items)
        with pytest.raises(InputError, match=f"{reason}, the first: d.json, item 1: .*Fix them, or set on_bad=skip"):
            own(file)
        assert len(own(file, on_bad="skip")) == 1 and "they are left out" in caplog.text

    def test_fields_that_say_nothing_stand_in_nobodys_way(self, tmp_path):
        item = {"prompt": "a", "completion": "b", "tools": "[]", "videos": [], "weight": 1.0, "images": None}
        assert len(own(write(tmp_path / "p.jsonl", [item]))) == 1

    def test_fields_that_are_ignored_on_demand(self, tmp_path):
        item = {"prompt": "Who?", "chosen": "I.", "rejected": "You.", "weight": 2}
        file = write(tmp_path / "p.json", [item])
        (sample,) = own(file, columns={"answer": "chosen"}, ignore=["rejected", "weight"])
        assert answers(sample) == ["I."]

    def test_the_weight_of_a_turn_is_a_field_too(self, tmp_path):
        turns = messages("a", "b")
        turns[1]["weight"] = 0
        with pytest.raises(InputError, match=r"items with `messages\[\]\.weight`"):
            own(write(tmp_path / "m.json", [{"messages": turns}]))

    @pytest.mark.parametrize(
        ("texts", "reason"),
        [
            (("<image> a <image>", "b"), "items with several pictures: 1"),
            (("a", "b", "<image>c", "d"), "items whose picture stands in a later turn or within a text: 1"),
            (("a <image> b", "c"), "items whose picture stands in a later turn or within a text: 1"),
        ],
    )
    def test_pictures_that_an_adapter_cannot_see(self, tmp_path, texts, reason):
        items = [{"messages": messages("a", "b")}, {"messages": messages(*texts), "images": ["a.png"]}]
        file = write(tmp_path / "m.json", items)
        with pytest.raises(InputError, match=f"{reason}, the first: m.json, item 1"):
            own(file, images=False)
        assert len(own(file, images=False, on_bad="skip")) == 1

    def test_where_no_item_can_be_used_the_reasons_are_told(self, tmp_path):
        items = [{"conversations": [{"from": "tool", "value": "x"}, *said("a", "b")]}] * 3
        with pytest.raises(InputError, match="no item can be used .another role than human and gpt: 3, the first"):
            own(write(tmp_path / "d.json", items))

    def test_two_system_texts_and_a_late_one(self, tmp_path):
        system = {"from": "system", "value": "Be kind."}
        two = [{"system": "Be rude.", "conversations": [system, *said("a", "b")]}]
        with pytest.raises(InputError, match="item 0: it has two system texts"):
            own(write(tmp_path / "t.json", two))
        late = [{"conversations": [*said("a", "b"), system, *said("c", "d")]}]
        with pytest.raises(InputError, match="a system text behind the first turn: 1"):
            own(write(tmp_path / "l.json", late))


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "a.json",
                [{"question": "a", "prompt": "b", "answer": "c"}],
                "the question could be `question` or `prompt`",
            ),
            ("a.json", [{"frage": "a", "antwort": "b"}], "no layout is recognised. The fields are: frage, antwort"),
            ("a.json", [{"messages": [], "conversations": []}], "Say which are the turns: layout=sharegpt"),
            ("a.json", {"a": 1}, "expected a list of items, or an object with such a list as `data`; got an object"),
            ("a.json", ["text"], "there is no item .an object with fields. in it; the first entry is str 'text'"),
            ("a.jsonl", [[{"question": "a", "answer": "b"}]], "this is one JSON list, not an object a line.* a.json$"),
            ("b.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}], "columns.answer=chosen ignore=.rejected."),
            (
                "a.xlsx",
                "PK",
                "one's own data are a folder or a file .json, .jsonl, .csv, .tsv, .parquet. Save a table as",
            ),
            ("a.csv", "question,answer\na,b,c\n", "line 2: it has 3 fields, the first line has 2 .question, answer."),
            ("a.csv", 'question,answer\na,"b\nc\n', "the table is damaged"),
            ("a.csv", "question,question\na,b\n", "the column 'question' stands twice"),
            ("a.jsonl", [{"question": 1, "answer": True}], "item 0: `answer` is bool 'True'; it must be text"),
        ],
    )
    def test_what_is_not_clear_is_asked_for(self, tmp_path, name, content, message):
        with pytest.raises(InputError, match=message):
            own(write(tmp_path / name, content))

    def test_the_message_on_two_readings_holds_the_setting_that_chooses(self, tmp_path):
        file = write(tmp_path / "a.json", [{"question": "a", "prompt": "b", "answer": "c"}])
        with pytest.raises(InputError, match="columns.question=question"):
            own(file)
        assert own(file, columns={"question": "prompt"})[0].meta["instruction"] == "b"
        with pytest.raises(InputError, match="columns.question=who, but there is no such field; there are: question"):
            own(file, columns={"question": "who"})

    @pytest.mark.parametrize(
        ("encoding", "told"), [("utf-16", "the file is UTF-16"), ("latin-1", "byte 21 is not UTF-8")]
    )
    def test_other_encodings_are_told(self, tmp_path, encoding, told):
        file = write(tmp_path / "a.csv", "question,answer\nWer?,ü\n", encoding)
        with pytest.raises(InputError, match=f"{told}.*iconv -f .* -t UTF-8 {re.escape(str(file))} > .*utf8-a.csv"):
            own(file)

    def test_a_table_given_to_a_reader_of_json(self, tmp_path):
        file = write(tmp_path / "a.csv", "question,answer\na,b\n")
        with pytest.raises(InputError, match=r"a\.csv: this is a table, not JSON.*reader=own"):
            read("alpaca", file, training=True)

    def test_missing_pictures(self, tmp_path, caplog):
        items = [{"image": "gone.png", "conversations": said("<image>a", "b")}, {"conversations": said("c", "d")}]
        file = write(tmp_path / "m.json", items)
        with pytest.raises(InputError, match="1 of 1 pictures are missing"):
            own(file)
        assert len(own(file, missing_image="skip")) == 1 and len(own(file, missing_image="no_image")) == 2


class TestSplits:
    def questions(self, count: int) -> list[dict[str, str]]:
        return [{"prompt": f"Question {number}", "completion": str(number)} for number in range(count)]

    def test_a_fraction_is_held_out_the_same_in_any_order(self, tmp_path):
        items = self.questions(50)
        file = write(tmp_path / "a.json", items)
        train, val = ({one.meta["instruction"] for one in own(file, split)} for split in ("train", "val"))
        assert len(val) == 5 and len(train) == 45 and not train & val
        turned = write(tmp_path / "b.json", items[::-1])
        assert {one.meta["instruction"] for one in own(turned, "val")} == val
        assert len(own(file, "val", val_fraction=0.3)) == 15 and len(own(file, "val", val_size=2)) == 2

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_both_sides_hold_an_item(self, tmp_path, count):
        file = write(tmp_path / "a.json", self.questions(count))
        assert len(own(file, "val")) == 1 and len(own(file, "train")) == count - 1

    @pytest.mark.parametrize("items", [1, [0, 0, 0]])
    def test_too_few_items_say_so(self, tmp_path, items):
        listed = self.questions(1) * (items if isinstance(items, int) else len(items))
        for split in ("train", "val"):
            with pytest.raises(InputError, match="usable items cannot be split into train and val"):
                own(write(tmp_path / "a.json", listed), split)

    def test_dialogs_that_all_begin_alike_stand_on_both_sides(self, tmp_path):
        items = [{"conversations": said("Hello", "Hi", f"{number}?", "x")} for number in range(30)]
        file = write(tmp_path / "d.json", [*items, items[0]])
        train, val = (own(file, split) for split in ("train", "val"))
        assert (len(train), len(val)) in {(28, 3), (29, 2)}
        assert not {one.segments for one in train} & {one.segments for one in val}

    def test_questions_about_one_picture_stand_on_one_side(self, tmp_path):
        items = [{"question": f"{n}?", "answer": "x", "image": f"{n % 10}.png"} for n in range(40)]
        file = write(tmp_path / "q.json", items)
        sides = [{int(one.id) % 10 for one in own(file, split, images=False)} for split in ("train", "val")]
        assert not sides[0] & sides[1] and len(sides[1]) == 1

    def test_files_and_fields_that_say_their_split(self, tmp_path):
        for name, count in (("train.jsonl", 3), ("dev.jsonl", 2), ("test.jsonl", 1)):
            write(tmp_path / "f" / name, [{"question": f"{name} {n}", "answer": "x"} for n in range(count)])
        assert [len(own(tmp_path / "f", split)) for split in ("train", "val", "test", "all")] == [3, 2, 1, 6]
        rows = [{"question": f"{n}?", "answer": "x", "split": ("train", "validation")[n % 3 == 0]} for n in range(9)]
        file = write(tmp_path / "s.json", rows)
        assert [len(own(file, split)) for split in ("train", "val")] == [6, 3]
        with pytest.raises(InputError, match=r"there is no split 'test'; there is: train \(6 items\), val \(3 items\)"):
            own(file, "test")
        write(tmp_path / "w.json", [*rows, {"question": "?", "answer": "x", "split": "part 1"}])
        with pytest.raises(InputError, match="item 9: `split` is str 'part 1'; allowed are train, val"):
            own(tmp_path / "w.json")

    def test_train_and_test_files_without_val(self, tmp_path):
        write(tmp_path / "my_train.json", self.questions(20))
        write(tmp_path / "my_test.json", self.questions(4))
        assert [len(own(tmp_path, split)) for split in ("train", "val", "test")] == [18, 2, 4]

    def test_several_files_of_no_split_are_refused(self, tmp_path):
        write(tmp_path / "a.json", self.questions(2))
        write(tmp_path / "b.json", self.questions(2))
        with pytest.raises(InputError, match=r"there are 2 files \(a.json, b.json\), of which none is named train"):
            own(tmp_path)
        (tmp_path / "pictures").mkdir()
        with pytest.raises(InputError, match="A folder of pictures has their texts in metadata.csv or metadata.jsonl"):
            own(tmp_path / "pictures")
        write(tmp_path / "train.json", self.questions(2))
        write(tmp_path / "my_train.json", self.questions(2))
        with pytest.raises(InputError, match="2 files say that they are train: my_train.json, train.json"):
            own(tmp_path)


def test_changed_files_are_read_again(tmp_path):
    file = write(tmp_path / "a.json", [{"prompt": "a", "completion": "b"}])
    assert len(own(file)) == 1
    write(file, [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    assert len(own(file)) == 2


def documented() -> dict[str, tuple[str, str]]:
    """File name -> (what it holds, the layouts it is an example of), from docs/own-data.md."""
    text = (Path(__file__).parents[2] / "docs/own-data.md").read_text(encoding="utf-8")
    section = text.partition("## Layouts")[2].partition("\n## ")[0]
    names = re.findall(r"^(\d)\. `([\w.]+)`.*?```\w+\n(.*?)```", section, re.MULTILINE | re.DOTALL)
    layouts = {number: layouts for layouts, number in re.findall(r"^\| (`.*?`) \|.*\| (\d) \|$", section, re.MULTILINE)}
    return {name: (content, layouts[number]) for number, name, content in names}


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "alpaca.json": [["un chat", "un bus rouge"]],
        "llava.json": [["A red bus."]],
        "messages.jsonl": [["A red bus."], ["Still a bus."]],
        "questions.csv": [["A red bus."], ["Red."]],
        "choices.json": [["The answer is B."], ["The answer is B."]],
        "metadata.jsonl": [["A red bus."], ["A bus on a road."]],
        "captions.json": [["A red bus."]],
        "problems.json": [["The answer is B."]],
        "sharegpt.json": [["A bus.", "A tractor."]],
    }.items(),
)
def test_the_documented_examples_are_read(tmp_path, caplog, name, expected):
    content, layouts = documented()[name]
    file = write(tmp_path / "own" / "x.txt", content).rename(tmp_path / "own" / name)
    picture(tmp_path / "own" / "bus.png")
    samples = own(file.parent if name in ("metadata.jsonl", "problems.json") else file)
    assert [answers(one) for one in samples] == expected
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # no field is left
    assert all(f"`{one.meta['layout']}`" in layouts for one in samples)
    assert samples[0].image == (None if name in ("alpaca.json", "sharegpt.json") else tmp_path / "own/bus.png")


def test_every_layout_has_an_example():
    layouts = {name for _, names in documented().values() for name in re.findall(r"`(\w+)`", names)}
    assert len(documented()) == 9 and layouts == {*LAYOUTS}


@pytest.mark.reference_data
class TestRealFiles:
    """Real files as they are published (MMADAPTER_REFERENCE_DATA)."""

    @pytest.mark.parametrize(
        ("place", "line", "train", "val"),
        [
            ("real/instruct/lima_train.json", "lima_train.json: Alpaca instructions, 906 items", 816, 90),
            ("real/instruct/lima_dialogs.json", "lima_dialogs.json: ShareGPT dialogs, 29 items", 27, 2),
            ("real/instruct/dolly_1000.json", "dolly_1000.json: Alpaca instructions, 1,000 items", 900, 100),
            ("real/easy_vqa/llava_test.json", "LLaVA dialogs, 4,702 items, pictures in test/images/", 4505, 197),
            ("real/daquar/llava_train.json", "LLaVA dialogs, 1,766 items, pictures in images/", 1592, 174),
            ("real/flickr8k", "COCO captions, 2,050 items, splits train 1,500, val 200, test 350", 7500, 1000),
            ("real/tabmwp", "ScienceQA questions, 409 items, splits train 250, val 25, test 134", 250, 25),
            ("real/tabmwp/free_train.json", "LLaVA dialogs, 643 items, pictures in free/", 579, 64),
            ("coco_mini", "COCO captions, 45 items", None, None),
        ],
    )
    def test_layouts_and_counts(self, reference_data, place, line, train, val):
        assert line in recognised(reference_data / place).line
        if train is not None:
            samples = [own(reference_data / place, split) for split in ("train", "val")]
            assert [len(one) for one in samples] == [train, val]
            assert not {one.segments for one in samples[0] if one.image is None} & {one.segments for one in samples[1]}

    def test_a_value_of_each_kind(self, reference_data):
        first = own(reference_data / "real/daquar/llava_train.json")[0]
        assert answers(first) == ["modem"] and first.image.name == "image20.jpg"
        asked = own(reference_data / "real/flickr8k", "test", training=False)
        assert len(asked) == 350 and all(len(one.meta["references"]) >= 4 for one in asked)
        table = own(reference_data / "real/tabmwp", "test", training=False)[0]
        assert table.meta["choices"] and table.image.is_file() and table.answer is None
