"""One schema of every setting: type, range and choices, in the shape of the YAML.

pydantic names types as briefly, but its errors, one for each member of a union, would have to be translated into the
words of the command line, and every ``_target_`` would need a model. A new key needs a line here:
``tests/settings/test_settings.py`` walks all configs and names what is missing.
"""

import re
from collections.abc import Mapping
from typing import Any

from fish_lightning.settings.rules import (
    ANYTHING,
    CHECKPOINT,
    COUNT,
    FILE,
    FLAG,
    FOLDER,
    LIMIT,
    MEAN,
    MODEL_NAME,
    NON_NEGATIVE,
    NOT_NEGATIVE,
    NULL,
    NUMBER,
    PAIR,
    PART,
    POSITIVE,
    PRECISION,
    PROBABILITY,
    SEED,
    SIZE,
    STD,
    TEXT,
    TTA,
    UNUSED,
    Component,
    Each,
    Rule,
    Schema,
    choice,
    integer,
    number,
    several,
    share,
    text,
)
from fish_lightning.sweeps.table import METRICS


def _is_regex(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


def _is_duration(value: Any) -> bool:
    """What Lightning's timer takes, longer than nothing: ``DD:HH:MM:SS``, or arguments of ``datetime.timedelta``."""
    if isinstance(value, str):
        return bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) and re.search("[1-9]", value))
    if not isinstance(value, dict) or not value.keys() <= {"weeks", "days", "hours", "minutes", "seconds"}:
        return False
    return all(map(NOT_NEGATIVE.accepts, value.values())) and any(value.values())


def _is_shard(value: Any) -> bool:
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value) if isinstance(value, str) else None
    return found is not None and int(found[1]) <= int(found[2])


def _is_store(value: Any) -> bool:
    from fish_lightning.data.remote import is_remote

    return isinstance(value, str) and is_remote(value) and not value.startswith(("http:", "https:", "file:", "local:"))


def _are_devices(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+|\d+,", value))
    if isinstance(value, list):
        return bool(value) and all(map(integer("[0, inf)").accepts, value)) and len({*value}) == len(value)
    return value != 0 and integer("[-1, inf)").accepts(value)


def _is_strategy(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not re.search("spawn|fork|notebook", value)


DURATION = Rule(("days:hours:minutes:seconds (00:01:30:00)",), _is_duration)

#: Metrics that are logged each epoch, and whether lower or higher is better.
LOGGED = {"train/loss": "min", "val/loss": "min", "val/accuracy": "max", "val/macro_f1": "max"}
HIGHER, LOWER = ([name for name, mode in LOGGED.items() if mode == better] for better in ("max", "min"))

#: What Hydra itself reads of a mapping that it instantiates.
INSTANTIATED = {
    "_target_": Rule(
        ("the dotted name of a class or function",),
        lambda v: isinstance(v, str) and bool(re.fullmatch(r"\w+(\.\w+)+", v)),
    ),
    "_partial_": FLAG,
    "_convert_": choice("none", "partial", "object", "all"),
    "_recursive_": FLAG,
}

#: The arguments of a user's own target are not known, and those of a known one stand in ``TARGETS``.
COMPONENT = Component({})
OPTIMIZER = Component(
    {"lr": POSITIVE, "weight_decay": NOT_NEGATIVE, "layer_decay": number("(0, 1]") | NULL, "decay_norms": FLAG}
)

_MOMENTUM = number("[0, 1)")
_BETAS = several(2, _MOMENTUM, "two numbers in [0, 1)")
_TORCH = {"maximize": FLAG, "foreach": FLAG | NULL, "differentiable": FLAG}
_ADAM = _TORCH | {"betas": _BETAS, "eps": NOT_NEGATIVE, "amsgrad": FLAG, "capturable": FLAG, "fused": FLAG | NULL}
_SCHEDULE = {"last_epoch": integer("[-1, inf)")}
_SAMPLING = dict.fromkeys(("interpolation", "mask_interpolation", "fill", "fill_mask"), ANYTHING)
_WARP = {"border_mode": integer("[0, 4]"), "rotate_method": choice("largest_box", "ellipse"), "p": PROBABILITY}
_AXES = Rule(("a mapping of x and y",), lambda v: isinstance(v, dict) and v.keys() <= {"x", "y"})
_EXTENT = several(2, POSITIVE, "two numbers above 0")

#: Arguments of the classes and functions that the configs name, besides those that their group's component has.
TARGETS: dict[str, Mapping[str, Schema]] = {
    "lightning.Trainer": {},
    "fish_lightning.data.datamodule.FishDataModule": {},
    "fish_lightning.models.classifier.FishClassifier": {},
    # data.source
    "fish_lightning.data.sources.ArchiveSource": {"kaggle": TEXT | NULL},
    "fish_lightning.data.sources.OriginalsSource": {},
    "fish_lightning.data.sources.FolderSource": {},
    "fish_lightning.data.sources.SampleSource": {
        "seed": NON_NEGATIVE,
        "photographs_per_kind": COUNT,
        "copies": COUNT,
        "shortcut": FLAG,
        "label_errors": number("[0, 0.5]"),
    },
    # split
    "fish_lightning.data.splits.random_split": {"test": PART, "val": PART},
    "fish_lightning.data.splits.photograph_split": {"test": PART, "val": PART},
    "fish_lightning.data.splits.kfold_split": {"folds": integer("[2, inf)"), "fold": NON_NEGATIVE, "val": PART},
    "fish_lightning.data.splits.folders_split": {},
    "fish_lightning.data.splits.file_split": {"path": FILE},
    # transforms
    "albumentations.Compose": {
        "transforms": Each(COMPONENT, list),
        "p": PROBABILITY,
        "seed": SEED | NULL,
        **dict.fromkeys(("is_check_shapes", "strict", "save_applied_params"), FLAG),
        **dict.fromkeys(("bbox_params", "keypoint_params", "additional_targets", "mask_interpolation"), ANYTHING),
    },
    "albumentations.Resize": {
        "height": SIZE,
        "width": SIZE,
        "p": PROBABILITY,
        **dict.fromkeys(("interpolation", "mask_interpolation", "area_for_downscale"), ANYTHING),
    },
    "fish_lightning.data.transforms.Rotate": {"limit": PAIR, "crop_border": FLAG, **_WARP, **_SAMPLING},
    "fish_lightning.data.transforms.Affine": {
        "rotate": PAIR,
        **dict.fromkeys(("scale", "translate_percent", "translate_px", "shear"), PAIR | _AXES | NULL),
        **dict.fromkeys(("fit_output", "keep_ratio", "balanced_scale"), FLAG),
        **_WARP,
        **_SAMPLING,
    },
    "albumentations.HorizontalFlip": {"p": PROBABILITY},
    "albumentations.VerticalFlip": {"p": PROBABILITY},
    "albumentations.ColorJitter": {
        "p": PROBABILITY,
        **dict.fromkeys(("brightness", "contrast", "saturation", "hue"), PAIR),
    },
    "albumentations.GaussianBlur": {"blur_limit": PAIR, "sigma_limit": PAIR, "p": PROBABILITY},
    "albumentations.CoarseDropout": {
        "num_holes_range": several(2, COUNT, "two integers of at least 1"),
        "hole_height_range": _EXTENT,
        "hole_width_range": _EXTENT,
        "fill": ANYTHING,
        "fill_mask": ANYTHING,
        "p": PROBABILITY,
    },
    "albumentations.OneOf": {"transforms": Each(COMPONENT, list), "p": PROBABILITY},
    "albumentations.NoOp": {"p": PROBABILITY},
    "albumentations.Sharpen": {
        **dict.fromkeys(("alpha", "lightness"), several(2, NOT_NEGATIVE, "two numbers of at least 0")),
        "method": choice("kernel", "gaussian"),
        "kernel_size": COUNT,
        "sigma": POSITIVE,
        "p": PROBABILITY,
    },
    "albumentations.Posterize": {"num_bits": ANYTHING, "p": PROBABILITY},
    "albumentations.Solarize": {"threshold_range": several(2, PROBABILITY, "two numbers in [0, 1]"), "p": PROBABILITY},
    "albumentations.AutoContrast": {
        "cutoff": NUMBER,
        "ignore": ANYTHING,
        "method": choice("cdf", "pil"),
        "p": PROBABILITY,
    },
    "albumentations.Equalize": {
        "mode": choice("cv", "pil"),
        "by_channels": FLAG,
        **dict.fromkeys(("mask", "mask_params"), ANYTHING),
        "p": PROBABILITY,
    },
    "albumentations.pytorch.ToTensorV2": {"transpose_mask": FLAG, "p": PROBABILITY},
    # optimizer
    "fish_lightning.models.optimizers.Adam": _ADAM | {"decoupled_weight_decay": FLAG},
    "fish_lightning.models.optimizers.AdamW": _ADAM,
    "fish_lightning.models.optimizers.SGD": {
        "momentum": NOT_NEGATIVE,
        "dampening": NUMBER,
        "nesterov": FLAG,
        "fused": FLAG | NULL,
        **_TORCH,
    },
    "fish_lightning.models.optimizers.RMSprop": {
        "alpha": _MOMENTUM,
        "eps": NOT_NEGATIVE,
        "momentum": NOT_NEGATIVE,
        "centered": FLAG,
        "capturable": FLAG,
        **_TORCH,
    },
    # scheduler
    "fish_lightning.models.schedules.onecycle": {
        "max_lr": POSITIVE,
        "pct_start": PART,
        "anneal_strategy": choice("cos", "linear"),
        "div_factor": POSITIVE,
        "final_div_factor": POSITIVE,
        "three_phase": FLAG,
        "cycle_momentum": FLAG,
        "base_momentum": _MOMENTUM,
        "max_momentum": _MOMENTUM,
        **_SCHEDULE,
    },
    "fish_lightning.models.schedules.cosine": {"eta_min": NOT_NEGATIVE, **_SCHEDULE},
    "fish_lightning.models.schedules.constant": {},
    # trainer.plugins
    "fish_lightning.resume.checkpoints.AtomicCheckpointIO": {},
    # callbacks
    "fish_lightning.training.best_checkpoint.BestCheckpoint": {
        "dirpath": FOLDER,
        "filename": TEXT,
        "monitor": choice(*HIGHER),
        "tie_breaker": choice(*LOWER),
        "save_weights_only": FLAG,
        "verbose": FLAG,
        "every_n_epochs": COUNT | NULL,
    },
    "fish_lightning.resume.checkpoints.LastCheckpoint": {"path": FILE, "every_n_steps": COUNT | NULL, "keep": FLAG},
    "fish_lightning.resume.early_stopping.ResumableEarlyStopping": {
        "monitor": choice(*LOGGED),
        "mode": choice("min", "max"),
        "patience": NON_NEGATIVE,
        "min_delta": NOT_NEGATIVE,
        "stopping_threshold": NUMBER | NULL,
        "divergence_threshold": NUMBER | NULL,
        "check_on_train_epoch_end": FLAG | NULL,
        **dict.fromkeys(("verbose", "strict", "check_finite", "log_rank_zero_only"), FLAG),
    },
    "fish_lightning.training.history.History": {},
    "fish_lightning.resume.signals.StopOnSignal": {"path": FILE},
    "fish_lightning.training.nonfinite.NonFiniteLoss": {"action": choice("stop", "skip"), "path": FILE},
    "fish_lightning.training.progressive.ProgressiveResize": {
        "start": number("(0, 1]"),
        "full_from": number("[0, 1]"),
    },
    "fish_lightning.training.mix.Mix": {
        "seed": SEED,
        "mixup": POSITIVE | NULL,
        "cutmix": POSITIVE | NULL,
        "p": PROBABILITY,
    },
    "fish_lightning.training.average.WeightAverage": {"decay": number("[0, 1)") | NULL, "start": number("[0, 1)")},
    "fish_lightning.training.freeze.Freeze": {
        "epochs": COUNT | NULL,
        "every": NON_NEGATIVE,
        "features": FLAG,
        "lr": Each(POSITIVE, list),
    },
    # model.loss
    "fish_lightning.models.losses.FocalLoss": {"gamma": NOT_NEGATIVE, "label_smoothing": number("[0, 1)")},
    "fish_lightning.models.losses.CosineLoss": {"cross_entropy": NOT_NEGATIVE, "label_smoothing": number("[0, 1)")},
    "fish_lightning.sweeps.pruning.ReportToStudy": {
        "storage": TEXT,
        "study_name": TEXT,
        "monitor": choice(*METRICS),
        "pruner": Component({}, NULL),
        "trial": NON_NEGATIVE | NULL,
    },
    "fish_lightning.resume.step_seeds.StepSeeds": {"seed": SEED},
    "fish_lightning.training.tensorboard.TensorBoardPictures": {"count": COUNT},
    "fish_lightning.resume.metrics_csv.DropLaterRows": {},
    "lightning.pytorch.callbacks.LearningRateMonitor": {
        "logging_interval": choice("step", "epoch", None),
        "log_momentum": FLAG,
        "log_weight_decay": FLAG,
    },
    # tune
    "fish_lightning.training.tune.learning_rate": {
        "lowest": POSITIVE,
        "highest": POSITIVE,
        "steps": integer("[20, 100000]"),
    },
    "fish_lightning.training.tune.batch_size": {"start": COUNT, "steps": integer("[2, 1000]")},
    # logger
    "fish_lightning.training.tensorboard.RunTensorBoardLogger": {"save_dir": FOLDER},
    "fish_lightning.resume.metrics_csv.ResumableCSVLogger": {"save_dir": FOLDER},
    "fish_lightning.training.trackers.RunWandbLogger": {"save_dir": FOLDER, "project": TEXT, "group": TEXT | NULL},
    "fish_lightning.training.trackers.RunMLFlowLogger": {
        "save_dir": FOLDER,
        "tracking_uri": text("a tracking URI of MLflow"),
        "experiment": TEXT,
        "artifacts": text("a folder", "a URI") | NULL,
    },
}

PATHS = {"logs": FOLDER, "output": FOLDER, "cache": FOLDER}

#: Every argument of ``lightning.Trainer`` except logger and callbacks.
TRAINER: dict[str, Schema] = {
    "accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "devices": Rule(("a number of devices", "-1 (all)", "auto", "a list of them ([0,1])"), _are_devices),
    "strategy": Component(
        {}, Rule(("auto", "ddp", "another strategy that does not spawn or fork processes"), _is_strategy)
    ),
    "num_nodes": COUNT,
    "precision": PRECISION,
    "max_epochs": COUNT | choice(-1, None),  # the latter with max_steps alone
    "min_epochs": NON_NEGATIVE | NULL,
    "max_steps": COUNT | choice(-1),
    "min_steps": NON_NEGATIVE | NULL,
    "max_time": DURATION | NULL,
    "limit_train_batches": COUNT | share("(0, 1]") | NULL,
    "limit_val_batches": LIMIT,
    "limit_test_batches": LIMIT,
    "limit_predict_batches": LIMIT,
    "overfit_batches": NON_NEGATIVE | share("[0, 1]"),
    "fast_dev_run": FLAG | NON_NEGATIVE,
    "val_check_interval": COUNT | share("(0, 1]") | DURATION | NULL,
    "check_val_every_n_epoch": COUNT | NULL,
    "num_sanity_val_steps": integer("[-1, inf)") | NULL,
    "log_every_n_steps": NON_NEGATIVE | NULL,
    "accumulate_grad_batches": COUNT,
    "gradient_clip_val": POSITIVE | NULL,
    "gradient_clip_algorithm": choice("value", "norm", None),
    "deterministic": FLAG | choice("warn", None),
    "benchmark": FLAG | NULL,
    "inference_mode": FLAG,
    "use_distributed_sampler": FLAG,
    "enable_checkpointing": FLAG | NULL,
    "enable_progress_bar": FLAG | NULL,
    "enable_model_summary": FLAG | NULL,
    "enable_autolog_hparams": FLAG,
    "profiler": Component({}, choice("simple", "advanced", "pytorch", "xla", None)),
    "detect_anomaly": FLAG,
    "barebones": FLAG,
    "plugins": Each(COMPONENT, list, NULL),
    "sync_batchnorm": FLAG,
    "reload_dataloaders_every_n_epochs": NON_NEGATIVE,
    "default_root_dir": FOLDER | NULL,
    "model_registry": TEXT | NULL,
}

DATA: dict[str, Schema] = {
    "root": FOLDER | NULL,
    "source": Component({}, NULL),
    "split": COMPONENT,
    "train_transform": COMPONENT,
    "eval_transform": COMPONENT,
    "seed": SEED,
    "batch_size": COUNT,
    "num_workers": NON_NEGATIVE,
    "pin_memory": FLAG,
    "persistent_workers": FLAG,
    "prefetch_factor": COUNT,
    "catalog": FILE | NULL,
    "keep_split": FLAG,
    "photograph": Rule(("a regular expression",), _is_regex) | NULL,
    "find_copies": FLAG,
    "balance": choice("class", "photograph", None),
    "leave_out": integer("[0, inf)") | text("the name of a class") | NULL,
    "cache": Rule(("on", "off", "ram"), lambda v: v in ("on", "off", "ram") or isinstance(v, bool)),  # YAML's on, off
    "cache_dir": FOLDER | NULL,
    "on_error": choice("raise", "skip"),
    "backgrounds": PROBABILITY | NULL,
    "estimate_masks": FLAG,
}
#: Of evaluate and prepare: these are the training run's.
_OF_TRAINING = dict.fromkeys(
    ("split", "train_transform", "eval_transform", "backgrounds", "estimate_masks", "seed"), UNUSED
) | {"leave_out": NULL}
#: How a training loads the images, which prepare only checks.
_OF_LOADERS = dict.fromkeys(
    ("batch_size", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "balance", "cache"),
    Rule(("null, since prepare trains no model",), lambda v: v is None),
)

MODEL: dict[str, Schema] = {
    "name": TEXT,
    "weights": text("imagenet", "a file") | NULL,
    "label_smoothing": number("[0, 1)"),
    "loss": Component({}, NULL),
    "class_weights": choice("balanced", None),
    "compile": FLAG,
    "channels_last": FLAG,
    "mean": MEAN,
    "std": STD,
}

TRANSFORMS: dict[str, Schema] = {
    "height": SIZE,
    "width": SIZE,
    "mean": MEAN,
    "std": STD,
    "train": COMPONENT,
    "eval": COMPONENT,
    "backgrounds": PROBABILITY | NULL,
    "estimate_masks": FLAG,
}

#: What data=sample also sets, in programs that do not train.
SAMPLE_RECIPE: dict[str, Schema] = {
    "transforms": {"height": SIZE, "width": SIZE},
    "model": {"name": MODEL["name"], "weights": MODEL["weights"]},
    "optimizer": {"lr": POSITIVE},
    "trainer": {"max_epochs": TRAINER["max_epochs"]},
}

TRAIN: dict[str, Schema] = {
    "seed": SEED,
    "ckpt": text("a checkpoint", "a run's folder", "last", "auto") | NULL,
    "validate_first": FLAG,
    "on_nan": choice("stop", "skip"),
    "test": FLAG,
    "optimized_metric": choice(*METRICS),
    "tta": TTA,
    "report": FLAG,
    "evaluate": {"target_error": number("(0, 1)")},
    "tune": Component({}, NULL),
    "paths": PATHS,
    "transforms": TRANSFORMS,
    "split": COMPONENT,
    "model": Component(MODEL, complete=True),
    "optimizer": OPTIMIZER,
    "scheduler": COMPONENT,
    "trainer": Component(TRAINER, complete=True),
    "callbacks": Each(Component({}, NULL), dict),
    "logger": Each(Component({}, NULL), dict),
    "data": Component(DATA | {"resident": FLAG}, complete=True),
}

EVALUATE = SAMPLE_RECIPE | {
    "ckpt": CHECKPOINT,
    "subset": choice("train", "val", "test", "all"),
    "unknown": text("a folder") | NULL,
    "tta": TTA,
    "batch_size": COUNT | NULL,
    "report": FLAG,
    "evaluate": {"target_error": number("(0, 1)") | NULL},
    "recompute": FLAG,
    "paths": PATHS,
    "trainer": Component(TRAINER, complete=True),
    "data": Component(DATA | _OF_TRAINING | {"batch_size": COUNT | NULL}, complete=True),
}

PREDICT: dict[str, Schema] = {
    "ckpt": CHECKPOINT,
    "input": text("an image", "a folder", "a quoted pattern", "a list of images", "a URL", example="FILE"),
    "tta": TTA,
    "batch_size": COUNT,
    "num_workers": NON_NEGATIVE,
    "contact_sheet": integer("[0, 300]"),
    "shard": Rule(("a shard such as 3/64",), _is_shard) | NULL,
    "part_rows": COUNT | NULL,
    "output": Rule(("the URL of a folder in a store (s3://bucket/folder)",), _is_store, "URL") | NULL,
    "format": choice("csv", "parquet"),
    "paths": PATHS,
    # Every file gets its row.
    "trainer": Component(TRAINER | {"limit_predict_batches": NULL, "fast_dev_run": choice(False)}, complete=True),
}

PREPARE = SAMPLE_RECIPE | {
    "paths": PATHS,
    "data": Component(
        DATA | _OF_TRAINING | _OF_LOADERS | {"archive": FILE | NULL, "archive_limit": POSITIVE}, complete=True
    ),
    "report": {"photographs": NON_NEGATIVE, "pictures": COUNT},
}

EXPORT: dict[str, Schema] = {
    "ckpt": CHECKPOINT,
    "tta": TTA,
    "half": FLAG,
    "int8": FLAG,
    "name": MODEL_NAME | NULL,
    "data": {"root": FOLDER | NULL},
    "export": {"tolerance": PART, "images": COUNT | NULL, "calibration_images": COUNT, "margin": number("[0, 1)")},
    "paths": PATHS,
}

COMPARE: dict[str, Schema] = {
    "a": text("a run's folder", "a sweep's folder", example="RUN"),
    "b": text("a run's folder", "a sweep's folder", example="RUN"),
    "margin": number("[0, 1)"),
    "data": {"root": FOLDER | NULL},
    "paths": PATHS,
}

ENSEMBLE: dict[str, Schema] = {
    "runs": Rule(
        ("a sweep's folder", "a list of runs ([RUN_A,RUN_B])"),
        lambda v: FOLDER.accepts(v) or (isinstance(v, list) and bool(v) and all(map(FOLDER.accepts, v))),
        example="DIR",
    ),
    "tta": TTA,
    "margin": number("[0, 1)"),
    "batch_size": COUNT | NULL,
    "report": FLAG,
    "evaluate": {"target_error": number("(0, 1)")},
    "data": {"root": FOLDER | NULL, "num_workers": NON_NEGATIVE},
    "paths": PATHS,
    "trainer": Component(TRAINER, complete=True),
}

_BYTES = integer("[1, 1000000000000]")

SERVE: dict[str, Schema] = {
    "ckpt": CHECKPOINT,
    "host": text("an address of this machine"),
    "port": integer("[0, 65535]"),
    "serve": {
        # What a header can carry.
        "token": Rule(("text of ASCII characters",), lambda v: isinstance(v, str) and bool(re.fullmatch("[!-~]+", v)))
        | NULL,
        "batch_size": COUNT,
        "batch_wait": number("[0, 1]"),
        "threads": COUNT,
        "max_files": COUNT,
        "max_file_bytes": _BYTES,
        "max_request_bytes": _BYTES,
        "max_pixels": integer("[1, 200000000]"),  # data/decoding.py refuses more
        "queue": COUNT,
        "queue_bytes": _BYTES,
        "timeout": number("(0, 86400]"),
    },
    "paths": PATHS,
    "trainer": Component(
        {"accelerator": TRAINER["accelerator"], "devices": choice(1), "precision": PRECISION}, complete=True
    ),
}

SCHEMAS: dict[str, Mapping[str, Schema]] = {
    "ensemble": ENSEMBLE,
    "compare": COMPARE,
    "export": EXPORT,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "prepare": PREPARE,
    "serve": SERVE,
}
