"""Scores of free text: SQuAD's F1, ROUGE-L and BLEU, by words or, in languages without blanks, by characters."""

import json

import pytest
from sacrebleu.metrics import BLEU

from mmadapter.tasks.text_scores import bleu, normalised_words, rouge_l, word_f1
from tests.config.composing import eval_conf
from tests.tasks.asked import StandIn, evaluated, rows_of, show


def test_f1_leaves_articles_case_and_punctuation_out_as_squads_scorer_does():
    assert normalised_words("The Cat, an animal; a pet!") == ["cat", "animal", "pet"]
    assert word_f1("the cat sat", ["A cat sat."]) == 1
    assert word_f1("cat sat down", ["cat sat"]) == pytest.approx(0.8)  # precision 2/3, recall 1
    assert word_f1("dog", ["cat", "the dog"]) == 1 and word_f1("", ["cat"]) == 0 and word_f1("the", ["a"]) == 1


def test_words_that_come_twice_count_twice_only_where_both_have_them_twice():
    assert word_f1("red red", ["red blue"]) == 0.5


@pytest.mark.parametrize(
    "said,told,score",  # the numbers of rouge_score 0.1.2
    [
        ("the small red star", "a small star in the middle", 0.4),  # small star: 2 of 4 words, 2 of 6
        ("one two three", "three two one", 1 / 3),
        ("The red, RED star!", "a red star is red", 4 / 9),
        ("", "a b", 0.0),
    ],
)
def test_rouge_l_is_f1_of_the_longest_common_subsequence(said, told, score):
    assert rouge_l(said, [told]) == pytest.approx(score) and rouge_l(said, ["zzz", told]) == rouge_l(said, [told])


def test_bleu_of_english_is_sacrebleus_with_several_references():
    said = ["the small red star is on the left", "a green cross"]
    told = [["the small red star is at the left", "a small red star is on the left"], ["the green cross is large"]]
    expected = BLEU().corpus_score(said, [[told[0][0], told[1][0]], [told[0][1], None]]).score
    assert bleu(said, told) == (expected, "words") and expected > 20


def test_bleu_of_references_of_fewer_than_four_words_is_no_number():
    assert bleu(["Paris"], [["Paris"]]) == (None, "words")
    assert bleu(["北京"], [["北京"]]) == (None, "characters")
    assert bleu(["no", "in the north"], [["in the north of it"], ["no"]])[0] is not None  # one of them has four


@pytest.mark.parametrize(
    "said,told,shared",
    [
        ("北京是中国的首都。", "中国的首都是北京", 8),  # all eight signs are shared, in another order
        ("東京は大きい", "東京は広い", 4),
        ("แมว", "แมวดำ", 3),
    ],
)
def test_languages_without_blanks_are_compared_by_characters(said, told, shared):
    own, wanted = len(normalised_words(said)), len(normalised_words(told))
    assert word_f1(said, [told]) == pytest.approx(2 * shared / (own + wanted))
    assert 0 < rouge_l(said, [told]) < 1 and rouge_l(told, [told]) == 1
    score, by = bleu([said], [[told]])
    assert by == "characters" and score == BLEU(tokenize="char").corpus_score([said], [[told]]).score
    assert bleu([told * 2], [[told * 2]])[0] == pytest.approx(100)


def test_words_of_other_scripts_in_chinese_stay_words():
    assert normalised_words("用GPU训练 LoRA 16") == ["用", "gpu", "训", "练", "lora", "16"]
    assert word_f1("Привет, мир", ["мир привет"]) == 1


class Says(StandIn):
    def __init__(self, *texts):
        super().__init__()
        self.texts = texts

    def answer(self, samples, settings, seed=None, features=None, visual=None, at_once=None):
        return [self.texts[int(sample.id)] for sample in samples]


def test_answers_in_chinese_have_scores_beside_each_other_in_one_table(tmp_path, capsys):
    items = [("首都是哪里？", "中国的首都是北京。"), ("一加一等于几？", "一加一等于二。")]
    file = tmp_path / "chinese.json"
    file.write_text(json.dumps([{"instruction": q, "input": "", "output": a} for q, a in items], ensure_ascii=False))
    wanted = eval_conf("task=instruct", f"task.path={file}", "task.split=all").task
    metrics = evaluated(Says("北京是中国的首都。", "一加一等于二。"), wanted, tmp_path / "out")
    assert metrics["exact_match"] == 50 and metrics["F1"] == 100 and metrics["BLEU_counts"] == "characters"
    assert 50 < metrics["ROUGE-L"] < 100 and 50 < metrics["BLEU"] < 100 and "accuracy" not in metrics
    first, second = rows_of(tmp_path / "out")
    assert first["F1"] == 100 and first["ROUGE-L"] == 62.5 and second["ROUGE-L"] == 100  # 中国的首都 of 8 signs
    show(wanted, tmp_path / "out")
    said = capsys.readouterr().out
    assert "F1" in said and "BLEU" in said and "accuracy" not in said and "count characters" in said


def test_answers_of_one_word_have_no_bleu_and_the_reader_is_told_why(tmp_path, capsys):
    file = tmp_path / "capitals.json"
    items = [("Which is the capital of France?", "Paris"), ("And of Italy?", "Rome")]
    file.write_text(json.dumps([{"instruction": asked, "input": "", "output": told} for asked, told in items]))
    wanted = eval_conf("task=instruct", f"task.path={file}", "task.split=all").task
    metrics = evaluated(Says("Paris", "Milan"), wanted, tmp_path / "out")
    assert metrics["BLEU"] is None and metrics["F1"] == 50 and metrics["exact_match"] == 50
    show(wanted, tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    assert "BLEU is left out: it counts runs of four words, and no reference has so many." in said


def test_multiple_choice_is_scored_by_the_option_that_is_named_and_free_text_apart_from_it(tmp_path, capsys):
    file = tmp_path / "questions.jsonl"
    asked = [{"question": f"How many is {n}?", "choices": ["one", "two"], "answer": n - 1} for n in (1, 2, 1)]
    file.write_text("\n".join(map(json.dumps, asked)))
    wanted = eval_conf("task=instruct", "task.reader=own", f"task.path={file}", "task.split=all").task
    metrics = evaluated(Says("The answer is A.", "two", "(A) or (B)"), wanted, tmp_path / "out")
    assert metrics["accuracy"] == 66.67 and "exact_match" not in metrics and "BLEU" not in metrics
    assert metrics["counts"] == {"answers": 3, "exact": 0, "choices": 3, "right": 2, "unanswered": 1, "empty": 0}
    assert [row["correct"] for row in rows_of(tmp_path / "out")] == [True, True, False]
    show(wanted, tmp_path / "out")
    said = capsys.readouterr().out
    assert "accuracy" in said and "F1" not in said and "1 answers name no single option" in said
