"""Memory that runs out for real (RLIMIT_AS in a child): one message with what helps, and all processes end."""

import errno
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmadapter.errors import InputError, is_out_of_memory
from mmadapter.evaluation import run_evaluation
from mmadapter.model import AdaptedModel
from mmadapter.runs.journal import read_metrics
from mmadapter.training.engine import SingleDeviceEngine
from mmadapter.training.memory import MemoryAdvice, of_a_task
from mmadapter.training.run import run
from mmadapter.training.zero import ZeroEngine
from mmadapter.vision.encoder import VisionEncoder
from tests.config.composing import eval_conf
from tests.distributed.several import Several
from tests.training.launched import adapter, folder_of, losses, run_like_the_entry, short
from tests.training.tiny_run import save_inputs, tiny_conf

ROOM = 64 * 2**20  # bytes that a process may still take
TOO_MUCH = 2**28  # float32 numbers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def in_little_memory(original):
    """Replaces a function by one that asks for a gigabyte where ROOM is left."""

    def hungry(*arguments, **keywords):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY))
        try:
            torch.zeros(TOO_MUCH)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return original(*arguments, **keywords)

    return hungry


@pytest.mark.parametrize("engine, count", [("single", 1), ("zero2", 2)])
def test_a_step_without_memory_ends_all_processes_with_one_message(inputs, tmp_path, engine, count):
    def disturb(rank):
        if rank == count - 1:
            for kind in (SingleDeviceEngine, ZeroEngine):
                kind.step = in_little_memory(kind.step)

    conf = short(inputs, tmp_path / "runs", f"engine.name={engine}", "engine.device=cpu")
    group = Several(count, run_like_the_entry, conf, disturb, folder=tmp_path)
    statuses = group.end()
    said = [group.said(rank) for rank in range(count)]
    assert statuses == [2] * count, said
    rank = "rank 1: " if count > 1 else ""
    assert said[-1].count(f"error: {rank}Out of memory in a micro-batch of 4 samples, a forest of ") == 1, said
    assert "the peak was" in said[-1] and "of memory" in said[-1] and "Traceback" not in "".join(said)
    message = said[-1].partition("error: ")[2]
    assert message.count("\n  ") == 3 and "\n  optimizer.micro_batch_size=2 " in said[-1]
    assert ("\n  engine=zero3 (each of the 2 ranks" in said[-1]) is (count == 2)
    if count == 2:
        assert "error: " not in said[0] and "stopped: " not in said[0]


def test_a_host_that_does_not_fit_is_told_as_well(inputs, tmp_path, monkeypatch):
    build = AdaptedModel.build

    def too_large(*parts, **more):
        if more.get("device") == "meta":
            return build(*parts, **more)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(AdaptedModel, "build", too_large)
    with pytest.raises(InputError, match=r"Out of memory while the host was loaded: the peak was .*\n  host.dtype=b"):
        run(short(inputs, tmp_path, "engine.name=single"))


def test_the_advised_micro_batch_goes_on_where_memory_ran_out_with_the_same_curve(inputs, tmp_path, monkeypatch):
    one_process = ("engine.name=single", "engine.device=cpu")
    run(short(inputs, tmp_path / "undisturbed", *one_process))
    step = SingleDeviceEngine.step

    def hungry(engine, batches, lr):
        if engine.steps_done == 6 and max(len(batch.samples) for batch in batches) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(engine, batches, lr)

    monkeypatch.setattr(SingleDeviceEngine, "step", hungry)
    with pytest.raises(InputError, match=r"\n  optimizer.micro_batch_size=2 \(the same run goes on"):
        run(short(inputs, tmp_path / "runs", *one_process))
    run(short(inputs, tmp_path / "runs", *one_process, "optimizer.micro_batch_size=2"))
    assert losses(tmp_path / "runs") == pytest.approx(losses(tmp_path / "undisturbed"), rel=2e-5)
    (resumed,) = events(tmp_path / "runs", "resumed")
    assert (
        resumed["step"] == 4
        and resumed["micro_batch_size"] == 2
        and len(list((tmp_path / "runs").glob("*/config.yaml"))) == 1
    )
    there, here = adapter(tmp_path / "undisturbed"), adapter(tmp_path / "runs")
    assert all(torch.allclose(there[name], here[name], rtol=1e-3, atol=1e-5) for name in there)


@pytest.mark.parametrize("asked", ["answer", "log_likelihood"])
def test_an_evaluation_without_memory_names_its_batch_and_does_not_train_again(inputs, tmp_path, monkeypatch, asked):
    original = getattr(AdaptedModel, asked)

    def hungry(model, samples, *arguments, **keywords):
        # Those of a batch, or those of a list that are answered at once.
        if (keywords.get("at_once") or len(getattr(samples, "samples", samples))) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, samples, *arguments, **keywords)

    monkeypatch.setattr(AdaptedModel, asked, hungry)
    settings = ["engine.name=single", "optimizer.epochs=0.5", "evaluate=[scienceqa]", "tasks.scienceqa.batch_size=4"]
    settings.append("tasks.scienceqa.likelihood=true")
    if asked == "answer":
        with pytest.raises(
            InputError, match=r"while the watched questions were asked.*\n  training.watch_samples=0 \(asks"
        ):
            run(short(inputs, tmp_path / "watched", *settings))
    settings.append("training.watch_samples=0")
    told = r"Out of memory while task scienceqa was evaluated: the peak.*\n  tasks.scienceqa.batch_size=2 \(the same"
    with pytest.raises(InputError, match=told):
        run(short(inputs, tmp_path / "runs", *settings))
    before = losses(tmp_path / "runs")
    run(short(inputs, tmp_path / "runs", *settings, "tasks.scienceqa.batch_size=2"))
    assert losses(tmp_path / "runs") == before and len(list((tmp_path / "runs").glob("*/config.yaml"))) == 1
    folder = folder_of(tmp_path / "runs")
    assert (folder / "eval" / "scienceqa" / "metrics.json").is_file()
    alone = eval_conf("task=scienceqa", f"run={folder}", "task.batch_size=4")
    alone.given = ["batch_size"]
    with pytest.raises(InputError, match=r"while task scienceqa was evaluated: the peak was .*\n  task.batch_size=2 "):
        run_evaluation(alone)
    alone.vision.cache = str(tmp_path / "elsewhere")  # the run's own features need no encoder
    monkeypatch.setattr(VisionEncoder, "encode_one", too_large)
    with pytest.raises(InputError, match=r"while pictures were encoded: the peak was .* The cheapest switches:\n  \w"):
        run_evaluation(alone)


def test_pictures_and_saves_without_memory_are_told(inputs, tmp_path, monkeypatch):
    conf = short(inputs, tmp_path / "runs", "engine.name=single", "optimizer.epochs=0.5")
    with monkeypatch.context() as patched, pytest.raises(InputError) as told:
        patched.setattr(VisionEncoder, "encode_one", too_large)
        run(conf)
    assert "while pictures were encoded" in str(told.value)
    monkeypatch.setattr(SingleDeviceEngine, "state_dict", too_large)
    with pytest.raises(InputError, match="Out of memory while a checkpoint was saved: the peak"):
        run(conf)


def too_large(*arguments, **keywords):
    raise torch.OutOfMemoryError("CUDA out of memory")


def events(runs, kind):
    return [one for one in read_metrics(folder_of(runs) / "metrics.jsonl", "event") if one["event"] == kind]


def test_a_run_that_was_begun_anew_is_told_how_it_goes_on():
    conf = settings()
    conf.resume = "never"
    told = r"\nRun the same command with run=THE_RUN_FOLDER in place of resume=never, and one of these\."
    with pytest.raises(InputError, match=told), advice(conf).explained("while a checkpoint was saved"):
        raise MemoryError


def test_fewer_samples_at_a_time_divide_the_step_and_one_is_the_least():
    conf = settings()
    conf.optimizer.micro_batch_size, conf.optimizer.batch_size = 5, 15
    assert named(conf)[0] == "optimizer.micro_batch_size=1"
    task = conf.tasks["scienceqa"]
    task.batch_size = task.generation.beams = 3
    assert [one.split(" ")[0] for one in of_a_task("task", task)] == ["task.batch_size=1", "task.generation.beams=1"]
    task.batch_size = task.generation.beams = 1
    assert of_a_task("task", task) == []


class SilentDisplay:
    def say(self, text):
        pass


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("NCCL error: Cuda failure 2 'out of memory'"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected
    told = InputError if expected else type(error)
    batch = SimpleNamespace(input_ids=torch.zeros(1, 900), forest=None, samples=(None,))
    with pytest.raises(told), advice(settings()).explained(batches=[batch]):
        raise error


def settings(engine="single"):
    conf = tiny_conf(Path("inputs"), Path("runs"), f"engine.name={engine}")
    conf.optimizer.micro_batch_size, conf.host.activation_checkpointing = 1, True
    conf.host.dtype, conf.host.max_tokens = "bfloat16", 1024
    return conf


def named(conf, world_size=1, held=None):
    held = conf.optimizer.micro_batch_size if held is None else held
    return [switch.split(" ")[0] for switch in advice(conf, world_size).switches(held, in_steps=True)]


def test_only_switches_that_are_still_open_are_named():
    assert named(settings())[:2] == ["host.max_tokens=512", "a"]
    conf = settings()
    conf.optimizer.micro_batch_size, conf.host.dtype = 4, "float32"
    conf.host.activation_checkpointing = False
    expected = ["optimizer.micro_batch_size=2", "host.activation_checkpointing=true", "host.dtype=bfloat16"]
    assert named(conf)[:3] == expected
    assert named(conf, held=3)[0] == "optimizer.micro_batch_size=1"  # tokens had cut it


@pytest.mark.parametrize(
    "engine, gpus, expected",
    [
        ("zero2", 0, ["engine=zero3"]),
        ("zero2", 2, ["engine=zero3", "engine=zero3_offload"]),
        ("zero3", 2, ["more", "engine=zero3_offload"]),
        ("zero3_offload", 2, ["more"]),
    ],
)
def test_frozen_weights_are_shared_out_or_offloaded_where_that_helps(monkeypatch, engine, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert named(settings(engine), 2)[: len(expected) + 1] == [*expected, "host.max_tokens=512"]


def advice(conf, world_size=1):
    return MemoryAdvice(conf.optimizer, conf.host, conf.engine, conf.resume, world_size)
