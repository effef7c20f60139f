"""Tiny random hosts of every supported family, and adapters with open gates, for tests."""

from __future__ import annotations

import torch

from mmadapter.hosts.attention import route
from mmadapter.hosts.calls import VisualTokens
from mmadapter.methods import AdapterConf
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.groups import trainable_parameters
from mmadapter.methods.settings import BiasScaleConf, EarlyFusionConf, LoraConf, NormsConf, PromptsConf

ROUNDING = 5e-5  # of logits of size 1, in float32, when the same sums are taken in another order
VOCABULARY, WIDTH, LAYERS, ADAPTED = 64, 32, 4, 3
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GQA = {"num_key_value_heads": 2}
# name -> (config class, its own settings)
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama_mha": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama_gqa": ("LlamaConfig", _GQA),
    "llama_mqa": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama_bias": ("LlamaConfig", {**_GQA, "attention_bias": True}),
    "llama_head_dim": ("LlamaConfig", {**_GQA, "head_dim": 16}),
    "llama3_rope": (
        "LlamaConfig",
        {
            **_GQA,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral": ("MistralConfig", {**_GQA, "sliding_window": 6}),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen3": ("Qwen3Config", {**_GQA, "head_dim": 16}),
    "gemma": ("GemmaConfig", {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        # a soft cap that these small scores feel; its own is 50
        {
            **_GQA,
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 0.5,
        },
    ),
    "gemma3": ("Gemma3TextConfig", {**_GQA, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", {**_GQA, "sliding_window": None}),
    "gpt_neox": ("GPTNeoXConfig", {"attention_bias": True}),
}
CORE = ["llama_mha", "llama_gqa", "qwen3", "mistral"]
EAGER_ONLY = {"gemma2"}
# The window binds on rows longer than it, so these families' masks are never plain causal.
EVERY_FAMILY_AND_ATTENTION = [
    (name, attention)
    for name in FAMILIES
    for attention in ("eager", "sdpa")
    if attention == "eager" or name not in EAGER_ONLY
]


def tiny_host(name: str, attention: str = "sdpa", seed: int = 0):
    """A frozen random host of a family, not yet routed, with every tensor (biases, norms) away from its default."""
    import transformers

    config_class, settings = FAMILIES[name]
    if name in EAGER_ONLY:
        attention = "eager"
    config = getattr(transformers, config_class)(**_COMMON | settings, attn_implementation=attention)
    torch.manual_seed(seed)
    host = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return host.float().requires_grad_(False).eval()


def routed_host(name: str, attention: str = "sdpa"):
    """A random host of a family that adapters can attach to."""
    host = tiny_host(name, attention)
    route(host)
    return host


def adapter_of(host, seed: int = 1, **methods) -> Adapter:
    """A fresh adapter of these methods (name=settings, None: without it)."""
    chosen = {name: settings for name, settings in methods.items() if settings is not None}
    return Adapter.build(AdapterConf(methods=chosen), host, seed)


def open_adapter(host, prompt_length: int = 5, adapted: int = ADAPTED, seed: int = 1, **settings) -> Adapter:
    """Prompts on the last layers of `host` whose gates are open."""
    adapter = adapter_of(host, seed, prompts=PromptsConf(length=prompt_length, layers=adapted, **settings))
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for layer in adapter["prompts"].values():
            if not layer.joint:
                layer.gate.normal_(0.0, 0.7, generator=generator)
    return adapter


def v2_methods(
    early=1, lora=False, scale_on="output", factor=False, through="adapted", length=5, layers=ADAPTED
) -> dict:
    """The settings of V2's methods; early fusion in the first `early` layers."""
    return {
        "prompts": PromptsConf(length=length, layers=layers, gate_factor=factor, through=through),
        "early_fusion": EarlyFusionConf(layers=early, through=through) if early else None,
        "lora": LoraConf(rank=3, alpha=6) if lora else None,
        "bias_scale": BiasScaleConf(scale_on=scale_on),
        "norms": NormsConf(),
    }


def open_v2_adapter(host, seed: int = 1, **settings) -> Adapter:
    """A V2 adapter with everything away from its start; `settings` of `v2_methods`."""
    adapter = adapter_of(host, seed, **v2_methods(**settings))
    open_up(adapter, torch.Generator().manual_seed(seed + 100))
    return adapter


def adapter_with(host, bias=(), scale=(), norms=None, lora=(), early=1, prompts=3, seed=1, through="adapted"):
    """A V2 adapter with the named parts only, away from their start."""
    methods = {
        "prompts": PromptsConf(length=5, layers=prompts, through=through) if prompts else None,
        "early_fusion": EarlyFusionConf(layers=early, through=through) if early else None,
        "lora": LoraConf(rank=3, alpha=6, on=list(lora)) if lora else None,
        "bias_scale": BiasScaleConf(bias=list(bias), scale=list(scale)) if bias or scale else None,
        "norms": NormsConf(which=norms) if norms else None,
    }
    adapter = adapter_of(host, seed, **methods)
    open_up(adapter, torch.Generator().manual_seed(seed + 100))
    return adapter


def open_up(adapter: Adapter, generator: torch.Generator) -> None:
    """Every tensor but the prompts moves away from where it starts."""
    with torch.no_grad():
        for item in trainable_parameters(adapter):
            if item.role != "prompt":
                size = 0.7 if item.role in ("gate", "early_gate") else 0.2
                item.parameter.add_(torch.randn(item.parameter.shape, generator=generator) * size)


def visual_rows(rows: int, width: int = WIDTH, seed: int = 2) -> torch.Tensor:
    """One projected image per row, (rows, width)."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def visual_tokens(rows: int, tokens: int = 3, seed: int = 2) -> torch.Tensor:
    """Distinct visual tokens per row, (rows, tokens, width)."""
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def adapted_logits(host, adapter: Adapter, tokens, visual=None, **keywords):
    """Logits of a routed host with the adapter in the call; `visual`: (rows, width) or (rows, visual tokens, width)."""
    if visual is not None:
        visual = visual[:, None] if visual.ndim == 2 else visual
        visual = VisualTokens(visual, torch.ones(len(visual), dtype=torch.bool))
    with host.adapter_slot.during(adapter.call(visual)):
        return host(input_ids=tokens, **keywords).logits


def random_tokens(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    """(rows, length) ordinary tokens: no special ones."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
