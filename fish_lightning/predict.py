"""``python -m fish_lightning.predict ckpt=FILE input=FILE|DIR|'GLOB'|LIST``: predict the classes of images.

The checkpoint contains class names, transforms and normalization; nothing else is required. Where its run has a
``calibration.json``, probabilities are calibrated too, and answers marked as uncertain or as none of the classes. Rows
are written in parts while it runs, so that memory does not grow with the number of files and a stopped run can be
resumed.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fish_lightning.distributed.jobs import end_with_parent
from fish_lightning.errors import UserError
from fish_lightning.predicting.folders import command_of, resume_command
from fish_lightning.settings.command import entry_point

if TYPE_CHECKING:
    from fish_lightning.models.trained import TrainedModel
    from fish_lightning.predicting.loop import PartWriter
    from fish_lightning.predicting.parts import Parts, Shard
    from fish_lightning.predicting.store import Folder

#: Files up to which the parts are also merged: 60 MB of JSON for nine classes.
MERGED = 100_000


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
    from fish_lightning.report.predictions import prediction_table
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
        writer = PartWriter(parts, trained.module.class_names, trained.calibration, resume, prediction_table)
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
            finish(parts, shard, folder, where, cfg.contact_sheet, trained, writer)


def finish(  # noqa: D417
    parts: "Parts",
    shard: "Shard",
    folder: Path,
    where: "Folder",
    pictures: int,
    trained: "TrainedModel",
    writer: "PartWriter",
) -> None:
    """Count the rows, merge the parts if there are not too many, and print where they are.

    Args:
        parts: those of ``shard`` are complete.
        folder: of the run.
        where: the parts are, and what is merged is copied to.
        pictures: number of images on the contact sheet.
        writer: which has printed the first rows, if there were enough.

    Raises:
        UserError: files are unreadable.
    """
    from fish_lightning.predicting.rows import ROWS
    from fish_lightning.predicting.store import RemoteFolder
    from fish_lightning.report import predictions as report

    whole = parts.is_complete()
    tally = report.Tally(keep=max(ROWS, pictures))
    rows = tally.counted(parts.rows(range(len(parts)) if whole else parts.of_shard(shard)))
    written = f"predictions/part-*.{parts.format}"
    if whole and len(parts.files) <= MERGED:
        report.write_predictions(folder, rows)
        written = "predictions.csv, predictions.json"
    for _ in rows:  # counted
        pass
    if tally.n and not writer.shown:
        print(report.prediction_table(tally.first[:ROWS]))
    if tally.n > ROWS:
        print(f"{ROWS} of {tally.n:,} files; all in {written.partition(',')[0]}", "", *tally.lines(), sep="\n")
    for line in [trained.note] if trained.note else report.missing_thresholds(trained.calibration):
        print(line)
    if whole:
        sheet = [report.write_contact_sheet(folder, tally.first[:pictures], tally.n)] if pictures else []
        merged = ["predictions.csv", "predictions.json"] if len(parts.files) <= MERGED else []
        if isinstance(where, RemoteFolder):
            for name in [*merged, *(["contact_sheet.png"] if pictures else [])]:
                where.write(name, (folder / name).read_bytes())
        parts.set_complete()
        written = ", ".join([written, *sheet])
    print(f"\nfolder  {where}  ({written})" + writer.speed())
    if not whole:
        print(f"shard {shard[0]} of {shard[1]} is complete; other shards are not yet")
    if tally.unreadable:
        table = "predictions.csv" if whole and len(parts.files) <= MERGED else written
        raise UserError(f"{tally.unreadable} of {tally.n} files could not be read: see the error column of {table}")


@entry_point("predict")
def main(cfg: DictConfig) -> None:
    """Command-line entry point."""
    end_with_parent()
    predict(cfg)


if __name__ == "__main__":
    main()
