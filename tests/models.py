"""Small whole models for tests: a random host with its own tokenizer, a random CLIP tower, an open adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mmadapter.config import RunConf
from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.tokens import SampleEncoder
from mmadapter.hosts.attention import route
from mmadapter.hosts.families import Host
from mmadapter.hosts.sharded import Sharding
from mmadapter.methods import AdapterConf
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.settings import ProjectionConf, PromptsConf
from mmadapter.model import AdaptedModel
from mmadapter.vision.features import FeatureStore
from mmadapter.vision.open_clip import OpenClipEncoder
from mmadapter.vision.settings import OpenClipSettings
from tests.families import CORE, tiny_host, v2_methods

# What the laws are shown on: V1 and V2 on hosts of several kinds.
V2 = ["v2 llama_gqa", "v2 qwen3", "v2 gpt_neox", "v2_lora llama_bias"]
BOTH_METHODS = [*CORE, *V2]
WORDS = "what colour is the circle square red blue green large small left right a b c answer of on and to ."
_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}


def tiny_tokenizer():
    """A word-level tokenizer of fewer than 64 entries with <pad> 0, <s> 1, </s> 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries = ["<pad>", "<s>", "</s>", "<unk>", ":", *dict.fromkeys(WORDS.split())]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_encoder(seed: int = 0) -> OpenClipEncoder:
    """A frozen random CLIP tower of three blocks; features of 32 numbers (two scales of 16)."""
    import open_clip

    torch.manual_seed(seed)
    tower = open_clip.CLIP(**_CLIP).visual.requires_grad_(False).eval()
    return OpenClipEncoder(OpenClipSettings(layers=[1, 2]), tower)


def model_on(
    name: str = "llama_gqa",
    images: bool = True,
    gates: float = 0.7,
    seed: int = 0,
    host: Host | None = None,
    **settings,
) -> AdaptedModel:
    """A model on a random host of a family, opened by as much as `gates` says (0: where it starts).

    The name is a family's (V1), or "v2 FAMILY" (early fusion, bias, scale, norms), or "v2_lora FAMILY"; `host` is one
    of that family that is there already.
    """
    method, _, family = name.rpartition(" ")
    host = tiny_host(family, seed=seed) if host is None else host
    route(host)
    encoder = random_encoder() if images else None
    layers = host.config.num_hidden_layers - 1
    methods = {"prompts": PromptsConf(length=4, layers=layers)}
    if method:
        methods = v2_methods(early=1 if images else 0, lora=method == "v2_lora", length=4, layers=layers)
    if encoder is not None:
        methods["projection"] = ProjectionConf(hidden=8, tokens=3 if method else 1)
    chosen = {key: value for key, value in methods.items() if value is not None}
    features = None if encoder is None else encoder.feature_shape[-1]
    adapter = Adapter.build(AdapterConf(methods=chosen), host, seed + 1, features=features)
    model = AdaptedModel(
        host, tiny_tokenizer(), adapter, None if encoder is None else FeatureStore(encoder), **settings
    )
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for item in model.trainable_parameters():
            if item.role in ("gate", "early_gate"):
                item.parameter.normal_(0.0, 1.0, generator=generator).mul_(gates)
            elif item.role in ("bias", "scale", "norm", "lora") and gates:
                item.parameter.add_(torch.randn(item.parameter.shape, generator=generator), alpha=0.2 * gates)
    return model


def built(conf: RunConf, device: str = "cpu", sharded: bool = False) -> AdaptedModel:
    """The model of a run's settings; `sharded`: as its engine shards the host."""
    sharding = Sharding(conf.engine.offload) if sharded and conf.engine.stage == 3 else None
    return AdaptedModel.build(conf.host, conf.vision, conf.adapter, conf.seed, device, sharding)


def sample(
    prompt: str, answer: str | None = None, image: Path | None = None, id: str = "0", source: str = "s"
) -> Sample:
    """One question, with its answer where one is given."""
    segments = [Segment(prompt, "instruction")]
    if answer is not None:
        segments.append(Segment(" " + answer, "answer"))
    return Sample(id=id, source=source, segments=tuple(segments), image=image, where=f"test, sample {id}", meta={})


def batch_of(model: AdaptedModel, samples: list[Sample], pad_id: int = 0) -> Batch:
    """The batch of some samples."""
    encoder = SampleEncoder(model.tokenizer, 64)
    return make_batch([encoder.encode(item) for item in samples], pad_id).with_features(model.features)


def picture(folder: Path, seed: int) -> Path:
    """A small random picture file."""
    pixels = torch.randint(0, 256, (40, 40, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(pixels.numpy()).save(path)
    return path
