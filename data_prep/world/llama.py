"""The tiny LLaMA: a LlamaForCausalLM with its own byte-level tokenizer, pretrained on the world's plain text."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.world.clip import replace_folder, save_tokenizer
from data_prep.world.steps import Recipe, train_in_steps
from data_prep.world.text import first_lessons, world_texts

SPECIAL = ("<pad>", "<s>", "</s>")
PAD, BOS, EOS = 0, 1, 2
ROW_TOKENS = 128
TOKENIZER_DOCUMENTS = 6000
# Words that stand in prompt templates; the tokenizer should not cut them into bytes.
TEMPLATE_WORDS = (
    "Question: Context: N/A Options: Answer: The answer is BECAUSE: ### Instruction: ### Input: ### Response: "
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Generate caption of this image"
)
# Lessons (lettered lists) come first, then fade: in mixed text alone the look-up of a letter by its word was not
# learned within two million tokens; in lists alone it is, suddenly, after some 1,300 steps.
LESSON_STEPS, FADED_STEPS, LASTING_SHARE = 1600, 2400, 0.2
RECIPE = Recipe(steps=6000, batch_size=16, learning_rate=1e-3, warmup_steps=100, weight_decay=0.05, seed=1)


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of the language model."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    inner: int = 352
    positions: int = 2048


@dataclass(frozen=True)
class LessonPlan:
    """How much of the text is lettered lists: all until `alone`, then less until `faded`, and a rest for good."""

    alone: int = LESSON_STEPS
    faded: int = FADED_STEPS
    rest: float = LASTING_SHARE

    def share_at(self, step: int) -> float:
        """The share of documents that are lists."""
        fading = min(1.0, max(0.0, (step - self.alone) / max(1, self.faded - self.alone)))
        return 1.0 - (1.0 - self.rest) * fading


def text_tokenizer(documents: int = TOKENIZER_DOCUMENTS) -> Any:
    """A byte-level BPE in which every word of the world is one token, and any other text is still encodable."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=8,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = itertools.islice(world_texts("tokenizer"), documents)
    tokenizer.train_from_iterator(itertools.chain(texts, [TEMPLATE_WORDS] * 16), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=2048,
    )


def build_llama(shape: LlamaShape, vocabulary: int) -> Any:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Packed:
    """Documents end to end in rows; each document starts at position 0 and sees nothing of the others."""

    inputs: Tensor  # (rows, tokens)
    targets: Tensor  # (rows, tokens), -100 where the next token belongs to another document
    positions: Tensor  # (rows, tokens)
    visible: Tensor  # (rows, 1, tokens, tokens), True where a token may look


def packed_rows(recipe: Recipe, step: int, tokenizer: Any, lessons: LessonPlan | None = None) -> Packed:
    """The rows of one step, a pure function of seed and step; a document that crosses a row's end is cut in two."""
    rows, needed = (recipe.batch_size, ROW_TOKENS), recipe.batch_size * ROW_TOKENS
    tokens: list[int] = []
    name = f"{recipe.seed} {step}"
    texts, lists, rng = world_texts(name), first_lessons(name), random.Random(name)
    share = (lessons or LessonPlan()).share_at(step)
    while len(tokens) <= needed:
        text = next(lists if rng.random() < share else texts)
        tokens += [*tokenizer(text)["input_ids"], EOS]
    inputs = torch.tensor(tokens[:needed]).view(rows)
    targets = torch.tensor(tokens[1 : needed + 1]).view(rows)
    document = (inputs == BOS).cumsum(-1)
    place = torch.arange(ROW_TOKENS).expand_as(inputs)
    starts = torch.where(inputs == BOS, place, 0).cummax(-1).values
    same = document[:, :, None] == document[:, None, :]
    visible = (same & (place[0][:, None] >= place[0][None, :]))[:, None]
    return Packed(inputs, targets.masked_fill(targets == BOS, -100), place - starts, visible)


def train_llama(
    folder: Path,
    checkpoint: Path,
    recipe: Recipe = RECIPE,
    shape: LlamaShape | None = None,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    save_every_steps: int = 250,
    report: Callable[[str], None] = print,
    documents: int = TOKENIZER_DOCUMENTS,
    lessons: LessonPlan | None = None,
) -> Any:
    """Pretrain the tiny LLaMA and write it to `folder` in transformers' layout, in half precision."""
    shape = shape or LlamaShape()
    tokenizer = text_tokenizer(documents)
    torch.manual_seed(recipe.seed)
    model = build_llama(shape, len(tokenizer))

    def loss_at(step: int) -> Tensor:
        rows = packed_rows(recipe, step, tokenizer, lessons)
        logits = model(
            input_ids=rows.inputs, attention_mask=rows.visible, position_ids=rows.positions, use_cache=False
        ).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.targets.flatten())

    def export() -> None:
        save_llama(model, tokenizer, folder)

    train_in_steps(
        model, loss_at, recipe, checkpoint, resume=resume, export=export, stop_at=stop_at,
        save_every_steps=save_every_steps, report=report,
    )  # fmt: skip
    return model


def save_llama(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write config, safetensors in float16 and tokenizer, replacing an older folder whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    half = build_llama(shape_of(model), model.config.vocab_size).to(torch.float16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(partial)
    save_tokenizer(tokenizer, partial)
    replace_folder(partial, folder)


def shape_of(model: Any) -> LlamaShape:
    """The sizes of a built model."""
    config = model.config
    return LlamaShape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
        positions=config.max_position_embeddings,
    )
