"""Host, vision and adapter together: the loss of a batch, answers to samples. The only room that sees all three."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.adapters.adapter import Adapter
from mmadapter.adapters.roles import TrainableParameter, trainable_parameters
from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.samples import Sample
from mmadapter.data.tokens import SampleEncoder
from mmadapter.errors import InputError
from mmadapter.generation import GenerationSettings, generation_config
from mmadapter.hosts.adapted import attach
from mmadapter.hosts.attention import AdapterCall
from mmadapter.hosts.calls import adapter_in_each_call, head_on_rows
from mmadapter.hosts.load import checkpoint_activations, host_folder, load_host, load_tokenizer
from mmadapter.hosts.recipes import Host
from mmadapter.hosts.sharded import gather_in_forward, in_step, sharding_of, size
from mmadapter.new_adapter import new_adapter
from mmadapter.vision import ENCODERS
from mmadapter.vision.encoder import VisionEncoder
from mmadapter.vision.features import FeatureStore
from mmadapter.vision.images import upright_rgb
from mmadapter.vision.settings import VisionSettings

Features = Sequence[Tensor | None]
Picture = Path | Image.Image | None


class Assistant(nn.Module):
    """A frozen host with a trainable adapter, which may see pictures through a frozen encoder."""

    def __init__(
        self,
        host: Host,
        tokenizer: Any,
        adapter: Adapter,
        features: FeatureStore | None = None,
        max_tokens: int | None = None,
        activation_checkpointing: bool = False,
        folder: Path | None = None,
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
        attach(host, adapter)
        self.train(False)

    @classmethod
    def build(cls, conf: Any, device: Any = None, sharded: bool = False) -> Assistant:
        """The assistant of a configuration (its `host`, `vision`, `adapter` and `seed`).

        `device="meta"` builds shapes only (dry run): no weights, image encoder or tokenizer is read. With `sharded` the
        host's weights are shared out over the processes where `conf.engine` says so (collective). Raises InputError for
        whatever cannot be built.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device={device}, but torch sees no GPU here. Use device=cpu, or auto.")
        folder = host_folder(conf.host.path)
        sharding = sharding_of(conf.engine.name) if sharded else None
        host = load_host(folder, _host_dtype(conf.host.dtype, device), conf.host.attention, device, sharding)
        features = None
        if conf.vision.enabled and str(device) != "meta":
            features = _feature_store(conf.vision, device)
        adapter = new_adapter(conf, host, device)
        tokenizer = None if str(device) == "meta" else load_tokenizer(folder, conf.host.tokenizer)
        return cls(host, tokenizer, adapter, features, conf.host.max_tokens, conf.host.activation_checkpointing, folder)

    @property
    def device(self) -> torch.device:
        return next(self.adapter.parameters()).device

    def train(self, mode: bool = True) -> Assistant:
        """Set the adapter's mode. The frozen parts stay in evaluation mode: none of their dropout ever acts."""
        super().train(mode)
        self.host.eval()
        if self.vision is not None:
            self.vision.eval()
        if mode and self.activation_checkpointing:
            checkpoint_activations(self.host)
        return self

    def trainable(self) -> list[TrainableParameter]:
        """Every trainable parameter with its role."""
        return trainable_parameters(self.adapter)

    @property
    def host_size(self) -> int:
        """The number of the host's own parameters."""
        own = {id(item.parameter) for item in self.trainable()}
        return sum(size(parameter) for parameter in self.host.parameters() if id(parameter) not in own)

    def run_without_engine(self) -> None:
        """Let the host run where no training engine will be built around it, though its weights are shared out."""
        gather_in_forward(self.host)

    @property
    def in_step(self) -> bool:
        """Whether every process must call this assistant equally often, with images or without them."""
        return in_step(self.host)

    def gates(self) -> Tensor:
        """(layers, heads): the factors on the branches of prompts and visual tokens, lowest layer first."""
        return self.adapter.gates()

    def forward(self, batch: Batch, features: Features | None = None) -> Tensor:
        """The sum of the batch's token losses (float32 scalar), zero where nothing is supervised: the host runs anyhow.

        `features` takes the place of the batch's images: what the encoder gives, or None, per row.
        """
        logits = self._supervised_logits(batch, features)
        return nn.functional.cross_entropy(logits, batch.targets.to(logits.device), reduction="sum")

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, features: Features | None = None) -> Tensor:
        """(rows,): the sum of the log-probabilities of each row's supervised tokens."""
        logits = self._supervised_logits(batch, features)
        chosen = logits.log_softmax(-1).gather(-1, batch.targets.to(logits.device)[:, None])[:, 0]
        totals = chosen.new_zeros(batch.input_ids.shape[0])
        return totals.index_add(0, batch.pair_sample.to(logits.device), chosen)

    @torch.no_grad()
    def generate(
        self,
        samples: Sequence[Sample],
        settings: GenerationSettings,
        seed: int | None = None,
        features: Features | None = None,
        visual: bool | None = None,
    ) -> list[str]:
        """The answers to samples of any length mix, without the prompts. Outside, random numbers stay as they were.

        A sharded host needs this call on every process at once (`in_step`); `visual` then says whether any of them has
        an image in it.
        """
        encoder = SampleEncoder(self.tokenizer, self.max_tokens - settings.max_new_tokens)
        encoded = [encoder.encode(sample.without_answer()) for sample in samples]
        batch = replace(make_batch(encoded, self.tokenizer.pad_token_id), visual=visual).to(self.device)
        tokens = self._generate_tokens(batch, settings, seed, features)
        answers = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def image_features(self, images: Sequence[Picture]) -> list[Tensor | None]:
        """What the encoder gives per picture, (features,) or (tokens, features), None where there is none.

        Raises InputError without an encoder.
        """
        if all(image is None for image in images):
            return [None] * len(images)
        if self.features is None:
            raise InputError("A sample has an image, but this assistant has no image encoder (vision.enabled=false).")
        return [self._feature(image) for image in images]

    def prepare_images(self, paths: Iterable[Path], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute the frozen features of image files once, before training or evaluation."""
        if self.features is not None:
            self.features.add(paths, progress)

    def _feature(self, image: Picture) -> Tensor | None:
        assert self.features is not None
        if image is None:
            return None
        if isinstance(image, Image.Image):
            return self.features.encode([upright_rgb(image)])[0]
        return self.features.feature(image)

    def _call(self, batch: Batch, features: Features | None, keep: bool = False) -> AdapterCall:
        features = batch.features if features is None else features
        if features is None and self.adapter.visual_projection is not None:
            features = self.image_features(batch.images)
        visual = None if features is None else self.adapter.visual(list(features), self.device, bool(batch.visual))
        return AdapterCall(self.adapter, visual, keep)

    def _supervised_logits(self, batch: Batch, features: Features | None) -> Tensor:
        """(pairs, vocabulary) in float32: the head runs on the supervised positions only."""
        batch = batch.to(self.device)
        with head_on_rows(self.host.get_output_embeddings(), batch.rows):
            output = self.host(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=positions(batch.attention_mask),
                use_cache=False,
                adapter=self._call(batch, features),
            )
        return output.logits[0].float()

    def _generate_tokens(self, batch: Batch, settings: GenerationSettings, seed: int | None, features) -> Tensor:
        """(rows, new tokens) of the host's own `generate`, with the adapter put into each of its calls."""
        devices = [self.device] if self.device.type == "cuda" else []
        with adapter_in_each_call(self.host, self._call(batch, features, keep=True)), torch.random.fork_rng(devices):
            if seed is not None:
                torch.manual_seed(seed)
            tokens = self.host.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                generation_config=generation_config(settings, self.tokenizer),
                synced_gpus=in_step(self.host),  # whoever is done goes on running the host until all are
            )
        return tokens[:, batch.input_ids.shape[1] :]


def hide_library_bars() -> None:
    """Keep the bars of `transformers` away, where output is no terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def positions(attention_mask: Tensor) -> Tensor:
    """(rows, tokens): each token's place in its own row, wherever the padding stands."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def _host_dtype(name: str, device: Any) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if str(device).startswith("cuda") else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _feature_store(vision: VisionSettings, device: Any) -> FeatureStore:
    encoder = ENCODERS.load(vision.encoder)(vision).to(device)
    return FeatureStore(encoder, None if vision.cache is None else Path(vision.cache), vision.workers)
