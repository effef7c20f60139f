"""Toy GGUF files of tiny random hosts, as llama.cpp's own converter writes them: its keys, names and orders."""

import numpy
import pytest

gguf = pytest.importorskip("gguf")

BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LETTERS = "▁etaoinshrdlu"
SENTENCE_PIECES = {  # 64 tokens: special ones, bytes of some letters, letters, pieces
    "tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", *LETTERS, "th", "the", "▁the", "in", "<tool>"],
    "types": [2, 3, 3, 6, 6, 6, *[1] * len(LETTERS), 1, 1, 1, 1, 4],
}


def pieces():
    tokens, types = list(SENTENCE_PIECES["tokens"]), list(SENTENCE_PIECES["types"])
    while len(tokens) < 64:
        tokens.append(f"<unused{len(tokens)}>")
        types.append(5)
    return tokens, types


def write_gguf(file, host, name, quantised=None, keys=None, tokenizer="llama", extra=None):
    """`host` as a file of the family `name`; `quantised` is the kind of its matrices, `keys` change the metadata."""
    config, writer = host.config, gguf.GGUFWriter(file, name)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    metadata = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.freq_base": float(theta_of(config)),
        "rope.dimension_count": size,
    }
    if name.startswith("gemma") and name != "gemma":
        metadata["attention.sliding_window"] = config.sliding_window
    if name == "gemma2":
        metadata["attn_logit_softcapping"] = config.attn_logit_softcapping
        metadata["final_logit_softcapping"] = config.final_logit_softcapping
    for key, value in (metadata | (keys or {})).items():
        if isinstance(value, str):
            writer.add_string(f"{name}.{key}", value)
        elif value is not None:
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{name}.{key}", value)
    write_tokenizer(writer, tokenizer, config.vocab_size)
    state = host.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for full, tensor in state.items():
        place, _, end = full.rpartition(".")
        values = tensor.float()
        if place in OUTER:
            stored = OUTER[place]
        else:
            _, _, layer, inner = place.split(".", 3)
            gemma = {
                "post_attention_layernorm": "post_attention_norm",
                "pre_feedforward_layernorm": "ffn_norm",
                "post_feedforward_layernorm": "post_ffw_norm",
            }
            plain = {"post_attention_layernorm": "ffn_norm"}
            norms = gemma if name in ("gemma2", "gemma3") else plain
            stored = f"blk.{layer}.{(BLOCK | norms)[inner]}"
            if name == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
                count = heads if "q_proj" in inner else kv_heads  # halves -> neighbours
                values = values.view(count, 2, -1, values.shape[-1]).transpose(1, 2).reshape(values.shape)
        if name.startswith("gemma") and stored.endswith("norm"):
            values = values + 1
        array = values.numpy()
        if quantised is not None and array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(f"{stored}.{end}", gguf.quants.quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(f"{stored}.{end}", array)
    for stored, array in (extra or {}).items():
        writer.add_tensor(stored, numpy.asarray(array, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def theta_of(config):
    """rope_theta, which transformers 5 keeps within rope_parameters, and there by kind of layer for Gemma 3."""
    found = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    return found.get("full_attention", found)["rope_theta"]


def write_tokenizer(writer, kind, rows):
    tokens, types = pieces()
    writer.add_string("tokenizer.ggml.model", kind)
    if kind == "llama":
        writer.add_array("tokenizer.ggml.scores", [-float(index) for index in range(len(tokens))])
        writer.add_uint32("tokenizer.ggml.unknown_token_id", 0)
    else:
        letters = "!?,.0123456789abdehinstĠĊÃ©"
        tokens = ["<|end|>", "<s>", "</s>", *letters, "th", "the", "Ġthe", "<tool>"]
        types = [3, 3, 3, *[1] * (len(tokens) - 4), 4]
        tokens += [f"[PAD{index}]" for index in range(len(tokens), rows)]
        types += [5] * (rows - len(types))
        writer.add_array("tokenizer.ggml.merges", ["t h", "th e", "Ġ the"])
        writer.add_string("tokenizer.ggml.pre", "smollm")
        writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_uint32("tokenizer.ggml.padding_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 5)
    writer.add_string("tokenizer.chat_template", "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")
    writer.add_string("general.license", "apache-2.0")
