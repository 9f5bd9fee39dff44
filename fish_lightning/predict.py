"""``python -m fish_lightning.predict ckpt=FILE input=FILE|DIR|'GLOB'|LIST``: predict the classes of images.

The checkpoint contains class names, transforms and normalization; nothing else is required. Where its run has a
``calibration.json``, probabilities are calibrated too, and answers marked as uncertain or as none of the classes. Rows
are written in parts while it runs, so that memory does not grow with the number of files and a stopped run can be
resumed.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from fish_lightning.distributed.jobs import end_with_parent
from fish_lightning.predicting.folders import command_of, resume_command
from fish_lightning.settings.command import entry_point


def predict(cfg: DictConfig) -> None:
    """Predict each input image and write CSV, JSON and a contact sheet.

    Args:
        cfg: the composed ``conf/predict.yaml``.

    Raises:
        UserError: there is no checkpoint or no input, ``calibration.json`` is corrupt, the folder has predictions of
            other files, or, after all others are predicted, a file is unreadable.
    """
    from torch.utils.data import DataLoader

    from fish_lightning.data.dataset import start_worker
    from fish_lightning.data.inputs import InputImages, read_inputs
    from fish_lightning.distributed.ranks import announce_parent, gathered
    from fish_lightning.files import remove_strays
    from fish_lightning.models.trained import open_model
    from fish_lightning.predicting.loop import ImagesBar, PartWriter, PredictionModule
    from fish_lightning.predicting.parts import exclusive, open_parts, shard_of
    from fish_lightning.predicting.store import LocalFolder, RemoteFolder
    from fish_lightning.report.predictions import prediction_table, write_results
    from fish_lightning.training.trainer import build_trainer

    folder, shard = Path(cfg.paths.output), shard_of(cfg.shard)
    trained = open_model(cfg.ckpt, cfg.tta)
    files = read_inputs(cfg.input)
    where = LocalFolder(folder) if cfg.output is None else RemoteFolder(cfg.output)
    with exclusive(folder / "predictions", shard):
        command = command_of(cfg.ckpt, cfg.input, cfg.tta, cfg.format, cfg.trainer.precision)
        begin = folder / "predictions" / ".begin.lock"
        parts = open_parts(where.below("predictions"), begin, files, cfg, trained, command)
        resume = resume_command(sys.argv[1:], None if cfg.output else folder)
        writer = PartWriter(parts, trained, resume, prediction_table)
        bars = [ImagesBar()] if cfg.trainer.enable_progress_bar else []
        trainer = build_trainer(cfg.trainer, [writer, *bars], precision=trained.precision)
        if trainer.world_size == 1 and cfg.shard is None:  # no other process writes here
            remove_strays(folder / "predictions")
        if missing := parts.missing(shard):
            parts.say_if_resumed(where, shard, missing)
            announce_parent(trainer)
            loader = DataLoader(
                InputImages(files, trained.transform),
                batch_size=None,  # an item is a batch
                sampler=parts.batches(missing[trainer.global_rank :: trainer.world_size], cfg.batch_size),
                num_workers=cfg.num_workers,
                worker_init_fn=start_worker,
            )
            trainer.predict(PredictionModule(trained.module), loader, return_predictions=False)
            gathered(None)  # all processes have written their parts
        if trainer.is_global_zero:
            write_results(parts, shard, folder, where, cfg.contact_sheet, trained, writer.shown, writer.speed())


def _job(cfg: DictConfig) -> None:
    end_with_parent()
    predict(cfg)


main = entry_point("predict", _job)

if __name__ == "__main__":
    main()
