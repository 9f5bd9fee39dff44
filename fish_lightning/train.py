"""``python -m fish_lightning.train``: compose a run from its config, fit it, test its best checkpoint, write it down.

Only Hydra is imported at the top, so that ``--help`` and ``--cfg job`` answer at once.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from fish_lightning.config import CONF, fingerprint, require_whole_numbers
from fish_lightning.errors import shown_without_traceback
from fish_lightning.processes import (
    alone_in_folder,
    end_with_parent,
    lead_processes,
    needs_own_process,
    run_in_own_process,
)


def train(cfg: DictConfig) -> float | None:
    """Run one training job; its callbacks print the epochs and write the run folder.

    Args:
        cfg: the composed ``conf/train.yaml``.

    Returns:
        The metric named by ``optimized_metric``, for sweepers.

    Raises:
        UserError: a setting or the data does not allow the run.
    """
    import albumentations as A
    import lightning as L
    from hydra.utils import instantiate

    from fish_lightning.callbacks.agreement import SameConfig
    from fish_lightning.callbacks.tensorboard import log_config, log_hyperparameters
    from fish_lightning.report import summary as report
    from fish_lightning.trainer import best_checkpoint, build_trainer, resume_from

    require_whole_numbers(cfg)
    report.require_metric(cfg.optimized_metric, cfg.test)
    folder = Path(cfg.paths.output)
    if cfg.ckpt == "auto" and (done := report.finished(folder, cfg)):
        return report.metrics(done).get(cfg.optimized_metric)
    L.seed_everything(cfg.seed, verbose=False)
    data = instantiate(cfg.data)
    data.prepare_data()
    data.setup()
    model = instantiate(
        cfg.model,
        class_names=data.catalog.classes,
        eval_transform=A.to_dict(data.eval_transform),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
    )
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback is not None]
    loggers = [instantiate(logger) for logger in cfg.logger.values() if logger is not None]
    trainer = build_trainer(cfg.trainer, [*callbacks, SameConfig(cfg)], loggers)

    lead_processes(trainer)
    ckpt = resume_from(cfg, trainer, data, model)
    report.write_start(folder, trainer, model, data)
    log_config(trainer, cfg)
    if cfg.validate_first and ckpt is None:
        trainer.validate(model, datamodule=data, verbose=False)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    if cfg.test:
        trainer.test(model, datamodule=data, ckpt_path=best_checkpoint(trainer), verbose=False, weights_only=True)

    summary = report.summarize_run(trainer, model, data, tested=cfg.test) | {"config": fingerprint(cfg)}
    report.write_run(folder, trainer, model, data, summary)
    log_hyperparameters(trainer, cfg, report.metrics(summary))
    return report.metrics(summary).get(cfg.optimized_metric)


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@shown_without_traceback
def main(cfg: DictConfig) -> float | None:
    """Command-line entry point."""
    end_with_parent()
    if needs_own_process(cfg):
        return run_in_own_process(cfg)
    with alone_in_folder(cfg):
        return train(cfg)


if __name__ == "__main__":
    main()
