"""Loading a frozen host from a folder in `transformers` layout, with clear refusals before any weight is read."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from mmadapter.distributed.deepspeed import is_sharded
from mmadapter.errors import InputError
from mmadapter.files import read_json
from mmadapter.hosts.attention import route
from mmadapter.hosts.calls import CallSlot
from mmadapter.hosts.config_file import read_host_config
from mmadapter.hosts.families import Host, decoder_layers, family_of
from mmadapter.hosts.quantized import quantize, refuse_missing_library
from mmadapter.hosts.settings import GenerationConf
from mmadapter.hosts.sharded import Sharding, loading_sharded
from mmadapter.hosts.weights import refuse_not_finite, weights_digest

log = logging.getLogger(__name__)

OLDEST_TRANSFORMERS = (4, 57)
TESTED_MAJOR_VERSIONS = (4, 5)
ATTENTION_NAMES = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention"}


def host_config(folder: Path, attention: str) -> Any:
    """The host's `transformers` config. Raises InputError where the version of `transformers`, the model type, or this
    `attention` with that type or on this machine is not supported.
    """
    check_transformers_version()
    from transformers import AutoConfig

    model_type = read_host_config(folder)["model_type"]
    kernels = family_of(model_type).kernels
    if attention not in kernels:
        raise InputError(
            f"host.attention={attention}: {model_type} runs with {', '.join(kernels)} only. "
            f"Set host.attention={kernels[0]}"
        )
    if attention == "flex" and not torch.cuda.is_available():
        raise InputError(
            "host.attention=flex needs a GPU: FlexAttention does not support backward on CPU. Set host.attention=sdpa"
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what `transformers` itself checks, in as many ways as it has families and versions
        raise InputError(_refused_config(folder, error)) from error


def check_transformers_version() -> None:
    """Raises InputError for a version of `transformers` that the attention route was not tested with."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    if (major, minor) < OLDEST_TRANSFORMERS or major not in TESTED_MAJOR_VERSIONS:
        raise InputError(
            f"transformers {transformers.__version__} is not supported: tested are 4.57 up to (not including) 6. "
            "To fix: pip install 'transformers>=4.57,<6'"
        )


def load_host(
    folder: Path,
    dtype: torch.dtype | str,
    attention: str = "sdpa",
    device: Any = "cpu",
    sharding: Sharding | None = None,
    quantization: str | None = None,
) -> Host:
    """A frozen, routed causal language model in evaluation mode, in `dtype` ("auto": as its files are), the linear
    layers of its blocks stored as `quantization` says (HostConf).

    With `device="meta"` the model has the right shapes and no weights (dry run). With `sharding` no rank ever
    holds the whole model (collective); `dtype` is then bfloat16 or float32.
    Raises InputError for an unsupported or damaged folder.
    """
    config = host_config(folder, attention)
    if quantization is not None:
        refuse_missing_library(quantization)
    from transformers import AutoModelForCausalLM

    chosen: dict[str, Any] = {"attn_implementation": ATTENTION_NAMES[attention], "dtype": dtype}
    if str(device) == "meta":
        try:
            with torch.device("meta"):
                host = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **chosen)
        except Exception as error:
            raise InputError(_refused_config(folder, error)) from error
    elif sharding is None:
        host = _read_weights(folder, config, chosen).to(device if quantization is None else "cpu")
    else:
        host = _read_sharded(folder, config, chosen, device, sharding).to(device)
    if str(device) == "cpu" and host.dtype == torch.bfloat16 and dtype != "auto" and not fast_bfloat16():
        line = "This CPU has no AMX, AVX512-BF16 or ARM BF16: bfloat16 is much slower than host.dtype=float32 here."
        log.warning("%s", line)
    if str(device) != "meta":
        refuse_not_finite(folder, host)
        host.weights_digest = weights_digest(folder, host)  # of the weights before they are rounded
    host.requires_grad_(False)
    if quantization is not None:
        quantize(host, quantization)
        host.to(device)
    host.quantization = quantization
    host.eval()
    route(host)
    return host


def fast_bfloat16() -> list[str]:
    """The instructions for bfloat16 that this CPU has, as torch sees it; without any, float32 is several times faster.

    Older versions of torch do not tell those of ARM.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        can = torch.cpu.get_capabilities()
    else:
        tests = {"amx_bf16": torch.cpu._is_amx_tile_supported, "avx512_bf16": torch.cpu._is_avx512_bf16_supported}
        can = {name: test() for name, test in tests.items()}
    return [name for name in ("amx_bf16", "avx512_bf16", "bf16") if can.get(name)]  # the last one is ARM's


def _read_weights(folder: Path, config: Any, chosen: dict[str, Any]) -> Host:
    """The whole model: a tensor that is in no file would be left at random, which `transformers` only warns of."""
    from transformers import AutoModelForCausalLM

    try:
        only_here = {"local_files_only": True, "trust_remote_code": False}
        settings = {"config": config, "output_loading_info": True, **only_here, **chosen}
        with _without_warnings():  # of missing tensors: they are refused below
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **settings)
    except Exception as error:  # a file that is missing, damaged or of another model: each raises its own kind
        raise InputError(
            f"{folder}: the host cannot be loaded ({_first_line(error)}). Complete the folder, or download it again."
        ) from error
    host, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{folder}: {len(missing)} of the host's tensors are in no weight file, the first: {missing[0]}. "
            "Complete the folder, or download it again."
        )
    return host


def _read_sharded(folder: Path, config: Any, chosen: dict[str, Any], device: Any, sharding: Sharding) -> Host:
    """The model, each rank with its shard of every weight.

    First every rank opens all files and looks for all tensors, without reading any: what is wrong with the folder is
    said before weights are on their way.
    """
    import transformers

    if config.model_type == "gemma3_text" and transformers.__version__.startswith("4."):
        raise InputError(  # it initialises the embeddings that are not there (5 does not)
            f"transformers {transformers.__version__} cannot shard a gemma3_text host (engine=zero3). "
            "To fix: pip install 'transformers>=5,<6', or engine=zero2"
        )
    _read_weights(folder, copy.deepcopy(config), chosen | {"device_map": "meta"})
    with loading_sharded(chosen["dtype"], device, sharding):
        return _read_weights(folder, config, chosen)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """While inside, `transformers` logs errors only."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def checkpoint_activations(host: Host) -> None:
    """Recompute the adapted layers in the backward pass; the layers below them have no graph and run once.

    Only the layers' checkpointing wrappers are told that they train: all below them stays in evaluation mode, so none
    of the host's dropout acts.
    """
    settings: dict[str, Any] = {"use_reentrant": False}
    if is_sharded(host):
        # A recomputed layer releases its gathered weights, which torch takes for a change: what was saved has become
        # empty. DeepSpeed's backward of a linear layer gathers them again.
        settings["determinism_check"] = "none"
    if hasattr(host, "activation_checkpointing_enable"):  # its name since transformers 5
        host.activation_checkpointing_enable(settings)
    else:
        host.gradient_checkpointing_enable(settings)
    # transformers 5 lets the embeddings require a gradient, giving all layers a graph; 4.57 does not, and complains.
    with contextlib.suppress(AttributeError):
        host.disable_input_require_grads()
    layer: Any
    for layer in decoder_layers(host):
        layer.training = True
        layer._gradient_checkpointing_func = _with_call(layer._gradient_checkpointing_func, host.adapter_slot)


def _with_call(checkpoint: Callable, slot: CallSlot) -> Callable:
    """`checkpoint`, whose recomputation sees the adapter of the first time."""
    return lambda function, *inputs: checkpoint(slot.carried(function), *inputs)


def load_tokenizer(folder: Path, tokenizer: str | None = None) -> Any:
    """The host's tokenizer, with a padding token (the end token where it has none).

    Raises InputError when the folder holds none, or one that needs code out of the folder: such code is never run.
    """
    from transformers import AutoTokenizer

    source = Path(tokenizer).expanduser() if tokenizer else folder
    try:
        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a missing file, damaged JSON and a damaged vocabulary each raise their own kind
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{source}: its tokenizer needs code of its own (auto_map in tokenizer_config.json). Code out of a "
                "model's folder is never run. Take a model whose tokenizer `transformers` itself knows, or name "
                "another folder: host.tokenizer=FOLDER"
            ) from error
        raise InputError(
            f"{source}: no tokenizer can be read there ({type(error).__name__}: {_first_line(error)}). Fetch its files "
            "(tokenizer.json or tokenizer.model, tokenizer_config.json) again, or set host.tokenizer=FOLDER with them."
        ) from error
    if loaded.eos_token_id is None:
        raise InputError(f"{source}: the tokenizer has no end token (eos_token); answers could not end.")
    if loaded.pad_token_id is None:
        loaded.pad_token = loaded.eos_token
    return loaded


def generation_config(settings: GenerationConf, tokenizer: Any, ends: list[int], cache: str = "dynamic") -> Any:
    """The `transformers.GenerationConfig` of our settings; each of the tokens `ends` ends an answer.

    `cache` "dynamic", "static" or "none": the same answers at another speed.
    """
    from transformers import GenerationConfig

    sampling = settings.temperature > 0
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_p=settings.top_p if sampling else None,
        top_k=0 if sampling else None,
        num_beams=settings.beams,
        use_cache=cache != "none",
        cache_implementation="static" if cache == "static" else None,
        disable_compile=True,  # on a GPU a static cache would compile the host, in which hooks and CallSlot act
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )


# Of a folder's generation_config.json: what `generation_config` says itself, what is of sampling and beams alone, and
# what says nothing on the tokens.
_NOT_GREEDY = {
    *("max_length", "max_new_tokens", "eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "num_beams", "length_penalty"),
    *("use_cache", "cache_implementation", "output_attentions", "output_hidden_states", "return_dict_in_generate"),
    *("transformers_version", "_from_model_config", "_commit_hash"),
}


def takes_the_likeliest(host: Host) -> bool:
    """Whether greedy generation takes the likeliest token, whatever stands in front of it.

    `transformers` fills what our settings leave open from the host's own generation_config.json, which may ask for a
    repetition penalty, for instance.
    """
    return set(host.generation_config.to_diff_dict()) <= _NOT_GREEDY


def listed_ends(folder: Path | None) -> list[int]:
    """The tokens that end an answer by the folder's generation_config.json; none where `transformers` only filled in
    the defaults of the model type, which need not be tokens of this tokenizer that end anything.
    """
    told = read_json(folder / "generation_config.json") if folder is not None else None
    if not isinstance(told, dict) or told.get("_from_model_config"):
        return []
    ends = told.get("eos_token_id")
    return [token for token in (ends if isinstance(ends, list) else [ends]) if type(token) is int]


# What changes without changing the host: where it lay, which version wrote it, the type its weights are stored in.
_NOT_IDENTITY = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}


def host_identity(host: Host, tokenizer: Any, folder: Path | None = None) -> dict[str, Any]:
    """What an adapter fits: the host's shape, and digests of its configuration, its tokenizer and its weights.

    `folder` is where it was loaded from: the form in memory differs between versions of `transformers`. A host that was
    not loaded from a folder has no `weights_digest`.
    """
    content = host.config.to_dict()
    if folder is not None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = getattr(host, "weights_digest", None)
    return {
        **host_shape(host),
        "config_digest": _digest({name: value for name, value in content.items() if name not in _NOT_IDENTITY}),
        "tokenizer_digest": _digest(sorted(tokenizer.get_vocab().items())),
        **({} if weights is None else {"weights_digest": weights}),
    }


def host_shape(host: Host) -> dict[str, Any]:
    """The kind and the sizes of a host, with weights or on the meta device."""
    config = host.config
    heads = config.num_attention_heads
    return {
        "model_type": config.model_type,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "vocabulary": config.vocab_size,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def hide_library_bars() -> None:
    """Keep the progress bars of `transformers` away, where output is no terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextlib.contextmanager
def without_library_bars() -> Iterator[None]:
    """While inside, `transformers` shows no progress bars; behind it they are as they were."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(" .:")


def _refused_config(folder: Path, error: Exception) -> str:
    said = shorten(" ".join(str(error).split()), 300).rstrip(" .:")
    return (
        f"{folder / 'config.json'}: `transformers` cannot build a model of it ({type(error).__name__}: {said}). "
        "Correct the file, or download the model again."
    )
