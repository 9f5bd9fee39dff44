"""One description of a checkpoint: keys, types, lengths, shapes and bounds, checked before anything loaded is used.

The description is a table in the shape of the checkpoint, made of the same rules as that of the settings
(:mod:`fish_lightning.settings`); relations between entries, such as the number of labels and that of images, follow it.
:data:`CHECKPOINT` is what evaluation and prediction read, :data:`RESUMABLE` what a resumed run reads besides.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from fish_lightning import compat
from fish_lightning.data.catalog import SPLITS
from fish_lightning.errors import UserError, first_line
from fish_lightning.evaluation.arrays import DIVERGED
from fish_lightning.models.ensemble import EnsembleNetwork
from fish_lightning.models.network import AUXILIARY, PREFIX, build_network, non_finite
from fish_lightning.models.optimizers import parameter_groups
from fish_lightning.models.timm_networks import NotInstalled
from fish_lightning.models.whitelist import pipeline_fault
from fish_lightning.settings.rules import (
    ANYTHING,
    COUNT,
    FLAG,
    NON_NEGATIVE,
    NULL,
    PRECISION,
    PROBABILITY,
    SEED,
    TEXT,
    Rule,
    number,
)

#: A rule, or a dict of descriptions; a key that ends in ``?`` may be missing.
Description: TypeAlias = "Rule | Mapping[str, Description]"


def list_of(item: Rule, words: str, least: int = 0) -> Rule:
    """Return a rule for lists (or tuples, which a checkpoint keeps) of at least ``least`` items."""
    return Rule((words,), lambda v: isinstance(v, list | tuple) and len(v) >= least and all(map(item.accepts, v)))


def dict_of(item: Rule, words: str, least: int = 0) -> Rule:
    """Return a rule for dicts from text to items."""
    return Rule(
        (words,),
        lambda v: (
            isinstance(v, dict) and len(v) >= least and all(map(TEXT.accepts, v)) and all(map(item.accepts, v.values()))
        ),
    )


def like(part: torch.Tensor) -> Rule:
    """Return a rule for tensors with the shape of ``part``, of numbers if it is floating-point, else of integers."""
    noun = "numbers" if part.is_floating_point() else "integers"
    return Rule(
        (f"{noun} of shape {tuple(part.shape)}",),
        lambda v: TENSOR.accepts(v) and v.shape == part.shape and v.is_floating_point() == part.is_floating_point(),
    )


ANY_TEXT = Rule(("text",), lambda v: isinstance(v, str) and "\0" not in v)
NAME = Rule(("text that is not empty",), lambda v: ANY_TEXT.accepts(v) and v != "")
FLOAT = Rule(("a number",), lambda v: type(v) in (int, float))  # also NaN
TENSOR = Rule(
    ("a tensor",), lambda v: isinstance(v, torch.Tensor) and v.layout is torch.strided and v.device.type == "cpu"
)
SCORE = FLOAT | NULL
DICT = Rule(("a dict",), lambda v: isinstance(v, dict))
CLASSES = Rule(("at least two different names",), lambda v: list_of(NAME, "", 2).accepts(v) and len(set(v)) == len(v))
MEAN = Rule(("three numbers",), lambda v: list_of(number(), "", 3).accepts(v) and len(v) == 3)
STD = Rule(("three numbers above 0",), lambda v: MEAN.accepts(v) and min(v) > 0)
PIPELINE = Rule(("a pipeline of allowed transforms that ends in ToTensorV2",), lambda v: pipeline_fault(v) is None)
INDICES = list_of(NON_NEGATIVE, "a list of indices")
SUMS = list_of(list_of(FLOAT, ""), "a list of sums and numbers of images")

MEMBER: dict[str, Description] = {"name": TEXT, "mean": MEAN, "std": STD}
MEMBERS = Rule(
    ("at least two dicts of name, mean and std",),
    lambda v: list_of(DICT, "", 2).accepts(v) and not any(next(undescribed(of, MEMBER), "") for of in v),
)

CHECKPOINT: dict[str, Description] = {
    "state_dict": dict_of(TENSOR, "a dict of tensors", 1),
    "hyper_parameters": {
        "class_names": CLASSES,
        "name": TEXT,
        "eval_transform": PIPELINE,
        "mean?": MEAN,
        "std?": STD,
        "label_smoothing?": PROBABILITY,
        "channels_last?": FLAG,
        "compile?": FLAG,
        "members?": MEMBERS | NULL,
    },
    "FishDataModule": {
        "catalog": {
            "root": NAME,
            "classes": CLASSES,
            "paths": list_of(NAME, "a list of at least one path", 1),
            "labels": list_of(NON_NEGATIVE, "a list of integers of at least 0"),
            "photographs": list_of(ANY_TEXT, "a list of text"),
            "splits": list_of(Rule((), lambda v: v in (*SPLITS, "")), "a list of train, val, test and empty text"),
        },
        "files?": TENSOR,
        "split": TEXT,
        "next": {"epoch": NON_NEGATIVE, "batches": NON_NEGATIVE},
        "seed": SEED,
        "batch_size": COUNT,
        "processes": COUNT,
    },
    "precision": PRECISION,
    "unreadable?": INDICES,
    "train_loss?": SUMS,
    "train_accuracy?": SUMS,
}


RESUMABLE: dict[str, Description] = {
    "epoch": NON_NEGATIVE,
    "global_step": NON_NEGATIVE,
    "pytorch-lightning_version": TEXT,
    "optimizer_states": list_of(DICT, "a list of states", 1),
    "lr_schedulers": list_of(
        Rule((), lambda v: isinstance(v, dict) and NON_NEGATIVE.accepts(v.get("last_epoch"))), "a list of states"
    ),
    "loops": compat.LOOPS,
    "callbacks": dict_of(DICT, "a dict of states", 1),
    "next_row?": dict_of(FLOAT, "a dict of numbers"),
}

#: By name, without the arguments that Lightning adds; those of other callbacks are not described.
CALLBACKS: dict[str, Description] = {
    "SameConfig": {"settings": dict_of(ANYTHING, "a dict of settings")},
    "History": {
        "rows": list_of(dict_of(SCORE, ""), "a list of epochs"),
        **dict.fromkeys(("seconds", "train_seconds", "seconds_before_epoch"), number("[0, inf)")),
        "train_images": NON_NEGATIVE,
        "validated": dict_of(SCORE, "a dict of scores"),
    },
    "NonFiniteLoss": {"skipped": NON_NEGATIVE},
    "ResumableEarlyStopping": {
        "wait_count": NON_NEGATIVE,
        "stopped_epoch": NON_NEGATIVE,
        "best_score": TENSOR,
        "patience": NON_NEGATIVE,
        "stopping_reason?": number("[0, 4]", "an integer", int),
    },
    "BestCheckpoint": {
        "monitor": TEXT | NULL,
        **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), ANY_TEXT),
        "best_model_score": TENSOR | NULL,
        "current_score": TENSOR | NULL,
        "best_k_models": dict_of(TENSOR, "a dict of scores"),
        "kth_value": TENSOR | NULL,
        "best_tie_breaker": SCORE,
        "best_epoch": NON_NEGATIVE | NULL,
        "best_metrics": dict_of(FLOAT, "a dict of scores"),
    },
}
GROUP = Rule((), lambda v: DICT.accepts(v) and FLOAT.accepts(v.get("lr")) and INDICES.accepts(v.get("params")))
GROUPS = list_of(GROUP, "a list of settings with params and lr")
STEP = Rule(("a number",), lambda v: (TENSOR | FLOAT).accepts(v) and torch.as_tensor(v).numel() == 1)
#: What an optimizer keeps for each weight, in its shape, by the setting of a group that makes it.
_KEPT = {
    "betas": ("exp_avg", "exp_avg_sq"),
    "amsgrad": ("max_exp_avg_sq",),
    "alpha": ("square_avg",),
    "centered": ("grad_avg",),
    "momentum": ("momentum_buffer",),
}


def require_well_formed(checkpoint: dict[str, Any], file: Any, resumable: bool = False) -> None:
    """Check a checkpoint against the description.

    Args:
        checkpoint: loaded checkpoint.
        file: path of the checkpoint, for the error message.
        resumable: whether a run is to be resumed from it.

    Raises:
        UserError: names the first entry that is missing or not as described, or weights that are NaN or infinite; or
            the network is one of timm's, which is not installed.
    """
    for fault in _faults(checkpoint, resumable):
        raise UserError(f"ckpt: {file} is corrupt or incomplete ({fault})")
    bad = non_finite(checkpoint["state_dict"])
    if bad:
        raise UserError(f"ckpt: {file} contains NaN or infinite weights ({bad})\n{DIVERGED}")


def _faults(checkpoint: dict[str, Any], resumable: bool) -> Iterator[str]:
    """Yield what is wrong; each part may rely on those before it."""
    yield from undescribed(checkpoint, CHECKPOINT)
    yield from undescribed(checkpoint, _related(checkpoint))
    arguments, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    try:
        with torch.device("meta"):  # names and shapes only
            members, classes = arguments.get("members"), len(arguments["class_names"])
            network = EnsembleNetwork(members, classes) if members else build_network(arguments["name"], classes, None)
    except NotInstalled:
        raise
    except UserError as error:
        yield f"hyper_parameters.name: {first_line(error)}"
        return
    expected = {PREFIX + name: like(part) for name, part in network.state_dict().items()}
    yield from (f"state_dict.{name} belongs to another network" for name in sorted(weights.keys() - expected.keys()))
    yield from undescribed(weights, expected, "state_dict")
    if resumable:
        yield from undescribed(checkpoint, RESUMABLE)
        callbacks = compat.callback_states(checkpoint)
        known = {name: of for name, of in CALLBACKS.items() if name in callbacks or name == "SameConfig"}
        yield from undescribed(callbacks, known, "callbacks")
        began = callbacks["SameConfig"]["settings"]
        if began.get("model.name", arguments["name"]) != arguments["name"]:
            yield "hyper_parameters.name: expected model.name of the settings"
        frozen = began.get("callbacks.freeze._target_") is not None
        weights = _in_groups(network, began.get("optimizer.layer_decay"), began.get("optimizer.decay_norms", True))
        yield from _optimizer(checkpoint, callbacks.get("NonFiniteLoss", {}).get("skipped", 0), weights, frozen)


def undescribed(value: Any, description: Description, where: str = "") -> Iterator[str]:
    """Yield the entries of ``value`` that are missing or break their rule."""
    if isinstance(description, Rule):
        if not description.accepts(value):
            yield f"{where}: expected {description}"
    elif not isinstance(value, dict):
        yield f"{where}: expected a dict"
    else:
        for key, of in description.items():
            name = key.removesuffix("?")
            path = f"{where}.{name}" if where else name
            if name in value:
                yield from undescribed(value[name], of, path)
            elif name == key:
                yield f"{path} is missing"


def _related(checkpoint: dict[str, Any]) -> Description:
    """Return the description of what follows from the number of images, classes or processes."""
    data, names = checkpoint["FishDataModule"], list(checkpoint["hyper_parameters"]["class_names"])
    images, processes = len(data["catalog"]["paths"]), data["processes"]
    entries = Rule((f"{images} entries",), lambda v: len(v) == images)
    pairs = Rule((f"{processes} pairs of numbers, one for each process",), lambda v: [*map(len, v)] == [2] * processes)
    return {
        "FishDataModule": {
            "catalog": {
                "classes": Rule(("those of hyper_parameters.class_names",), lambda v: list(v) == names),
                "labels": Rule(
                    (f"{images} integers from 0 to {len(names) - 1}",),
                    lambda v: len(v) == images and max(v) < len(names),
                ),
                "photographs": entries,
                "splits": entries,
            },
            "files?": Rule(
                (f"integers of shape {(images, 2)}",), lambda v: v.shape == (images, 2) and v.dtype == torch.int64
            ),
        },
        "unreadable?": Rule((f"integers from 0 to {images - 1}",), lambda v: max(v, default=0) < images),
        "train_loss?": pairs,
        "train_accuracy?": pairs,
    }


def _in_groups(network: nn.Module, layer_decay: Any, decay_norms: Any) -> list[tuple[str, nn.Parameter]]:
    """Return the weights of the network in the order of the optimizer's parameter groups, which numbers them."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    groups = parameter_groups(network, 1.0, layer_decay, bool(decay_norms))
    return [(names[id(weight)], weight) for group in groups for weight in group["params"]]


def _optimizer(
    checkpoint: dict[str, Any], skipped: int, weights: list[tuple[str, nn.Parameter]], frozen: bool
) -> Iterator[str]:
    """Yield what an optimizer's state lacks for the weights of the network; there is none for frozen ones."""
    indices = list(range(len(weights)))
    described = {
        "param_groups": GROUPS,
        "state": Rule(
            (f"a dict for each of {len(weights)} weights",),
            lambda v: DICT.accepts(v) and v.keys() <= {*indices} and all(map(DICT.accepts, v.values())),
        ),
    }
    for place, optimizer in enumerate(checkpoint["optimizer_states"]):
        where = f"optimizer_states.{place}"
        yield from undescribed(optimizer, described, where)
        groups, states = optimizer["param_groups"], optimizer["state"]
        if sorted(index for group in groups for index in group["params"]) != indices:
            yield f"{where}.param_groups: expected each of {len(weights)} weights once"
        for group in groups:
            kept = [name for setting, names in _KEPT.items() if group.get(setting) for name in names]
            if kept and not states and checkpoint["global_step"] > skipped:
                yield f"{where}.state is empty"
            for index in group["params"]:
                name, weight = weights[index]
                if index in states:
                    yield from _state_of_weight(states[index], kept, weight, f"{where}.state.{index}")
                elif kept and states and not frozen and not name.startswith(AUXILIARY):
                    yield f"{where}.state.{index} is missing ({name})"


def _state_of_weight(state: dict[str, Any], kept: list[str], weight: torch.Tensor, where: str) -> Iterator[str]:
    """Yield what is wrong with the state that an optimizer keeps for a weight."""
    yield from undescribed(state, {"step?": STEP, **dict.fromkeys(kept, like(weight))}, where)
    yield from (f"{where}.{name} contains NaN" for name in kept if state[name].isnan().any())
