"""``python -m fish_lightning.train``: compose a run from its config, fit, test the best checkpoint, write the results.

Only Hydra is imported at module level, so that ``--help`` and ``--cfg job`` answer immediately.
"""

from pathlib import Path

from omegaconf import DictConfig

from fish_lightning.distributed.jobs import end_with_parent, needs_own_process, run_in_own_process
from fish_lightning.resume.folders import run_folder_lock, with_overrides_of_run
from fish_lightning.settings.command import entry_point


def train(cfg: DictConfig) -> float | None:
    """Run one training job; its callbacks print the epochs and write the run folder.

    Args:
        cfg: the composed ``conf/train.yaml``.

    Returns:
        The metric named by ``optimized_metric``, for sweepers; with ``tune``, the setting that was found.

    Raises:
        UserError: a setting or the data is invalid.
    """
    import lightning as L
    from hydra.utils import instantiate
    from lightning.pytorch.callbacks import LearningRateMonitor

    from fish_lightning.distributed.ranks import announce_parent
    from fish_lightning.distributed.same_config import SameConfig
    from fish_lightning.report import run as report
    from fish_lightning.resume.checkpoints import LastCheckpoint
    from fish_lightning.resume.compatibility import checkpoint_to_resume, finished, require_resumable
    from fish_lightning.training.best_checkpoint import best_checkpoint
    from fish_lightning.training.summary import history_rows, summarize_run, test_and_val_outputs
    from fish_lightning.training.tensorboard import log_config, log_hyperparameters
    from fish_lightning.training.trackers import finish
    from fish_lightning.training.trainer import build_model, build_trainer

    folder = Path(cfg.paths.output)
    if cfg.ckpt == "auto" and (done := finished(folder, cfg)):
        return report.metrics(done).get(cfg.optimized_metric)

    L.seed_everything(cfg.seed, verbose=False)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback is not None]
    loggers = [instantiate(logger) for logger in cfg.logger.values() if logger is not None]
    if not loggers:  # Lightning refuses it
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    trainer = build_trainer(cfg.trainer, [*callbacks, SameConfig(cfg)], loggers)
    announce_parent(trainer)
    data = instantiate(cfg.data)
    data.prepare_data()
    ckpt = checkpoint_to_resume(cfg)
    if ckpt is not None:
        require_resumable(ckpt, cfg, trainer, data)
    data.setup()
    if cfg.tune is not None:
        return float(instantiate(cfg.tune)(cfg, data))
    model = build_model(cfg, data)
    report.write_start(folder, trainer, model, data)
    log_config(trainer, cfg)
    if cfg.validate_first and ckpt is None:
        trainer.validate(model, datamodule=data, verbose=False)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    if cfg.test:
        trainer.test(model, datamodule=data, ckpt_path=best_checkpoint(trainer), verbose=False, weights_only=True)

    summary = summarize_run(trainer, model, data, cfg)
    reported = cfg.test or not summary["pruned"]
    outputs = test_and_val_outputs(trainer, model, data, cfg.test) if reported else None
    log_hyperparameters(trainer, cfg, folder)
    if trainer.is_global_zero:
        report.write_run(folder, summary, history_rows(trainer), outputs, model, data, cfg)
        if summary["stopped_by"] != "max_time":  # which is resumed from it
            for callback in callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.clean_up()
    finish(trainer)
    return report.metrics(summary).get(cfg.optimized_metric)


def _job(cfg: DictConfig) -> float | None:
    end_with_parent()
    if needs_own_process(cfg):
        return run_in_own_process(cfg)
    with run_folder_lock(Path(cfg.paths.output)):
        return train(cfg)


main = entry_point("train", _job, complete=with_overrides_of_run)

if __name__ == "__main__":
    main()
