"""Samples to token ids: segments are tokenised apart and concatenated, so the labels' boundary is known."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmadapter.data.samples import ANSWER, CONTEXT, INSTRUCTION, TEMPLATE, Sample
from mmadapter.errors import InputError

ANCHORS = (":", "\n", "a")
LONG_ANSWERS = ("error", "cut")
CHUNK = 2048
NAMED = 5
CUT_ORDER = (CONTEXT, INSTRUCTION)
Pieces = list[tuple[str, list[int]]]
"""A sample's segments as (kind, token ids); an answer's ids with end-of-text."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with BOS, and with EOS behind every answer; the labels are `ids[begin:end]` of each span.

    The ids are an array of 4 bytes a token; a list of numbers has 36 (8 a reference, 28 a number).
    """

    sample: Sample
    ids: array[int]
    spans: tuple[tuple[int, int], ...]


class SampleEncoder:
    """Turns samples into ids of at most `max_tokens` tokens (BOS and EOS included).

    Works with every `transformers` tokenizer. A segment behind another one is tokenised as the continuation of a text:
    the ids of anchor + segment without the anchor's ids. So SentencePiece adds no blank of its own, and no token ever
    reaches over a segment's boundary. Segments carry their own leading blank (" The answer is A.").

    Deviates: the official code tokenises prompt and answer together and cuts at the prompt's length. The ids are the
    same, but for boundaries that a token would reach over: an answer that begins with a bracket or quote, and with
    Llama 3 a full stop or colon in front of a newline or an answer.

    In a dialog every answer is learned, each with EOS behind it; so the model learns where to stop in every turn.

    A longer dialog loses whole turns: its last ones where it is learned from, its oldest ones where it is to be
    answered. What is still too long loses its context's end, then its instruction's end. Where template and answer
    alone do not fit, the setting `long_answers` decides: "error", or "cut" as in the official code (the answer's end is
    lost, and with it EOS). Counted are `cut_turns` and, learned from, the `cut_dialogs` that lost them; `cut_samples`,
    whose prompts were cut or lost oldest turns; and `cut_answers`.

    Only templates may hold special tokens; in all other segments a text such as "</s>" stays text.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, long_answers: str = "error") -> None:
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; it must be at least 1 (host.max_tokens).")
        if long_answers not in LONG_ANSWERS:
            raise InputError(f"long_answers is {long_answers!r}; allowed: {', '.join(LONG_ANSWERS)}.")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.long_answers = long_answers
        self.cut_samples = 0
        self.cut_answers = 0
        self.cut_dialogs = 0
        self.cut_turns = 0
        self._bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        self._anchors = [(anchor, self._tokenise([anchor], TEMPLATE)[0]) for anchor in ANCHORS]

    @property
    def pad_id(self) -> int:
        """The id that fills up a batch; any id will do, because the attention mask hides it."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def encode(self, sample: Sample) -> Encoded:
        """Encodes one sample; raises InputError naming it where its answer is empty or it does not fit."""
        return self.encode_many([sample])[0]

    def encode_many(self, samples: Iterable[Sample]) -> list[Encoded]:
        """Encodes many samples, tokenising in large batches; those that do not fit are named in one error."""
        listed = list(samples)
        encoded: list[Encoded] = []
        excess_of: dict[str, int] = {}
        for start in range(0, len(listed), CHUNK):
            chunk = listed[start : start + CHUNK]
            ids_of = self._tokenise_segments(chunk)
            encoded.extend(self._assemble(sample, ids_of, excess_of) for sample in chunk)
        if excess_of:
            self._refuse(excess_of, len(listed))
        return encoded

    def continuation(self, text: str, kind: str = TEMPLATE) -> list[int]:
        """The ids of `text` as it continues another text."""
        return self._continuations([text], kind)[0]

    def _tokenise(self, texts: Sequence[str], kind: str) -> list[list[int]]:
        if not texts:
            return []
        as_text = kind != TEMPLATE
        before = getattr(self.tokenizer, "split_special_tokens", False)
        # transformers 4's tokenizers in plain Python ignore the argument and look at the attribute.
        self.tokenizer.split_special_tokens = as_text
        try:
            settings = {"split_special_tokens": as_text, "add_special_tokens": False, "return_attention_mask": False}
            return self.tokenizer(list(texts), verbose=False, **settings)["input_ids"]
        finally:
            self.tokenizer.split_special_tokens = before

    def _continuations(self, texts: Sequence[str], kind: str) -> list[list[int]]:
        found: dict[str, list[int]] = {"": []}
        open_texts = [text for text in dict.fromkeys(texts) if text]
        for anchor, prefix in self._anchors:
            rows = self._tokenise([anchor + text for text in open_texts], kind)
            for text, ids in zip(open_texts, rows, strict=True):
                if ids[: len(prefix)] == prefix:
                    found[text] = ids[len(prefix) :]
            open_texts = [text for text in open_texts if text not in found]
        # Every anchor melted into the text (never seen): its ids as a text of its own are still a valid reading.
        found.update(zip(open_texts, self._tokenise(open_texts, kind), strict=True))
        return [found[text] for text in texts]

    def _tokenise_segments(self, samples: Sequence[Sample]) -> dict[tuple[str, str, bool], list[int]]:
        """Ids of all segments of `samples`, by (text, kind, whether it is a continuation)."""
        wanted: dict[tuple[str, bool], dict[str, None]] = {}
        for sample in samples:
            for position, segment in enumerate(sample.segments):
                wanted.setdefault((segment.kind, position > 0), {})[segment.text] = None
        ids_of: dict[tuple[str, str, bool], list[int]] = {}
        for (kind, continues), texts in wanted.items():
            listed = list(texts)
            rows = self._continuations(listed, kind) if continues else self._tokenise(listed, kind)
            ids_of.update(((text, kind, continues), ids) for text, ids in zip(listed, rows, strict=True))
        return ids_of

    def _assemble(
        self, sample: Sample, ids_of: dict[tuple[str, str, bool], list[int]], excess_of: dict[str, int]
    ) -> Encoded:
        """One sample's ids; where it does not fit, its place and excess go into `excess_of`."""
        pieces: Pieces = [
            (segment.kind, ids_of[segment.text, segment.kind, place > 0])
            for place, segment in enumerate(sample.segments)
        ]
        if any(kind == ANSWER for kind, _ in pieces):
            _check_answers(sample, pieces)
            eos = [self._eos_id()]
            pieces = [(kind, ids + eos if kind == ANSWER else ids) for kind, ids in pieces]
        if self._excess(pieces) > 0:
            pieces = self._shortened(pieces)
        if (excess := self._excess(pieces)) > 0:
            excess_of[f"{sample.where} (source {sample.source})"] = excess
        ids = array("i", self._bos)
        spans = []
        for kind, part in pieces:
            if kind == ANSWER:
                spans.append((len(ids), len(ids) + len(part)))
            ids.extend(part)
        return Encoded(sample, ids, tuple(spans))

    def _excess(self, pieces: Pieces) -> int:
        return len(self._bos) + _size(pieces) - self.max_tokens

    def _shortened(self, pieces: Pieces) -> Pieces:
        """What is left of a sample that is too long; an answer's end goes last, and only where that is allowed."""
        is_answered = pieces[-1][0] == ANSWER
        leave_out = _without_last_turns if is_answered else _without_first_turns
        pieces, left_out = leave_out(pieces, self._excess(pieces))
        self.cut_turns += left_out
        self.cut_dialogs += is_answered and left_out > 0
        self.cut_samples += not is_answered and left_out > 0
        if (excess := self._excess(pieces)) <= 0:
            return pieces
        self.cut_samples += is_answered or left_out == 0
        pieces = _with_shorter_prompt(pieces, excess)
        excess, answer = self._excess(pieces), pieces[-1][1]
        if 0 < excess < len(answer) and is_answered and self.long_answers == "cut":
            self.cut_answers += 1
            pieces[-1] = (ANSWER, answer[: len(answer) - excess])
        return pieces

    def _eos_id(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                "The host's tokenizer names no end-of-text token, so the model could not learn to stop. "
                "Set eos_token in its tokenizer_config.json."
            )
        return int(self.tokenizer.eos_token_id)

    def _refuse(self, excess_of: dict[str, int], samples: int) -> None:
        named = "; ".join(f"{where}: {excess} too many" for where, excess in list(excess_of.items())[:NAMED])
        raise InputError(
            f"Template and answer alone are longer than max_tokens = {self.max_tokens}, context and instruction cut "
            f"away, in {len(excess_of)} of {samples} samples: {named}. Raise host.max_tokens to at least "
            f"{self.max_tokens + max(excess_of.values())}, or take them out."
        )


def _check_answers(sample: Sample, pieces: Pieces) -> None:
    """Raises InputError on an answer without a prompt of its own, and on an empty one that is to be learned."""
    is_learned = pieces[-1][0] == ANSWER
    for place, (segment, (_, ids)) in enumerate(zip(sample.segments, pieces, strict=True)):
        if segment.kind != ANSWER:
            continue
        if (place == 0 and len(pieces) > 1) or (place and sample.segments[place - 1].kind == ANSWER):
            wanted = "each answer stands behind a prompt of its own"
            raise InputError(f"{sample.where}: {wanted}; segment {place} does not.")
        if is_learned and (not ids or not segment.text.strip()):
            raise InputError(
                f"{sample.where} (source {sample.source}): the answer is empty, so there is nothing to learn from it. "
                "Give it an answer or take the item out."
            )


# How a sample that is too long is shortened: whole turns of a dialog first, then the prompt's cuttable ends.


def _size(pieces: Pieces) -> int:
    """How many tokens the pieces have."""
    return sum(len(ids) for _, ids in pieces)


def _without_last_turns(pieces: Pieces, excess: int) -> tuple[Pieces, int]:
    """Leaves turns out from the end until `excess` tokens are gone or one turn is left; also says how many turns."""
    ends = _turn_ends(pieces)
    kept = len(ends)
    while excess > 0 and kept > 1:
        excess -= _size(pieces[ends[kept - 2] : ends[kept - 1]])
        kept -= 1
    return pieces[: ends[kept - 1]], len(ends) - kept


def _without_first_turns(pieces: Pieces, excess: int) -> tuple[Pieces, int]:
    """Leaves answered turns out from the start until `excess` tokens are gone or none is left; also says how many.

    Every turn of a dialog opens with one template piece. The first one carries the head (system line, Alpaca's preface)
    as well, so the oldest turn that stays gets it in place of its own.
    """
    ends = _turn_ends(pieces)
    shorter, left_out = pieces, 0
    while left_out < len(ends) and _size(pieces) - _size(shorter) < excess:
        shorter = [pieces[0], *pieces[ends[left_out] + 1 :]]
        left_out += 1
    return shorter, left_out


def _with_shorter_prompt(pieces: Pieces, excess: int) -> Pieces:
    """Takes up to `excess` tokens off the context's end, then off the instruction's."""
    pieces = list(pieces)
    for cuttable in CUT_ORDER:
        for place in reversed(range(len(pieces))):
            kind, ids = pieces[place]
            if kind == cuttable:
                taken = min(excess, len(ids))
                pieces[place] = (kind, ids[: len(ids) - taken])
                excess -= taken
    return pieces


def _turn_ends(pieces: Pieces) -> list[int]:
    """The place behind each answer."""
    return [place + 1 for place, (kind, _) in enumerate(pieces) if kind == ANSWER]


def samples_digest(encoded: Iterable[Encoded]) -> str:
    """What samples are, in 16 hexadecimal digits: a run that is resumed learns from the data that it began with.

    Changes with the order of the samples, with every token, every answer's place and the names of the pictures.

    Of a picture neither place nor content counts: the folder may move, and files of any size are not read again.
    """
    found = hashlib.sha256()
    for item in encoded:
        spans = array("i", [place for span in item.spans for place in span])
        image = b"" if item.sample.image is None else item.sample.image.name.encode("utf-8", "surrogateescape")
        found.update(array("i", [len(item.ids), len(spans), len(image)]).tobytes())
        found.update(item.ids)
        found.update(spans)
        found.update(image)
    return found.hexdigest()[:16]
