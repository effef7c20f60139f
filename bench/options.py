"""The options that several commands have, and the case that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bench.case import Case
from bench.shapes import LENGTH, SHAPES, Shape, host_of


def options(command: str, about: str | None, contenders: str | None) -> argparse.ArgumentParser:
    """What every command can be told. `contenders`: the usual ones; None where they follow from --adapter."""
    parser = argparse.ArgumentParser(f"bench {command}", description=about)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    usual = None if contenders is None else contenders.split(",")
    parser.add_argument(
        "--contenders",
        type=lambda text: text.split(","),
        default=usual,
        help=f"usual: {contenders}" if contenders else None,
    )
    parser.add_argument("--threads", type=int, default=1, help="of each contender")
    parser.add_argument("--out", type=Path, help="folder for result.json, table.md and plot.svg")
    return parser


def options_of_a_host(command: str, about: str | None, contenders: str | None) -> argparse.ArgumentParser:
    """The same, of a command that measures a language model."""
    parser = options(command, about, contenders)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the host")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser


def case_of(shape: Shape, asked: argparse.Namespace, scratch: Path, **more: Any) -> Case:
    """The case of these options; a made host is written below `scratch`. `more`: what only some commands say."""
    return Case(
        *(host_of(shape, scratch), shape.width, shape.layers, shape.prompt_layers, LENGTH, shape.batch, shape.longest),
        device=device(),
        dtype=asked.dtype,
        threads=asked.threads,
        **more,
    )


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
