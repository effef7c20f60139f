"""How answers are generated: our few settings, and what they mean to `transformers`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmadapter.settings import choice, number


@dataclass
class GenerationSettings:
    """How answers are generated. Temperature 0 is greedy; beams > 1 is beam search."""

    max_new_tokens: int = number(64, at_least=1)  # tokens of the answer
    temperature: float = number(0.0, at_least=0)  # 0 = greedy (ScienceQA); paper: 0.1 for instructions
    top_p: float = number(1.0, above=0, at_most=1)  # nucleus; paper: 0.75 for instructions
    beams: int = number(1, at_least=1)  # 1 = no beam search
    cache: str = choice("dynamic", "static", "none", influence=False)  # of keys and values: another speed

    def contradictions(self, key: str) -> Iterator[str]:
        if self.beams > 1 and self.temperature > 0:
            yield (
                f"{key}: beams={self.beams} with temperature={self.temperature:g}: beam search does not sample. "
                f"Set {key}.temperature=0 or {key}.beams=1"
            )


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
