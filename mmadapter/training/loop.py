"""The training loop: steps, validation, checkpoints, exact continuation, a clear end (V1 paper, section 4.1; law 6)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmadapter.config.run_folder import take_over
from mmadapter.errors import NO_ROOM, InputError
from mmadapter.processes import here, leave
from mmadapter.terminal import Display, losses_text
from mmadapter.training import trouble
from mmadapter.training.assembly import build_engine, groups_of, host_dtype, schedule_of
from mmadapter.training.checkpoint import CheckpointFolder, Position, Snapshot
from mmadapter.training.engine import StepResult
from mmadapter.training.figures import closing_line, is_detailed, step_record, summary_of
from mmadapter.training.journal import Journal, perplexity
from mmadapter.training.movement import RunStart, moved_text
from mmadapter.training.optimizer import check_sources
from mmadapter.training.out_of_memory import memory_explained
from mmadapter.training.pictures import prepare_images
from mmadapter.training.preemption import StopRequest, stop_on_signals
from mmadapter.training.random_state import random_state, restore_random_state
from mmadapter.training.sources import TrainingData
from mmadapter.training.validation import token_average


def train(
    conf: Any,
    assistant: Any,
    data: TrainingData,
    folder: Path,
    journal: Journal,
    display: Display | None = None,
    save_adapter: Callable[[dict[str, Any]], Any] | None = None,
    describe: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Trains `assistant` on `data`, from the newest checkpoint in `folder` on, and returns a summary.

    `save_adapter(summary)` is called at each save, `describe()` once the training has really begun or gone on. Raises
    InputError for what the user can mend (no room on the disk, no memory, too many non-finite steps), and RunStopped
    after a signal.
    """
    own_display = display or Display(log_every_steps=conf.training.log_every_steps)
    training = Training(conf, assistant, data, folder, journal, own_display, save_adapter, describe)
    try:
        return training.run()
    except OSError as error:
        if error.errno in NO_ROOM:
            raise InputError(
                f"No room left on the disk while writing into {folder} ({error.strerror}). Make room. "
                f"{trouble.the_way_on(conf, folder)} to go on from the last checkpoint."
            ) from error
        raise
    finally:
        own_display.close()


class Training:
    """One run of the loop; `position` is all that changes besides the engine."""

    def __init__(
        self,
        conf: Any,
        assistant: Any,
        data: TrainingData,
        folder: Path,
        journal: Journal,
        display: Display,
        save_adapter: Callable[[dict[str, Any]], Any] | None,
        describe: Callable[[], Any] | None,
    ) -> None:
        self.conf, self.assistant, self.data = conf, assistant, data
        self.folder, self.journal, self.display, self.save_adapter = folder, journal, display, save_adapter
        self.describe = describe
        self.schedule = schedule_of(conf, data.steps_per_epoch)
        groups = groups_of(conf, assistant)
        check_sources(groups, data.sources)
        self.engine = build_engine(conf, assistant, groups)
        self.start = RunStart(groups, assistant.trainable_parameters(), folder / "checkpoints")
        self.checkpoints = CheckpointFolder(folder / "checkpoints", conf.training.keep_checkpoints)
        self.position = Position(
            schedule=asdict(self.schedule),
            start=self.start.digest(),
            host_dtype=host_dtype(conf),
            data=dict(data.digests),
        )
        self.saved_step = 0

    def run(self) -> dict[str, Any]:
        self._resume()
        self._prepare_images()
        self.journal.open_boards(self.position.step)
        self.assistant.train()
        with stop_on_signals() as stop:
            while True:
                improved = self._validate_if_due(stop)
                if stop.agreed():
                    self._save_and_stop(stop)
                if improved or self._is_due("save_every_steps", self.saved_step):
                    self._save()
                if self.position.step >= self.schedule.total_steps:
                    break
                self._step()
        self.assistant.eval()
        self.display.end("training")
        summary = self.summary()
        self.display.say(closing_line(self.position, summary["movement"]))
        return summary

    def summary(self) -> dict[str, Any]:
        """What a finished or interrupted training comes to."""
        batch_size = self.conf.optimizer.batch_size
        return summary_of(self.position, self.schedule, batch_size, self.start.movement())

    def _resume(self) -> None:
        snapshot, messages = here().decide(self.checkpoints.load_newest)
        place = self.position if snapshot is None else snapshot.position
        if snapshot is not None:
            self._refuse_another_run(place)
            messages += self.start.restore(place.start)
        messages += self.journal.cut_back(place.journal_bytes, place.step)
        for text in messages:
            self.display.say(text)
            self.journal.event("repaired", message=text)
        if snapshot is None:
            self.start.save()
            here().decide(self._take_over)
            return
        self.engine.load_state_dict(snapshot.engine)
        restore_random_state(snapshot.random_tensors, snapshot.random_values)
        now = self.position
        place.schedule, place.host_dtype, place.data = now.schedule, now.host_dtype, now.data
        self.position, self.saved_step = place, place.step
        changed = here().decide(self._take_over)
        self.display.say(trouble.continuing(place.step, self.schedule.total_steps, changed))
        facts = {"engine": self.conf.engine.name, "processes": here().count}
        facts["micro_batch_size"] = self.conf.optimizer.micro_batch_size
        self.journal.event("resumed", step=place.step, **facts, **({"changed": changed} if changed else {}))

    def _take_over(self) -> list[str]:
        changed = take_over(self.folder, self.conf)
        if self.describe is not None:
            self.describe()
        return changed

    def _refuse_another_run(self, place: Position) -> None:
        folder, now = self.checkpoints.folder, self.position
        assert now.host_dtype is not None and now.data is not None
        message = (
            trouble.other_schedule(folder, place.schedule, self.schedule)
            or trouble.other_type(folder, place.host_dtype, now.host_dtype)
            or trouble.other_data(folder, place.data, now.data)
        )
        if message and self.conf.resume != "changed":
            raise InputError(message)

    def _prepare_images(self) -> None:
        paths = self.data.image_paths()
        if paths and self.position.step < self.schedule.total_steps:
            random = random_state()
            prepare_images(self.conf, self.assistant, paths, self.display)
            restore_random_state(*random)

    def _step(self) -> None:
        place, started = self.position, time.perf_counter()
        batches = self.data.step_batches(place.step)
        lr = self.schedule.lr_of(place.step)
        with memory_explained(self.conf, batches=batches):
            result = self.engine.step(batches, lr)
        seconds = time.perf_counter() - started
        place.step += 1
        place.seconds += seconds
        place.supervised_tokens += result.supervised_tokens
        self._write_step(result, lr, seconds)
        if result.skipped_groups:
            self._count_nonfinite(result, batches)

    def _write_step(self, result: StepResult, lr: float, seconds: float) -> None:
        place, total = self.position, self.schedule.total_steps
        place.loss = result.loss if math.isfinite(result.loss) else None
        record = step_record(place, self.schedule, result, lr, seconds)
        if is_detailed(place.step, total, self.conf.training.log_every_steps):
            record["gates"] = self.assistant.gates().detach().float().tolist()
            record["movement"] = self.start.movement()
        self.journal.write("train", record)
        left = place.seconds / place.step * (total - place.step)
        self.display.training(record, total, self.schedule.total_epochs, left)

    def _count_nonfinite(self, result: StepResult, batches: Sequence[Any]) -> None:
        place, limit = self.position, self.conf.optimizer.max_nonfinite_steps
        place.nonfinite_steps += 1
        places = trouble.sample_places(batches)
        self.display.say(trouble.skipped_step(place.step, result, place.nonfinite_steps, limit))
        self.journal.event("nonfinite_step", step=place.step, groups=result.skipped_groups, samples=places)
        if place.nonfinite_steps > limit:
            raise InputError(trouble.too_many_skipped(place.step, place.nonfinite_steps, limit, places))

    def _validate_if_due(self, stop: StopRequest) -> bool:
        """Validates where it is due; True if the loss is the lowest so far. A stop request cuts it off."""
        place = self.position
        if not self.data.validation or not self._is_due("validate_every_steps", place.validated_step):
            return False
        started = time.perf_counter()
        self.assistant.eval()
        with memory_explained(self.conf, batches=self.data.validation):
            average = token_average(self.engine, self.data.validation, stop, self.display)
        self.assistant.train()
        place.seconds += time.perf_counter() - started
        if average is None:
            return False
        place.validated_step = place.step
        loss = self._write_validation(*average)
        if not math.isfinite(loss) or (place.best_loss is not None and loss >= place.best_loss):
            return False
        place.best_loss, place.best_step = loss, place.step
        return True

    def _write_validation(self, loss: float, by_source: dict[str, float]) -> float:
        step, moved = self.position.step, self.start.movement()
        record = {"step": step, "loss": loss, "perplexity": perplexity(loss), "loss_by_source": by_source}
        self.journal.write("validation", record | {"movement": moved})
        text = f"validation at step {step}: {losses_text(record)}, perplexity {perplexity(loss):.4g}"
        self.display.say(f"{text}; moved: {moved_text(moved)}")
        return loss

    def _is_due(self, setting: str, last: int) -> bool:
        return self.schedule.is_due(self.position.step, getattr(self.conf.training, setting), last)

    def _save(self) -> None:
        place = self.position
        self.journal.event("saved", step=place.step)
        place.journal_bytes = self.journal.position()
        tensors, values = random_state()
        with memory_explained(self.conf, "while a checkpoint was saved"):
            state = self.engine.state_dict()  # of all processes
            self.saved_step = place.step
            if here().is_first:
                self.checkpoints.save(Snapshot(place, state, tensors, values))
            if here().is_first and self.save_adapter is not None:
                self.save_adapter(self.summary())

    def _save_and_stop(self, stop: StopRequest) -> None:
        assert stop.signal is not None
        if self.saved_step != self.position.step:
            self._save()
        self.journal.event("stopped", step=self.position.step, signal=stop.signal.name)
        self.display.close()
        self.display.say(
            f"stopped by {stop.signal.name} after step {self.position.step} of {self.schedule.total_steps}; everything "
            f"is saved. {trouble.the_way_on(self.conf, self.folder)} to go on from here."
        )
        leave()
        stop.finish(self.display.say)
