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
    COUNT,
    FLAG,
    MODEL_NAME,
    NON_NEGATIVE,
    NULL,
    PRECISION,
    PROBABILITY,
    SEED,
    SIZE,
    TEXT,
    TTA,
    Component,
    Each,
    Rule,
    Schema,
    choice,
    integer,
    matching,
    number,
    several,
    share,
    text,
)
from fish_lightning.sweeps.table import METRICS

#: Not looked at: its interpolations are of groups that the program does not have.
UNUSED = Rule(("anything",), lambda v: True)
FILE = text("a file", example="FILE")
FOLDER = text("a folder", example="DIR")
CHECKPOINT = text("a checkpoint", "a run's folder", example="FILE")
NUMBER = number()
POSITIVE = number("(0, inf)")
NOT_NEGATIVE = number("[0, inf)")
PART = number("(0, 1)")
PAIR = NUMBER | several(2, NUMBER, "two numbers")
MEAN = several(3, NUMBER, "three numbers (red, green, blue)") | NULL
STD = several(3, POSITIVE, "three numbers above 0 (red, green, blue)") | NULL
LIMIT = NON_NEGATIVE | share("[0, 1]") | NULL


def _alike(schema: Schema, *keys: str) -> dict[str, Schema]:
    """Return the schema of a mapping whose settings follow one rule."""
    return dict.fromkeys(keys, schema)


def _is_regex(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


def _is_duration(value: Any) -> bool:
    """Return whether a value is a positive duration: ``DD:HH:MM:SS``, or arguments of ``datetime.timedelta``."""
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
        return bool(value) and all(map(NON_NEGATIVE.accepts, value)) and len({*value}) == len(value)
    return value != 0 and integer("[-1, inf)").accepts(value)


_STRATEGY = matching(
    "(?s)(?!.*(spawn|fork|notebook)).+", "auto", "ddp", "another strategy that does not spawn or fork processes"
)
DURATION = Rule(("days:hours:minutes:seconds (00:01:30:00)",), _is_duration)

#: Metrics that are logged each epoch, and whether lower or higher is better.
LOGGED = {"train/loss": "min", "val/loss": "min", "val/accuracy": "max", "val/macro_f1": "max"}
HIGHER, LOWER = ([name for name, mode in LOGGED.items() if mode == better] for better in ("max", "min"))

#: What Hydra itself reads of a mapping that it instantiates.
INSTANTIATED = {
    "_target_": matching(r"\w+(\.\w+)+", "the dotted name of a class or function"),
    "_convert_": choice("none", "partial", "object", "all"),
    **_alike(FLAG, "_partial_", "_recursive_"),
}

#: The arguments of a user's own target are not known, and those of a known one stand in ``TARGETS``.
COMPONENT = Component({})
OPTIMIZER = Component(
    {"lr": POSITIVE, "weight_decay": NOT_NEGATIVE, "layer_decay": number("(0, 1]") | NULL, "decay_norms": FLAG}
)

_BELOW_ONE = number("[0, 1)")
_BETAS = several(2, _BELOW_ONE, "two numbers in [0, 1)")
_TORCH = {"maximize": FLAG, "foreach": FLAG | NULL, "differentiable": FLAG}
_ADAM = _TORCH | {"betas": _BETAS, "eps": NOT_NEGATIVE, "amsgrad": FLAG, "capturable": FLAG, "fused": FLAG | NULL}
_SCHEDULE = {"last_epoch": integer("[-1, inf)")}
_SAMPLING = _alike(ANYTHING, "interpolation", "mask_interpolation", "fill", "fill_mask")
_WARP = {"border_mode": integer("[0, 4]"), "rotate_method": choice("largest_box", "ellipse"), "p": PROBABILITY}
_AXES = Rule(("a mapping of x and y",), lambda v: isinstance(v, dict) and v.keys() <= {"x", "y"})

#: Arguments of transforms, besides ``p``, which all have.
_ALBUMENTATIONS: dict[str, dict[str, Schema]] = {
    "Compose": {
        "transforms": Each(COMPONENT, list),
        "seed": SEED | NULL,
        **_alike(FLAG, "is_check_shapes", "strict", "save_applied_params"),
        **_alike(ANYTHING, "bbox_params", "keypoint_params", "additional_targets", "mask_interpolation"),
    },
    "Resize": {
        **_alike(SIZE, "height", "width"),
        **_alike(ANYTHING, "interpolation", "mask_interpolation", "area_for_downscale"),
    },
    "HorizontalFlip": {},
    "VerticalFlip": {},
    "ColorJitter": _alike(PAIR, "brightness", "contrast", "saturation", "hue"),
    "GaussianBlur": _alike(PAIR, "blur_limit", "sigma_limit"),
    "CoarseDropout": {
        "num_holes_range": several(2, COUNT, "two integers of at least 1"),
        **_alike(several(2, POSITIVE, "two numbers above 0"), "hole_height_range", "hole_width_range"),
        **_alike(ANYTHING, "fill", "fill_mask"),
    },
    "OneOf": {"transforms": Each(COMPONENT, list)},
    "NoOp": {},
    "Sharpen": {
        **_alike(several(2, NOT_NEGATIVE, "two numbers of at least 0"), "alpha", "lightness"),
        "method": choice("kernel", "gaussian"),
        "kernel_size": COUNT,
        "sigma": POSITIVE,
    },
    "Posterize": {"num_bits": ANYTHING},
    "Solarize": {"threshold_range": several(2, PROBABILITY, "two numbers in [0, 1]")},
    "AutoContrast": {"cutoff": NUMBER, "ignore": ANYTHING, "method": choice("cdf", "pil")},
    "Equalize": {"mode": choice("cv", "pil"), "by_channels": FLAG, "mask": ANYTHING, "mask_params": ANYTHING},
    "pytorch.ToTensorV2": {"transpose_mask": FLAG},
}

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
        **_alike(COUNT, "photographs_per_kind", "copies"),
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
    **{f"albumentations.{name}": keys | {"p": PROBABILITY} for name, keys in _ALBUMENTATIONS.items()},
    "fish_lightning.data.transforms.Rotate": {"limit": PAIR, "crop_border": FLAG, **_WARP, **_SAMPLING},
    "fish_lightning.data.transforms.Affine": {
        "rotate": PAIR,
        **_alike(PAIR | _AXES | NULL, "scale", "translate_percent", "translate_px", "shear"),
        **_alike(FLAG, "fit_output", "keep_ratio", "balanced_scale"),
        **_WARP,
        **_SAMPLING,
    },
    # optimizer
    "fish_lightning.models.optimizers.Adam": _ADAM | {"decoupled_weight_decay": FLAG},
    "fish_lightning.models.optimizers.AdamW": _ADAM,
    "fish_lightning.models.optimizers.SGD": {
        **_TORCH,
        "momentum": NOT_NEGATIVE,
        "dampening": NUMBER,
        "nesterov": FLAG,
        "fused": FLAG | NULL,
    },
    "fish_lightning.models.optimizers.RMSprop": {
        **_TORCH,
        "alpha": _BELOW_ONE,
        **_alike(NOT_NEGATIVE, "eps", "momentum"),
        **_alike(FLAG, "centered", "capturable"),
    },
    # scheduler
    "fish_lightning.models.schedules.onecycle": {
        **_SCHEDULE,
        **_alike(POSITIVE, "max_lr", "div_factor", "final_div_factor"),
        "pct_start": PART,
        "anneal_strategy": choice("cos", "linear"),
        **_alike(FLAG, "three_phase", "cycle_momentum"),
        **_alike(_BELOW_ONE, "base_momentum", "max_momentum"),
    },
    "fish_lightning.models.schedules.cosine": {"eta_min": NOT_NEGATIVE, **_SCHEDULE},
    "fish_lightning.models.schedules.constant": {},
    # trainer.plugins
    "fish_lightning.resume.checkpoints.AtomicCheckpointIO": {},
    # callbacks
    "fish_lightning.training.best_checkpoint.BestCheckpoint": {
        "dirpath": FOLDER,
        "filename": TEXT,
        "monitor": choice(*HIGHER, "step"),
        "tie_breaker": choice(*LOWER),
        **_alike(FLAG, "save_weights_only", "verbose"),
        "every_n_epochs": COUNT | NULL,
    },
    "fish_lightning.resume.checkpoints.LastCheckpoint": {"path": FILE, "every_n_steps": COUNT | NULL, "keep": FLAG},
    "fish_lightning.resume.early_stopping.ResumableEarlyStopping": {
        "monitor": choice(*LOGGED),
        "mode": choice("min", "max"),
        "patience": NON_NEGATIVE,
        "min_delta": NOT_NEGATIVE,
        **_alike(NUMBER | NULL, "stopping_threshold", "divergence_threshold"),
        "check_on_train_epoch_end": FLAG | NULL,
        **_alike(FLAG, "verbose", "strict", "check_finite", "log_rank_zero_only"),
    },
    "fish_lightning.training.history.History": {},
    "fish_lightning.resume.signals.StopOnSignal": {"path": FILE},
    "fish_lightning.training.nonfinite.NonFiniteLoss": {"action": choice("stop", "skip"), "path": FILE},
    "fish_lightning.training.progressive.ProgressiveResize": {"start": number("(0, 1]"), "full_from": PROBABILITY},
    "fish_lightning.training.mix.Mix": {"seed": SEED, **_alike(POSITIVE | NULL, "mixup", "cutmix"), "p": PROBABILITY},
    "fish_lightning.training.average.WeightAverage": {"decay": _BELOW_ONE | NULL, "start": _BELOW_ONE},
    "fish_lightning.training.freeze.Freeze": {
        "epochs": COUNT | NULL,
        "every": NON_NEGATIVE,
        "features": FLAG,
        "lr": Each(POSITIVE, list),
    },
    # model.loss
    "fish_lightning.models.losses.FocalLoss": {"gamma": NOT_NEGATIVE, "label_smoothing": _BELOW_ONE},
    "fish_lightning.models.losses.CosineLoss": {"cross_entropy": NOT_NEGATIVE, "label_smoothing": _BELOW_ONE},
    "fish_lightning.sweeps.pruning.ReportToStudy": {
        **_alike(TEXT, "storage", "study_name"),
        "monitor": choice(*METRICS),
        "pruner": Component({}, NULL),
        "trial": NON_NEGATIVE | NULL,
    },
    "fish_lightning.resume.step_seeds.StepSeeds": {"seed": SEED},
    "fish_lightning.training.tensorboard.TensorBoardPictures": {"count": COUNT},
    "fish_lightning.resume.metrics_csv.DropLaterRows": {},
    "lightning.pytorch.callbacks.LearningRateMonitor": {
        "logging_interval": choice("step", "epoch", None),
        **_alike(FLAG, "log_momentum", "log_weight_decay"),
    },
    # tune
    "fish_lightning.training.tune.learning_rate": {
        **_alike(POSITIVE, "lowest", "highest"),
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

#: Every argument of ``lightning.Trainer`` except logger and callbacks.
TRAINER: dict[str, Schema] = {
    "accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "devices": Rule(("a number of devices", "-1 (all)", "auto", "a list of them ([0,1])"), _are_devices),
    "strategy": Component({}, _STRATEGY),
    **_alike(COUNT, "num_nodes", "accumulate_grad_batches"),
    "precision": PRECISION,
    "max_epochs": COUNT | choice(-1, None),  # the latter with max_steps alone
    "max_steps": COUNT | choice(-1),
    "max_time": DURATION | NULL,
    **_alike(NON_NEGATIVE | NULL, "min_epochs", "min_steps", "log_every_n_steps"),
    "limit_train_batches": COUNT | share("(0, 1]") | NULL,
    **_alike(LIMIT, "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    "overfit_batches": NON_NEGATIVE | share("[0, 1]"),
    "fast_dev_run": FLAG | NON_NEGATIVE,
    "val_check_interval": COUNT | share("(0, 1]") | DURATION | NULL,
    "check_val_every_n_epoch": COUNT | NULL,
    "num_sanity_val_steps": integer("[-1, inf)") | NULL,
    "reload_dataloaders_every_n_epochs": NON_NEGATIVE,
    "gradient_clip_val": POSITIVE | NULL,
    "gradient_clip_algorithm": choice("value", "norm", None),
    "deterministic": FLAG | choice("warn", None),
    **_alike(FLAG | NULL, "benchmark", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
    **_alike(FLAG, "inference_mode", "use_distributed_sampler", "enable_autolog_hparams"),
    **_alike(FLAG, "detect_anomaly", "barebones", "sync_batchnorm"),
    "profiler": Component({}, choice("simple", "advanced", "pytorch", "xla", None)),
    "plugins": Each(COMPONENT, list, NULL),
    "default_root_dir": FOLDER | NULL,
    "model_registry": TEXT | NULL,
}

DATA: dict[str, Schema] = {
    "root": FOLDER | NULL,
    "source": Component({}, NULL),
    **_alike(COMPONENT, "split", "train_transform", "eval_transform"),
    "seed": SEED,
    "batch_size": COUNT,
    "num_workers": NON_NEGATIVE,
    "prefetch_factor": COUNT,
    "catalog": FILE | NULL,
    **_alike(FLAG, "pin_memory", "persistent_workers", "keep_split", "find_copies", "estimate_masks", "match_colors"),
    "photograph": Rule(("a regular expression",), _is_regex) | NULL,
    "balance": choice("class", "photograph", None),
    "leave_out": NON_NEGATIVE | text("the name of a class") | NULL,
    "cache": Rule(("on", "off", "ram"), lambda v: v in ("on", "off", "ram") or isinstance(v, bool)),  # YAML's on, off
    "cache_dir": FOLDER | NULL,
    "on_error": choice("raise", "skip"),
    "backgrounds": PROBABILITY | NULL,
}
#: Of evaluate and prepare: these are the training run's.
_OF_TRAINING = {
    **_alike(UNUSED, "split", "train_transform", "eval_transform", "seed"),
    **_alike(UNUSED, "backgrounds", "estimate_masks", "match_colors"),
    "leave_out": NULL,
}
#: How a training loads the images, which prepare only checks.
_OF_LOADERS = _alike(
    Rule(("null, since prepare trains no model",), lambda v: v is None),
    *("batch_size", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "balance", "cache"),
)

MODEL: dict[str, Schema] = {
    "name": TEXT,
    "weights": text("imagenet", "a file") | NULL,
    "label_smoothing": _BELOW_ONE,
    "loss": Component({}, NULL),
    "class_weights": choice("balanced", None),
    **_alike(FLAG, "compile", "channels_last"),
    "mean": MEAN,
    "std": STD,
}

#: What data=sample also sets, in programs that do not train.
SAMPLE_RECIPE: dict[str, Schema] = {
    "transforms": {"height": SIZE, "width": SIZE},
    "model": {"name": MODEL["name"], "weights": MODEL["weights"]},
    "optimizer": {"lr": POSITIVE},
    "trainer": {"max_epochs": TRAINER["max_epochs"]},
}

_PROGRAMS: dict[str, Mapping[str, Schema]] = {
    "ensemble": {
        "runs": Rule(
            ("a sweep's folder", "a list of runs ([RUN_A,RUN_B])"),
            lambda v: FOLDER.accepts(v) or (isinstance(v, list) and bool(v) and all(map(FOLDER.accepts, v))),
            example="DIR",
        ),
        "tta": TTA,
        "margin": _BELOW_ONE,
        "batch_size": COUNT | NULL,
        "report": FLAG,
        "evaluate": {"target_error": PART},
        "data": {"root": FOLDER | NULL, "num_workers": NON_NEGATIVE},
        "trainer": Component(TRAINER, complete=True),
    },
    "compare": {
        **_alike(text("a run's folder", "a sweep's folder", example="RUN"), "a", "b"),
        "margin": _BELOW_ONE,
        "data": {"root": FOLDER | NULL},
    },
    "export": {
        "ckpt": CHECKPOINT,
        "tta": TTA,
        **_alike(FLAG, "half", "int8"),
        "name": MODEL_NAME | NULL,
        "data": {"root": FOLDER | NULL},
        "export": {"tolerance": PART, "images": COUNT | NULL, "calibration_images": COUNT, "margin": _BELOW_ONE},
    },
    "train": {
        "seed": SEED,
        "ckpt": text("a checkpoint", "a run's folder", "last", "auto") | NULL,
        **_alike(FLAG, "validate_first", "test", "report"),
        "on_nan": choice("stop", "skip"),
        "optimized_metric": choice(*METRICS),
        "tta": TTA,
        "evaluate": {"target_error": PART},
        "tune": Component({}, NULL),
        "transforms": {
            **_alike(SIZE, "height", "width"),
            "mean": MEAN,
            "std": STD,
            **_alike(COMPONENT, "train", "eval"),
            "backgrounds": PROBABILITY | NULL,
            **_alike(FLAG, "estimate_masks", "match_colors"),
        },
        **_alike(COMPONENT, "split", "scheduler"),
        "model": Component(MODEL, complete=True),
        "optimizer": OPTIMIZER,
        "trainer": Component(TRAINER, complete=True),
        **_alike(Each(Component({}, NULL), dict), "callbacks", "logger"),
        "data": Component(DATA | {"resident": FLAG}, complete=True),
    },
    "evaluate": {
        **SAMPLE_RECIPE,
        "ckpt": CHECKPOINT,
        "subset": choice("train", "val", "test", "all"),
        "unknown": text("a folder") | NULL,
        "tta": TTA,
        "batch_size": COUNT | NULL,
        **_alike(FLAG, "report", "recompute"),
        "evaluate": {"target_error": PART | NULL},
        "trainer": Component(TRAINER, complete=True),
        "data": Component(DATA | _OF_TRAINING | {"batch_size": COUNT | NULL}, complete=True),
    },
    "predict": {
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
        # Every file gets its row.
        "trainer": Component(TRAINER | {"limit_predict_batches": NULL, "fast_dev_run": choice(False)}, complete=True),
    },
    "prepare": {
        **SAMPLE_RECIPE,
        "data": Component(
            DATA | _OF_TRAINING | _OF_LOADERS | {"archive": FILE | NULL, "archive_limit": POSITIVE}, complete=True
        ),
        "report": {"photographs": NON_NEGATIVE, "pictures": COUNT},
    },
    "serve": {
        "ckpt": CHECKPOINT,
        "tta": TTA,
        "host": text("an address of this machine"),
        "port": integer("[0, 65535]"),
        "serve": {
            "token": matching("[!-~]+", "text of ASCII characters") | NULL,  # what a header can carry
            **_alike(COUNT, "batch_size", "threads", "max_files", "queue"),
            "batch_wait": number("[0, 1]"),
            **_alike(integer("[1, 1000000000000]"), "max_file_bytes", "max_request_bytes", "queue_bytes"),
            "max_pixels": integer("[1, 200000000]"),  # data/decoding.py refuses more
            "timeout": number("(0, 86400]"),
        },
        "trainer": Component(
            {"accelerator": TRAINER["accelerator"], "devices": choice(1), "precision": PRECISION}, complete=True
        ),
    },
}
#: The settings of each program.
SCHEMAS = {name: {**keys, "paths": _alike(FOLDER, "logs", "output", "cache")} for name, keys in _PROGRAMS.items()}
