"""TensorBoard, W&B, MLflow and Trackio, each begun for a run: how a record is sent, and what it is known by there.

They get the recipe, the numbers of steps, epochs and probes, and distributions of the probes; what they would collect
by themselves (output, source code, the machine's load, their own use) is turned off.
"""

import contextlib
import importlib
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from limbeck.recipes.recipe import Recipe

PROJECT = "limbeck"


@dataclass(frozen=True)
class Beginning:
    """What a logger begins with.

    Attributes:
        recipe: The run's recipe.
        folder: The run folder; its name is that of the run.
        group: The comparison that the run is a part of, if it is of one.
        known_as: What the logger knows the run as, where it has seen the run's first part.
        step: The step from which the run goes on; 0 where it begins, also where it begins again.
    """

    recipe: Recipe
    folder: Path
    group: str | None
    known_as: str | None
    step: int

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return self.recipe.model_dump(mode="json")


class Backend(NamedTuple):
    """A logger that has begun: the run's identity there, how to send a record, how to end, where to look."""

    identity: str
    send: Callable[[int, Mapping[str, float], Mapping[str, Tensor]], None]
    finish: Callable[[bool], None]  # told whether the run has failed
    look: str


def _tensorboard(beginning: Beginning) -> Backend:
    from torch.utils.tensorboard import SummaryWriter

    # Readers drop the points at this step and behind it that earlier files hold.
    purge = None if beginning.known_as is None else beginning.step + 1 if beginning.step > 0 else 0
    writer = SummaryWriter(str(beginning.folder / "tensorboard"), purge_step=purge)
    if beginning.known_as is None:  # readers would show a second one beside it
        writer.add_text("recipe", "".join(f"    {line}\n" for line in beginning.recipe.to_yaml().splitlines()))

    def send(step: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor]) -> None:
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, step)
        for tag, values in histograms.items():
            writer.add_histogram(tag, values, step)
        writer.flush()

    return Backend(
        "tensorboard", send, lambda _: writer.close(), f"view with tensorboard --logdir {beginning.folder.parent}"
    )


def _wandb(beginning: Beginning) -> Backend:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb: Any = importlib.import_module("wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=beginning.folder.name,
        group=beginning.group,
        dir=str(beginning.folder),
        id=beginning.known_as,
        resume="allow" if beginning.known_as is not None else None,
        config=beginning.settings,
        settings={
            "console": "off",
            "disable_git": True,
            "save_code": False,
            "silent": True,
            "x_disable_machine_info": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
        },
    )

    def send(step: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor]) -> None:
        run.log({**scalars, **{tag: wandb.Histogram(x.numpy()) for tag, x in histograms.items()}}, step=step)

    look = "offline, in wandb/ of the run folder; wandb sync sends it" if run.offline else f"look at {run.url}"
    return Backend(run.id, send, lambda failed: run.finish(exit_code=int(failed)), look)


def _mlflow(beginning: Beginning) -> Backend:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for this since it prefers a database
        uri = (beginning.folder.parent / "mlruns").as_uri()
    mlflow: Any = importlib.import_module("mlflow")
    entities: Any = importlib.import_module("mlflow.entities")
    client = mlflow.MlflowClient(tracking_uri=uri)
    identity = beginning.known_as
    if identity is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else client.create_experiment(name)
        tags = {"group": beginning.group} if beginning.group else {}
        identity = str(client.create_run(experiment, run_name=beginning.folder.name, tags=tags).info.run_id)
        params = [entities.Param(key, str(value)) for key, value in beginning.settings.items()]
        client.log_batch(identity, params=params)
    else:
        client.update_run(identity, status="RUNNING")

    def send(step: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor]) -> None:
        now = int(1000 * time.time())
        metrics = [entities.Metric(_allowed(tag), value, now, step) for tag, value in scalars.items()]
        client.log_batch(identity, metrics=metrics)
        for tag, values in histograms.items():  # it has no distributions
            client.log_dict(identity, {"step": step, "values": values.tolist()}, f"{_allowed(tag)}/{step:09d}.json")

    def finish(failed: bool) -> None:
        client.set_terminated(identity, status="FAILED" if failed else "FINISHED")

    return Backend(identity, send, finish, f"kept at {uri}")


def _allowed(tag: str) -> str:
    """A name that MLflow takes: letters, digits and a few signs."""
    return re.sub(r"[^\w\-. :/]", "-", tag)


def _trackio(beginning: Beginning) -> Backend:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints several lines, in color
        trackio: Any = importlib.import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # A run is known by its name there, and other folders may have this one's.
        name = beginning.known_as or f"{beginning.folder.name}-{uuid.uuid4().hex[:6]}"
        run = trackio.init(
            project,
            name=name,
            group=beginning.group,
            config=beginning.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def send(step: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor]) -> None:
        run.log({**scalars, **{tag: trackio.Histogram(x.numpy()) for tag, x in histograms.items()}}, step=step)

    def finish(_: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # of its current run, so that it does not end it once more at the exit

    return Backend(name, send, finish, f"view with trackio show --project {project}")


BACKENDS: Mapping[str, Callable[[Beginning], Backend]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
