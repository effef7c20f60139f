"""The tiny CLIP: an open_clip model of our own shape, trained with open_clip's contrastive loss on drawn scenes."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.world.captions import captions
from data_prep.world.scenes import SIDE, VALUES, draw, random_pair, random_scene
from data_prep.world.steps import Recipe, train_in_steps

CONTEXT_LENGTH = 24
PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
PAIR_SHARE = 0.1
RECIPE = Recipe(steps=3000, batch_size=128, learning_rate=1e-3, warmup_steps=100, weight_decay=0.05, seed=1)


@dataclass(frozen=True)
class ClipShape:
    """Sizes of the two towers."""

    embed: int = 128
    vision_layers: int = 4
    vision_width: int = 128
    patch: int = 16
    text_layers: int = 2
    text_width: int = 96


def model_config(shape: ClipShape, vocabulary: int) -> dict[str, Any]:
    """The open_clip model config (what `open_clip.add_model_config` reads, and `model_cfg` of the saved folder)."""
    return {
        "embed_dim": shape.embed,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": SIDE,
            "layers": shape.vision_layers,
            "width": shape.vision_width,
            "head_width": 32,
            "patch_size": shape.patch,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary,
            "width": shape.text_width,
            "heads": shape.text_width // 32,
            "layers": shape.text_layers,
            "pool_type": "eos",
            "eos_id": EOS,
            "pad_id": PAD,
            "hf_tokenizer_name": "local",
            "tokenizer_kwargs": {"clean": "lower"},
        },
    }


def caption_words() -> list[str]:
    """Every word that a caption can hold, in alphabetical order."""
    rng = random.Random(0)
    words = {word for values in VALUES.values() for word in values}
    for scene in [random_scene(rng) for _ in range(200)] + [random_pair(rng) for _ in range(200)]:
        for caption in captions(scene):
            words.update(caption.lower().replace(",", " , ").replace(".", " . ").split())
    return sorted(words)


def caption_tokenizer() -> Any:
    """One token a word, in lower case, with the start and end tokens that open_clip's pooling needs."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *caption_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def build_clip(shape: ClipShape, vocabulary: int) -> torch.nn.Module:
    """The untrained model, through open_clip's own class."""
    from open_clip.model import CLIP

    config = model_config(shape, vocabulary)
    return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=config["quick_gelu"])


def scene_batch(
    recipe: Recipe, step: int, tokenizer: Any, preprocess: Callable[[Any], Tensor]
) -> tuple[Tensor, Tensor]:
    """Pictures (batch, 3, side, side) and caption tokens (batch, context) of one step."""
    rng = random.Random(f"clip {recipe.seed} {step}")
    scenes = [random_pair(rng) if rng.random() < PAIR_SHARE else random_scene(rng) for _ in range(recipe.batch_size)]
    pictures = torch.stack([preprocess(draw(scene)) for scene in scenes])
    texts = [rng.choice(captions(scene)) for scene in scenes]
    encoded = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt")
    return pictures, encoded["input_ids"]


def train_clip(
    folder: Path,
    checkpoint: Path,
    recipe: Recipe = RECIPE,
    shape: ClipShape | None = None,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    save_every_steps: int = 250,
    report: Callable[[str], None] = print,
) -> torch.nn.Module:
    """Train the tiny CLIP and write it to `folder` in open_clip's layout, in half precision."""
    from open_clip import ClipLoss, image_transform

    shape = shape or ClipShape()
    tokenizer = caption_tokenizer()
    torch.manual_seed(recipe.seed)
    model = build_clip(shape, len(tokenizer))
    preprocess = image_transform(SIDE, is_train=False, mean=PIXEL_MEAN, std=PIXEL_STD, interpolation="bicubic")
    contrast = ClipLoss()

    def loss_at(step: int) -> Tensor:
        pictures, tokens = scene_batch(recipe, step, tokenizer, preprocess)
        image_features, text_features, scale = model(pictures, tokens)
        return contrast(image_features, text_features, scale.clamp(max=100.0))

    def export() -> None:
        save_clip(model, shape, tokenizer, folder)

    train_in_steps(
        model, loss_at, recipe, checkpoint, resume=resume, export=export, stop_at=stop_at,
        save_every_steps=save_every_steps, report=report,
    )  # fmt: skip
    return model


def save_clip(model: torch.nn.Module, shape: ClipShape, tokenizer: Any, folder: Path) -> None:
    """Write open_clip's folder layout (config, safetensors in float16, tokenizer), replacing an older one whole."""
    from safetensors.torch import save_file

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    preprocess = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(shape, len(tokenizer)), "preprocess_cfg": preprocess}
    (partial / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(partial / "open_clip_model.safetensors"))
    save_tokenizer(tokenizer, partial)
    replace_folder(partial, folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer with the class name that transformers 4 and 5 both know (5 writes a name of its own)."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def replace_folder(partial: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one; the older one goes last."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
