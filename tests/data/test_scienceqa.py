"""ScienceQA's reader: the untouched layout, and every defect told with file, id and field."""

from __future__ import annotations

import json
import logging
import time

import pytest

from mmadapter.errors import InputError
from tests.data.reading import read, read_scienceqa
from tests.data.small_files import problem, write_scienceqa


def reading(root, split="train", **settings):
    return read_scienceqa(root, split=split, **{"images": True, "training": True, **settings})


def test_a_split_is_read_in_its_order(tmp_path):
    samples = reading(write_scienceqa(tmp_path))
    assert [sample.id for sample in samples] == ["1", "2", "3"]
    assert samples[1].image == tmp_path / "images/train/2/image.png"
    assert samples[0].image is None
    assert samples[2].answer == " The answer is B."
    assert samples[1].where == "problems.json, question 2"
    assert samples[1].meta == {
        "question": "Which one is larger?",
        "choices": ["dog", "cat"],
        "answer": 0,
        "subject": "natural science",
        "grade": "grade2",
        "hint": "A dog and a cat stand there.",
        "split": "train",
        "topic": "biology",
        "has_hint": True,
        "has_image": True,
    }


def test_without_training_there_is_no_answer(tmp_path):
    assert {sample.answer for sample in reading(write_scienceqa(tmp_path), "test", training=False)} == {None}


@pytest.mark.parametrize("place", [".", "data/scienceqa", "scienceqa"])
def test_the_root_may_be_the_folder_or_its_parent(tmp_path, place):
    write_scienceqa(tmp_path / place)
    samples = reading(tmp_path, "test")
    assert [sample.id for sample in samples] == ["5", "6"]
    assert samples[0].image.is_file()


def test_upstreams_images_may_stand_under_the_parent(tmp_path):
    write_scienceqa(tmp_path / "data/scienceqa")
    (tmp_path / "data/scienceqa/images").rename(tmp_path / "images")
    assert reading(tmp_path)[1].image == tmp_path / "images/train/2/image.png"


def test_the_image_is_looked_up_in_the_questions_own_split(tmp_path):
    write_scienceqa(tmp_path, splits=None)
    (tmp_path / "pid_splits.json").write_text(json.dumps({"minitrain": ["5", "1"], "trainval": ["1", "4"]}))
    samples = reading(tmp_path, "minitrain")
    assert samples[0].image == tmp_path / "images/test/5/image.png"
    assert [sample.id for sample in reading(tmp_path, "trainval")] == ["1", "4"]


def test_without_pid_splits_the_own_field_decides(tmp_path):
    write_scienceqa(tmp_path)
    (tmp_path / "pid_splits.json").unlink()
    assert [sample.id for sample in reading(tmp_path, "trainval")] == ["1", "2", "3", "4"]


def test_limit_keeps_the_first_ones(tmp_path):
    assert [sample.id for sample in reading(write_scienceqa(tmp_path), limit=2)] == ["1", "2"]


def test_captions_join_the_context(tmp_path, caplog):
    write_scienceqa(tmp_path)
    (tmp_path / "captions.json").write_text(json.dumps({"model": "x", "captions": {"2": "two animals", "99": "none"}}))
    samples = reading(tmp_path, captions="captions.json")
    assert "Context: A dog and a cat stand there. two animals\n" in samples[1].prompt
    assert "Context: N/A\n" in samples[0].prompt
    assert "1 of 2 caption ids name no question" in caplog.text


def test_images_can_be_left_alone(tmp_path):
    write_scienceqa(tmp_path)
    (tmp_path / "images/train/2/image.png").unlink()
    samples = reading(tmp_path, images=False)
    assert [sample.image for sample in samples] == [None] * 3 and samples[1].meta["has_image"]


class TestMissingImages:
    @pytest.fixture(name="root")
    def _root(self, tmp_path):
        problems = {str(number): problem(image="image.png") for number in range(8)}
        write_scienceqa(tmp_path, problems)
        for number in range(1, 8):
            (tmp_path / "images/train" / str(number) / "image.png").unlink()
        return tmp_path

    def test_error_counts_them_and_names_the_first_five(self, root):
        with pytest.raises(InputError, match=r"7 of 8 pictures are missing.*missing_image=skip") as caught:
            reading(root)
        assert str(caught.value).count("image.png") == 5

    def test_skip_leaves_them_out_aloud(self, root, caplog):
        assert [sample.id for sample in reading(root, missing_image="skip")] == ["0"]
        assert "7 of 8 pictures are missing" in caplog.text

    def test_no_image_keeps_them_as_rows_without_a_picture(self, root, caplog):
        samples = reading(root, missing_image="no_image")
        assert [sample.image is None for sample in samples] == [False] + [True] * 7
        assert "kept without a picture" in caplog.text

    def test_another_word_is_refused(self, root):
        with pytest.raises(InputError, match="missing_image=black: allowed are error, skip, no_image"):
            reading(root, missing_image="black")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 2}, "`answer` is 2; with 2 choices it must be 0 to 1"),
        ({"answer": -1}, "`answer` is -1"),
        ({"answer": "0"}, "`answer` is str '0'; it must be a whole number"),
        ({"answer": True}, "`answer` is bool"),
        ({"answer": ...}, "the field `answer` is missing"),
        ({"choices": ["one"]}, "`choices` has 1 entries; allowed are 2 to 5"),
        ({"choices": list("abcdef")}, "`choices` has 6 entries"),
        ({"choices": "ab"}, "`choices` is str 'ab'; it must be a list of texts"),
        ({"choices": ["a", 2]}, "it must be a list of texts"),
        ({"choices": ...}, "the field `choices` is missing"),
        ({"question": None}, "`question` is null; it must be text"),
        ({"question": " "}, "`question` is ' '; allowed: a text that is not empty"),
        ({"question": ...}, "the field `question` is missing"),
        ({"hint": 3}, "`hint` is int '3'"),
        ({"image": True}, "`image` is bool"),
        ({"image": "../secret.png"}, "allowed: a bare file name"),
        ({"lecture": None}, "`lecture` is null"),
        ({"subject": "maths"}, "`subject` is 'maths'; allowed: natural science"),
        ({"grade": "grade13"}, "`grade` is 'grade13'; allowed: grade1 to grade12"),
    ],
)
def test_a_bad_question_is_told_with_file_id_and_field(tmp_path, changes, message):
    (tmp_path / "problems.json").write_text(json.dumps({"1": problem(), "17": problem(**changes)}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["1", "17"]}))
    with pytest.raises(InputError) as caught:
        reading(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'problems.json'}: bad questions: 1, the first: question 17: ")
    assert message in told
    assert [sample.id for sample in reading(tmp_path, limit=1)] == ["1"]


def test_questions_of_ones_own_need_three_fields(tmp_path):
    problems = {"1": {"question": "Who?", "choices": ["a", "b"], "answer": 1}}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["1"]}))
    (sample,) = reading(tmp_path)
    assert sample.prompt == "Question: Who?\nContext: N/A\nOptions: (A) a (B) b\nAnswer:"
    assert sample.meta["subject"] == sample.meta["grade"] == "" and not sample.meta["has_hint"]


def test_a_field_that_nobody_reads_is_named_and_a_slip_gets_its_suggestion(tmp_path, caplog):
    file = write_scienceqa(tmp_path) / "problems.json"
    content = json.loads(file.read_text())
    for pid in ("2", "3"):
        content[pid]["hints"] = "Look twice."
    content["3"] |= {"teacher": "me", "nothing": "", "task": "closed choice", "skill": "Count", "category": "Birds"}
    file.write_text(json.dumps(content))
    reading(tmp_path)
    told = "`hints` (2 items, the first: question 2; did you mean `hint`?), `teacher` (1 items, the first: question 3)."
    assert caplog.text.count(f"{file}: these fields are not used: {told}") == 1 and "skill" not in caplog.text


def test_a_question_that_is_no_object(tmp_path):
    (tmp_path / "problems.json").write_text(json.dumps({"1": ["x"]}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["1"]}))
    with pytest.raises(InputError, match="question 1: it is list"):
        reading(tmp_path)


@pytest.mark.parametrize(
    ("prompt_format", "field"),
    [("QCM-LEA", "lecture"), ("QCM-AE", "lecture"), ("QCM-AL", "solution"), ("QCME-A", "solution")],
)
def test_lecture_and_solution_must_be_there_only_where_they_are_used(tmp_path, prompt_format, field):
    write_scienceqa(tmp_path, {"1": problem(**{field: ...})})
    assert len(reading(tmp_path)) == 1
    with pytest.raises(InputError, match=f"question 1: the field `{field}` is missing"):
        reading(tmp_path, prompt_format=prompt_format)


class TestDamagedFiles:
    @pytest.mark.parametrize(("share", "last"), [(0.3, "1"), (0.6, "3"), (0.99, "5")])
    def test_truncated_problems_tell_offset_and_last_whole_id(self, tmp_path, share, last):
        write_scienceqa(tmp_path)
        file = tmp_path / "problems.json"
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"problems\.json: the JSON ends too early at byte \d+ of") as caught:
            reading(tmp_path)
        assert f'the last whole entry is "{last}"' in str(caught.value)

    def test_broken_json_in_the_middle(self, tmp_path):
        write_scienceqa(tmp_path)
        (tmp_path / "problems.json").write_text('{"1": {}, "2": {"question" "x"}}')
        with pytest.raises(InputError, match='is damaged at byte 27 of 32.*last whole entry is "1"'):
            reading(tmp_path)

    def test_an_id_twice(self, tmp_path):
        write_scienceqa(tmp_path)
        (tmp_path / "problems.json").write_text('{"17": {}, "17": {}}')
        with pytest.raises(InputError, match="the key '17' stands twice"):
            reading(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "empty"),
            (b"[]", "expected an object"),
            (b"{}", "expected an object"),
            (b'{"1": "\xff"}', "byte 7 is not UTF-8"),
        ],
    )
    def test_what_is_no_problems_file(self, tmp_path, content, message):
        write_scienceqa(tmp_path)
        (tmp_path / "problems.json").write_bytes(content)
        with pytest.raises(InputError, match=message):
            reading(tmp_path)

    def test_a_missing_file_tells_where_it_was_looked_for(self, tmp_path):
        with pytest.raises(InputError, match="there is no problems.json. Looked at: .*data/scienceqa/problems.json"):
            reading(tmp_path)

    def test_bom_and_crlf_are_accepted(self, tmp_path):
        write_scienceqa(tmp_path)
        for name in ("problems.json", "pid_splits.json"):
            content = (tmp_path / name).read_text().replace("\n", "\r\n")
            (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert len(reading(tmp_path)) == 3


class TestSplits:
    def test_ids_without_a_question_are_reported_in_one_line_with_a_count(self, tmp_path, caplog):
        write_scienceqa(tmp_path)
        (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["1", "70", "71", "3"]}))
        with caplog.at_level(logging.WARNING):
            assert [sample.id for sample in reading(tmp_path)] == ["1", "3"]
        assert (
            len(caplog.records) == 1
            and "split train: ids without a question in problems.json: 2, the first: 70; 71" in caplog.text
        )

    def test_no_id_at_all_is_an_error(self, tmp_path):
        write_scienceqa(tmp_path)
        (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["70", "71"]}))
        with pytest.raises(InputError, match="none of the 2 ids of split 'train'"):
            reading(tmp_path)

    def test_ids_of_another_split_are_reported(self, tmp_path, caplog):
        write_scienceqa(tmp_path)
        (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["1", "5"]}))
        assert len(reading(tmp_path)) == 2
        assert "1 of 2 ids of split train belong to another split" in caplog.text

    @pytest.mark.parametrize(
        ("splits", "message"),
        [
            ({"val": ["4"]}, "there is no split 'train'; it has: val"),
            ({"train": ["1", "1"]}, "the id '1' stands there twice"),
            ({"train": [1, 2]}, "expected a list of ids as strings"),
            (["1"], "expected an object from split name"),
        ],
    )
    def test_bad_splits(self, tmp_path, splits, message):
        write_scienceqa(tmp_path)
        (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
        with pytest.raises(InputError, match=message):
            reading(tmp_path)


def test_a_caption_that_is_no_text(tmp_path):
    write_scienceqa(tmp_path)
    (tmp_path / "captions.json").write_text(json.dumps({"captions": {"2": 5}}))
    with pytest.raises(InputError, match="captions.json, question 2: the caption is int"):
        reading(tmp_path, captions="captions.json")


def test_read_takes_the_configs_names(tmp_path):
    write_scienceqa(tmp_path)
    settings = {"split": "train", "limit": None, "path": None, "images": False}
    samples = read("scienceqa", tmp_path, source="questions", training=True, prompt_format="CQM-A", **settings)
    assert samples[0].source == "questions" and samples[1].image is None
    assert samples[0].prompt.startswith("Context:")
    with pytest.raises(InputError, match="no reader 'scienceqas'. Did you mean scienceqa"):
        read("scienceqas", tmp_path, training=True)
    with pytest.raises(InputError, match="There is no setting 'scienceqa.system'"):
        read("scienceqa", tmp_path, training=True, system="Be short.")
    with pytest.raises(InputError, match="scienceqa has nothing to read. Set data.root=FOLDER"):
        read("scienceqa", training=True)
    with pytest.raises(InputError, match="there is no /no.json. Looked at: "):
        read("scienceqa", tmp_path, training=True, captions="/no.json")
    with pytest.raises(InputError, match="there is no few.json. Looked at: "):
        read("scienceqa", tmp_path, training=True, pid_splits="few.json")


def test_the_whole_training_split_is_read_in_seconds(tmp_path):
    problems = {str(number): problem(lecture="word " * 200, hint="word " * 30) for number in range(12_726)}
    write_scienceqa(tmp_path, problems)
    start = time.process_time()
    assert len(reading(tmp_path, prompt_format="QCM-LEA")) == 12_726
    assert time.process_time() - start < 20
