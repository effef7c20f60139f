"""Greedy answers, a token at a time: rows that have ended leave the batch, and waiting prompts take their places.

The prompts that enter are one forest: what they begin with alike (the template, a question about one picture) is
computed once, and nothing is padded. The tokens are those of `transformers`' greedy generation.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence, Set
from itertools import takewhile

import torch

from mmadapter.data.forest import trees_of
from mmadapter.hosts.calls import AdapterCall, head_on_rows
from mmadapter.hosts.families import Host
from mmadapter.hosts.forest import no_mask
from mmadapter.hosts.kv_cache import KeyValueCache

# Rows that have ended leave together, as soon as they are this share of the batch.
LEAVE_TOGETHER = 1 / 8


@torch.no_grad()
def greedy_answers(
    host: Host,
    prompts: Sequence[array[int]],
    pictures: Sequence[Hashable],
    call_of: Callable[[Sequence[int]], AdapterCall],
    ends: Set[int],
    max_new_tokens: int,
    at_once: int,
    watch: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """The tokens of the answer to each prompt, without what ends it; at most `at_once` are written at a time.

    `pictures` names each prompt's picture (None: it has none), and `call_of` gives the adapter's call for rows with the
    pictures of these prompts. `watch` is called after each token with the first answer so far; True ends all.
    """
    longest = max(map(len, prompts), default=0) + max_new_tokens
    cache = KeyValueCache(min(at_once, len(prompts)), longest, next(host.parameters()).device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows: list[int] = []  # whose answer each row of the batch is
    waiting = sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt]))  # rows of similar lengths meet
    call: AdapterCall | None = None  # for the present rows

    def has_ended(prompt: int) -> bool:
        return len(answers[prompt]) == max_new_tokens or answers[prompt][-1] in ends

    def without_end(prompt: int) -> list[int]:
        return list(takewhile(lambda token: token not in ends, answers[prompt]))

    while True:
        # Rows that have ended leave.
        ended = [row for row, prompt in enumerate(rows) if has_ended(prompt)]
        if len(ended) >= LEAVE_TOGETHER * len(rows):
            call = None
            for row in reversed(ended):
                cache.leave(row)
                rows[row] = rows[-1]
                rows.pop()

        # Waiting prompts take the free rows, and get their first tokens.
        if entering := waiting[: cache.most_rows - len(rows)]:
            waiting = waiting[len(entering) :]
            rows += entering
            call = None
            given = [prompts[prompt] for prompt in entering], [pictures[prompt] for prompt in entering]
            for prompt, token in zip(
                entering,
                first_tokens(host, cache, *given, lambda groups: call_of([entering[group] for group in groups])),
                strict=True,
            ):
                answers[prompt].append(token)

        # Every row that goes on gets its next token.
        elif rows:
            if call is None:
                call = call_of(rows)
            tokens = next_tokens(host, cache, call, [answers[prompt][-1] for prompt in rows])
            for row, prompt in enumerate(rows):
                if not has_ended(prompt):
                    cache.lengths[row] += 1
                    answers[prompt].append(tokens[row])

        else:
            break
        if watch is not None and watch(without_end(0)):
            break
    return [without_end(prompt) for prompt in range(len(prompts))]


def first_tokens(
    host: Host,
    cache: KeyValueCache,
    prompts: Sequence[array[int]],
    pictures: Sequence[Hashable],
    call_of: Callable[[Sequence[int]], AdapterCall],
) -> list[int]:
    """The likeliest token behind each prompt; the prompts become rows of `cache`."""
    trees = trees_of(prompts, pictures)
    call = call_of([pictures.index(picture) for picture in trees.sizes])
    cache.enter(trees.rows)
    last = torch.tensor([path[-1] for path in trees.rows], device=cache.device)
    call.forest, call.cache = trees.forest(last.unique()).to(cache.device), cache
    with host.adapter_slot.during(call), head_on_rows(host.get_output_embeddings(), last):
        logits = host(
            input_ids=trees.input_ids.to(cache.device),
            position_ids=call.forest.positions,
            attention_mask=no_mask(),
            use_cache=False,
        ).logits
    return logits[0].argmax(-1).tolist()


def next_tokens(host: Host, cache: KeyValueCache, call: AdapterCall, tokens: Sequence[int]) -> list[int]:
    """The likeliest token behind each row and its newest token, one of `tokens`, which `cache` does not have yet."""
    call.forest, call.cache = None, cache
    with host.adapter_slot.during(call):
        logits = host(
            input_ids=torch.tensor(tokens, device=cache.device)[:, None],
            position_ids=cache.next_positions(),
            attention_mask=no_mask(),
            use_cache=False,
        ).logits
    return logits[:, -1].argmax(-1).tolist()
