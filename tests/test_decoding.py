"""Greedy answers that are written row by row: the tokens that `transformers` generates, whoever stands beside a row."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmadapter.decoding import greedy_answers
from mmadapter.hosts.calls import VisualTokens
from mmadapter.hosts.settings import GenerationConf
from mmadapter.model import AdaptedModel
from tests.families import FAMILIES, VOCABULARY, visual_tokens
from tests.models import WORDS, model_on, picture, sample

MOST = 9  # new tokens of an answer
END = 2


def prompts_of(count: int, shared: int = 10) -> list[array[int]]:
    """Prompts of 1 to 25 tokens, every second one with the same beginning."""
    drawn = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [drawn.randrange(3, VOCABULARY) for _ in range(length)]

    head = tokens(shared)
    return [array("i", [1, *(head if number % 2 else []), *tokens(drawn.randrange(15))]) for number in range(count)]


def pictured(model: AdaptedModel, pictures: list[int | None]) -> VisualTokens:
    """Random visual tokens, the same ones for the same picture; zeros for a row without."""
    seen = torch.tensor([picture is not None for picture in pictures])
    drawn = torch.stack([visual_tokens(1, model.adapter.projection.tokens, seed=n or 0)[0] for n in pictures])
    return VisualTokens(drawn * seen[:, None, None], seen)


def written(
    model: AdaptedModel,
    prompts: list[array[int]],
    pictures: list[int | None],
    ends: set[int],
    at_once: int,
    most: int = MOST,
) -> list[list[int]]:
    visual = pictured(model, pictures)

    def call_of(rows):
        chosen = list(rows)
        return model.adapter.call(VisualTokens(visual.tokens[chosen], visual.present[chosen]), keep=True)

    return greedy_answers(model.host, prompts, pictures, call_of, ends, most, at_once)


def generated(
    model: AdaptedModel, prompts: list[array[int]], pictures: list[int | None], ends: set[int], most: int = MOST
) -> list[list[int]]:
    """Each prompt alone, by the definition: the likeliest token behind all tokens so far, without any cache."""
    answers = []
    for number, prompt in enumerate(prompts):
        visual, answer = pictured(model, pictures[number : number + 1]), []
        while len(answer) < most:
            with torch.no_grad(), model.host.adapter_slot.during(model.adapter.call(visual)):
                ids = torch.tensor([[*prompt, *answer]])
                token = int(model.host(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if token in ends:
                break
            answer.append(token)
        answers.append(answer)
    return answers


@pytest.mark.parametrize("method", ["", "v2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_gets_the_tokens_that_it_gets_alone(family, method):
    """Rows of all lengths, in part with pictures, end at different steps, and others take their places."""
    model = model_on(f"{method} {family}".strip(), gates=2.0, seed=3)
    prompts, pictures = prompts_of(14), [None, 1, 1, 2, None, 2, 3, None, None, 1, 4, 4, None, 3]
    whole = generated(model, prompts, pictures, set())
    said = Counter(token for answer in whole for token in answer)
    ends = {min(said, key=lambda token: said[token])}  # some answers end with it, and the others go on
    expected = generated(model, prompts, pictures, ends)
    assert expected != whole
    for at_once in (1, 4, 14):
        assert written(model, prompts, pictures, ends, at_once) == expected, at_once


def test_longer_answers_than_there_was_room_for(monkeypatch):
    """Memory grows while answers are written, and what was there stays."""
    monkeypatch.setattr("mmadapter.hosts.kv_cache.ROOM", 3)
    model = model_on("llama_gqa", gates=2.0)
    prompts, pictures = prompts_of(6), [None, 1, 2, None, 1, 3]
    expected = generated(model, prompts, pictures, {END}, most=25)
    assert max(map(len, expected)) == 25
    assert written(model, prompts, pictures, {END}, 3, most=25) == expected


def test_the_template_of_rows_that_enter_together_is_computed_once(monkeypatch):
    model, tokens = model_on("llama_gqa", images=False), []
    model.host.get_input_embeddings().register_forward_pre_hook(lambda _, given: tokens.append(given[0].numel()))
    head = "what colour is the large circle on the left of the square and"
    model.answer([sample(f"{head} {word}", id=word) for word in ("red", "blue", "green")], GenerationConf(1))
    assert tokens == [1 + len(head.split()) + 3]


def test_rows_that_have_ended_are_not_computed():
    """Four answers at a time: whoever ends makes room, and the batch shrinks when nobody waits."""
    model, rows = model_on("llama_mha", images=False, gates=2.0), []
    model.host.get_input_embeddings().register_forward_pre_hook(lambda _, given: rows.append(tuple(given[0].shape)))
    prompts = prompts_of(9, shared=0)
    nothing = model.adapter.call()
    whole = greedy_answers(model.host, prompts, [None] * 9, lambda _: nothing, set(), 12, 9)
    ends = {whole[0][2], whole[3][4], whole[4][1]}
    rows.clear()
    answers = greedy_answers(model.host, prompts, [None] * 9, lambda _: nothing, ends, 12, 4)
    assert answers == [next((one[:place] for place, token in enumerate(one) if token in ends), one) for one in whole]
    steps = [shape[0] for shape in rows if shape[1] == 1]
    # The first token comes with the prompt. No row is computed behind its end.
    computed = sum(min(len(answer) + 1, 12) - 1 for answer in answers)
    entered_alone = sum(1 for shape in rows if shape == (1, 1)) - sum(1 for one in steps if one == 1)
    assert sum(steps) - entered_alone == computed


@pytest.mark.parametrize("name", ["llama_gqa", "mistral"])
def test_more_samples_than_the_batch_and_their_order(name, tmp_path):
    model, drawn = model_on(name, gates=3.0, seed=7), random.Random(1)
    files = [None, picture(tmp_path, 1), picture(tmp_path, 2)]
    texts = [" ".join(drawn.choices(WORDS.split(), k=drawn.randrange(1, 14))) for _ in range(11)]
    samples = [sample(text, image=files[n % 3], id=str(n)) for n, text in enumerate(texts)]
    settings = GenerationConf(max_new_tokens=7)
    answers = model.answer(samples, settings, cache="dynamic")
    assert model.answer(samples, settings, at_once=3) == answers
    assert model.answer(samples[::-1], settings, at_once=4)[::-1] == answers
    assert model.answer(samples, settings) == answers
    assert len(set(answers)) > 3


def test_what_greedy_generation_is_told_beyond_the_likeliest_token_is_left_to_transformers():
    model, settings = model_on("llama_gqa", images=False, gates=2.0), GenerationConf(max_new_tokens=12)
    asked = [sample("what colour is the circle")]
    assert model.decodes_by_rows(settings)
    assert not model.decodes_by_rows(GenerationConf(temperature=0.5))
    assert not model.decodes_by_rows(GenerationConf(beams=2))
    plain = model.answer(asked, settings)
    model.host.generation_config.repetition_penalty = 5.0
    assert not model.decodes_by_rows(settings)
    assert model.answer(asked, settings) != plain, "the folder's penalty counts"
    assert model.answer(asked, settings, cache="rows") == plain


def test_watching_sees_each_token_and_ends_the_answer():
    model = model_on("llama_gqa", images=False, gates=2.0)
    asked, settings = [sample("what colour is the circle"), sample("a")], GenerationConf(max_new_tokens=6)
    seen = {"rows": [], "dynamic": []}
    for cache, found in seen.items():
        model.answer(asked, settings, cache=cache, watch=lambda ids, found=found: bool(found.append(ids)))
        stopped = model.answer(asked, settings, cache=cache, watch=lambda ids: len(ids) == 2)
        assert stopped == model.answer(asked, replace(settings, max_new_tokens=2), cache=cache)
    assert seen["rows"] == seen["dynamic"] and len(seen["rows"]) == 6
