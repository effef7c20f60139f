"""ScienceQA's questions in a template: one user turn, asked as it is learned, its options whole."""

from __future__ import annotations

import pytest

from mmadapter.data.chat_templates import DATE, end_token
from mmadapter.data.samples import ANSWER
from mmadapter.data.settings import AlpacaSettings, CocoSettings, ScienceqaSettings, trained_template
from mmadapter.data.tokens import SampleEncoder
from mmadapter.errors import InputError
from tests.data.chat_tokenizers import KINDS, chat_tokenizer
from tests.data.reading import read_scienceqa
from tests.data.small_files import problem, write_scienceqa

TEXT = "Question: Which one is larger?\nContext: A dog and a cat stand there.\nOptions: (A) dog (B) cat"


def reading(root, template, tokenizer=None, training=True, **settings):
    conf = {"split": "train", "images": False, "template": template, **settings}
    return read_scienceqa(root, training=training, tokenizer=tokenizer, **conf)[1]


def shown(sample, answer=""):
    return "".join(one.text for one in sample.segments) + answer


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_hosts_chat_template_it_is_the_text_of_one_user_turn(kind, tmp_path):
    tokenizer, root = chat_tokenizer(kind), write_scienceqa(tmp_path)
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "The answer is A."}]
    wanted = tokenizer.apply_chat_template(
        turns, tokenize=False, enable_thinking=False, date_string=DATE.strftime("%d %b %Y")
    )
    learned, asked = (reading(root, "auto", tokenizer, training) for training in (True, False))
    assert shown(learned) == wanted
    before_answer = wanted.split("The answer")[0]
    assert shown(asked) == (before_answer.rstrip(" ") if kind == "mistral" else before_answer)

    # What is learned is the answer and what ends it; it is asked for in the very same ids.
    encoder = SampleEncoder(tokenizer, 512)
    item, prompt = encoder.encode(learned), encoder.encode(asked)
    ((begin, end),) = item.spans
    assert prompt.ids == item.ids[:begin] and not prompt.spans
    text = tokenizer.decode(item.ids[begin : end - 1], clean_up_tokenization_spaces=False)
    assert text.strip() == "The answer is A." and item.ids[end - 1] == end_token(tokenizer)

    # So are the options that are compared, each with its end.
    likely = [(*asked.segments, *answer) for answer in asked.meta["answers"]]
    assert likely[0] == learned.segments and len(likely) == 2


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        ("paper", f"{TEXT}\nAnswer:", " The answer is A."),
        ("auto", f"### Instruction:\n{TEXT}\n\n### Response:", "The answer is A."),
        ("alpaca", f"### Instruction:\n{TEXT}\n\n### Response:", "The answer is A."),
        ("vicuna", f"user's questions. USER: {TEXT} ASSISTANT:", " The answer is A."),
        ("chat", f"\n### Human: {TEXT}\n### Assistant:", " The answer is A."),
    ],
)
def test_by_name_and_without_a_chat_template(tmp_path, template, prompt, answer):
    root = write_scienceqa(tmp_path)
    asked = reading(root, template, training=False)
    assert shown(asked).endswith(prompt) and (template != "paper" or shown(asked) == prompt)
    assert shown(reading(root, template)) == shown(asked, answer)
    assert [one.text for (one,) in asked.meta["answers"]] == [answer, answer.replace("A.", "B.")]


def test_the_default_is_the_papers_prompt_and_plain_is_refused(tmp_path):
    root = write_scienceqa(tmp_path)
    assert ScienceqaSettings().template == "paper"
    with pytest.raises(InputError, match="template.*paper, auto, alpaca, vicuna, chat"):
        reading(root, "plain")


def test_too_long_a_question_loses_its_context_and_never_an_option(tmp_path):
    tokenizer = chat_tokenizer("llama3")
    hint = "Many animals stand there. " * 20
    root = write_scienceqa(tmp_path, {"1": problem(), "2": problem(hint=hint, choices=["dog <|eot_id|>", "cat"])})
    asked = reading(root, "auto", tokenizer, training=False)
    encoder = SampleEncoder(tokenizer, 120)
    item = encoder.encode(asked)
    assert encoder.cut_samples == 1 and len(item.ids) == 120
    kept = tokenizer.decode(item.ids, clean_up_tokenization_spaces=False)
    tail = "Options: (A) dog <|eot_id|> (B) cat<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert "Question: Which one is larger?\nContext: Many" in kept and kept.endswith(tail)
    assert list(item.ids).count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 2, "in a choice it is text"


@pytest.mark.parametrize("prompt_format", ["QCML-A", "CQM-LEA", "QCM-ALE", "MQC-EA"])
def test_every_format_is_asked_as_it_is_learned(tmp_path, prompt_format):
    tokenizer = chat_tokenizer("smollm2")
    fields = {"lecture": "", "solution": "Dogs  are\nlarger."}
    root = write_scienceqa(tmp_path, {"1": problem(), "2": problem(**fields)})
    learned, asked = (
        reading(root, "auto", tokenizer, training, prompt_format=prompt_format) for training in (True, False)
    )
    assert learned.segments[: len(asked.segments)] == asked.segments
    assert [one.kind for one in learned.segments[len(asked.segments) :]][0] == ANSWER
    assert "  " not in shown(learned) and ("Dogs are\\nlarger." in shown(learned)) == ("E" in prompt_format)
    assert "BECAUSE:<" not in shown(asked) and "BECAUSE:\n" not in shown(asked)


def test_a_task_without_a_template_asks_as_the_questions_were_trained():
    tokenizer, task = chat_tokenizer("llama3"), ScienceqaSettings()
    framed, papers = ScienceqaSettings(template="vicuna"), ScienceqaSettings()
    captions, instructions = CocoSettings(template="plain"), AlpacaSettings(template="auto")
    assert trained_template({"questions": framed, "texts": instructions}, tokenizer, task) == "vicuna"
    assert trained_template({"texts": instructions}, tokenizer, task) == "paper"
    assert trained_template({"questions": papers}, tokenizer, task) == "paper"
    # generate and chat: as the instructions, else the captions, else the questions unless they stood in the paper's.
    assert trained_template({"questions": framed}, tokenizer) == "vicuna"
    assert trained_template({"questions": papers}, None) == "alpaca"
    assert trained_template({"questions": framed, "texts": instructions}, tokenizer) == "auto"
    assert trained_template({"questions": framed, "captions": captions}, tokenizer) == "plain"
