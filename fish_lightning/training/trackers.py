"""Weights & Biases and MLflow: one run there for each run folder, which a resumed run continues.

Neither service can remove points. Each logger therefore keeps, in a file of the run folder, the id of its run and what
it has sent: a resumed run does not send the points again that were logged after its checkpoint. Both libraries are
optional and imported where a logger is used; Lightning calls the loggers on rank 0 only.
"""

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from fish_lightning.distributed.same_config import settings
from fish_lightning.errors import UserError, one_line
from fish_lightning.files import locked, write_text
from fish_lightning.resume.folders import holds_run
from fish_lightning.training.job_name import job_name

if TYPE_CHECKING:
    import wandb

#: Tag of an MLflow run by which a resumed run finds it.
RUN_TAG = "fish_lightning.run"
#: Lightning's name at Weights & Biases of what its charts are drawn over.
STEP = "trainer/global_step"


class Sent:
    """The id of a run at a service, and the points sent to it, kept in a file of the run folder.

    The first line has the id; each further line is one call, written after the call: if a process is killed in between,
    MLflow gets that call twice (W&B drops a call whose number it has).

    Args:
        file: the file; ignored if its folder holds no run, which then begins anew.

    Attributes:
        id: id of the run, 32 hexadecimal digits.
        rows: calls of earlier processes of this run: ``step`` and metrics.
        resumed: whether there were any processes before.
        calls: number of calls by all processes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_text(encoding="utf-8") if file.is_file() and holds_run(file.parent) else ""
        self._text = text[: text.rfind("\n") + 1]  # without a line cut off by a kill
        self.resumed = bool(self._text)
        self._text = self._text or json.dumps({"run": uuid.uuid4().hex}) + "\n"
        first, *self.rows = map(json.loads, self._text.splitlines())
        self.id: str = first["run"]
        self.calls = len(self.rows)
        self._known = {(row["step"], key): value for row in self.rows for key, value in row.items()}

    def begin(self) -> None:
        """Write the id, before the service has it, and what has been sent."""
        write_text(self.file, self._text)

    def forget(self) -> None:
        """Begin anew, where the service does not have the run any more."""
        self.resumed, self.rows, self.calls = False, [], 0
        self._text = json.dumps({"run": self.id}) + "\n"
        self._known.clear()

    def new(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Return the metrics that earlier processes have not sent for this step; of a test, also those that differ."""
        values = {key: float(value) for key, value in metrics.items()}
        known = {key for key in values if (step, key) in self._known}
        repeated = {key for key in known if key.startswith("test/") and self._known[step, key] != values[key]}
        return {key: value for key, value in values.items() if key not in known - repeated}

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Record a call."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
        self.calls += 1


class RunWandbLogger(WandbLogger):
    """Logs to Weights & Biases; with ``WANDB_MODE=offline`` to files below the run folder, for ``wandb sync``.

    A process that is killed leaves behind points that have not reached the service or, offline, the disk. A resumed run
    sends again those that the service does not have yet or, offline, all of them.

    Args:
        save_dir: the run folder.
        project: name of the project; created if missing.
        group: name of the group; None: jobs of a sweep are grouped by its folder.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self, save_dir: str | Path, project: str = "fish_lightning", group: str | None = None) -> None:
        folder = Path(save_dir)
        self.sent = Sent(folder / "wandb.jsonl")
        self.run: wandb.Run | None = None
        # "create_new": each job of a sweep in one process has its own run; by default W&B would reuse the first.
        options: dict[str, Any] = {"group": group or _sweep(folder), "reinit": "create_new"}
        try:
            super().__init__(_name(folder), folder, self.sent.id, project=project, **options)
        except ModuleNotFoundError:
            raise UserError(
                "logger=wandb requires: pip install wandb  (in a checkout: pip install '.[wandb]')"
            ) from None

    @property
    @rank_zero_experiment
    def experiment(self) -> "wandb.Run":
        """The run, begun or continued at first use.

        Raises:
            UserError: the service refuses it, for lack of a login or of a network.
        """
        import wandb

        if self.run is None:
            self.sent.begin()
            try:
                self.run = super().experiment
            except wandb.errors.Error as error:
                raise UserError(
                    f"logger=wandb: {one_line(error)}\nlog in with wandb login, or log to files: WANDB_MODE=offline"
                ) from None
            for number, row in enumerate(self.sent.rows):
                if number >= self.run.starting_step:
                    self.run.log({STEP if key == "step" else key: value for key, value in row.items()}, number, True)
        return self.run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what an earlier process of this run has not logged."""
        if new := self.sent.new(metrics, step or 0):
            self.experiment.log(new | {STEP: step or 0}, self.sent.calls, True)
            self.sent.add(new, step or 0)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End a run that failed; a complete one ends with :meth:`finish`."""
        if status == "failed" and self.run is not None:
            self.experiment.finish(exit_code=1)

    @rank_zero_only
    def finish(self) -> None:
        """End the complete run."""
        self.experiment.finish()


class RunMLFlowLogger(MLFlowLogger):
    """Logs to MLflow: a database file, without a server, or whatever ``tracking_uri`` names.

    Args:
        save_dir: the run folder.
        tracking_uri: MLflow's tracking URI, such as ``sqlite:///logs/mlflow.db``; the folder of that file is created if
            missing.
        experiment: name of the experiment; created if missing.
        artifacts: folder or URI of the artifacts of a new experiment; None: the server's choice.

    Raises:
        UserError: the package is missing, or the service refuses.
    """

    def __init__(
        self, save_dir: str | Path, tracking_uri: str, experiment: str = "fish_lightning", artifacts: str | None = None
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no connection but that to the tracking URI
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError:
            raise UserError(
                "logger=mlflow requires: pip install mlflow  (in a checkout: pip install '.[mlflow]')"
            ) from None
        folder = Path(save_dir)
        self.sent = Sent(folder / "mlflow.jsonl")
        tags = {RUN_TAG: self.sent.id} | ({"sweep": sweep} if (sweep := _sweep(folder)) else {})
        database = Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None
        try:
            # Several processes must not create the tables, or the experiment, at once.
            with nullcontext() if database is None else locked(database.with_name(f".{database.name}.lock")):
                client = MlflowClient(tracking_uri)
                found = client.get_experiment_by_name(experiment)
                number = client.create_experiment(experiment, artifacts) if found is None else found.experiment_id
            known = client.search_runs([number], f"tags.`{RUN_TAG}` = '{self.sent.id}'") if self.sent.resumed else []
        except MlflowException as error:
            raise UserError(
                f"logger.mlflow.tracking_uri={tracking_uri}: {one_line(error)}\n"
                "without MLFLOW_TRACKING_URI, runs are logged to a file"
            ) from None
        if not known:
            self.sent.forget()
        run = known[0].info.run_id if known else None
        super().__init__(experiment, _name(folder), tracking_uri, tags, artifact_location=artifacts, run_id=run)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the config of a new run, by the names of the command line; MLflow refuses to change one."""
        self.sent.begin()
        if self.sent.resumed:
            self.experiment.update_run(self.run_id, status="RUNNING")
        else:
            super().log_hyperparams(settings(OmegaConf.create(params)))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what an earlier process of this run has not logged."""
        if new := self.sent.new(metrics, step or 0):
            super().log_metrics(new, step)
            self.sent.add(new, step or 0)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Mark a run that failed; Lightning calls this also between validation, training and test."""
        if status == "failed":
            super().finalize(status)

    @rank_zero_only
    def finish(self) -> None:
        """Mark the run as complete."""
        super().finalize("success")


def finish(trainer: L.Trainer) -> None:
    """End the run at the services that it is logged to."""
    for logger in trainer.loggers:
        if isinstance(logger, RunWandbLogger | RunMLFlowLogger):
            logger.finish()


def _name(folder: Path) -> str:
    """Return the name of a run; for a job of a sweep, its number and what differs."""
    return "/".join(filter(None, (folder.name, job_name(folder))))


def _sweep(folder: Path) -> str | None:
    """Return the name of the sweep that a run is a job of; None for a single run."""
    return folder.absolute().parent.name if (folder.parent / "multirun.yaml").is_file() else None
