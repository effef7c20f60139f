"""How answers are generated: our few settings, and what they mean to `transformers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated. Temperature 0 is greedy; beams > 1 is beam search."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    cache: str = "dynamic"  # "dynamic", "static" or "none": the same answers, another speed


def generation_config(settings: GenerationSettings, tokenizer: Any) -> Any:
    """The `transformers.GenerationConfig` of our settings."""
    from transformers import GenerationConfig

    sampling = settings.temperature > 0
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_p=settings.top_p if sampling else None,
        top_k=0 if sampling else None,
        num_beams=settings.beams,
        use_cache=settings.cache != "none",
        cache_implementation="static" if settings.cache == "static" else None,
        disable_compile=True,  # on a GPU a static cache would compile the host, in which hooks and CallSlot act
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
