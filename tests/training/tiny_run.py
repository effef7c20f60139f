"""Random tiny models as folders and a small world, so that whole runs take a second."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from PIL import Image

from data_prep.shapes import WorldSizes, make_world
from mmadapter.config import RunConf
from tests.config.composing import run_conf
from tests.models import picture, tiny_tokenizer

SIZES = WorldSizes(train=24, val=8, test=8, coco_train=8, coco_restval=2, coco_val=3, coco_test=3, instructions=8)
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}


def save_models(folder: Path) -> None:
    """A random Llama with a word-level tokenizer in folder/host, a random CLIP in folder/clip."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "host")
    tiny_tokenizer().save_pretrained(folder / "host")
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**CLIP).state_dict(), folder / "clip" / "open_clip_model.safetensors")


def save_dialogs(folder: Path) -> None:
    """Forty dialogs about one picture each, as LLaVA has them, and the same without pictures."""
    folder.mkdir()
    told = [[f"what is {number}", "a red circle", "and the square", "blue"] for number in range(40)]
    for name in ("llava.json", "sharegpt.json"):
        items = []
        for number, texts in enumerate(told):
            said = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
            image = {"image": picture(folder, number).name} if name == "llava.json" else {}
            items.append({"id": str(number), **image, "conversations": said})
        (folder / name).write_text(json.dumps(items))


def save_pictures(folder: Path) -> Path:
    """A folder of ten pictures, and a question about each."""
    folder.mkdir()
    lines = []
    for number in range(10):
        Image.new("RGB", (16, 16), (25 * number, 0, 0)).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": f"What is {number}?", "answer": f"Red {number}."})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def save_deep_host(folder: Path) -> None:
    """A random Llama of 32 layers, for the experiments that adapt that many."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder / "host", num_hidden_layers=32, hidden_size=16, intermediate_size=16)
    config.head_dim = 4
    LlamaForCausalLM(config).save_pretrained(folder / "deep")
    AutoTokenizer.from_pretrained(folder / "host").save_pretrained(folder / "deep")


def save_inputs(folder: Path) -> Path:
    """Models and world below `folder`."""
    save_models(folder)
    make_world(folder / "world", sizes=SIZES)
    return folder


def tiny_overrides(inputs: Path, runs: Path) -> list[str]:
    """The quick start on the random models, two short epochs; V1 as it is published, with COCO's long captions."""
    coco = inputs / "world" / "coco"
    return [
        "adapter=v1_tiny",
        *(f"data.sources.captions.root={coco}", "data.sources.captions.path=null"),
        *(f"tasks.coco_caption.root={coco}", "tasks.coco_caption.path=null"),
        f"host.path={inputs / 'host'}",
        f"vision.model={inputs / 'clip'}",
        "vision.layers=[1,2]",
        f"data.root={inputs / 'world'}",
        f"runs_root={runs}",
        "adapter.prompts.layers=2",
        "optimizer.epochs=2",
        "optimizer.batch_size=8",
        "optimizer.micro_batch_size=4",
        "tasks.scienceqa.limit=4",
        "tasks.coco_caption.limit=2",
        "tasks.scienceqa.generation.max_new_tokens=4",
        "tasks.coco_caption.generation.max_new_tokens=4",
        "training.tensorboard=false",
    ]


def tiny_conf(inputs: Path, runs: Path, *overrides: str) -> RunConf:
    """The same as checked settings."""
    return run_conf(*tiny_overrides(inputs, runs), *overrides)


def shortened(conf: RunConf) -> list[str]:
    """The words that make an experiment short: four samples of a source, a step or an epoch, one question of a task."""
    words = ["optimizer.batch_size=4", "optimizer.micro_batch_size=4", "training.tensorboard=false"]
    words += ["training.validate_every_steps=100", "training.save_every_steps=100"]
    if conf.data.made == "interference":  # steps of as many samples of each source
        words += ["optimizer.steps=1", "optimizer.warmup_steps=0"]
        shares = {name: (source.samples_per_step or 8) // 8 for name, source in conf.data.sources.items()}
        words += [f"data.sources.{name}.samples_per_step={share}" for name, share in shares.items()]
    else:
        words += ["optimizer.epochs=1", "optimizer.warmup_epochs=0"]
    for part, readings in (("sources", conf.data.sources), ("validation", conf.data.validation)):
        words += [f"data.{part}.{name}.limit=4" for name in readings]
    for name in conf.evaluate:
        words += [f"tasks.{name}.limit=1", f"tasks.{name}.generation.max_new_tokens=1"]
    for name, variant in conf.variants.items():
        short = [re.sub(r"^optimizer\.(steps|batch_size)=\d+$", _small, word) for word in variant]
        words += [f"variants.{name}={json.dumps(short)}"] if short != variant else []
    return words


def _small(word: re.Match[str]) -> str:
    return f"optimizer.{word[1]}={1 if word[1] == 'steps' else 2}"
