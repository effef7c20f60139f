"""A real chat template, SmolLM2's: its own ids, and answers that end."""

from __future__ import annotations

import pytest

from mmadapter.data.chat_templates import end_token
from mmadapter.data.templates import Turn
from mmadapter.data.tokens import SampleEncoder
from mmadapter.hosts.load import load_tokenizer
from tests.data.reading import read_scienceqa
from tests.data.small_files import write_scienceqa
from tests.data.test_chat_templates import TURNS, encoded, own_ids, tidy

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm2(prepared):
    return prepared("smollm2")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("system", [None, "You answer in one word."])
def test_the_ids_are_those_of_its_own_rendering(smollm2, count, system):
    tokenizer = load_tokenizer(smollm2)
    turns = [*tidy(TURNS[:count]), Turn("Compare", "They differ.", "two words")]
    learned = encoded(turns, tokenizer, system)
    assert list(learned.ids) == own_ids(turns, tokenizer, system)
    assert all(learned.ids[stop - 1] == end_token(tokenizer) for _, stop in learned.spans)


def test_questions_of_scienceqa_have_the_ids_of_its_own_rendering(smollm2, tmp_path):
    tokenizer, root = load_tokenizer(smollm2), write_scienceqa(tmp_path)
    for learned in read_scienceqa(root, training=True, images=False, template="auto", tokenizer=tokenizer):
        text = learned.prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        assert text.startswith("Question:") and "Options: (A)" in text
        turns = [Turn(text, learned.answer)]
        assert list(SampleEncoder(tokenizer, 512).encode(learned).ids) == own_ids(turns, tokenizer)


def test_it_never_puts_begin_of_text_in_front(smollm2):
    tokenizer = load_tokenizer(smollm2)
    assert SampleEncoder(tokenizer, 512)._begin is None and tokenizer.bos_token_id is not None


def test_a_dialog_is_answered_in_its_own_format_and_ends(smollm2):
    from mmadapter.hosts.settings import HostConf
    from mmadapter.methods import AdapterConf
    from mmadapter.methods.settings import PromptsConf
    from mmadapter.model import AdaptedModel
    from mmadapter.vision.settings import VisionSettings

    adapter = AdapterConf(methods={"prompts": PromptsConf(layers=4)})
    host = HostConf(path=str(smollm2), dtype="float32")
    model = AdaptedModel.build(host, VisionSettings(enabled=False), adapter, device="cpu")
    pieces = list(model.stream("What is the capital of France?", max_new_tokens=24))
    answer, history = model.chat("What is the capital of France?", max_new_tokens=24)
    assert answer == "".join(pieces) == "The capital of France is Paris."
    assert len(pieces) > 4
    assert "Paris" in model.chat("Say it again.", history=history, max_new_tokens=24)[0]
