"""conf/host: the frozen language model that the adapter attaches to."""

from dataclasses import dataclass

from mmadapter.settings import choice, input_path, number, plain

TINY = "tiny"  # the name under which the models that ship with the package are asked for


@dataclass
class HostConf:
    path: str | None = input_path()  # model folder in transformers layout; "tiny" = the shipped one
    tokenizer: str | None = input_path()  # folder or tokenizer.model; null = the host's own folder
    dtype: str = choice("auto", "float32", "bfloat16")  # of the frozen weights; auto = bfloat16 on a GPU, else float32
    attention: str = choice("sdpa", "eager", "flex")  # kernel; flex only on a GPU (on CPU it has no backward)
    activation_checkpointing: bool = plain(False, influence=False)  # recompute in the backward: less memory, slower
    max_tokens: int = number(512, at_least=8)  # tokens of context used, prompt and answer together; paper: 512
