"""Where a run's numbers, and the answers to a few samples, are shown besides its own files: TensorBoard, Weights &
Biases, MLflow.

Their packages are imported when a board is opened; `TrainingConf` has checked that they are there. What a killed
attempt sent to W&B or MLflow stays there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from PIL import Image


class Board(Protocol):
    """What a journal asks of a board."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at a step."""

    def sample(self, name: str, text: str, picture: Image.Image | None, step: int) -> None:
        """A sample with its answer at a step."""

    def close(self) -> None:
        """Everything is sent or written when this returns."""


class TensorBoard:
    """RUN/tensorboard; points that a killed attempt wrote after `step` are purged."""

    def __init__(self, folder: Path, name: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sample(self, name: str, text: str, picture: Image.Image | None, step: int) -> None:
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # as it stands, whatever signs are in it
        self.writer.add_text(name, indented, step)
        if picture is not None:
            import numpy

            self.writer.add_image(name, numpy.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project "mmadapter" on their servers, or where the environment variables of W&B say."""

    def __init__(self, folder: Path, name: str, step: int) -> None:
        import wandb

        self.wandb = wandb
        self.wandb.init(project="mmadapter", name=name, id=name, resume="allow", dir=str(folder))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.wandb.log(dict(values), step=step)

    def sample(self, name: str, text: str, picture: Image.Image | None, step: int) -> None:
        if picture is not None:
            self.wandb.log({name: self.wandb.Image(picture, caption=text)}, step=step)
        else:
            self.wandb.log({name: self.wandb.Table(columns=["step", "sample"], data=[[step, text]])}, step=step)

    def close(self) -> None:
        self.wandb.finish()


class MLflow:
    """RUN/mlflow.db, or where MLFLOW_TRACKING_URI says; a continued run goes on in its own MLflow run."""

    def __init__(self, folder: Path, name: str, step: int) -> None:
        for variable in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            os.environ.setdefault(variable, "true")
        import mlflow  # reads them

        own, place = folder.resolve(), os.environ.get("MLFLOW_TRACKING_URI")
        self.client = mlflow.MlflowClient(place or f"sqlite:///{own / 'mlflow.db'}")
        experiment = self.client.get_experiment_by_name("mmadapter")
        files = None if place else (own / "mlflow-files").as_uri()
        number = experiment.experiment_id if experiment else self.client.create_experiment("mmadapter", files)
        known = self.client.search_runs([number], f"tags.mmadapter_run = '{name.replace(chr(39), '')}'")
        tags = {"mmadapter_run": name.replace("'", "")}
        self.run = (known[0] if known else self.client.create_run(number, run_name=name, tags=tags)).info.run_id
        self.client.update_run(self.run, status="RUNNING")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def sample(self, name: str, text: str, picture: Image.Image | None, step: int) -> None:
        self.client.log_text(self.run, text, f"{name}/step-{step:06}.txt")
        if picture is not None:
            self.client.log_image(self.run, picture, f"{name}/picture.png")

    def close(self) -> None:
        self.client.set_terminated(self.run)


BOARDS: dict[str, Callable[[Path, str, int], Board]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
"""By their settings, training.NAME."""
