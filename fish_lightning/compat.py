"""The one module that touches internals of other libraries; ``tests/test_compat.py`` fails by name when they change.

Verified with lightning 2.6, hydra-core 1.3, optuna 4 and 5, and torch 2.14; ``pyproject.toml`` bounds the first three.
Libraries are imported inside the functions: Hydra's part is needed at every start, and the others are slow to import.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from fish_lightning.settings.rules import FLAG, NON_NEGATIVE

if TYPE_CHECKING:
    import lightning as L
    from omegaconf import DictConfig
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial
    from torch.optim import Optimizer

# Lightning: the position of a run, and where a resumed one continues


def next_batch(trainer: "L.Trainer") -> tuple[int, int]:
    """Return where a run saved now would continue: the epoch (from 0) and the number of its batches already processed.

    The loader's own state is ahead, since workers prefetch (Lightning issues 19764 and 20550).
    """
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    done = current.processed
    if done >= trainer.num_training_batches:
        return trainer.current_epoch + 1, 0
    return trainer.current_epoch, done


def is_between_steps(trainer: "L.Trainer", batch_idx: int) -> bool:
    """Return whether that batch ends an optimizer step but not the epoch.

    Checkpoints do not contain accumulated gradients. The step that reaches ``trainer.max_steps`` ends the epoch.
    """
    last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
    return not last and (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_ending_epoch_early(trainer: "L.Trainer") -> bool:
    """Return whether ``trainer.should_stop`` will end the epoch after this step."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def schedule_pending_validation(trainer: "L.Trainer", checkpoint: dict[str, Any]) -> None:
    """Make a run resumed from ``checkpoint`` begin with the validation that is due after this step, if one is.

    Lightning continues with the next step (``_TrainingEpochLoop.advance``) unless the validation has started.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    now = loop.batch_progress.current
    if now.completed == now.processed or trainer._val_check_time_interval is not None:  # type: ignore[attr-defined]
        return
    stop, trainer.should_stop = trainer.should_stop, False  # the validation that a stop causes is not repeated
    due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    trainer.should_stop = stop
    if due:
        state = checkpoint["loops"]["fit_loop"]
        started, none = {"ready": 1, "started": 1, "processed": 0, "completed": 0}, dict.fromkeys(vars(now), 0)
        state["epoch_loop.val_loop.batch_progress"] |= {"total": started, "current": none}
        state["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds 1 after the validation


def is_saved_within_epoch(checkpoint: dict[str, Any]) -> bool:
    """Return whether the checkpoint was saved within an epoch rather than at its end."""
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    return bool(batches["completed"] < batches["processed"])


def epochs_processed(checkpoint: dict[str, Any]) -> int:
    """Return the number of epochs that Lightning counts as done in the checkpoint, including those ended early."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


#: What a resumed run reads of a checkpoint's ``loops``: the rule for each entry, by nested keys.
_COUNTS = dict.fromkeys(("ready", "started", "processed", "completed"), NON_NEGATIVE)
_PROGRESS = {"total": _COUNTS, "current": _COUNTS}
_STEPS = {"total": dict.fromkeys(("ready", "completed"), NON_NEGATIVE)}
LOOPS: dict[str, Any] = {
    "fit_loop": {
        "epoch_progress": _PROGRESS,
        "epoch_loop.batch_progress": _PROGRESS | {"is_last_batch": FLAG},
        "epoch_loop.state_dict": {"_batches_that_stepped": NON_NEGATIVE},
        "epoch_loop.scheduler_progress": _STEPS,
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": _STEPS, "zero_grad": _STEPS}},
        "epoch_loop.val_loop.batch_progress": _PROGRESS | {"is_last_batch": FLAG},
    }
}


def callback_states(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the states of callbacks by the names of their classes, without the arguments that Lightning adds."""
    return {name.partition("{")[0]: state for name, state in checkpoint["callbacks"].items()}


def is_misconfiguration(error: BaseException) -> bool:
    """Return whether Lightning rejected a setting, without importing Lightning."""
    return type(error).__name__ == "MisconfigurationException"


def metrics_to_be_logged(trainer: "L.Trainer") -> dict[str, float] | None:
    """Return the metrics that Lightning will log after saving a checkpoint now; None if it will log none."""
    connector: Any = trainer._logger_connector
    if trainer._results is None:
        return None
    after_a_step = connector._first_loop_iter is not None
    if after_a_step and not connector.should_update_logs:
        return None
    return {name: float(value) for name, value in connector.metrics["log"].items()}


def requeue_signal(trainer: "L.Trainer") -> int | None:
    """Return the signal on which Slurm's job is requeued; None outside Slurm, or where that is disabled.

    Strategies of one device have no ``cluster_environment``.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def disable_sigterm_broadcast(trainer: "L.Trainer") -> None:
    """Stop Lightning from synchronizing SIGTERM over the devices at each step; ``StopOnSignal`` does it over gloo."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def clip_gradients(module: "L.LightningModule", optimizer: "Optimizer", value: float | None, by: str | None) -> None:
    """Clip gradients, including those of a fused optimizer if gradients are not scaled.

    Lightning refuses these under any mixed precision, since they unscale gradients in their step; bf16 has no scaler.
    """
    from lightning.pytorch.plugins.precision import MixedPrecision
    from lightning.pytorch.utilities import GradClipAlgorithmType

    plugin = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
        super(MixedPrecision, plugin).clip_gradients(optimizer, value or 0.0, GradClipAlgorithmType(by or "norm"))
    else:
        module.clip_gradients(optimizer, value, by)


#: Warnings of Lightning and torch that do not apply here, and why.
QUIET_WARNINGS = (
    ".*You are using a custom batch sampler.*",  # KeyedBatches returns each image once
    ".*does not have many workers.*",  # the worker count is chosen from the CPU affinity
    ".*your dataloader is not resumable.*",  # KeyedBatches resumes at the right batch
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",  # a skipped batch (data.on_error=skip) steps the schedule only
    r".*Please add the following callbacks: \['Timer.*",  # of trainer.max_time, which may change
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
)
#: Loggers of Lightning that print tips, or repeat what StopOnSignal prints.
QUIET_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.fabric.utilities.distributed",
)


def quiet_lightning() -> None:
    """Silence Lightning's tips and the warnings that do not apply here."""
    for pattern in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


# torch: the texts of its errors

#: Of networks for which an image is too small, or that accept certain sizes only.
WRONG_SIZE = (
    "Kernel size can't be greater than actual input size",
    "Output size is too small",
    "Wrong image height",
    "Wrong image width",
    "is invalid for input of size",
    "doesn't match model",  # timm's
    "divisible by",
    "must match the size of tensor",  # of positions that are added to or multiplied with maps of another size
)


def is_wrong_image_size(error: Exception) -> bool:
    """Return whether a network rejected the size of its images."""
    return any(words in str(error) for words in WRONG_SIZE)


def is_too_small_for_batch_norm(error: Exception) -> bool:
    """Return whether batch normalization rejected a batch with one value per channel."""
    return "Expected more than 1 value per channel when training" in str(error)


def is_lost_peer(error: Exception) -> bool:
    """Return whether a collective operation of gloo failed because another process of the run is gone."""
    return re.search(r"Connection (closed|reset) by peer|Broken pipe", str(error)) is not None


def refused_global(error: Exception) -> str | None:
    """Return what a checkpoint would have executed when ``torch.load`` refused it; None if that is not the reason."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else None


def without_worker_traceback(error: BaseException) -> str:
    """Return the text of an error without the traceback that torch puts before it in a loader worker."""
    return str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()


def forget_later_points(writer: Any, step: int) -> None:
    """Make TensorBoard discard the points of a ``SummaryWriter`` from ``step`` on, which will be written again."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

    start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
    writer._get_file_writer().add_event(start, step)


def has_started(logger: Any) -> bool:
    """Return whether a Lightning logger has created its writer, as reading ``logger.experiment`` would."""
    return logger._experiment is not None


# Hydra: one composition of the config, and our own sweepers


def share_config_store() -> None:
    """Keep Hydra from copying its ConfigStore for each composition and each group of ``--help``: a second there.

    What is read from the store is already a copy.
    """
    from hydra.core.config_store import ConfigStore

    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


@contextmanager
def composed_already(cfg: "DictConfig | None") -> Iterator[None]:
    """Give Hydra the config of a single run; otherwise it composes two, one of them only to read ``hydra.mode``.

    Args:
        cfg: config returned by ``compose(…, return_hydra_config=True)``, with the task's name as the job name; None:
            Hydra composes the config.
    """
    if cfg is None:
        yield
        return
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra
    from hydra.types import RunMode

    if cfg.hydra.mode is None:  # Hydra adds this override to the run's (_run_app)
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.overrides.hydra.append("hydra.mode=RUN")
    get_mode, load = Hydra.get_mode, ConfigLoaderImpl.load_configuration

    def load_once(*_: Any, **__: Any) -> "DictConfig":
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]
        return cfg

    Hydra.get_mode = lambda *_, **__: RunMode.RUN  # type: ignore[method-assign]
    ConfigLoaderImpl.load_configuration = load_once  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode, ConfigLoaderImpl.load_configuration = get_mode, load  # type: ignore[method-assign]


def basic_sweeper() -> tuple[type, Callable[..., Any]]:
    """Return Hydra's grid sweeper and its config class, after Hydra has discovered its plugins."""
    from hydra.core.plugins import Plugins

    Plugins.instance()
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf

    return BasicSweeper, BasicSweeperConf


def wrap_launch(sweeper: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace how Hydra's grid sweeper launches jobs, after its ``setup``."""
    sweeper.launcher.launch = wrap(sweeper.launcher.launch)


def allow_plugins(is_allowed: Callable[[str], bool]) -> None:
    """Set which class paths Hydra instantiates as plugins; by default only ``hydra_plugins.*``.

    A checkout cannot provide that namespace package, and joblib and submitit pickle the registry of plugins, so that
    their classes must be importable by name.
    """
    from hydra.core.plugins import Plugins

    Plugins.is_in_toplevel_plugins_module = staticmethod(is_allowed)  # type: ignore[method-assign,assignment]


#: Modules of Hydra's own plugins, and of those that are installed.
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")


def quiet_hydra() -> None:
    """Silence Hydra's warning about configs that share a name with a plugin's own; ours are complete."""
    warnings.filterwarnings("ignore", r"(?s).*is validated against ConfigStore schema")


class FailedTarget(NamedTuple):
    """What Hydra says about a target that it cannot instantiate.

    Attributes:
        key: config key of the node with the ``_target_``; ``""`` for the top level.
        target: dotted name of the target; ``""`` where Hydra does not name it.
        words: message without the key.
        was_called: whether the target itself failed; False if it was not found.
    """

    key: str
    target: str
    words: str
    was_called: bool


def failed_target(error: BaseException) -> FailedTarget | None:
    """Return what Hydra's ``InstantiationException`` says; None for another exception."""
    if type(error).__name__ != "InstantiationException":
        return None
    words, _, key = str(error).partition("\nfull_key: ")
    target = re.search(r"(?:target|loading|locate) '([\w.]+)'", words)
    return FailedTarget(key, target[1] if target else "", words, words.startswith("Error in call"))


def before_hydra_reports(look: Callable[[Exception], None]) -> None:
    """Call ``look`` with an exception that ends Hydra, before Hydra prints a traceback."""
    from hydra._internal import utils

    report = utils.run_and_report

    def report_others(run: Callable[[], Any]) -> Any:
        def looked_at() -> Any:
            try:
                return run()
            except Exception as raised:
                look(raised)
                raise

        return report(looked_at)

    utils.run_and_report = report_others  # type: ignore[assignment]


# Optuna: trials in other processes


def running_trial(study: "Study", number: int) -> "Trial":
    """Return a trial that is already running, as ``study.ask`` returns a new one."""
    from optuna.trial import Trial

    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def suggest(trial: "Trial", key: str, distribution: "BaseDistribution") -> Any:
    """Draw from any distribution, as ``trial.suggest_float`` does; a value drawn earlier is returned again."""
    return trial._suggest(key, distribution)
