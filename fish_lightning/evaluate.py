"""``python -m fish_lightning.evaluate ckpt=FILE``: score a trained model, on its own test images or others.

On the training run's own images it gives the numbers that the run gave, to the last digit. Of other images those that
are copies of training images are left out of the score, and listed apart.
"""

from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fish_lightning.config import CONF, require_whole_numbers
from fish_lightning.errors import UserError, shown_without_traceback


def evaluate(cfg: DictConfig) -> float:
    """Test one checkpoint and write the run folder.

    Args:
        cfg: the composed ``conf/evaluate.yaml``.

    Returns:
        Accuracy, 0 to 1.

    Raises:
        UserError: no checkpoint, other classes, or a subset without images.
    """
    from hydra.utils import instantiate

    from fish_lightning.data.datamodule import FishDataModule
    from fish_lightning.data.sources import CatalogSource, OtherSource, RecordedSource
    from fish_lightning.data.splits import recorded_split
    from fish_lightning.models.classifier import gathered, load_checkpoint, restore
    from fish_lightning.report.scores import score_test
    from fish_lightning.report.summary import evaluation_table, summarize_trained, write_summary, write_test
    from fish_lightning.trainer import build_trainer

    require_whole_numbers(cfg)
    checkpoint = load_checkpoint(cfg.ckpt)
    model, transform = restore(checkpoint, cfg.ckpt)
    recorded = checkpoint["FishDataModule"]
    table = cfg.data.catalog
    other = instantiate(cfg.data.source) if table is None else partial(CatalogSource, catalog=table)
    copies = {"find_copies": cfg.data.find_copies, "cache": cfg.data.cache_dir}
    kind = RecordedSource if other is None else partial(OtherSource, source=other, **copies)
    data = FishDataModule(
        root=cfg.data.root,
        source=partial(kind, state=recorded["catalog"]),
        split=recorded_split,
        train_transform=transform,
        eval_transform=transform,
        seed=recorded["seed"],
        test_subset=cfg.subset,
        batch_size=cfg.data.batch_size or recorded["batch_size"],
        num_workers=cfg.data.num_workers,
        pin_memory=cfg.data.pin_memory,
        persistent_workers=False,
        prefetch_factor=cfg.data.prefetch_factor,
        cache=cfg.data.cache,
        cache_dir=cfg.data.cache_dir,
        on_error=cfg.data.on_error,
    )
    data.prepare_data()
    data.setup()
    if cfg.subset not in (*data.catalog.counts(), "all"):
        raise UserError(f"subset={cfg.subset}: it is one of train, val, test, all")
    if len(data.catalog.indices(cfg.subset)) == 0:
        trained = len(data.catalog.indices("train"))
        raise UserError(
            f"subset={cfg.subset}: none of the {len(data.catalog)} images in {data.catalog.root} is in that split\n"
            f"of the training run ({trained} were trained on, or are copies of that); to score all of them: subset=all"
        )
    trainer = build_trainer(cfg.trainer, precision=checkpoint["precision"])
    trainer.test(model, datamodule=data, verbose=False)

    predictions = model.test_predictions()
    scores = score_test(predictions, data.catalog, model.class_names, trainer.callback_metrics)
    summary = {
        cfg.subset: scores,
        "unreadable_images": [str(data.catalog.paths[row]) for row in sorted(set().union(*gathered(model.unreadable)))],
        "data": str(data.catalog.root),
        "split": recorded["split"],
        "checkpoint": str(cfg.ckpt),
    }
    if isinstance(data.source, OtherSource):
        summary |= summarize_trained(trainer, model, data, data.source)
    folder = Path(cfg.paths.output)
    if trainer.is_global_zero:
        write_summary(folder, summary)
        write_test(folder, predictions, data, scores)
        print(evaluation_table(folder, summary, cfg.subset))
    return float(scores["accuracy"])


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
@shown_without_traceback
def main(cfg: DictConfig) -> float:
    """Command-line entry point."""
    return evaluate(cfg)


if __name__ == "__main__":
    main()
