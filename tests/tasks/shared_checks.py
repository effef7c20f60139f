"""What must hold where several processes evaluate together; see test_shared_out.py."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from mmadapter.data.samples import ANSWER, Sample, Segment
from mmadapter.distributed.deepspeed import is_sharded, load_deepspeed
from mmadapter.hosts.settings import GenerationConf
from mmadapter.hosts.sharded import deepspeed_settings, gather_in_forward
from mmadapter.tasks.asking import ask_in_batches, generate_answers, most_likely_options
from mmadapter.tasks.settings import ScienceqaTaskSettings
from tests.distributed.several import here
from tests.models import model_on, picture
from tests.tasks.asked import evaluated
from tests.tasks.test_evaluate import Parrot

BLANK = Sample("0", "s", (Segment("a", "instruction"),), None, "test")
PROMPTS = ["what colour is the circle", "a", "left", "what is on the right and on the left", "b and c"]
MODELS = ("llama_gqa", "v2 gpt_neox", "v2_lora llama_bias")


def check_every_index_is_asked_once(_: Path) -> None:
    lengths = [7, 1, 3, 9, 4, 4, 2, 8, 5]
    samples = [replace(BLANK, image=Path("a.png") if index == 3 else None) for index in range(len(lengths))]
    asked: list[tuple] = []
    told: list[tuple] = []

    def ask(indices, visual):
        asked.append((list(indices), visual))
        return [index * 10 for index in indices]

    for size in (1, 2, 4, 20):
        for in_step in (False, True):
            asked.clear()
            told.clear()
            answers = ask_in_batches(ask, lengths, samples, size, here(), in_step, "x", lambda *what: told.append(what))
            assert answers == [index * 10 for index in range(len(lengths))]
            if here().is_first:
                done = [done for _, done, _ in told]
                assert done == sorted(done) and told[-1] == ("x", len(lengths), len(lengths))
            else:
                assert not told
            of_all = here().gather(asked)
            together = [index for part in of_all for indices, _ in part for index in indices]
            rounds = [[visual for _, visual in part] for part in of_all]
            if in_step:  # all ask equally often; what is asked twice is the shortest, to keep in step
                assert all(part == rounds[0] for part in rounds) and rounds[0][0] and not any(rounds[0][1:])
                twice = sorted(together)
                for index in range(len(lengths)):
                    twice.remove(index)
                assert set(twice) <= {1}
            else:
                assert sorted(together) == list(range(len(lengths)))
                assert not any(visual for part in rounds for visual in part)


def check_files(folder: Path) -> None:
    """The same files as one process writes; only the first process scores, writes and shows."""
    task = ScienceqaTaskSettings(root=str(folder / "data"), batch_size=1)
    parrot = Parrot({"5": "A", "6": "B", "7": "hm"}, {"6": "B", "7": "C"})
    parrot.in_step = False
    told: list[tuple] = []
    output = folder / "out" if here().is_first else Path("/proc/no/place")
    metrics = evaluated(parrot, task, output, lambda *what: told.append(what), here())
    assert metrics["unanswered"] == 1 and metrics["likelihood_accuracy"]["Avg"] == 100.0
    assert bool(told) == here().is_first and parrot.training
    assert 0 < len(parrot.batches) < 3, "nothing was shared out"
    if here().is_first:
        rows = [json.loads(line) for line in (folder / "out" / "predictions.jsonl").read_text().splitlines()]
        assert [(row["id"], row["output"], row["likelihood_prediction"]) for row in rows] == [
            ("5", "A", 0), ("6", "B", 1), ("7", "hm", 2)
        ]  # fmt: skip
        assert json.loads((folder / "out" / "metrics.json").read_text()) == metrics


def shared_model(name: str):
    """A model twice: plain, and with its host's weights shared out."""
    plain, shared = model_on(name), model_on(name)
    deepspeed = load_deepspeed("cpu")
    deepspeed.zero.Init(module=shared.host, config_dict_or_path=deepspeed_settings(torch.float32))
    gather_in_forward(shared.host)
    assert is_sharded(shared.host) and shared.in_step == (here().world_size > 1)
    return plain, shared


def questions(folder: Path, pictures: set[int]) -> list[Sample]:
    """Prompts of very different lengths; those in `pictures` have one."""
    return [
        Sample(
            id=str(number),
            source="s",
            segments=(Segment(prompt, "instruction"),),
            image=picture(folder / f"{here().rank}", number) if number in pictures else None,
            where=f"test {number}",
            meta={"choices": ["red", "blue", "green"][: 2 + number % 2]},
        )
        for number, prompt in enumerate(PROMPTS)
    ]


def settings(**changes) -> SimpleNamespace:
    generation = GenerationConf(**{"max_new_tokens": 7, **changes})
    return SimpleNamespace(name="test", generation=generation, batch_size=2, seed=3)


def check_shared_host(folder: Path, name: str) -> None:
    """The same answers as from the plain host, wherever the pictures are, though the answers end at other places."""
    plain, shared = shared_model(name)
    (folder / f"{here().rank}").mkdir(exist_ok=True)
    all_ways = name == MODELS[0]
    for pictures in ({3}, set()) if all_ways else ({3},):
        samples = questions(folder, pictures)
        for task in (settings(), settings(beams=3), settings(temperature=1.0))[: 3 if all_ways else 1]:
            alone = generate_answers(plain, samples, task, here())  # whose processes need not keep in step
            assert generate_answers(shared, samples, task, here()) == alone
            if all_ways and task.generation.beams == 1:
                assert len({len(text.split()) for text in alone}) > 1, f"all answers end at one place: {alone}"
        options = [
            [(Segment(f" The answer is {choice}.", ANSWER),) for choice in sample.meta["choices"]] for sample in samples
        ]
        likeliest = most_likely_options(shared, samples, options, settings(), here())
        assert likeliest == most_likely_options(plain, samples, options, settings(), here())


def checks(folder: Path) -> dict:
    found: dict = {
        "every index once": partial(check_every_index_is_asked_once, folder),
        "files": partial(check_files, folder),
    }
    return found | {f"shared host {name}": partial(check_shared_host, folder, name) for name in MODELS}
