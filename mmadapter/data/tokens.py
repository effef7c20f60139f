"""Samples to token ids: segments are tokenised apart and concatenated, so the labels' boundary is known."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmadapter.data.chat_templates import control_tokens, plain_turn_tokens
from mmadapter.data.samples import ANSWER, BEGIN, CONTEXT, CONTROLS, END, INSTRUCTION, TEMPLATE, Sample, Segment
from mmadapter.errors import InputError

ANCHORS = (":", "\n", "a")
CHUNK = 2048
NAMED = 5
Pieces = list[tuple[str, list[int]]]
"""A sample's segments as (kind, token ids), with begin-of-text in front; an answer's ids with what ends it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with BOS, and with an end behind every answer; the labels are `ids[begin:end]` of each span.

    The ids are an array of 4 bytes a token; a list of numbers has 36 (8 a reference, 28 a number).
    """

    sample: Sample
    ids: array[int]
    spans: tuple[tuple[int, int], ...]


def _begin_of_text(tokenizer: Any, wanted: str = "auto") -> int | None:
    """The token that is put in front of a text: where the tokenizer itself does ("auto"), "always", or "never".

    LLaMA's own tokenizer does where its files do not say otherwise; transformers 5 has forgotten that (4.57 has not).
    """
    token = tokenizer.bos_token_id
    if token is None or wanted == "never":
        return None
    is_llamas = type(tokenizer).__name__.startswith("LlamaTokenizer") and "add_bos_token" not in tokenizer.init_kwargs
    if wanted == "always" or is_llamas or list(tokenizer("a", verbose=False)["input_ids"])[:1] == [token]:
        return int(token)
    return None


class SampleEncoder:
    """Turns samples into ids of at most `max_tokens` tokens (BOS and EOS included).

    BOS, begin-of-text, stands in front where the host's tokenizer itself puts it (`begin_of_text`: "auto", "always" or
    "never"), but for a template that opens its sequences by itself.

    Works with every `transformers` tokenizer. A segment behind another one is tokenised as the continuation of a text:
    the ids of anchor + segment without the anchor's ids. So SentencePiece adds no blank of its own, and no token ever
    reaches over a segment's boundary. Segments carry their own leading blank (" The answer is A."). Behind a control
    token, that token is the anchor.

    Deviates: the official code tokenises prompt and answer together and cuts at the prompt's length. The ids are the
    same, but for boundaries that a token would reach over: an answer that begins with a bracket or quote, and with
    Llama 3 a full stop or colon in front of a newline or an answer.

    In a dialog every answer is learned, each with what ends it in its template, else with EOS behind it; so the model
    learns where to stop in every turn.

    A longer dialog loses whole turns: its last ones where it is learned from, its oldest ones where it is to be
    answered. What is still too long loses its context's end, then its instruction's end. Where template and answer
    alone do not fit, the setting `long_answers` decides: "error", or "cut" as in the official code (the answer's end is
    lost, and with it EOS). Counted are `cut_turns`; `cut_samples`, whose prompts were cut or lost oldest turns; and
    `cut_answers`.

    Only templates may hold control tokens; in all other segments a text such as "</s>" stays text.
    """

    def __init__(
        self, tokenizer: Any, max_tokens: int, long_answers: str = "error", begin_of_text: str = "auto"
    ) -> None:
        self.tokenizer, self.max_tokens, self.long_answers = tokenizer, max_tokens, long_answers
        self.cut_samples = self.cut_answers = self.cut_turns = 0
        self._begin, self._always_begins = _begin_of_text(tokenizer, begin_of_text), begin_of_text == "always"
        self._controls = control_tokens(tokenizer)
        self._turns = plain_turn_tokens(tokenizer)
        self._ends: dict[str, str] = {}  # text of a template -> the control token at its end, or ""
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
            for sample in chunk:
                pieces = self._pieces(sample, ids_of)
                if self._excess(pieces) > 0:
                    pieces = self._shortened(pieces, sample.answer is not None)
                if (excess := self._excess(pieces)) > 0:
                    excess_of[f"{sample.where} (source {sample.source})"] = excess
                ids, spans = array("i"), []
                for kind, part in pieces:
                    if kind == ANSWER:
                        spans.append((len(ids), len(ids) + len(part)))
                    ids.extend(part)
                encoded.append(Encoded(sample, ids, tuple(spans)))
        if excess_of:
            named = "; ".join(f"{where}: {excess} too many" for where, excess in list(excess_of.items())[:NAMED])
            raise InputError(
                f"Template and answer alone are longer than max_tokens = {self.max_tokens}, context and instruction "
                f"cut away, in {len(excess_of)} of {len(listed)} samples: {named}. Raise host.max_tokens to at least "
                f"{self.max_tokens + max(excess_of.values())}, or take them out."
            )
        return encoded

    def continuations(self, texts: Sequence[str], kind: str = TEMPLATE, behind: str = "") -> list[list[int]]:
        """The ids of each text as it continues another text, which ends with the token `behind` if one is given.

        Where that other text is none that the tokenizer can be shown (a content that holds control tokens as text would
        not stay text), it is one of the anchors.
        """
        found: dict[str, list[int]] = {"": []}
        open_texts = [text for text in dict.fromkeys(texts) if text]
        if behind:
            shown = [text for text in open_texts if kind in CONTROLS or not any(one in text for one in self._controls)]
            prefix = self._tokenise([behind], TEMPLATE)[0]
            for text, ids in zip(shown, self._tokenise([behind + text for text in shown], TEMPLATE), strict=True):
                if ids[: len(prefix)] == prefix:
                    found[text] = ids[len(prefix) :]
            open_texts = [text for text in open_texts if text not in found]
        for anchor, prefix in self._anchors:
            rows = self._tokenise([anchor + text for text in open_texts], kind)
            for text, ids in zip(open_texts, rows, strict=True):
                if ids[: len(prefix)] == prefix:
                    found[text] = ids[len(prefix) :]
            open_texts = [text for text in open_texts if text not in found]
        # Every anchor melted into the text (never seen): its ids as a text of its own are still a valid reading.
        found.update(zip(open_texts, self._tokenise(open_texts, kind), strict=True))
        return [found[text] for text in texts]

    def _tokenise(self, texts: Sequence[str], kind: str) -> list[list[int]]:
        if not texts:
            return []
        as_text = kind not in CONTROLS
        if as_text and (marked := [text for text in texts if any(one in text for one in self._turns)]):
            rest = [text for text in texts if text not in marked]
            found = dict(zip(rest, self._tokenise(rest, kind), strict=True))
            found.update((text, self._as_text(text, kind)) for text in marked)
            return [found[text] for text in texts]
        before = getattr(self.tokenizer, "split_special_tokens", False)
        # transformers 4's tokenizers in plain Python ignore the argument and look at the attribute.
        self.tokenizer.split_special_tokens = as_text
        try:
            settings = {"split_special_tokens": as_text, "add_special_tokens": False, "return_attention_mask": False}
            return self.tokenizer(list(texts), verbose=False, **settings)["input_ids"]
        finally:
            self.tokenizer.split_special_tokens = before

    def _as_text(self, text: str, kind: str) -> list[int]:
        """The ids of a text in which tokens of turns are text: no setting of a tokenizer takes an added token that is
        no control token for text, so each is cut behind its first character."""
        for one in self._turns:
            text = text.replace(one, f"{one[0]}\0{one[1:]}")
        first, *others = text.split("\0")
        return [*self._tokenise([first], kind)[0], *(one for ids in self.continuations(others, kind) for one in ids)]

    def _tokenise_segments(self, samples: Sequence[Sample]) -> dict[tuple[str, str, str | None], list[int]]:
        """Ids of all segments of `samples`, by (text, kind, what stands in front: see `_behind`)."""
        wanted: dict[tuple[str, str | None], dict[str, None]] = {}
        for sample in samples:
            for place, segment in enumerate(sample.segments):
                wanted.setdefault((segment.kind, self._behind(sample.segments, place)), {})[segment.text] = None
        ids_of: dict[tuple[str, str, str | None], list[int]] = {}
        for (kind, behind), texts in wanted.items():
            listed = list(texts)
            rows = self._tokenise(listed, kind) if behind is None else self.continuations(listed, kind, behind)
            ids_of.update(((text, kind, behind), ids) for text, ids in zip(listed, rows, strict=True))
        return ids_of

    def _behind(self, segments: Sequence[Segment], place: int) -> str | None:
        """The control token in front of a segment, "" where other text stands there; None for the first one."""
        if not place:
            return None
        before = segments[place - 1]
        if before.kind not in CONTROLS:
            return ""
        if before.text not in self._ends:
            ends = (one for one in self._controls if before.text.endswith(one))
            self._ends[before.text] = next(ends, "")
        return self._ends[before.text]

    def _pieces(self, sample: Sample, ids_of: dict[tuple[str, str, str | None], list[int]]) -> Pieces:
        """The sample's segments as ids, with begin-of-text in front and an end behind every answer.

        Raises InputError on an answer without a prompt of its own, and on an empty one that is to be learned.
        """
        segments = sample.segments
        pieces: Pieces = []
        is_learned = sample.answer is not None
        for place, segment in enumerate(segments):
            ids = ids_of[segment.text, segment.kind, self._behind(segments, place)]
            if segment.kind == END:  # it stands with its answer
                continue
            if segment.kind == ANSWER:
                is_alone = place == 0 and len(segments) > 1
                if is_alone or (place and segments[place - 1].kind == ANSWER):
                    wanted = "each answer stands behind a prompt of its own"
                    raise InputError(f"{sample.where}: {wanted}; segment {place} does not.")
                if is_learned and (not ids or not segment.text.strip()):
                    raise InputError(
                        f"{sample.where} (source {sample.source}): the answer is empty, so there is nothing to learn "
                        "from it. Give it an answer or take the item out."
                    )
                if place + 1 < len(segments) and segments[place + 1].kind == END:
                    end = segments[place + 1]
                    ids = [*ids, *ids_of[end.text, END, self._behind(segments, place + 1)]]
                elif self.tokenizer.eos_token_id is None:
                    raise InputError(
                        "The host's tokenizer names no end-of-text token, so the model could not learn to stop. "
                        "Set eos_token in its tokenizer_config.json."
                    )
                else:
                    ids = [*ids, int(self.tokenizer.eos_token_id)]
            pieces.append((segment.kind, ids))
        opens_itself = segments[0].kind == BEGIN and not self._always_begins
        if self._begin is not None and not opens_itself and pieces[0][1][:1] != [self._begin]:
            pieces.insert(0, (BEGIN, [self._begin]))
        return pieces

    def _excess(self, pieces: Pieces) -> int:
        """How many tokens the sample has too many; below zero where there is room."""
        return sum(len(ids) for _, ids in pieces) - self.max_tokens

    def _shortened(self, pieces: Pieces, is_answered: bool) -> Pieces:
        """What is left of a sample that is too long; an answer's end goes last, and only where that is allowed."""
        ends = [place + 1 for place, (kind, _) in enumerate(pieces) if kind == ANSWER]
        whole = pieces = pieces[: ends[-1]] if is_answered else pieces  # nothing is learned of what the template adds
        left_out = 0

        # Whole turns of a dialog. The head (system text, Alpaca's preface) stands in front of the first turn's
        # instruction, so the oldest turn that stays gets it in place of what opened it.
        def asked_from(start: int) -> int:
            return next(place for place in range(start, len(whole)) if whole[place][0] in (INSTRUCTION, CONTEXT))

        while self._excess(pieces) > 0 and left_out < len(ends) - is_answered:
            left_out += 1
            if is_answered:
                pieces = whole[: ends[-1 - left_out]]
            else:
                pieces = [*whole[: asked_from(0)], *whole[asked_from(ends[left_out - 1]) :]]
        excess = self._excess(pieces)
        self.cut_turns += left_out
        self.cut_samples += excess > 0 or (left_out > 0 and not is_answered)

        # The context's end, then the instruction's.
        pieces = list(pieces)
        for cuttable in (CONTEXT, INSTRUCTION):
            for place in reversed(range(len(pieces))):
                kind, ids = pieces[place]
                if kind == cuttable and excess > 0:
                    pieces[place] = (kind, ids[: max(len(ids) - excess, 0)])
                    excess -= min(excess, len(ids))

        # The answer's end.
        answer = pieces[-1][1]
        if 0 < excess < len(answer) and is_answered and self.long_answers == "cut":
            self.cut_answers += 1
            pieces[-1] = (ANSWER, answer[: len(answer) - excess])
        return pieces


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
