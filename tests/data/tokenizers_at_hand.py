"""Tiny real tokenizers of each family, trained on a few sentences."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from mmadapter.data.templates import ALPACA_RESPONSE, ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT

SENTENCES = [
    "Question: Which word would you find on a dictionary page?\nContext: N/A\nAnswer: The answer is B.",
    "Context: The passage below describes an experiment.\nOptions: (A) red (B) blue\nAnswer: The answer is A.",
    "a red circle left of a blue square; the dog, the cat and 12 geese sleep 'quietly' at 7:30.",
    f"{ALPACA_WITHOUT_INPUT.text}Generate caption of this image.{ALPACA_RESPONSE.text}A dog.",
    f"{ALPACA_WITH_INPUT.text}Compare.\n\n### Input:\ntwo words{ALPACA_RESPONSE.text}They differ.",
] * 20
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def sentencepiece_model() -> Path:
    """A folder with a SentencePiece BPE model of LLaMA's kind: byte fallback, identity normalisation, digits apart."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in SENTENCES for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder = Path(mkdtemp(prefix="sentencepiece-"))
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@cache
def llama() -> Any:
    """LLaMA 1 and 2: a blank in front of a text, newlines as byte tokens."""
    return LlamaTokenizer.from_pretrained(sentencepiece_model(), legacy=False)


@cache
def byte_level(split_as_llama3: bool = False) -> Any:
    """GPT-2's byte-level BPE, or with Llama 3's splitting, where ".\\n\\n" and ":\\n" are one token."""
    tokenizer = Tokenizer(models.BPE())
    if split_as_llama3:
        split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    # as Llama 3's own: begin-of-text in front
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def llama3() -> Any:
    return byte_level(True)


FAMILIES = {"llama": llama, "byte_level": byte_level, "llama3": llama3}
