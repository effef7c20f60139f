"""The tiny CLIP: an open_clip model of our own shape, trained with open_clip's contrastive loss on drawn scenes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip import ClipLoss, image_transform
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from data_prep.world.captions import captions
from data_prep.world.scenes import SIDE, VALUES, draw, random_pair, random_scene

CONTEXT_LENGTH = 24
PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
PAIR_SHARE = 0.1


# What `open_clip.add_model_config` reads, and `model_cfg` of the saved folder; the tokenizer decides `vocab_size`.
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": False,
    "vision_cfg": {"image_size": SIDE, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": None,
        "width": 96,
        "heads": 3,
        "layers": 2,
        "pool_type": "eos",
        "eos_id": EOS,
        "pad_id": PAD,
        "hf_tokenizer_name": "local",
        "tokenizer_kwargs": {"clean": "lower"},
    },
}


def caption_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word that a caption can hold, lower case, with the start and end that open_clip's pooling needs."""
    rng = random.Random(0)
    words = {word for values in VALUES.values() for word in values}
    for scene in [random_scene(rng) for _ in range(200)] + [random_pair(rng) for _ in range(200)]:
        for caption in captions(scene):
            words.update(caption.lower().replace(",", " , ").replace(".", " . ").split())
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


class TinyClip:
    """The model with its loss on drawn scenes; the batch of a step is a pure function of seed and step."""

    def __init__(self, seed: int, batch_size: int, model: Mapping[str, Any] = MODEL) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.tokenizer = caption_tokenizer()
        self.config = {**model, "text_cfg": model["text_cfg"] | {"vocab_size": len(self.tokenizer)}}
        torch.manual_seed(seed)
        self.model = CLIP(self.config["embed_dim"], self.config["vision_cfg"], self.config["text_cfg"])
        self._preprocess = image_transform(
            SIDE, is_train=False, mean=PIXEL_MEAN, std=PIXEL_STD, interpolation="bicubic"
        )
        self._contrast = ClipLoss()

    def loss_at(self, step: int) -> Tensor:
        """The contrastive loss of one step's pictures (batch, 3, side, side) and captions (batch, context)."""
        rng = random.Random(f"clip {self.seed} {step}")
        scenes = [random_pair(rng) if rng.random() < PAIR_SHARE else random_scene(rng) for _ in range(self.batch_size)]
        pictures = torch.stack([self._preprocess(draw(scene)) for scene in scenes])
        texts = [rng.choice(captions(scene)) for scene in scenes]
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        image_features, text_features, scale = self.model(pictures, tokens["input_ids"])
        return self._contrast(image_features, text_features, scale.clamp(max=100.0))

    def save(self, folder: Path) -> None:
        """Write open_clip's folder layout: config, safetensors in float16, tokenizer."""
        preprocess = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
        config = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.half().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        save_tokenizer(self.tokenizer, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer with the class name that transformers 4 and 5 both know (5 writes a name of its own)."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
