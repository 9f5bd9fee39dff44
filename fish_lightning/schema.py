"""One schema of every setting: type, range and choices, checked before a program imports, decodes or writes anything.

The schema is a table in the shape of the YAML: one rule for each key, with the words that an error repeats. pydantic
names types as briefly, but its errors, one for each member of a union, would have to be translated into the words of
the command line, and every ``_target_`` would need a model. A new key needs a line here: ``tests/test_schema.py`` walks
all configs and names what is missing.

:func:`entry_point` makes a program of a task: the command line is checked before Hydra makes the run's folder, and the
config of each job, also in a sweep, before the task begins. The ``hydra`` node is left to Hydra.
"""

import argparse
import difflib
import functools
import math
import operator
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fish_lightning import compat, errors
from fish_lightning.cli import CONF
from fish_lightning.errors import UserError, first_line, shown_without_traceback
from fish_lightning.run_log import logged
from fish_lightning.sweeps.table import METRICS

SHOWN = 4  # problems of a command that are listed; the others are counted


@dataclass(frozen=True)
class Rule:
    """What one setting may be.

    Attributes:
        words: the alternatives, as they follow "expected".
        accepts: whether a value, its interpolations resolved, is one of them.
        example: what stands for a value that is missing (``ckpt=FILE``).
    """

    words: tuple[str, ...]
    accepts: Callable[[Any], bool]
    example: str = "VALUE"

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(self.words + other.words, lambda v: self.accepts(v) or other.accepts(v), self.example)

    def __str__(self) -> str:
        return _listed(self.words, "or")


@dataclass(frozen=True)
class Component:
    """What Hydra instantiates: a mapping with ``_target_``.

    The arguments of the targets in ``TARGETS`` are known. Another target is a user's own and takes any.

    Attributes:
        keys: arguments that every target has.
        other: what may stand in its place.
        complete: whether none of ``keys`` may be missing.
    """

    keys: "Mapping[str, Schema]"
    other: Rule | None = None
    complete: bool = False

    def __str__(self) -> str:
        words = self.other.words if self.other else ()
        return _listed(words if words and words != NULL.words else ("a mapping with _target_", *words), "or")


@dataclass(frozen=True)
class Each:
    """A mapping of names that the user chooses, or a list; ``item`` is the schema of what is in it."""

    item: "Schema"
    container: type[dict[Any, Any]] | type[list[Any]]
    other: Rule | None = None

    def __str__(self) -> str:
        container = "a list" if self.container is list else "a mapping of names"
        return _listed([container, *(self.other.words if self.other else ())], "or")


Schema: TypeAlias = "Rule | Component | Each | Mapping[str, Schema]"


def _listed(words: Sequence[str], conjunction: str) -> str:
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def _shown(value: Any) -> str:
    """A value as it is typed on the command line, shortened."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        shown = f"[{','.join(map(_shown, value))}]"
    elif isinstance(value, dict):
        shown = f"{{{','.join(f'{key!s}:{_shown(part)}' for key, part in value.items())}}}"
    else:
        shown = str(value) if str(value).isprintable() else ascii(value)
        if isinstance(value, str) and re.fullmatch(r"|true|false|null|nan|[-+]?(inf|\.?\d[\d._]*(e[-+]?\d+)?)", value):
            shown = f"'{value}'"
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def number(interval: str = "(-inf, inf)", noun: str = "a number", of: type = float) -> Rule:
    """A finite number; booleans and quoted numbers are none.

    Args:
        interval: in mathematical notation, ``"[0, 1)"``.
        noun: what it is called.
        of: float (an integer will do), or int.
    """
    low, high = map(float, interval[1:-1].split(","))
    is_above = operator.gt if interval[0] == "(" else operator.ge
    is_below = operator.lt if interval[-1] == ")" else operator.le
    if math.isfinite(high):
        noun += f" in {interval}"
    elif math.isfinite(low):
        noun += f" above {low:g}" if interval[0] == "(" else f" of at least {low:g}"
    types = (int,) if of is int else (int, float)
    return Rule((noun,), lambda v: type(v) in types and math.isfinite(v) and is_above(v, low) and is_below(v, high))


def whole(interval: str) -> Rule:
    """An integer."""
    return number(interval, "an integer", int)


def share(interval: str) -> Rule:
    """A float; 1.0 is all and the integer 1 is one."""
    rule = number(interval, "a share")
    return Rule(rule.words, lambda v: isinstance(v, float) and rule.accepts(v))


def choice(*options: str | int | None) -> Rule:
    """One of a few values."""
    return Rule(tuple(map(_shown, options)), lambda v: any(type(v) is type(o) and v == o for o in options))


def several(count: int, of: Rule, words: str) -> Rule:
    """A list of ``count`` values."""
    return Rule((words,), lambda v: isinstance(v, list) and len(v) == count and all(map(of.accepts, v)))


def text(*words: str, example: str = "VALUE") -> Rule:
    """Text that is not empty."""
    return Rule(words, lambda v: isinstance(v, str) and v.strip() != "", example)


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


def _are_devices(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+|\d+,", value))
    if isinstance(value, list):
        return bool(value) and all(map(whole("[0, inf)").accepts, value)) and len({*value}) == len(value)
    return value != 0 and whole("[-1, inf)").accepts(value)


def _is_strategy(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not re.search("spawn|fork|notebook", value)


ANYTHING = Rule(("anything",), lambda v: True)
#: Not looked at: its interpolations are of groups that the program does not have.
UNUSED = Rule(("anything",), lambda v: True)
NULL = choice(None)
FLAG = choice(True, False)
TEXT = text("text")
FILE = text("a file", example="FILE")
FOLDER = text("a folder", example="DIR")
CHECKPOINT = text("a checkpoint", "a run's folder", example="FILE")
NUMBER = number()
POSITIVE = number("(0, inf)")
NOT_NEGATIVE = number("[0, inf)")
PROBABILITY = number("[0, 1]")
PART = number("(0, 1)")
COUNT = whole("[1, inf)")
COUNT_OR_NONE = whole("[0, inf)")
SEED = whole("[0, 4294967295]")  # 32 bits: what numpy takes
SIZE = whole("[1, 10000]")  # pixels
PAIR = NUMBER | several(2, NUMBER, "two numbers")
MEAN = several(3, NUMBER, "three numbers, of red, green and blue")
STD = several(3, POSITIVE, "three numbers above 0, of red, green and blue")
LIMIT = COUNT_OR_NONE | share("[0, 1]") | NULL
TTA = choice("flips", "turns", None)
DURATION = Rule(("days:hours:minutes:seconds (00:01:30:00)",), _is_duration)

#: What an epoch logs, and what is better.
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
_SCHEDULE = {"last_epoch": whole("[-1, inf)")}
_SAMPLING = dict.fromkeys(("interpolation", "mask_interpolation", "fill", "fill_mask"), ANYTHING)
_WARP = {"border_mode": whole("[0, 4]"), "rotate_method": choice("largest_box", "ellipse"), "p": PROBABILITY}
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
        "seed": COUNT_OR_NONE,
        "photographs_per_kind": COUNT,
        "copies": COUNT,
        "shortcut": FLAG,
        "label_errors": number("[0, 0.5]"),
    },
    # split
    "fish_lightning.data.splits.random_split": {"test": PART, "val": PART},
    "fish_lightning.data.splits.photograph_split": {"test": PART, "val": PART},
    "fish_lightning.data.splits.kfold_split": {"folds": whole("[2, inf)"), "fold": COUNT_OR_NONE, "val": PART},
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
        "patience": COUNT_OR_NONE,
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
    "fish_lightning.training.freeze.Freeze": {"epochs": COUNT | NULL, "every": COUNT_OR_NONE, "features": FLAG},
    # model.loss
    "fish_lightning.models.losses.FocalLoss": {"gamma": NOT_NEGATIVE, "label_smoothing": number("[0, 1)")},
    "fish_lightning.models.losses.CosineLoss": {"cross_entropy": NOT_NEGATIVE, "label_smoothing": number("[0, 1)")},
    "fish_lightning.sweeps.pruning.ReportToStudy": {
        "storage": TEXT,
        "study_name": TEXT,
        "monitor": choice(*METRICS),
        "pruner": Component({}, NULL),
        "trial": COUNT_OR_NONE | NULL,
    },
    "fish_lightning.resume.step_seeds.StepSeeds": {"seed": SEED},
    "fish_lightning.training.tensorboard.TensorBoardPictures": {"count": COUNT},
    "fish_lightning.resume.metrics_csv.DropLaterRows": {},
    "lightning.pytorch.callbacks.LearningRateMonitor": {
        "logging_interval": choice("step", "epoch", None),
        "log_momentum": FLAG,
        "log_weight_decay": FLAG,
    },
    # logger
    "fish_lightning.training.tensorboard.RunTensorBoardLogger": {"save_dir": FOLDER},
    "fish_lightning.resume.metrics_csv.ResumableCSVLogger": {"save_dir": FOLDER},
}

PATHS = {"logs": FOLDER, "output": FOLDER, "cache": FOLDER}

#: Lightning's other names of them.
_PRECISIONS = Rule(
    (), choice("32", "16", "64", "bf16", 32, 16, 64, None, "transformer-engine", "transformer-engine-float16").accepts
)
PRECISION = choice("auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true") | _PRECISIONS

#: Every argument of Lightning's, but for logger and callbacks.
TRAINER: dict[str, Schema] = {
    "accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "devices": Rule(("a number of devices", "-1 (all)", "auto", "a list of them ([0,1])"), _are_devices),
    "strategy": Component(
        {}, Rule(("auto", "ddp", "another strategy that does not spawn or fork processes"), _is_strategy)
    ),
    "num_nodes": COUNT,
    "precision": PRECISION,
    "max_epochs": COUNT | choice(-1, None),  # the latter with max_steps alone
    "min_epochs": COUNT_OR_NONE | NULL,
    "max_steps": COUNT | choice(-1),
    "min_steps": COUNT_OR_NONE | NULL,
    "max_time": DURATION | NULL,
    "limit_train_batches": COUNT | share("(0, 1]") | NULL,
    "limit_val_batches": LIMIT,
    "limit_test_batches": LIMIT,
    "limit_predict_batches": LIMIT,
    "overfit_batches": COUNT_OR_NONE | share("[0, 1]"),
    "fast_dev_run": FLAG | COUNT_OR_NONE,
    "val_check_interval": COUNT | share("(0, 1]") | DURATION | NULL,
    "check_val_every_n_epoch": COUNT | NULL,
    "num_sanity_val_steps": whole("[-1, inf)") | NULL,
    "log_every_n_steps": COUNT_OR_NONE | NULL,
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
    "reload_dataloaders_every_n_epochs": COUNT_OR_NONE,
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
    "num_workers": COUNT_OR_NONE,
    "pin_memory": FLAG,
    "persistent_workers": FLAG,
    "prefetch_factor": COUNT,
    "catalog": FILE | NULL,
    "keep_split": FLAG,
    "photograph": Rule(("a regular expression",), _is_regex) | NULL,
    "find_copies": FLAG,
    "balance": choice("class", "photograph", None),
    "leave_out": whole("[0, inf)") | text("the name of a class") | NULL,
    "cache": Rule(("on", "off", "ram"), lambda v: v in ("on", "off", "ram") or isinstance(v, bool)),  # YAML's on, off
    "cache_dir": FOLDER | NULL,
    "on_error": choice("raise", "skip"),
}
#: Of evaluate and prepare: these are the training run's.
_OF_TRAINING = dict.fromkeys(("split", "train_transform", "eval_transform", "seed"), UNUSED) | {"leave_out": NULL}

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
    "input": text("an image", "a folder", "a quoted pattern", example="FILE"),
    "tta": TTA,
    "batch_size": COUNT,
    "num_workers": COUNT_OR_NONE,
    "contact_sheet": whole("[0, 300]"),
    "paths": PATHS,
    # Every file gets its row.
    "trainer": Component(TRAINER | {"limit_predict_batches": NULL, "fast_dev_run": choice(False)}, complete=True),
}

PREPARE = SAMPLE_RECIPE | {
    "paths": PATHS,
    "data": Component(DATA | _OF_TRAINING | {"archive": FILE | NULL, "archive_limit": POSITIVE}, complete=True),
    "report": {"photographs": COUNT_OR_NONE, "pictures": COUNT},
}

COMPARE: dict[str, Schema] = {
    "a": text("a run's folder", "a sweep's folder", example="RUN"),
    "b": text("a run's folder", "a sweep's folder", example="RUN"),
    "margin": number("[0, 1)"),
    "data": {"root": FOLDER | NULL},
    "paths": PATHS,
}

BYTES = whole("[1, 1000000000000]")

SERVE: dict[str, Schema] = {
    "ckpt": CHECKPOINT,
    "host": text("an address of this machine"),
    "port": whole("[0, 65535]"),
    "serve": {
        # What a header can carry.
        "token": Rule(("text of ASCII characters",), lambda v: isinstance(v, str) and bool(re.fullmatch("[!-~]+", v)))
        | NULL,
        "batch_size": COUNT,
        "batch_wait": number("[0, 1]"),
        "threads": COUNT,
        "max_files": COUNT,
        "max_file_bytes": BYTES,
        "max_request_bytes": BYTES,
        "max_pixels": whole("[1, 200000000]"),  # data/decoding.py refuses more
        "queue": COUNT,
        "queue_bytes": BYTES,
        "timeout": number("(0, 86400]"),
    },
    "paths": PATHS,
    "trainer": Component(
        {"accelerator": TRAINER["accelerator"], "devices": choice(1), "precision": PRECISION}, complete=True
    ),
}

SCHEMAS: dict[str, Mapping[str, Schema]] = {
    "compare": COMPARE,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "prepare": PREPARE,
    "serve": SERVE,
}


def conflicts(values: Mapping[str, Any], program: str) -> Iterator[tuple[str, str]]:
    """Settings that are each allowed, and not together.

    Args:
        values: settings by key, only those that follow their rules.
        program: a key of ``SCHEMAS``.

    Yields:
        The key to change, and what to say after its value.
    """
    get = values.get
    if get("split.fold", 0) >= get("split.folds", math.inf):
        yield "split.fold", f"expected an integer below split.folds={values['split.folds']}"
    left = (1 - get("split.test", 0)) * (1 - get("split.val", 0))
    if left < 0.01:
        larger = max("split.test", "split.val", key=lambda key: get(key, 0))
        yield larger, f"it leaves {100 * left:.2g} % of the images to train on, expected at least 1 %"
    if get("trainer.max_epochs", 1) in (-1, None) and get("trainer.max_steps") == -1:
        yield "trainer.max_epochs", "expected an integer of at least 1, unless trainer.max_steps ends the run"
    monitor, mode = str(get("callbacks.early_stopping.monitor")), get("callbacks.early_stopping.mode")
    if mode is not None and LOGGED.get(monitor, mode) != mode:
        yield "callbacks.early_stopping.mode", f"expected {LOGGED[monitor]} for {monitor}"
    if get("test") is False and get("optimized_metric", "").startswith("test/"):
        yield "optimized_metric", "expected a metric of the validation, since test=false"
    if get("data.resident") and get("data.cache") in ("off", False):
        yield "data.cache", "expected on or ram, since augment=gpu keeps decoded images"
    if get("data.cache") in ("on", True) and get("data.cache_dir", "") is None:
        yield "data.cache_dir", "expected a folder, since data.cache=on keeps decoded images in it"
    if get("serve.max_request_bytes", 0) > get("serve.queue_bytes", math.inf):
        yield "serve.max_request_bytes", f"expected at most serve.queue_bytes={values['serve.queue_bytes']}"
    if get("data.catalog", "") is None:
        if get("data.source", "") is None and program != "evaluate":
            yield "data.source", "expected data=sample, data=fish, data=folder or data.catalog=FILE"
        if get("data.root", "") is None and get("data.source._target_") in TARGETS:
            yield "data.root", "expected a folder: data.root=DIR"


def problems(cfg: DictConfig, program: str) -> list[str]:
    """What is wrong with a config, one line a setting, unknown ones first.

    Args:
        cfg: composed, with or without its ``hydra`` node.
        program: a key of ``SCHEMAS``.
    """
    check = _Check(cfg, program)
    return check.unknown() + list(check.wrong.values())


def require_valid(cfg: DictConfig, program: str) -> None:
    """Refuse a config that does not follow the schema.

    Args:
        cfg: composed, with or without its ``hydra`` node.
        program: a key of ``SCHEMAS``.

    Raises:
        UserError: with the first problems and the number of the others.
    """
    _refuse(problems(cfg, program))


def _refuse(found: Sequence[str]) -> None:
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise UserError("\n".join([*found[:SHOWN], *more]))


#: Interpolations that only the running program knows, or that would import torch to look for a GPU.
_LATE = re.compile(r"\$\{(hydra:|workers:|uses_cuda:|paths\.output\})")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class _Check:
    """One look at a config.

    Attributes:
        wrong: messages for settings that are missing or do not follow their rule, by key.
    """

    def __init__(self, cfg: DictConfig, program: str) -> None:
        self.wrong: dict[str, str] = {}
        self._cfg, self._program = cfg, program
        self._unread: dict[str, str | None] = {}  # settings that nothing reads, and the target that they stand beside
        self._read: list[str] = []
        self._values: dict[str, Any] = {}
        self._references: dict[str, list[str]] = {}

        schema = SCHEMAS[program]
        recipe = {name for name, part in schema.items() if part is SAMPLE_RECIPE.get(name)}
        node: Any = OmegaConf.to_container(cfg, resolve=False)
        self._mapping({**schema, "hydra": UNUSED}, "", node, required=schema.keys() - recipe)
        for key, words in conflicts(self._values, program):
            self.wrong.setdefault(key, f"{key}={_shown(self._values[key])}: {words}")
        for key, origins in self._references.items():  # reported where the value comes from
            if any(f"{origin}.".startswith(f"{other}.") for origin in origins for other in {*self.wrong} - {key}):
                self.wrong.pop(key, None)

    def unknown(self) -> list[str]:
        """Messages for settings that nothing reads."""
        return [_no_such(key, self._program, target, self._read) for key, target in self._unread.items()]

    def _mapping(
        self,
        keys: Mapping[str, Schema],
        prefix: str,
        node: Mapping[str, Any],
        required: Collection[str],
        target: str | None = None,
    ) -> None:
        """Check a mapping of known keys; ``target`` is what it makes."""
        self._read += [prefix + name for name, schema in keys.items() if isinstance(schema, Rule) and name[0] != "_"]
        for name, raw in node.items():
            if name in keys:
                self._setting(keys[name], f"{prefix}{name}", raw)
            elif target is None or target in TARGETS:
                self._unread[f"{prefix}{name}"] = target
        for name in keys:
            if name in required and name not in node:
                self.wrong[prefix + name] = _absent(prefix + name, keys[name])

    def _setting(self, schema: Schema, key: str, raw: Any) -> None:
        """Check one setting; ``raw`` is plain Python with its interpolations."""
        if schema is UNUSED:
            return
        if raw == "???":
            self.wrong[key] = _absent(key, schema)
        elif (isinstance(raw, str) or isinstance(schema, Rule)) and "${" in str(raw):
            self._interpolation(schema, key, raw)
        elif isinstance(schema, Each) and isinstance(raw, schema.container):
            for name, part in raw.items() if isinstance(raw, dict) else enumerate(raw):
                self._setting(schema.item, f"{key}.{name}", part)
        elif isinstance(schema, Rule | Each) or not isinstance(raw, dict):
            self._value(schema, key, raw)
        elif not isinstance(schema, Component):
            self._mapping(schema, f"{key}.", raw, required=schema)
        elif "_target_" not in raw:
            self.wrong[key] = _absent(key, schema)
        else:
            target = str(raw["_target_"])
            keys = {**INSTANTIATED, **schema.keys, **TARGETS.get(target, {})}
            complete = schema.complete and target in TARGETS
            self._mapping(keys, f"{key}.", raw, required=schema.keys if complete else (), target=target)

    def _interpolation(self, schema: Schema, key: str, raw: Any) -> None:
        """Check what an interpolation gives; a mapping is checked where it is."""
        if _LATE.search(str(raw)):
            return
        self._references[key] = _REFERENCE.findall(str(raw))
        try:
            value = OmegaConf.select(self._cfg, key, throw_on_missing=True)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=isinstance(schema, Rule))
        except OmegaConfBaseException as error:
            self.wrong[key] = f"{key}={_shown(raw)}: {first_line(error)}"
            return
        if isinstance(schema, Rule) or not isinstance(value, dict | list):
            self._value(schema, key, value)

    def _value(self, schema: Schema, key: str, value: Any) -> None:
        """Check a value that is no container, or one that a rule is about."""
        rule = schema if isinstance(schema, Rule) else getattr(schema, "other", None)
        if rule is not None and rule.accepts(value):
            self._values[key] = value
            return
        hint = ""
        if value and isinstance(value, str) and _shown(value) == f"'{value}'":
            hint = ", without quotes"
        elif isinstance(value, float) and not math.isfinite(value):
            hint = ", and finite"
        elif type(value) in (int, float) and rule is not None and rule.accepts(str(value)):
            hint = f""", as text: "'{value}'\""""
        expected = schema if isinstance(schema, Rule | Component | Each) else "a mapping"
        self.wrong[key] = f"{key}={_shown(value)}: expected {expected}{hint}"


def _choices(group: str, *folders: str) -> list[str]:
    """Names of the files in a group's folder."""
    return sorted({file.stem for folder in (CONF, *folders) for file in Path(folder, group).glob("*.yaml")})


def _absent(key: str, schema: Schema) -> str:
    """Message for a setting that is missing, or a mapping that makes nothing."""
    if isinstance(schema, Rule):
        return f"{key} is required: {key}={schema.example}"
    if choices := _choices(key):
        return f"{key}: no value given; expected {key}={_listed(choices, 'or')}"
    group, _, name = key.rpartition(".")
    if name in _choices(group):
        return f"{key}: no value given; expected {group}={name}"
    return f"{key}: expected {schema}"


def _no_such(key: str, program: str, target: Any, read: Sequence[str]) -> str:
    """Message for a setting that nothing reads: what does, or which is near."""
    name = key.rpartition(".")[2]
    module, _, owner = str(target).rpartition(".")
    others = [of.rpartition(".")[2] for of in TARGETS if name in TARGETS[of] and of.rpartition(".")[0] == module]
    if not others:
        owner, others = program, [other for other in SCHEMAS if _has(SCHEMAS[other], key.split("."))]
    if others:
        return f"{key}: no such setting of {owner}; {_listed(others, 'and')} {'have' if others[1:] else 'has'} it"

    def likeness(other: str) -> tuple[float, float]:
        last = other.rpartition(".")[2]
        whole, part = (difflib.SequenceMatcher(None, *pair).ratio() for pair in ((key, other), (name, last)))
        return max(whole, part, 0.8 * (name in last.split("_"))), whole

    near = max(read, key=likeness)
    return f"{key}: no such setting; " + (f"did you mean {near}?" if likeness(near)[0] > 0.7 else "--cfg job shows all")


def _has(schema: Schema, names: Sequence[str]) -> bool:
    """Whether a schema has the key of these names."""
    if not names:
        return True
    keys = schema.keys if isinstance(schema, Component) else schema
    return isinstance(keys, Mapping) and names[0] in keys and _has(keys[names[0]], names[1:])


def require_valid_command(program: str, arguments: Sequence[str]) -> DictConfig | None:
    """Refuse a command line before Hydra reads it, and before anything is written.

    What Hydra refuses in good words (an unknown choice of a group, a malformed override) is left to it. Its advice on a
    key that no config has is to append the key, which nothing would read.

    Args:
        program: a key of ``SCHEMAS``.
        arguments: ``sys.argv[1:]``.

    Returns:
        The config of a single run, with its ``hydra`` node; None where Hydra itself has to compose one, or to refuse.

    Raises:
        UserError: a setting that is unknown, missing, or does not follow its rule; or Hydra cannot work in this folder.
    """
    _require_working_folder()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-path", "-cp", default=CONF)
    parser.add_argument("--config-name", "-cn", default=program)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--package", "-p")
    options, rest = parser.parse_known_args(arguments)
    words = [word for word in rest if not word.startswith("-")]
    flags = {word for word in rest if word.startswith("-")}
    asks = options.cfg is not None or not flags <= {"-m", "--multirun", "-r", "--run"}
    completes = flags & {"-sc", "--shell-completion"}  # whose words are no settings
    if (asks and not words) or completes or not Path(options.config_path).is_absolute():
        return None
    folders = [options.config_path, *([str(Path(options.config_dir).absolute())] if options.config_dir else [])]
    search = [f"hydra.searchpath=[file://{folder}]" for folder in folders[1:]]
    refused = None
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        _refuse(_no_choices(overrides, folders))
        with initialize_config_dir(folders[0], job_name=program, version_base="1.3"):
            single = [_single(override) for override in overrides]
            try:
                cfg = compose(options.config_name, search + single, return_hydra_config=True)
            except ConfigCompositionException as error:
                refused = getattr(error.__cause__, "full_key", None)
                forced = [f"++{one}" if _sets(o, folders) else one for o, one in zip(overrides, single, strict=True)]
                cfg = compose(options.config_name, search + forced, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, OSError):
        return None
    check = _Check(cfg, program)
    swept = {override.key_or_group for override in overrides if override.is_sweep_override()}  # each job is checked
    _refuse(check.unknown() + [said for key, said in check.wrong.items() if not asks and key not in swept])
    for word in words:
        if refused is not None and f"{word.partition('=')[0]}.".startswith(f"{refused}."):
            raise UserError(f"{refused}: not in this config; to add it: +{word}")
    is_single_run = not asks and not flags & {"-m", "--multirun"} and cfg.hydra.mode != RunMode.MULTIRUN
    return cfg if is_single_run and search + single == words and refused is None else None


def _require_working_folder() -> None:
    """Refuse to start where Hydra ends with a traceback."""
    try:
        here = str(Path.cwd())
    except OSError as error:
        raise UserError(f"the working folder cannot be read ({error.strerror}); start from another") from None
    if "${" in here:
        raise UserError(
            f"Hydra reads ${{…}} in the name of the working folder as a setting: {here}\nstart from another"
        )


def _no_choices(overrides: Sequence[Override], folders: Sequence[str]) -> list[str]:
    """Messages for groups that are given no name: Hydra ends with a traceback."""
    return [
        f"{o.input_line}: expected {_listed(_choices(o.key_or_group, *folders), 'or')}"
        for o in overrides
        if _is_group(o, folders) and not (o.is_delete() or o.is_sweep_override())
        if not isinstance(o.value(), str | list | dict)
    ]


def _is_group(override: Override, folders: Sequence[str]) -> bool:
    return any(Path(folder, override.key_or_group).is_dir() for folder in folders)


def _sets(override: Override, folders: Sequence[str]) -> bool:
    """Whether an override, without a plus, sets a value of the program's config."""
    plain = override.type is OverrideType.CHANGE and not override.key_or_group.startswith("hydra.")
    return plain and (isinstance(override.value(), dict) or not _is_group(override, folders))


def _single(override: Override) -> str:
    """An override with the first value of its sweep."""
    if not override.is_sweep_override():
        return str(override.input_line)
    sweep = override.value()
    first = sweep.start if isinstance(sweep, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


def entry_point(
    program: str, complete: Callable[[Sequence[str]], list[str]] = list
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a task the entry point of a program: a Hydra application with checked settings and short errors.

    Args:
        program: a key of ``SCHEMAS``, and the name of its config.
        complete: adds to the arguments of the command line what they imply.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def job(cfg: DictConfig) -> Any:
            require_valid(cfg, program)
            return task(cfg)

        application = hydra.main(version_base="1.3", config_path=CONF, config_name=program)(
            logged(shown_without_traceback(job))
        )

        @functools.wraps(task)
        def main() -> None:
            with errors.program():
                sys.argv[1:] = complete(sys.argv[1:])
                with compat.composed_already(require_valid_command(program, sys.argv[1:])):
                    application()

        return main

    return decorate
