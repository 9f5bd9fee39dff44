"""``python -m fish_lightning.evaluate ckpt=FILE``: score a trained model on its own test images or others.

On the images of the training run it reproduces the scores of the run to the last digit. In other data, copies of
training images are excluded from the score and reported separately. With ``unknown=DIR`` it also measures how well
it detects these out-of-distribution images. ``recompute=true`` needs no model: it computes calibration,
abstention and report of a run again from its ``logits.npz``.
"""

from pathlib import Path

from omegaconf import DictConfig

from fish_lightning.errors import UserError
from fish_lightning.settings.command import entry_point


def evaluate(cfg: DictConfig) -> float:
    """Test one checkpoint and write the run folder.

    Args:
        cfg: the composed ``conf/evaluate.yaml``.

    Returns:
        Accuracy, 0 to 1.

    Raises:
        UserError: there is no checkpoint, the data have other classes, the subset is unknown or empty,
            ``calibration.json`` is corrupt, or there are no unknown images where some are announced.
    """
    from hydra.utils import instantiate

    from fish_lightning.data.catalog import Catalog
    from fish_lightning.data.listing import input_catalog
    from fish_lightning.data.splits import RecordedSplit
    from fish_lightning.data.trained_sources import RecordedSource, evaluation_source, without_copies
    from fish_lightning.evaluation.outputs import Outputs
    from fish_lightning.files import run_of
    from fish_lightning.models.trained import open_model
    from fish_lightning.report.run import for_target, recompute, write_evaluation
    from fish_lightning.report.tables import recomputed_table
    from fish_lightning.training.summary import summarize_evaluation, unknown_outputs
    from fish_lightning.training.trainer import build_trainer

    if cfg.recompute:
        if cfg.unknown:
            raise UserError("recompute=true loads no model, so it can score no new images: leave out unknown=DIR")
        folder = run_of(Path(cfg.ckpt).expanduser())
        subset, scores, drawn = recompute(folder, cfg.evaluate.target_error)
        print(recomputed_table(folder, subset, scores, drawn))
        return float(scores["accuracy"])
    trained = open_model(cfg.ckpt, cfg.tta)
    model, recorded, stored = trained.module, trained.data, trained.calibration
    if cfg.evaluate.target_error and cfg.subset in ("train", "test"):  # of others, it is chosen on the images tested
        stored = for_target(stored, cfg.ckpt, cfg.evaluate.target_error)
    foreign = input_catalog(cfg.unknown, model.class_names, "unknown") if cfg.unknown else None
    data = instantiate(
        cfg.data,
        source=evaluation_source(cfg.data, instantiate(cfg.data.source), recorded["catalog"], cfg.subset),
        catalog=None,  # read by the source
        split=RecordedSplit(recorded["split"]),
        train_transform=trained.transform,
        backgrounds=None,
        eval_transform=trained.transform,
        seed=recorded["seed"],
        batch_size=cfg.data.batch_size or recorded["batch_size"],
        test_subset=cfg.subset,
    )
    data.prepare_data()
    data.setup()
    if len(data.catalog.indices(cfg.subset)) == 0:
        others = len(data.catalog.indices("train"))
        raise UserError(
            f"subset={cfg.subset}: none of the {len(data.catalog)} images in {data.catalog.root} is in that split\n"
            f"of the training run ({others} are training images or their copies); to score all of them: subset=all"
        )
    unknown = None
    if foreign is not None:
        unknown = without_copies(foreign, Catalog.from_state(recorded["catalog"]), data.catalog, data.cache_dir)
    trainer = build_trainer(cfg.trainer, precision=trained.precision)
    found = (unknown, unknown_outputs(trainer, model, data, unknown.catalog)) if unknown else None
    trainer.test(model, datamodule=data, verbose=False)
    outputs = Outputs.of(model.test_predictions(), data.catalog)
    summary = summarize_evaluation(trainer, model, data, cfg, recorded["split"])
    if isinstance(data.source, RecordedSource):
        changed, written = data.changed_images(recorded, cfg.subset)
        summary |= {"changed_images": changed, "rewritten_images": written}
    if trainer.is_global_zero:
        write_evaluation(Path(cfg.paths.output), summary, outputs, model, data, cfg, stored, found)
        if trained.note:
            print(trained.note)
    return float(summary[cfg.subset]["accuracy"])


main = entry_point("evaluate", evaluate)

if __name__ == "__main__":
    main()
