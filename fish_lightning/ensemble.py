"""``python -m fish_lightning.ensemble runs=SWEEP``: average runs, and report what that gains and costs.

The folder it writes is a run for ``evaluate``, ``predict`` and ``compare``. It is scored only on photographs that no
member was trained on; for the folds of a cross-validation there are none, which is reported.
"""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from fish_lightning.settings.command import entry_point


def ensemble(cfg: DictConfig) -> float | None:
    """Join the best checkpoints of several runs, test the result and write its folder.

    Args:
        cfg: the composed ``conf/ensemble.yaml``.

    Returns:
        Accuracy, 0 to 1; None where no photograph can be scored.

    Raises:
        UserError: there are fewer than two runs, or they differ in classes, evaluation transform or data.
    """
    from fish_lightning.data.catalog import Catalog
    from fish_lightning.data.datamodule import FishDataModule
    from fish_lightning.data.splits import RecordedSplit
    from fish_lightning.data.trained_sources import RecordedSource
    from fish_lightning.evaluation.members import find_members
    from fish_lightning.models.checkpoint import load_checkpoint, restore
    from fish_lightning.models.ensemble import joined_checkpoint
    from fish_lightning.report.run import write_ensemble
    from fish_lightning.training.ensemble import summarize_ensemble, test_ensemble
    from fish_lightning.training.trainer import build_trainer

    members = find_members(cfg.runs)
    checkpoints = {name: load_checkpoint(file) for name, file in members.items()}
    checkpoint = joined_checkpoint(checkpoints)
    model, transform = restore(checkpoint, "the ensemble")
    model.tta = cfg.tta
    recorded = checkpoint["FishDataModule"]
    catalog = Catalog.from_state(recorded["catalog"])
    # Test images of each member; else images that no member was trained on.
    subset = next((split for split in ("test", "val") if len(catalog.indices(split))), None)
    data = FishDataModule(
        cfg.data.root,
        partial(RecordedSource, state=recorded["catalog"], subset=subset or "train"),
        RecordedSplit(recorded["split"]),
        transform,
        transform,
        seed=recorded["seed"],
        batch_size=cfg.batch_size or recorded["batch_size"],
        num_workers=cfg.data.num_workers,
        test_subset=subset or "train",
    )
    data.setup()
    trainer = build_trainer(cfg.trainer, precision=checkpoint["precision"])
    tested = test_ensemble(trainer, model, data, checkpoints) if subset else None
    summary = summarize_ensemble(trainer, model, data, members, tested, cfg.margin)
    if trainer.is_global_zero:
        write_ensemble(Path(cfg.paths.output), checkpoint, summary, tested, model, data, cfg)
    return float(summary[subset]["accuracy"]) if subset else None


main = entry_point("ensemble", ensemble)

if __name__ == "__main__":
    main()
