"""What `mmadapter.load` gives: a trained model as one object that generates, scores and chats."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmadapter.assistant import Assistant
from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.samples import ANSWER, INSTRUCTION, Sample, Segment
from mmadapter.data.similar_lengths import batches_by_length
from mmadapter.data.templates import alpaca_segments, dialog_segments
from mmadapter.data.tokens import Encoded, SampleEncoder
from mmadapter.errors import InputError
from mmadapter.generation import GenerationSettings
from mmadapter.vision.images import read_image, upright_rgb

TEMPLATES = ("alpaca", "plain")
Picture = str | Path | Image.Image
Triple = tuple[str, str, Picture | None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dialog:
    """A conversation as `AdaptedModel.chat` returns it; given back as `history`, it is continued.

    Chatting never changes one, so that two continuations may start at the same place.
    """

    turns: tuple[tuple[str, str], ...] = ()
    """(what was said, what was answered), oldest first"""
    picture: Image.Image | None = None
    """what the dialog is about, as it was read in the turn that brought it"""
    left_out: int = 0
    """how many of the oldest turns were not seen by the last answer, because they no longer fit"""


class AdaptedModel:
    """A frozen host with its trained adapter; `assistant` is what training and evaluation work with.

    A picture is a path or a PIL image; a file is read anew in every call. Rows with and without pictures stand in one
    batch, and no row is changed by its neighbours. What is too long is cut where it may be, and a warning (of Python's
    `logging`) says so: of a prompt its end is lost, of a dialog its oldest turns.
    """

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant.eval()

    def generate(
        self,
        prompts: str | Sequence[str],
        images: Picture | Sequence[Picture | None] | None = None,
        *,
        template: str = "alpaca",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        beams: int = 1,
        seed: int | None = None,
        batch_size: int = 8,
    ) -> list[str]:
        """One answer for each prompt, in their order, without the prompt and outer blanks.

        `images`: None, one picture that all prompts are about, or one for each prompt, with None for a row without.
        `template`: "alpaca", the prompt is an instruction in Alpaca's frame (its form without input); "plain", the
        prompt is continued as it stands. `temperature` 0 is greedy, or beam search with `beams` > 1; else it samples
        from the `top_p` share of the probability. `seed`: the same one gives the same answers to the same list in the
        same `batch_size`; None: other ones each time. At most `batch_size` prompts of similar lengths are computed at a
        time: it changes speed and memory, and no answer but sampled ones.

        Raises InputError for settings that cannot be, an empty prompt, numbers of prompts and images that differ, a
        picture that cannot be read, and a picture for an adapter that learned without.
        """
        settings = _generation(max_new_tokens, temperature, top_p, beams)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        samples = [_sample(number, _segments(prompt, None, template)) for number, prompt in enumerate(asked)]
        pictures = _pictures(images, len(asked))
        encoded, _ = self._encode(samples, self._room(max_new_tokens))
        seed = secrets.randbits(48) if seed is None else seed
        answers = [""] * len(asked)
        for indices in batches_by_length([len(item.ids) for item in encoded], batch_size):
            features = self._features([pictures[index] for index in indices])
            rows = [samples[index] for index in indices]
            for index, answer in zip(indices, self.assistant.generate(rows, settings, seed, features), strict=True):
                answers[index] = answer
            seed += 1  # or every batch would draw the same numbers
        return answers

    def loss(self, batch: Sequence[Triple] | Batch, *, template: str = "alpaca") -> Tensor:
        """The mean loss of the answers' tokens in nats, end-of-text included: a float32 scalar; 0 without any.

        `batch`: (prompt, answer, picture or None) triples, computed as one batch; or a `Batch` of
        `mmadapter.data.batches`, whose picture files are read once in this object's life, as in training. `template` as
        for `generate`; with "plain" the answer is tokenised as the prompt's continuation, so it brings its own blank.
        Gradients reach the adapter's parameters unless `torch.no_grad` says otherwise.

        Raises InputError as `generate` does, and for an answer that is empty, or too long beside the template.
        """
        if isinstance(batch, Batch):
            return self.assistant(batch.with_features(self.assistant.features)) / max(batch.supervised_tokens, 1)
        triples = list(batch)
        if not triples:
            raise InputError("loss was given no triple. Give at least one (prompt, answer, image or None).")
        samples = [
            _sample(number, _segments(prompt, answer, template)) for number, (prompt, answer, _) in enumerate(triples)
        ]
        encoded, encoder = self._encode(samples, self.assistant.max_tokens)
        rows = make_batch(encoded, encoder.pad_id)
        return self.assistant(rows, self._features([picture for _, _, picture in triples])) / rows.supervised_tokens

    def chat(
        self,
        message: str,
        image: Picture | None = None,
        history: Dialog | None = None,
        *,
        template: str = "alpaca",
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        beams: int = 1,
        seed: int | None = None,
    ) -> tuple[str, Dialog]:
        """The answer to `message`, and the dialog with both in it, to be given as `history` with the next message.

        `image` is what the dialog is about from this turn on: one picture a dialog, seen by every later answer.
        `template`: "alpaca", each turn in Alpaca's frame; "chat", turns of "### Human:" and "### Assistant:": as the
        adapter was trained. Turns that no longer fit beside `max_new_tokens` are left out, oldest first: a warning says
        so when it happens, and `left_out` of the returned dialog holds their number. The other settings are those of
        `generate`. Raises InputError as `generate` does, and for a second picture.
        """
        settings = _generation(max_new_tokens, temperature, top_p, beams)
        history = Dialog() if history is None else history
        if image is not None and history.picture is not None:
            raise InputError("This dialog has a picture, and a dialog has one. Begin a new one: leave history away.")
        _refuse_empty(message)
        picture = history.picture if image is None else _decoded(image)
        sample = _sample(0, dialog_segments([*history.turns, (message, None)], template))
        room = self._room(max_new_tokens)
        _, encoder = self._encode([sample], room, history.left_out)
        if 0 < len(history.turns) == encoder.cut_turns:
            self._encode([_sample(0, dialog_segments([(message, None)], template))], room)  # says whether it is cut too
        seed = secrets.randbits(48) if seed is None else seed
        answer = self.assistant.generate([sample], settings, seed, self._features([picture]))[0]
        return answer, replace(
            history, turns=(*history.turns, (message, answer)), picture=picture, left_out=encoder.cut_turns
        )

    def _room(self, max_new_tokens: int) -> int:
        """Tokens that are left for a prompt."""
        room = self.assistant.max_tokens - max_new_tokens
        if room < 1:
            raise InputError(
                f"max_new_tokens={max_new_tokens} leaves no room for a prompt: the model has a context of "
                f"{self.assistant.max_tokens} tokens. Lower it."
            )
        return room

    def _encode(self, samples: list[Sample], room: int, known: int = 0) -> tuple[list[Encoded], SampleEncoder]:
        """The samples as tokens; a warning says how many were cut, beyond `known` turns that were already left out."""
        encoder = SampleEncoder(self.assistant.tokenizer, room)
        encoded = encoder.encode_many(samples)
        if encoder.cut_turns > known:
            log.warning("%d oldest turns of the dialog no longer fit and are not seen.", encoder.cut_turns)
        elif encoder.cut_samples and not encoder.cut_turns:
            log.warning(
                "%d of %d prompts are longer than %d tokens; their ends are cut off.",
                encoder.cut_samples,
                len(samples),
                room,
            )
        return encoded, encoder

    def _features(self, pictures: Sequence[Picture | None]) -> list[Tensor | None]:
        """What the encoder gives for each row's picture; the same picture in several rows is encoded once."""
        distinct: dict[Any, Picture] = {_name(picture): picture for picture in pictures if picture is not None}
        store = self.assistant.features
        if not distinct:
            return [None] * len(pictures)
        if store is None:
            raise InputError("An image is given, but this adapter is text only: it was trained without pictures.")
        encoded = store.encode([_decoded(picture) for picture in distinct.values()])
        found = dict(zip(distinct, encoded, strict=True))
        return [None if picture is None else found[_name(picture)] for picture in pictures]


def _generation(max_new_tokens: int, temperature: float, top_p: float, beams: int) -> GenerationSettings:
    """The settings, checked."""
    problems = {
        f"max_new_tokens is {max_new_tokens}; it must be at least 1": max_new_tokens < 1,
        f"temperature is {temperature}; it must be 0 (greedy) or more": temperature < 0,
        f"top_p is {top_p}; it must be above 0 and at most 1": not 0 < top_p <= 1,
        f"beams is {beams}; it must be at least 1": beams < 1,
        f"beams={beams} with temperature={temperature}: beam search does not sample": beams > 1 and temperature > 0,
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise InputError(f"{'; '.join(found)}.")
    return GenerationSettings(max_new_tokens, temperature, top_p, beams)


def _segments(prompt: str, answer: str | None, template: str) -> tuple[Segment, ...]:
    _refuse_empty(prompt)
    if template == "alpaca":
        return alpaca_segments(prompt, "", answer)
    if template != "plain":
        raise InputError(f"template is {template!r}; allowed: {', '.join(TEMPLATES)}.")
    asked = Segment(prompt, INSTRUCTION)
    return (asked,) if answer is None else (asked, Segment(answer, ANSWER))


def _refuse_empty(prompt: str) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"A prompt is {prompt!r}; it must be a text with something in it.")


def _sample(number: int, segments: tuple[Segment, ...]) -> Sample:
    return Sample(str(number), "library", segments, None, f"prompt {number}")


def _pictures(images: Picture | Sequence[Picture | None] | None, count: int) -> list[Picture | None]:
    """One picture or None for each prompt."""
    if images is None or isinstance(images, (str, Path, Image.Image)):
        return [images] * count
    if len(images) != count:
        raise InputError(
            f"{count} prompts and {len(images)} images. Give one image for each prompt, with None for a prompt without."
        )
    return list(images)


def _name(picture: Picture) -> Any:
    return id(picture) if isinstance(picture, Image.Image) else Path(picture)


def _decoded(picture: Picture) -> Image.Image:
    """Upright RGB pixels, the same from a path and from what PIL opens there."""
    if isinstance(picture, Image.Image):
        return upright_rgb(picture)
    return read_image(Path(picture).expanduser())
