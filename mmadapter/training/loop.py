"""The training loop: steps, validation, checkpoints, exact resume, a clear end (V1 paper, section 4.1).

The loop gets objects (engine, data, schedule, ...) and not the settings of the run; `training/run.py` makes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmadapter.data.batches import Batch
from mmadapter.data.training import RunData
from mmadapter.errors import NO_ROOM, InputError
from mmadapter.runs.attempt import still_there
from mmadapter.runs.journal import Journal, perplexity
from mmadapter.terminal import Display, duration, losses_text
from mmadapter.training.checkpoint import CheckpointFolder, Position, Snapshot
from mmadapter.training.determinism import random_state, restore_random_state
from mmadapter.training.engine import Engine, EngineState, StepResult
from mmadapter.training.memory import MemoryAdvice, peak_memory
from mmadapter.training.movement import RunStart, moved_text
from mmadapter.training.preemption import StopRequest, stop_on_signals, way_on
from mmadapter.training.schedule import Schedule
from mmadapter.training.settings import TrainingConf

DETAILED_LINES = 100  # about this many lines of metrics.jsonl carry all gates and the groups' movement
NAMED_SAMPLES = 8  # of a skipped step, in the journal


@dataclass
class Loop:
    """One training. `position` is all that changes besides the engine's state and the random generators."""

    engine: Engine  # with the model, its groups and the ranks
    data: RunData
    schedule: Schedule
    folder: Path  # of the run
    journal: Journal
    display: Display
    memory: MemoryAdvice
    settings: TrainingConf
    host_dtype: str  # of the frozen weights: a checkpoint of another type is another run
    resume_rule: str = "auto"  # "changed": continue checkpoints of another schedule, type or data
    host_weights: str = ""  # their digest; "" where it is not known
    layout: str = "padded"  # of a new run's micro-batches
    after_validation: Callable[[int], None] | None = None  # called with the step, and once before the first one

    def __post_init__(self) -> None:
        self.model, self.ranks = self.engine.model, self.engine.ranks
        folder = self.folder / "checkpoints"
        self.checkpoints = CheckpointFolder(folder, self.settings.keep_checkpoints)
        self.start = RunStart(self.engine.groups, self.model.trainable_parameters(), folder, self.ranks)
        self.position = Position(
            schedule=asdict(self.schedule),
            start=self.start.digest(),
            host_dtype=self.host_dtype,
            host_weights=self.host_weights,
            data=dict(self.data.digests),
            layout=self.layout,
        )
        self.saved_step = 0

    @property
    def is_finished(self) -> bool:
        return self.position.step >= self.schedule.total_steps

    def resume(self) -> bool:
        """Continue from the newest checkpoint, or note the start of a new training; says whether it continues.

        Raises InputError where the checkpoints belong to another schedule, type of the host or data.
        """
        snapshot, messages = self.checkpoints.load_newest_together(self.ranks)
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
            return False
        self.engine.load_state_dict(snapshot.engine)
        restore_random_state(snapshot.random_tensors, snapshot.random_values)
        now = self.position
        place.schedule, place.host_dtype, place.data = now.schedule, now.host_dtype, now.data
        place.host_weights = now.host_weights
        if self.settings.layout != "auto":  # which goes on to the bit
            place.layout = now.layout
        self.position, self.saved_step = place, place.step
        return True

    def run(self) -> dict[str, Any]:
        """Train to the end of the schedule, and return a summary.

        Raises InputError for what the user can fix (no room on the disk, no memory, too many non-finite steps), and
        RunStopped, after a save, when a signal asks to stop.
        """
        place = self.position
        try:
            self.journal.open_boards(place.step)
            self.model.train()
            with stop_on_signals(self.ranks) as stop:
                if place.step == 0 and not self.is_finished:
                    self._show()
                while True:
                    improved = self._validate_if_due(stop)
                    if stop.agreed():
                        self._save_and_stop(stop)
                    if improved or self.schedule.is_due(place.step, self.settings.save_every_steps, self.saved_step):
                        self._save()
                    if self.is_finished:
                        break
                    started = time.perf_counter()
                    batches, lr = self.data.step_batches(place.step), self.schedule.lr_of(place.step)
                    with self.memory.explained(batches=batches):
                        result = self.engine.step(batches, lr)
                    self._count_step(result, lr, time.perf_counter() - started)
                    if result.skipped_groups:
                        self._count_nonfinite(result, batches)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise InputError(
                    f"No room left on the disk while writing into {self.folder} ({error.strerror}). Make room. "
                    f"{way_on(self.resume_rule, self.folder)} to go on from the last checkpoint."
                ) from error
            raise
        finally:
            self.display.close()
        self.model.eval()
        self.display.end("training")
        summary = self.summary()
        self.display.say(self._closing_lines(summary))
        return summary

    def summary(self) -> dict[str, Any]:
        """What a finished or interrupted training comes to."""
        place = self.position
        return {
            "steps": place.step,
            "total_steps": self.schedule.total_steps,
            "epochs": self.schedule.epoch_of(place.step),
            "finished": self.is_finished,
            "loss": place.loss,
            "best_validation_loss": place.best_loss,
            "best_step": place.best_step,
            "nonfinite_steps": place.nonfinite_steps,
            "supervised_tokens": place.supervised_tokens,
            "seconds": place.seconds,
            "lr": self.schedule.lr,
            "effective_batch": self.engine.settings.batch_size,
            "movement": self.start.movement(),
            "peak": peak_memory(),
            "exchanged_bytes": self.engine.exchanged_bytes,
        }

    # What a step did.

    def _count_step(self, result: StepResult, lr: float, seconds: float) -> None:
        """A step further, and a line of metrics.jsonl; about every hundredth carries the gates and the movement."""
        place, total = self.position, self.schedule.total_steps
        place.step += 1
        place.seconds += seconds
        place.supervised_tokens += result.supervised_tokens
        place.loss = result.loss if math.isfinite(result.loss) else None
        record: dict[str, Any] = {
            "step": place.step,
            "epoch": self.schedule.epoch_of(place.step),
            "loss": result.loss,
            "lr": lr,
            "supervised_tokens": result.supervised_tokens,
            "tokens_per_s": result.supervised_tokens / max(seconds, 1e-9),
            "seconds": place.seconds,
            "grad_norm": result.grad_norm,
            "loss_by_source": result.loss_by_source,
        }
        if len(result.grad_norms) > 1:
            record["grad_norm_by_group"] = result.grad_norms
        every = max(self.settings.log_every_steps, math.ceil(total / DETAILED_LINES))
        if place.step % every == 0 or place.step in (1, total):
            record["gates"] = self.model.gates().detach().float().tolist()
            record["movement"] = self.start.movement()
            record["memory"] = peak_memory()
        self.journal.write("train", record)
        left = place.seconds / place.step * (total - place.step)
        self.display.training(record, total, self.schedule.total_epochs, left)

    def _count_nonfinite(self, result: StepResult, batches: Sequence[Batch]) -> None:
        """Say which groups were skipped and what the step read. Raises InputError where there are too many."""
        place, limit = self.position, self.engine.settings.max_nonfinite_steps
        place.nonfinite_steps += 1
        own = [sample.where for batch in batches if not batch.filler for sample in batch.samples][:NAMED_SAMPLES]
        in_turns = zip_longest(*self.ranks.gather(own))  # the bad sample may be on any rank
        samples = [where for turn in in_turns for where in turn if where is not None][:NAMED_SAMPLES]
        losses = ", ".join(f"{source} {loss:.4g}" for source, loss in result.loss_by_source.items())
        self.display.say(
            f"step {place.step}: loss ({losses}) or gradient norm ({result.grad_norm:.4g}) is not finite; skipped for "
            f"{', '.join(result.skipped_groups)} ({place.nonfinite_steps} skipped so far, at most {limit} are allowed)"
        )
        self.journal.event("nonfinite_step", step=place.step, groups=result.skipped_groups, samples=samples)
        if place.nonfinite_steps > limit:
            raise InputError(
                f"Training stopped at step {place.step}: {place.nonfinite_steps} steps had a non-finite loss or "
                f"gradient, more than optimizer.max_nonfinite_steps={limit}. The last one read: "
                f"{'; '.join(samples[:3]) or 'unnamed samples'}. Try a lower optimizer.base_lr, "
                "optimizer.clip_norm=1 or host.dtype=float32, and look at these samples."
            )

    # Validation.

    def _validate_if_due(self, stop: StopRequest) -> bool:
        """Validate where it is due; True if the loss is the lowest so far. A stop request interrupts it."""
        place = self.position
        every = self.settings.validate_every_steps
        if not self.schedule.is_due(place.step, every, place.validated_step):
            return False
        if not self.data.validation:  # then there is nothing to compare, but something to show
            place.validated_step = place.step
            self._show()
            return False
        started = time.perf_counter()
        self.model.eval()
        with self.memory.explained(batches=self.data.validation):
            averages = self._validation_losses(stop)
        self.model.train()
        place.seconds += time.perf_counter() - started
        if averages is None:
            return False
        place.validated_step = place.step
        loss, by_source = averages
        moved = self.start.movement()
        record = {"step": place.step, "loss": loss, "perplexity": perplexity(loss), "loss_by_source": by_source}
        self.journal.write("validation", record | {"movement": moved})
        text = f"validation at step {place.step}: {losses_text(record)}, perplexity {perplexity(loss):.4g}"
        self.display.say(f"{text}; moved: {moved_text(moved)}")
        self._show()
        if not math.isfinite(loss) or (place.best_loss is not None and loss >= place.best_loss):
            return False
        place.best_loss, place.best_step = loss, place.step
        return True

    def _show(self) -> None:
        """What people see of a run that trains (`training/run.py` says what); its time is the training's."""
        if self.after_validation is not None:
            started = time.perf_counter()
            smaller = ["training.watch_samples=0 (asks nothing while it trains; the same result)"]
            with self.memory.explained("while the watched questions were asked", smaller=smaller):
                self.after_validation(self.position.step)
            self.position.seconds += time.perf_counter() - started

    def _validation_losses(self, stop: StopRequest) -> tuple[float, dict[str, float]] | None:
        """Loss per supervised token over the batches of all ranks, and by source; None after a stop request.

        Every rank has as many batches, of the same sources in the same order.
        """
        totals: dict[str, float] = {}
        tokens: dict[str, float] = {}
        batches = self.data.validation
        for number, batch in enumerate(batches, 1):
            if stop.agreed():
                self.display.end("validation")
                return None
            totals[batch.source] = totals.get(batch.source, 0.0) + self.engine.loss_sum(batch)
            tokens[batch.source] = tokens.get(batch.source, 0) + batch.supervised_tokens
            self.display.report("validation", number, len(batches))
        sums = self.ranks.sum([*totals.values(), *tokens.values()])
        totals, tokens = dict(zip(totals, sums, strict=False)), dict(zip(totals, sums[len(totals) :], strict=True))
        by_source = {source: total / max(tokens[source], 1) for source, total in totals.items()}
        return sum(totals.values()) / max(sum(tokens.values()), 1), by_source

    # Saving and stopping.

    def _save(self) -> None:
        place = self.position
        self.journal.event("saved", step=place.step)
        place.journal_bytes = self.journal.position()
        tensors, values = random_state()

        def write(state: EngineState) -> None:
            still_there(self.folder, self.journal.path.name)
            self.checkpoints.save(Snapshot(place, state, tensors, values))
            self.model.save(self.folder / "adapter", self.summary())

        with self.memory.explained("while a checkpoint was saved"):
            state = self.engine.state_dict()  # collective
            self.saved_step = place.step
            self.ranks.decide(partial(write, state))

    def _save_and_stop(self, stop: StopRequest) -> None:
        assert stop.signal is not None
        if self.saved_step != self.position.step:
            self._save()
        self.journal.event("stopped", step=self.position.step, signal=stop.signal.name)
        self.display.close()
        self.display.say(
            f"stopped by {stop.signal.name} after step {self.position.step} of {self.schedule.total_steps}; everything "
            f"is saved. {way_on(self.resume_rule, self.folder)} to go on from here."
        )
        stop.finish(self.display.say)

    def _closing_lines(self, summary: dict[str, Any]) -> str:
        """How long, how low, how far."""
        place = self.position
        text = f"trained {place.step:,} steps in {duration(place.seconds)}"
        text += "" if place.loss is None else f", last loss {place.loss:.4f}"
        if place.best_loss is not None:
            text += f", lowest validation loss {place.best_loss:.4f} at step {place.best_step:,}"
        return f"{text}\nmoved from the start: {moved_text(summary['movement'])}"

    # What a checkpoint must fit.

    def _refuse_another_run(self, place: Position) -> None:
        """Raises InputError for checkpoints of another schedule, another type of the host or other data."""
        if self.resume_rule == "changed":
            return
        folder, now = self.checkpoints.folder, self.position
        differing = _differing(place.schedule, now.schedule)
        if differing:
            listed = ", ".join(f"{key} was {place.schedule.get(key)}, is {now.schedule.get(key)}" for key in differing)
            raise InputError(
                f"The checkpoints in {folder} belong to another schedule ({listed}): settings or data have changed. "
                "Undo the change, use another run folder (run=NAME), or go on all the same: run=THIS_FOLDER "
                "resume=changed"
            )
        if place.host_dtype != now.host_dtype:
            raise InputError(
                f"The host was {place.host_dtype} when the checkpoints in {folder} were made, and is {now.host_dtype} "
                "here (host.dtype=auto is bfloat16 on a GPU, else float32). Go on on the device where it was begun; or "
                f"all the same: run=THIS_FOLDER resume=changed, with host.dtype={place.host_dtype} to keep the type"
            )
        if place.host_weights and now.host_weights not in (place.host_weights, ""):
            raise InputError(
                f"The checkpoints in {folder} were made on a host with other weights (weights_digest "
                f"{place.host_weights}, here {now.host_weights}). Put that host back (host.path), use another run "
                "folder (run=NAME), or go on all the same: run=THIS_FOLDER resume=changed"
            )
        if differing := _differing(place.data, now.data):
            raise InputError(
                f"The checkpoints in {folder} learned from other data: the samples, their order or their tokens have "
                f"changed in {', '.join(differing)}. Put the files back, use another run folder (run=NAME), or go on "
                "all the same: run=THIS_FOLDER resume=changed"
            )


def _differing(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in there.keys() | now.keys() if there.get(key) != now.get(key))
