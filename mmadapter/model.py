"""READ FIRST. AdaptedModel: a frozen host, a frozen image encoder and a trained adapter as one torch module."""

from __future__ import annotations

import logging
import queue
import re
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import takewhile
from math import isfinite
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from mmadapter import __version__
from mmadapter.data.batches import Batch, batches_by_length, make_batch
from mmadapter.data.chat_templates import chat_template_digest, end_token
from mmadapter.data.samples import Sample
from mmadapter.data.templates import SINGLE, TEMPLATES, Turn, chosen_template, rendered
from mmadapter.data.tokens import Encoded, SampleEncoder
from mmadapter.decoding import greedy_answers
from mmadapter.distributed.deepspeed import is_sharded, whole_size
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.hosts.calls import AdapterCall, VisualTokens, head_on_rows, one_thread_at_a_time
from mmadapter.hosts.families import Host, decoder, family_of
from mmadapter.hosts.head_loss import has_plain_head, summed_cross_entropy
from mmadapter.hosts.load import (
    checkpoint_activations,
    generation_config,
    host_identity,
    listed_ends,
    load_host,
    load_tokenizer,
    takes_the_likeliest,
)
from mmadapter.hosts.quantized import quantized_layers
from mmadapter.hosts.settings import GenerationConf, HostConf, host_folder
from mmadapter.hosts.sharded import Sharding
from mmadapter.methods import AdapterConf
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.folder import CARD, Card, load_into, settings_on_card, write_adapter
from mmadapter.methods.groups import TrainableParameter, trainable_parameters
from mmadapter.settings import problems_of
from mmadapter.vision import ENCODERS
from mmadapter.vision.encoder import VisionEncoder
from mmadapter.vision.features import FeatureStore, PixelReader
from mmadapter.vision.images import read_image, upright_rgb
from mmadapter.vision.settings import AUTO_CACHE, NO_CACHE, VisionSettings

Picture = str | Path | Image.Image
Features = Sequence[Tensor | None]
Triple = tuple[str, str, Picture | None]
LONGEST_PATH = 4096  # characters
# Batches that are asked together, so that there are prompts to take the places of ended rows. More would leave some of
# a few ranks without work.
BATCHES_ASKED = 4
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
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


@dataclass(frozen=True)
class _Asked:
    sample: Sample
    dialog: Dialog
    """with the picture, and without the turn that is asked"""


class AdaptedModel(nn.Module):
    """A frozen host with a trainable adapter, which may see pictures through a frozen image encoder.

    For training: `forward(batch)` is the sum of a batch's token losses, `loss_of` the mean loss of some texts,
    `trainable_parameters` what moves. For people: `generate` and `chat`. A picture is a path or a PIL image; a file is
    read anew in every call of these two. Rows with and without pictures stand in one batch, and no row is changed by
    its neighbours. What is too long is cut where it may be, and a warning (of Python's `logging`) says so: of a prompt
    its end is lost, of a dialog its oldest turns.

    Several threads may ask one model, or several models, at once: their calls wait for each other, batch by batch, and
    each gets the answer that it would get alone. Training is for one thread.
    """

    def __init__(
        self,
        host: Host,
        tokenizer: Any,
        adapter: Adapter,
        features: FeatureStore | PixelReader | None = None,
        max_tokens: int | None = None,
        activation_checkpointing: bool = False,
        folder: Path | None = None,
        begin_of_text: str = "auto",
    ) -> None:
        super().__init__()
        self.host: Host = host
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.features = features
        self.vision: VisionEncoder | None = None if features is None else features.encoder
        self.max_tokens = min(max_tokens or 1 << 30, host.config.max_position_embeddings)
        self.activation_checkpointing = activation_checkpointing
        self.folder = folder
        self.begin_of_text = begin_of_text
        self.template = "auto"  # that of the training; what generate, chat and stream use unless told
        self.system: str | None = None  # that of the training, likewise; None: as the template says
        adapter.attach(host)
        self.train(False)

    @classmethod
    @one_thread_at_a_time
    def build(
        cls,
        host: HostConf,
        vision: VisionSettings,
        adapter: AdapterConf,
        seed: int = 0,
        device: str | torch.device | None = None,
        sharding: Sharding | None = None,
    ) -> AdaptedModel:
        """The model of these settings with a fresh adapter, drawn from `seed`, in evaluation mode.

        `device` None: the GPU where there is one. `device="meta"` builds shapes only (dry run): no weights, image
        encoder or tokenizer is read. With `sharding` the host's weights are sharded over the ranks (collective).
        Raises InputError for whatever cannot be built.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device={device}, but torch sees no GPU here. Use device=cpu, or auto.")
        on_meta = str(device) == "meta"
        folder = host_folder(host.path, weights=not on_meta)
        dtype = getattr(torch, host.dtype_on(device))
        loaded = load_host(folder, dtype, host.attention, device, sharding, host.quantization)
        if host.max_tokens > (positions := loaded.config.max_position_embeddings):
            raise InputError(
                f"host.max_tokens={host.max_tokens}, but the host was built for {positions} tokens "
                f"({folder / 'config.json'}). Set host.max_tokens={positions} or less."
            )
        features = _features_read(vision, adapter) if vision.enabled else None
        store = _feature_store(vision, device) if vision.enabled and not on_meta else None
        fresh = Adapter.build(adapter, loaded, seed, features=features, device=device)
        tokenizer = None if on_meta else load_tokenizer(folder, host.tokenizer)
        settings = host.max_tokens, host.activation_checkpointing, folder, host.begin_of_text
        return cls(loaded, tokenizer, fresh, store, *settings)

    @property
    def device(self) -> torch.device:
        return next(self.adapter.parameters()).device

    def train(self, mode: bool = True) -> AdaptedModel:
        """Set the adapter's mode. The frozen parts stay in evaluation mode: none of their dropout ever acts."""
        super().train(mode)
        self.host.eval()
        if self.vision is not None:
            self.vision.eval()
        if mode and self.activation_checkpointing:
            checkpoint_activations(self.host)
        return self

    def trainable_parameters(self) -> list[TrainableParameter]:
        """Every trainable parameter with its name and role."""
        return trainable_parameters(self.adapter)

    @property
    def host_size(self) -> int:
        """The number of the host's own parameters."""
        quantized = sum(layer.in_features * layer.out_features for layer in quantized_layers(self.host))
        return quantized + sum(whole_size(parameter) for parameter in self.host.parameters())

    @property
    def quantization(self) -> str | None:
        """How the linear layers of the host's blocks are stored: "int8", "nf4", or None, in its type."""
        return getattr(self.host, "quantization", None)

    def gates(self) -> Tensor:
        """(layers, heads): the factors on the branches of prompts and visual tokens, lowest layer first."""
        return self.adapter.gates()

    def without_forest(self, learning: bool = True) -> str | None:
        """Why a batch of this model cannot be a forest and give the same loss; None where it can.

        `learning` False: the same logits, in evaluation mode.
        """
        if not family_of(model_type := self.host.config.model_type).forest:
            return f"hosts of type {model_type} may know of positions in other ways than rotary ones"
        return self.adapter.without_forest(learning)

    def __repr__(self) -> str:
        config, sizes = self.host.config, dict.fromkeys(self.adapter, 0)
        for item in self.trainable_parameters():
            sizes[item.name.partition(".")[0]] += item.parameter.numel()
        encoder = (
            "none" if self.vision is None else f"{type(self.vision).__name__}, features {self.vision.feature_shape}"
        )
        methods = ", ".join(f"{name} {count:,}" for name, count in sizes.items()) or "none"
        return (
            f"AdaptedModel(\n  host: {config.model_type}, {config.num_hidden_layers} layers, width "
            f"{config.hidden_size}, {self.host_size:,} frozen parameters\n  image encoder: {encoder}\n"
            f"  methods: {methods}\n"
            f"  trained: {sum(sizes.values()):,} parameters ({sum(sizes.values()) / self.host_size:.3%} of the host)\n)"
        )

    # Training: losses and logits.

    @one_thread_at_a_time
    def forward(self, batch: Batch) -> Tensor:
        """The sum of the batch's token losses (float32 scalar), zero where nothing is supervised: the host runs anyhow.

        No file is opened: the batch carries the features of its pictures (`batch.with_features(model.features)`).
        """
        if not has_plain_head(self.host):
            logits = self._supervised_logits(batch)
            return nn.functional.cross_entropy(logits, batch.targets.to(logits.device), reduction="sum")
        batch = batch.to(self.device)
        with self.host.adapter_slot.during(self._call_of(batch)):
            hidden = decoder(self.host)(**_host_inputs(batch)).last_hidden_state
        predicting = hidden.flatten(0, 1).index_select(0, batch.rows)
        return summed_cross_entropy(predicting, self.host.get_output_embeddings(), batch.targets)

    def loss_of(self, triples: Sequence[Triple], *, template: str | None = None) -> Tensor:
        """The mean loss of the answers' tokens in nats, end-of-text included: a float32 scalar.

        `triples`: (prompt, answer, picture or None), computed as one batch. `template` as for `generate`; with "plain"
        the answer is tokenised as the prompt's continuation, so it brings its own blank. Gradients reach the adapter's
        parameters unless `torch.no_grad` says otherwise. Raises InputError as `generate` does, and for an answer that
        is empty, or too long beside the template.
        """
        triples = _listed("triples=", triples)
        if not triples:
            raise InputError("loss_of was given no triple. Give at least one (prompt, answer, image or None).")
        for one in triples:
            if not isinstance(one, (tuple, list)) or len(one) != 3 or not isinstance(one[1], str):
                raise InputError(f"loss_of takes (prompt, answer, image or None), and got {shorten(repr(one), 120)}.")
        samples = [
            self._sample(number, [Turn(prompt, answer)], template) for number, (prompt, answer, _) in enumerate(triples)
        ]
        encoded, encoder = self._encode(samples, self.max_tokens)
        rows = replace(make_batch(encoded, encoder.pad_id), features=self._features_of([one[2] for one in triples]))
        return self(rows) / rows.supervised_tokens

    @one_thread_at_a_time
    @torch.no_grad()
    def log_likelihood(self, batch: Batch) -> Tensor:
        """(rows,): the sum of the log-probabilities of each row's supervised tokens."""
        logits = self._supervised_logits(batch)
        chosen = logits.log_softmax(-1).gather(-1, batch.targets.to(logits.device)[:, None])[:, 0]
        totals = chosen.new_zeros(len(batch.samples))
        return totals.index_add(0, batch.pair_sample.to(logits.device), chosen)

    @one_thread_at_a_time
    def logits(self, ids: Tensor, features: Features | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """(rows, tokens, vocabulary) for token ids (rows, tokens); a row's `features` is what the encoder gives.

        `attention_mask` (rows, tokens) is 0 on padding; None: there is none.
        """
        ids = ids.to(self.device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(self.device)
        with self.host.adapter_slot.during(self._call(features)):
            where = _positions(mask)
            return self.host(input_ids=ids, attention_mask=mask, position_ids=where, use_cache=False).logits

    def _call(self, features: Features | None, always: bool = False, keep: bool = False) -> AdapterCall:
        visual = None if features is None else self._visual_tokens(features, always)
        return self.adapter.call(visual, keep)

    def _visual_tokens(self, features: Features, always: bool = False) -> VisualTokens | None:
        encoder, given = self.vision, list(features)
        if encoder is not None:  # pixels (vision.cache=false) are encoded here, each picture alone
            given = [one if one is None or one.ndim < 3 else encoder.encode_one(one) for one in given]
        return self.adapter.visual_tokens(given, self.device, always)

    def _call_of(self, batch: Batch, keep: bool = False) -> AdapterCall:
        features = batch.features
        if features is None:
            if self.adapter.projection is not None and any(image is not None for image in batch.images):
                raise ValueError("a batch with pictures has no features: batch.with_features(model.features)")
            features = (None,) * len(batch.images)
        call = self._call(features, bool(batch.visual), keep)
        call.forest = batch.forest
        return call

    def _supervised_logits(self, batch: Batch) -> Tensor:
        """(pairs, vocabulary) in float32: the head runs on the supervised positions only."""
        batch = batch.to(self.device)
        call, head = self._call_of(batch), self.host.get_output_embeddings()
        with self.host.adapter_slot.during(call), head_on_rows(head, batch.rows):
            output = self.host(**_host_inputs(batch))
        return output.logits[0].float()

    # Several ranks.

    @property
    def in_step(self) -> bool:
        """Whether every rank must call this model equally often, with images or without them."""
        return is_sharded(self.host) and dist.get_world_size() > 1

    # Pictures.

    @one_thread_at_a_time
    def prepare_images(
        self, paths: Iterable[Path], progress: Callable[[int, int], None] | None = None, ranks: Ranks | None = None
    ) -> None:
        """Compute the frozen features of image files once, before training or evaluation; several ranks share it.

        With `vision.cache=false` there is nothing to do: batches carry pixels.
        """
        if isinstance(self.features, FeatureStore):
            self.features.add_together(list(dict.fromkeys(paths)), ranks or Ranks(), progress)

    def read_pictures_once(self) -> None:
        """Where no part of the projection trains, and it does much: let it read each picture once, not in every call.

        What is kept of the pictures is then what it has read. Without effect with `vision.cache=false`.
        """
        projection, store = self.adapter.projection, self.features
        if projection is None or any(parameter.requires_grad for parameter in projection.parameters()):
            return
        if isinstance(store, FeatureStore) and hasattr(projection, "read_once"):
            self.features = store.behind(projection.read_once(store.encoder))

    @one_thread_at_a_time
    def _features_of(self, pictures: Sequence[Picture | None]) -> tuple[Tensor | None, ...]:
        """What the encoder gives for each row's picture, read again; one in several rows is encoded once."""
        distinct: dict[Any, Picture] = {_name(picture): picture for picture in pictures if picture is not None}
        store = self.features
        if not distinct:
            return (None,) * len(pictures)
        if store is None:
            raise InputError("An image is given, but this adapter is text only: it was trained without pictures.")
        features = store.encode([_decoded(picture) for picture in distinct.values()])
        found = dict(zip(distinct, features, strict=True))
        return tuple(None if picture is None else found[_name(picture)] for picture in pictures)

    # Answers.

    def generate(
        self,
        prompts: str | Sequence[str],
        images: Picture | Sequence[Picture | None] | None = None,
        *,
        template: str | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        beams: int = 1,
        seed: int | None = None,
        batch_size: int = 8,
    ) -> list[str]:
        """One answer for each prompt, in their order, without the prompt and outer blanks.

        `images`: None, one picture that all prompts are about, or one for each prompt, with None for a row without.
        `template`: "auto", the host's own chat template where it has one, else Alpaca's frame; "alpaca", "vicuna" and
        "chat" by name; "plain", the prompt is continued as it stands; None, as the adapter was trained. `temperature` 0
        is greedy, or beam search with `beams` > 1; else it samples from the `top_p` share of the probability. `seed`:
        the same one gives the same answers to the same list in the same `batch_size`; None: other ones each time. At
        most `batch_size` prompts of similar lengths are computed at a time: it changes speed and memory, and no answer
        but sampled ones.

        Raises InputError for settings that cannot be, an empty prompt, numbers of prompts and images that differ, a
        picture that cannot be read, and a picture for an adapter that learned without.
        """
        settings = self._settings(max_new_tokens, temperature, top_p, beams)
        batch_size = _whole("batch_size", batch_size, 1)
        asked = [prompts] if isinstance(prompts, str) else _listed("prompts=", prompts)
        samples = [self._sample(number, [Turn(prompt, None)], template) for number, prompt in enumerate(asked)]
        pictures = _pictures(images, len(asked))
        encoded, _ = self._encode(samples, self._room(settings.max_new_tokens))
        seed = _seed(seed)
        answers = [""] * len(asked)
        asked_together = self.asked_together(settings, batch_size)
        for indices in batches_by_length([len(item.ids) for item in encoded], asked_together):
            features = self._features_of([pictures[index] for index in indices])
            rows = [samples[index] for index in indices]
            said = self.answer(rows, settings, seed, features, at_once=batch_size)
            for index, answer in zip(indices, said, strict=True):
                answers[index] = answer
            seed = (seed + 1) % 2**64  # or every batch would draw the same numbers
        return answers

    def chat(
        self,
        message: str,
        image: Picture | None = None,
        history: Dialog | None = None,
        *,
        system: str | None = None,
        template: str | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        beams: int = 1,
        seed: int | None = None,
    ) -> tuple[str, Dialog]:
        """The answer to `message`, and the dialog with both in it, to be given as `history` with the next message.

        `image` is what the dialog is about from this turn on: one picture a dialog, seen by every later answer.
        `system` is what the assistant is told before all turns; None: as in the training. `template` is as
        for `generate`, but for "plain", which has no turns. Turns that no longer fit beside `max_new_tokens` are left
        out, oldest first: a warning says so when it happens, and `left_out` of the returned dialog holds their number.
        The other settings are those of `generate`. Raises InputError as `generate` does, and for a second picture.
        """
        settings = self._settings(max_new_tokens, temperature, top_p, beams)
        asked = self._asked(message, image, Dialog() if history is None else history, system, template, settings)
        answer = self.answer([asked.sample], settings, _seed(seed), self._features_of([asked.dialog.picture]))[0]
        return answer, replace(asked.dialog, turns=(*asked.dialog.turns, (message, answer)))

    def stream(
        self,
        message: str,
        image: Picture | None = None,
        history: Dialog | None = None,
        *,
        system: str | None = None,
        template: str | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        beams: int = 1,
        seed: int | None = None,
    ) -> Generator[str, None, Dialog]:
        """The answer of `chat` in pieces, as they are generated; together they are that answer exactly.

        What the generator returns (`yield from`, StopIteration.value) is the dialog that `chat` gives. No character is
        split between pieces. With `beams` > 1 the answer comes as one piece. Leaving the iterator (break, close) ends
        the generation. It runs in a thread of its own: what else the model is asked waits until it has ended. Raises
        InputError as `chat` does, at once and not at the first piece.
        """
        settings = self._settings(max_new_tokens, temperature, top_p, beams)
        asked = self._asked(message, image, Dialog() if history is None else history, system, template, settings)
        features = self._features_of([asked.dialog.picture])
        return self._pieces_of_answer(message, asked, settings, _seed(seed), features)

    def _pieces_of_answer(
        self, message: str, asked: _Asked, settings: GenerationConf, seed: int, features: Features
    ) -> Generator[str, None, Dialog]:
        news: queue.SimpleQueue[tuple[str, bool] | BaseException] = queue.SimpleQueue()  # a text; whether it is whole
        left = threading.Event()

        def watch(ids: list[int]) -> bool:
            news.put((self._safe_beginning(ids), False))
            return left.is_set()

        def work() -> None:
            try:
                seen = watch if settings.beams == 1 else None
                news.put((self.answer([asked.sample], settings, seed, features, watch=seen)[0], True))
            except BaseException as error:  # it is raised where the pieces are read
                news.put(error)

        worker = threading.Thread(target=work, name="mmadapter-stream", daemon=True)
        worker.start()
        told = ""
        try:
            while not isinstance(new := news.get(), BaseException):
                text, is_whole = new
                if text.startswith(told) and len(text) > len(told):
                    yield text[len(told) :]
                    told = text
                if is_whole:
                    return replace(asked.dialog, turns=(*asked.dialog.turns, (message, text)))
            raise new
        finally:
            left.set()
            worker.join()

    def _safe_beginning(self, ids: list[int]) -> str:
        """The beginning of an answer's text that no later token changes."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True).lstrip()
        if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):  # "do n't" becomes "don't" later
            text = text[: text.rfind(" ") + 1]
        # Outer blanks are no part of an answer, and a character that is not complete is decoded as U+FFFD.
        return text.rstrip("\ufffd").rstrip()

    @one_thread_at_a_time
    def _asked(
        self,
        message: str,
        image: Picture | None,
        history: Dialog,
        system: str | None,
        template: str | None,
        settings: GenerationConf,
    ) -> _Asked:
        """A message behind its history as a sample, and the dialog with what the answer will see of it."""
        if not isinstance(history, Dialog):
            raise InputError(
                f"history={shorten(repr(history), 80)}: give the dialog that `chat` returned, or make one: "
                "mmadapter.model.Dialog(((question, answer), ...))"
            )
        if image is not None and history.picture is not None:
            raise InputError("This dialog has a picture, and a dialog has one. Begin a new one: leave history away.")
        _refuse_empty(message)
        if template is None and self.template in SINGLE:
            template = "auto"
        elif template in SINGLE:
            raise InputError(f"template={template} has no turns, so it is for `generate`. Leave template away to chat.")
        last = Turn(message, None)
        sample = self._sample(0, [*(Turn(*turn) for turn in history.turns), last], template, system)
        room = self._room(settings.max_new_tokens)
        _, encoder = self._encode([sample], room, history.left_out)
        if 0 < len(history.turns) == encoder.cut_turns:
            self._encode([self._sample(0, [last], template, system)], room)  # says whether it is cut too
        picture = history.picture if image is None else _decoded(image)
        return _Asked(sample, replace(history, picture=picture, left_out=encoder.cut_turns))

    @one_thread_at_a_time
    @torch.no_grad()
    def answer(
        self,
        samples: Sequence[Sample],
        settings: GenerationConf,
        seed: int | None = None,
        features: Features | None = None,
        visual: bool | None = None,
        cache: str = "auto",
        watch: Callable[[list[int]], bool] | None = None,
        at_once: int | None = None,
    ) -> list[str]:
        """The answers to samples of any length mix, without the prompts. Outside, random numbers stay as they were.

        Pictures are read and encoded, or found in the model's store, unless `features` says what the encoder
        gives for each row. A sharded host needs this call on every rank at once (`in_step`); `visual` then says whether
        any of them has an image in it. `watch` is called after each token with the ids of the first row's answer so
        far; True ends the generation.

        `cache` "rows" (decoding.py), "dynamic", "static" or "none" (`transformers`): the same answers at another speed;
        "auto" is "rows" where `decodes_by_rows` says so. With "rows" at most `at_once` answers are written at a time,
        and the others wait.
        """
        encoder, ends = self.encoder(self.max_tokens - settings.max_new_tokens), self._ends()
        encoded = [encoder.encode(sample.without_answer()) for sample in samples]
        if cache == "auto":
            cache = "rows" if self.decodes_by_rows(settings) else "dynamic"
        if cache == "rows":
            rows = self._greedy(encoded, settings, features, at_once or len(samples), watch)
            answers = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
            return [answer.strip() for answer in answers]
        batch = replace(make_batch(encoded, self.tokenizer.pad_token_id), visual=visual)
        batch = batch.with_features(self.features) if features is None else replace(batch, features=tuple(features))
        batch = batch.to(self.device)
        width = batch.input_ids.shape[1]

        def is_enough(ids: Tensor, *_: Any, **__: Any) -> Tensor:
            seen = takewhile(lambda token: token not in ends, ids[0, width:].tolist())
            stops = watch is not None and watch(list(seen))
            return torch.full((ids.shape[0],), stops, dtype=torch.bool, device=ids.device)

        devices = [self.device] if self.device.type == "cuda" else []
        call = self._call_of(batch, keep=True)
        with self.host.adapter_slot.during(call), torch.random.fork_rng(devices):
            if seed is not None:
                torch.manual_seed(seed)
            tokens = self.host.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                generation_config=generation_config(settings, self.tokenizer, ends, cache),
                stopping_criteria=None if watch is None else [is_enough],
                synced_gpus=self.in_step,  # a rank that is done goes on running the host until all are
            )
        # What ends an answer is no part of it, even where the tokenizer does not call it special.
        rows = [list(takewhile(lambda token: token not in ends, row)) for row in tokens[:, width:].tolist()]
        answers = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def decodes_by_rows(self, settings: GenerationConf) -> bool:
        """Whether `answer` writes these answers itself, so that rows leave the batch when they have ended.

        Else `transformers` generates: it samples and searches, keeps ranks in step, and knows what a folder's
        generation_config.json may ask for beyond the likeliest token. A GPU is left to it, too, until this is measured
        there.
        """
        greedy = settings.temperature == 0 and settings.beams == 1
        if not greedy or is_sharded(self.host) or self.device.type != "cpu" or not takes_the_likeliest(self.host):
            return False
        return self.without_forest(learning=self.training) is None

    def asked_together(self, settings: GenerationConf, batch_size: int) -> int:
        """How many samples `answer` is best given at a time, where at most `batch_size` answers are written at once.

        With waiting ones among them the batch stays full while rows end.
        """
        return batch_size * (BATCHES_ASKED if self.decodes_by_rows(settings) else 1)

    def _greedy(
        self,
        encoded: Sequence[Encoded],
        settings: GenerationConf,
        features: Features | None,
        at_once: int,
        watch: Callable[[list[int]], bool] | None,
    ) -> list[list[int]]:
        """The tokens of each answer, without what ends it."""
        if features is None and self.features is not None:
            features = self.features.of([item.sample.image for item in encoded])
        visual = None if features is None else self._visual_tokens(features)
        text_only = self.adapter.call(None, keep=True)

        def call_of(prompts: Sequence[int]) -> AdapterCall:
            if visual is None:
                return text_only
            chosen = torch.tensor(prompts, device=visual.tokens.device)
            return self.adapter.call(VisualTokens(visual.tokens[chosen], visual.present[chosen]), keep=True)

        # A picture of several rows is one object in `features`.
        pictures = [None if one is None else id(one) for one in (features or [None] * len(encoded))]
        prompts = [item.ids for item in encoded]
        own = set(self._ends()), settings.max_new_tokens, at_once, watch
        return greedy_answers(self.host, prompts, pictures, call_of, *own)

    def encoder(self, max_tokens: int) -> SampleEncoder:
        """What turns samples into this model's ids, at most `max_tokens` each."""
        return SampleEncoder(self.tokenizer, max_tokens, begin_of_text=self.begin_of_text)

    def _ends(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's, its chat template's, those that the host's folder lists."""
        listed = [self.tokenizer.eos_token_id, end_token(self.tokenizer), *listed_ends(self.folder)]
        return list(dict.fromkeys(token for token in listed if token is not None))

    @one_thread_at_a_time
    def _sample(self, number: int, turns: Sequence[Turn], template: str | None, system: str | None = None) -> Sample:
        """Turns as a sample; `template` and `system` None: those of the training."""
        for turn in turns[-1:]:
            _refuse_empty(turn.asked)
        for turn in turns:
            _refuse_no_text("A prompt", turn.asked)
            _refuse_no_text("An answer", turn.answer)
        _refuse_no_text("system", system)
        template = template or self.template
        if system is None and template not in SINGLE:
            system = self.system
        segments = rendered(turns, system, template, self.tokenizer)
        return Sample(str(number), "library", segments, None, f"prompt {number}")

    def _settings(self, max_new_tokens: Any, temperature: Any, top_p: Any, beams: Any) -> GenerationConf:
        """How an answer is generated. Raises InputError with all that is wrong."""
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "beams": beams}
        numbers = {name: value.item() if hasattr(value, "item") else value for name, value in given.items()}
        for name, value in numbers.items():
            is_whole = name in ("max_new_tokens", "beams")
            if type(value) is not int and (is_whole or type(value) is not float):
                raise InputError(f"{name}={value!r}: must be a {'whole ' if is_whole else ''}number.")
            _refuse_huge(name, value)
        settings = GenerationConf(**numbers)
        wrong = list(problems_of(settings)) + [
            f"{name}={value}: must be a finite number."
            for name, value in numbers.items()
            if isinstance(value, float) and not isfinite(value)
        ]
        if wrong:
            raise InputError(" ".join(dict.fromkeys(wrong)))
        if settings.beams > (vocabulary := self.host.config.vocab_size):
            raise InputError(f"beams={settings.beams}: at most {vocabulary}, the number of tokens that the host knows.")
        return settings

    def _room(self, max_new_tokens: int) -> int:
        """Tokens that are left for a prompt."""
        room = self.max_tokens - max_new_tokens
        if room < 1:
            raise InputError(
                f"max_new_tokens={max_new_tokens} leaves no room for a prompt: the model has a context of "
                f"{self.max_tokens} tokens. Lower it."
            )
        return room

    @one_thread_at_a_time
    def _encode(self, samples: list[Sample], room: int, known: int = 0) -> tuple[list[Encoded], SampleEncoder]:
        """The samples as tokens; a warning says how many were cut, beyond `known` turns that were already left out."""
        encoder = self.encoder(room)
        encoded = encoder.encode_many(samples)
        if encoder.cut_turns > known:
            log.warning("%d oldest turns of the dialog no longer fit and are not seen.", encoder.cut_turns)
        elif (cut := encoder.cut_samples) and not encoder.cut_turns:
            log.warning("%d of %d prompts are longer than %d tokens; their ends are cut off.", cut, len(samples), room)
        return encoded, encoder

    # The adapter as a folder.

    @one_thread_at_a_time
    def save(self, folder: str | Path, training: dict[str, Any] | None = None) -> None:
        """Write the adapter as `folder`, whole or not at all; a previous one stays until the new one is complete.

        `training` is a summary for the card. Raises InputError when the disk is full.
        """
        import transformers

        identity, encoder = self._identity(), None
        if self.vision is not None and identity["vision"] is not None:
            encoder = self.vision.settings.portable()
        facts = {
            "adapter": settings_on_card(self.adapter.settings),
            **identity,
            "encoder": encoder,
            "max_tokens": self.max_tokens,
            "begin_of_text": self.begin_of_text,
            "quantization": self.quantization,
            "template": chosen_template(self.template, self.tokenizer),
            "chat_template": chat_template_digest(self.tokenizer),
            "system": self.system,
            "versions": {
                "mmadapter": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "training": training or {},
        }
        tensors = {item.name: item.parameter.detach().cpu().contiguous() for item in self.trainable_parameters()}
        write_adapter(Path(folder), tensors, facts)

    @one_thread_at_a_time
    def load_adapter(self, folder: str | Path) -> Card:
        """Put the adapter of `folder` in and return its card.

        Raises InputError when the folder is incomplete or damaged, or belongs to another host, encoder or adapter.
        """
        card = load_into(self.adapter, Path(folder), self._identity())
        # What older cards do not say is as it was then.
        if (template := card.get("template", "alpaca")) not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            raise InputError(f"{Path(folder) / CARD}: template is {template[:60]!r}, allowed: {known}. Copy it again.")
        self.template, self.begin_of_text = card.get("template", "alpaca"), card.get("begin_of_text", "always")
        self.system = card.get("system")
        if (trained_on := card.get("quantization")) != self.quantization:
            log.warning(
                "%s was trained with host.quantization=%s, and here it is %s: the host is rounded otherwise.",
                folder,
                *(one or "null" for one in (trained_on, self.quantization)),
            )
        if self.template == "auto" and card.get("chat_template") != chat_template_digest(self.tokenizer):
            log.warning("%s was trained with another chat template than the host has here.", folder)
        return card

    @one_thread_at_a_time
    def start_from(self, folder: str | Path) -> str:
        """Begin a training at the adapter that `folder` (or its `adapter/`, of a run) holds; says what was taken over.

        Tensors that the folder lacks keep their fresh values: a later phase trains parts that an earlier one did not
        have. Raises InputError where the folder has tensors that this adapter lacks or would use differently (another
        kind of gate, ...), or is of another host or encoder.
        """
        folder = Path(folder).expanduser()
        folder = folder / "adapter" if (folder / "adapter" / CARD).is_file() else folder
        taken = len(load_into(self.adapter, folder, self._identity(), partly=True)["tensors"])
        return f"started from {folder}: {taken} tensors, {len(self.trainable_parameters()) - taken} fresh"

    def _identity(self) -> dict[str, Any]:
        """What the adapter fits: the host, and the encoder where the adapter sees pictures."""
        encoder = None if self.adapter.projection is None else self.vision
        vision = None if encoder is None else encoder.identity()
        return {"host": host_identity(self.host, self.tokenizer, self.folder), "vision": vision}


def _host_inputs(batch: Batch) -> dict[str, Any]:
    """What the host is called with; of a forest it gets the positions, and its attention finds the rest in the call."""
    where = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if batch.forest is None:
        return where | {"position_ids": _positions(batch.attention_mask)}
    return where | {"position_ids": batch.forest.positions}


def _positions(attention_mask: Tensor) -> Tensor:
    """(rows, tokens): each token's place in its own row, wherever the padding stands."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def _features_read(vision: VisionSettings, adapter: AdapterConf) -> int:
    """How many numbers stand in each vector of a picture's features. Raises InputError where a method reads others."""
    shape = vision.feature_shape()
    if wrong := [
        text for name, one in adapter.chosen.items() for text in one.feature_problems(f"adapter.{name}", shape)
    ]:
        raise InputError(" ".join(wrong))
    return shape[-1]


def _feature_store(vision: VisionSettings, device: Any) -> FeatureStore | PixelReader:
    encoder = ENCODERS.load(vision.encoder)(vision).to(device)
    if vision.cache == NO_CACHE:
        return PixelReader(encoder)
    in_memory = vision.cache in (None, AUTO_CACHE)  # without a run there is no place that auto could mean
    return FeatureStore(encoder, None if in_memory else Path(str(vision.cache)), vision.workers)


def _refuse_empty(prompt: Any) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"A prompt is {shorten(repr(prompt), 80)}; it must be a text with something in it.")


def _refuse_no_text(what: str, text: Any) -> None:
    """Half of a character that takes two (a lone surrogate), as damaged JSON has it, is no text for a tokenizer."""
    if text is None:
        return
    if not isinstance(text, str):
        raise InputError(f"{what} is {shorten(repr(text), 80)}; it must be a text.")
    if half := HALF_A_CHARACTER.search(text):
        raise InputError(
            f"{what}: character {half.start() + 1} is {half[0]!r}, half of a character and no text (a lone surrogate). "
            "Take it out: text.encode('utf-8', 'ignore').decode()"
        )


def _listed(what: str, given: Any) -> list[Any]:
    """The items of a list, tuple or iterator, in their order."""
    if given is None or isinstance(given, (str, bytes, Mapping, AbstractSet, Tensor)) or not hasattr(given, "__iter__"):
        raise InputError(f"{what}{shorten(repr(given), 80)}: give one of them, or a list.")
    return list(given)


def _whole(name: str, value: Any, at_least: int) -> int:
    value = value.item() if hasattr(value, "item") else value
    if type(value) is not int:
        raise InputError(f"{name}={shorten(repr(value), 80)}: must be a whole number.")
    _refuse_huge(name, value)
    if value < at_least:
        raise InputError(f"{name}={value}: must be at least {at_least}.")
    return value


def _refuse_huge(name: str, value: float) -> None:
    """Whole numbers of torch have 64 bits. Much longer ones cannot even be printed."""
    if isinstance(value, int) and abs(value) >= 2**64:
        raise InputError(f"{name}: a number of some {value.bit_length() * 3 // 10} digits; it must be below 2**64.")


def _seed(seed: int | None) -> int:
    """The seed, of 64 bits as torch takes it; drawn where there is none."""
    if seed is None:
        return secrets.randbits(48)
    return _whole("seed", seed, -(2**63)) % 2**64


def _pictures(images: Picture | Sequence[Picture | None] | None, count: int) -> list[Picture | None]:
    """One picture or None for each prompt."""
    if images is None or isinstance(images, (str, Path, Image.Image)):
        return [images] * count
    listed = _listed("images=", images)
    if len(listed) != count:
        raise InputError(
            f"{count} prompts and {len(listed)} images. Give one image for each prompt, with None for a prompt without."
        )
    return listed


def _name(picture: Picture) -> Any:
    if not isinstance(picture, (str, Path, Image.Image)):
        raise InputError(f"An image is {shorten(repr(picture), 80)}; give a path or a PIL image, or None for no image.")
    return id(picture) if isinstance(picture, Image.Image) else Path(picture)


def _decoded(picture: Picture) -> Image.Image:
    """Upright RGB pixels, the same from a path and from what PIL opens there."""
    if isinstance(picture, Image.Image):
        return upright_rgb(picture)
    if len(str(picture)) > LONGEST_PATH:
        raise InputError(
            f"An image is {shorten(repr(str(picture)[:80]), 80)}...: no such image file; the name is too long."
        )
    try:
        return read_image(Path(picture).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # of the name: too long, a NUL, nobody of ~NAME
        raise InputError(f"{shorten(str(picture), 200)}: no such image file ({error}).") from error
