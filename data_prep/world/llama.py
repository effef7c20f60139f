"""The tiny LLaMA: a LlamaForCausalLM with its own byte-level tokenizer, pretrained on the world's plain text."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_prep.world.clip import save_tokenizer
from data_prep.world.text import first_lessons, world_texts

SPECIAL = ("<pad>", "<s>", "</s>")
PAD, BOS, EOS = 0, 1, 2
ROW_TOKENS = 128
TOKENIZER_DOCUMENTS = 6000
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "max_position_embeddings": 2048,
}
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


def text_tokenizer(documents: int = TOKENIZER_DOCUMENTS) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the world is one token, and any other text is still encodable."""
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


class TinyLlama:
    """The model with its loss on the world's text; the rows of a step are a pure function of seed and step."""

    def __init__(
        self, seed: int, batch_size: int, shape: Mapping[str, Any] = SHAPE, documents: int = TOKENIZER_DOCUMENTS
    ) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.tokenizer = text_tokenizer(documents)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            **shape,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
        self.model = LlamaForCausalLM(config)

    def rows(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Documents end to end in rows; each starts at position 0 and sees nothing of the others.

        Inputs (rows, tokens); targets (rows, tokens), -100 where the next token belongs to another document; positions
        (rows, tokens); visible (rows, 1, tokens, tokens), True where a token may look. A document that crosses a row's
        end is cut in two.
        """
        shape, needed = (self.batch_size, ROW_TOKENS), self.batch_size * ROW_TOKENS
        name = f"{self.seed} {step}"
        texts, lists, rng = world_texts(name), first_lessons(name), random.Random(name)
        fading = min(1.0, max(0.0, (step - LESSON_STEPS) / (FADED_STEPS - LESSON_STEPS)))
        share_of_lists = 1.0 - (1.0 - LASTING_SHARE) * fading
        tokens: list[int] = []
        while len(tokens) <= needed:
            text = next(lists if rng.random() < share_of_lists else texts)
            tokens += [*self.tokenizer(text)["input_ids"], EOS]
        inputs = torch.tensor(tokens[:needed]).view(shape)
        targets = torch.tensor(tokens[1 : needed + 1]).view(shape)
        document = (inputs == BOS).cumsum(-1)
        place = torch.arange(ROW_TOKENS).expand_as(inputs)
        starts = torch.where(inputs == BOS, place, 0).cummax(-1).values
        same = document[:, :, None] == document[:, None, :]
        visible = (same & (place[0][:, None] >= place[0][None, :]))[:, None]
        return inputs, targets.masked_fill(targets == BOS, -100), place - starts, visible

    def loss_at(self, step: int) -> Tensor:
        """The mean cross-entropy of the next token."""
        inputs, targets, positions, visible = self.rows(step)
        logits = self.model(input_ids=inputs, attention_mask=visible, position_ids=positions, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def save(self, folder: Path) -> None:
        """Write transformers' folder layout: config, safetensors in float16, tokenizer."""
        half = LlamaForCausalLM(copy.deepcopy(self.model.config)).half()
        half.load_state_dict(self.model.state_dict())
        half.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)
