"""The formula of an adapted host, written independently of the package.

It replaces a host's attention wholly: keys of prompts and text are concatenated, the scores are split, each part has
its own softmax, and the prompts' keys and values are computed from the weight matrices by hand. Bias, scale, LoRA and
norms are folded into a copy of the host's weights by hand.
"""

import torch
from torch import nn
from torch.nn.functional import linear

from mmadapter.hosts.calls import FINAL
from mmadapter.hosts.families import attention_modules, decoder, decoder_layers, family_of
from tests.families import tiny_host


def prompt_keys_values_by_hand(module, prompts):
    """(rows, K, width) -> keys and values (rows, kv_heads, K, head_dim), from the weights."""
    config = module.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if hasattr(module, "query_key_value"):
        weight = module.query_key_value.weight.view(heads, 3, head_dim, -1)
        bias = module.query_key_value.bias.view(heads, 3, head_dim)
        pairs = [(weight[:, part].flatten(0, 1), bias[:, part].flatten()) for part in (1, 2)]
    elif hasattr(module, "qkv_proj"):
        sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        biases = [None] * 3 if module.qkv_proj.bias is None else module.qkv_proj.bias.split(sizes)
        pairs = list(zip(module.qkv_proj.weight.split(sizes), biases, strict=True))[1:]
    else:
        pairs = [(module.k_proj.weight, module.k_proj.bias), (module.v_proj.weight, module.v_proj.bias)]
    keys, values = (linear(prompts, *pair).unflatten(-1, (kv_heads, head_dim)).transpose(1, 2) for pair in pairs)
    if hasattr(module, "k_norm"):
        norm = module.k_norm
        size = norm.weight + 1 if "Gemma" in type(norm).__name__ else norm.weight
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        keys = keys * torch.rsqrt(keys.pow(2).mean(-1, keepdim=True) + eps) * size
    return keys, values


def oracle_attention(adapter, visual, frozen):
    """`frozen` are attention modules with the host's own weights, for prompts that do not pass the adapted ones."""

    def attend(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer, prompts = branch_by_hand(adapter, module.layer_idx, visual)
        length = 0
        if layer is not None:
            source = module if layer.settings.through == "adapted" else frozen[module.layer_idx]
            keys, values = prompt_keys_values_by_hand(source, prompts)
            length = keys.shape[2]
            together = [part.repeat_interleave(repeats, 1).expand(len(query), -1, -1, -1) for part in (keys, values)]
            key, value = torch.cat([together[0], key], 2), torch.cat([together[1], value], 2)
        scores = query @ key.transpose(-1, -2) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        text = scores[..., length:] + attention_mask
        if layer is None:
            weights = text.softmax(-1)
        elif not hasattr(layer, "gate"):
            weights = torch.cat([scores[..., :length], text], -1).softmax(-1)
        else:
            gate = torch.tanh(layer.gate).view(1, -1, 1, 1)
            weights = torch.cat([gate * scores[..., :length].softmax(-1), text.softmax(-1)], -1)
        return (weights @ value).transpose(1, 2), None

    return attend


def branch_by_hand(adapter, index, visual):
    """The layer's gates and what its branch attends to, (rows or 1, K, width); (None, None) without a branch."""
    early, prompts = ({**adapter[name]} if name in adapter else {} for name in ("early_fusion", "prompts"))
    if str(index) in early:
        return (early[str(index)], visual) if visual is not None else (None, None)
    layer = prompts.get(str(index))
    if layer is None or visual is None or early:
        return layer, None if layer is None else layer.prompt[None]
    return layer, layer.prompt[None] + visual


def folded_by_hand(host, adapter):
    """The same host with W' = s W, b' = s (b_host + b), or W' = W s; LoRA added first; norms replaced."""
    paths = family_of(host.config.model_type).linears
    for index, layer in enumerate(decoder_layers(host)):
        for kind, path in paths.items():
            parent, name = layer.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            setattr(parent, name, folded_linear(getattr(parent, name), adapter, str(index), kind))
    for index, kinds in adapter["norms"].items() if "norms" in adapter else ():
        below = decoder(host) if index == str(FINAL) else decoder_layers(host)[int(index)]
        for kind, part in kinds.items():
            (norm,) = [module for path, module in below.named_modules() if path.rpartition(".")[2] == kind]
            norm.load_state_dict(part.state_dict())
    return host


def folded_linear(linear, adapter, index, kind):
    weight = linear.weight.clone()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.clone()
    if "lora" in adapter and kind in adapter["lora"][index]:
        pair = adapter["lora"][index][kind]
        weight = weight + pair.factor * pair.up.weight @ pair.down.weight
    if "bias_scale" in adapter and kind in adapter["bias_scale"][index]:
        shift = adapter["bias_scale"][index][kind]
        added = 0 if shift.bias is None else shift.bias
        if shift.scale is None:
            bias = bias + added
        elif shift.scale_on == "output":
            weight, bias = shift.scale[:, None] * weight, shift.scale * (bias + added)
        else:
            weight, bias = weight * shift.scale[None], bias + added
    folded = nn.Linear(weight.shape[1], weight.shape[0])
    folded.weight, folded.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return folded


def oracle_logits(name, adapter, tokens, visual=None, **keywords):
    """Logits by the formula; `visual` is (rows, width) or (rows, visual tokens, width)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    if visual is not None and visual.ndim == 2:
        visual = visual[:, None]
    AttentionInterface.register(
        "oracle", oracle_attention(adapter, visual, attention_modules(tiny_host(name, "eager")))
    )
    AttentionMaskInterface.register("oracle", eager_mask)
    host = folded_by_hand(tiny_host(name, "eager"), adapter)
    host.config._attn_implementation = "oracle"
    return host(input_ids=tokens, use_cache=False, **keywords).logits
