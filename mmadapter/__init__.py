"""Parameter-efficient multimodal instruction models: LLaMA-Adapter V1 and V2 on `transformers` hosts."""

__version__ = "0.1.0"
