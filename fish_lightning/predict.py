"""``python -m fish_lightning.predict ckpt=FILE input=FILE|DIR|'GLOB'``: predict the classes of images.

The checkpoint contains class names, transforms and normalization; nothing else is required. Where its run has a
``calibration.json``, probabilities are calibrated too, and answers marked as uncertain or as none of the classes.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fish_lightning.errors import UserError
from fish_lightning.settings.command import entry_point


def predict(cfg: DictConfig) -> None:
    """Predict each input image and write CSV, JSON and a contact sheet.

    Args:
        cfg: the composed ``conf/predict.yaml``.

    Raises:
        UserError: there is no checkpoint or no input, ``calibration.json`` is corrupt, or, after all others are
            predicted, a file is unreadable.
    """
    from torch.utils.data import DataLoader

    from fish_lightning.data.dataset import FishDataset, start_worker
    from fish_lightning.data.folders import input_catalog
    from fish_lightning.files import shown
    from fish_lightning.models.trained import open_model
    from fish_lightning.report import predictions as report
    from fish_lightning.training.trainer import build_trainer

    trained = open_model(cfg.ckpt, cfg.tta)
    catalog = input_catalog(cfg.input, trained.module.class_names)
    dataset = FishDataset(catalog, catalog.indices("all"), trained.transform, seed=0, on_error="skip")
    loader = DataLoader(
        dataset,
        sampler=[(0, index) for index in range(len(dataset))],
        batch_size=cfg.batch_size,
        num_workers=cfg.num_workers,
        worker_init_fn=start_worker,
    )
    trainer = build_trainer(cfg.trainer, precision=trained.precision)
    batches: Any = trainer.predict(trained.module, loader)

    rows = report.prediction_rows(catalog, batches, trained.module.class_names, trained.calibration)
    folder = Path(cfg.paths.output)
    files = report.write_predictions(folder, rows, catalog, cfg.contact_sheet)
    print(report.prediction_table(rows))
    for line in [trained.note] if trained.note else report.missing_thresholds(trained.calibration):
        print(line)
    print(f"\nfolder  {shown(folder)}  ({files})")
    unreadable = sum(row.error is not None for row in rows)
    if unreadable:
        raise UserError(f"{unreadable} of {len(rows)} files could not be read: see the column error of predictions.csv")


@entry_point("predict")
def main(cfg: DictConfig) -> None:
    """Command-line entry point."""
    predict(cfg)


if __name__ == "__main__":
    main()
