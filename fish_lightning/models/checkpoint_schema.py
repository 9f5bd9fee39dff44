"""One description of a checkpoint: keys, types, lengths, shapes and bounds, checked before anything loaded is used.

The description is a table in the shape of the checkpoint, of the same rules as that of the settings
(:mod:`fish_lightning.settings`); what relates two entries, such as the number of labels to that of images, follows it.
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
            isinstance(v, dict)
            and len(v) >= least
            and all(isinstance(key, str) and item.accepts(part) for key, part in v.items())
        ),
    )


ANY_TEXT = Rule(("text",), lambda v: isinstance(v, str) and "\0" not in v)
NAME = Rule(("text that is not empty",), lambda v: ANY_TEXT.accepts(v) and v != "")
FLOAT = Rule(("a number",), lambda v: type(v) in (int, float))  # also NaN
TENSOR = Rule(
    ("a tensor",), lambda v: isinstance(v, torch.Tensor) and v.layout is torch.strided and v.device.type == "cpu"
)
SCORE = FLOAT | NULL
DICT = Rule(("a dict",), lambda v: isinstance(v, dict))
CLASSES = Rule(
    ("at least two different names",),
    lambda v: list_of(NAME, "", 2).accepts(v) and len(set(v)) == len(v),
)
THREE = Rule(("three numbers",), lambda v: list_of(number(), "", 3).accepts(v) and len(v) == 3)
THREE_POSITIVE = Rule(("three numbers above 0",), lambda v: THREE.accepts(v) and min(v) > 0)
PIPELINE = Rule(("a pipeline of allowed transforms that ends in ToTensorV2",), lambda v: pipeline_fault(v) is None)
SUMS = list_of(list_of(FLOAT, ""), "a list of sums and numbers of images")

MEMBER: dict[str, Description] = {"name": TEXT, "mean": THREE, "std": THREE_POSITIVE}
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
        "mean?": THREE,
        "std?": THREE_POSITIVE,
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
    "unreadable?": list_of(NON_NEGATIVE, "a list of indices"),
    "train_loss?": SUMS,
    "train_accuracy?": SUMS,
}


def _typed(types: Any) -> Description:
    """Return the description of nested counts and flags (:data:`fish_lightning.compat.LOOPS`)."""
    if isinstance(types, dict):
        return {key: _typed(part) for key, part in types.items()}
    return FLAG if types is bool else NON_NEGATIVE


RESUMABLE: dict[str, Description] = {
    "epoch": NON_NEGATIVE,
    "global_step": NON_NEGATIVE,
    "pytorch-lightning_version": TEXT,
    "optimizer_states": list_of(DICT, "a list of states", 1),
    "lr_schedulers": list_of(
        Rule((), lambda v: isinstance(v, dict) and NON_NEGATIVE.accepts(v.get("last_epoch"))), "a list of states"
    ),
    "loops": _typed(compat.LOOPS),
    "callbacks": dict_of(DICT, "a dict of states", 1),
    "next_row?": dict_of(FLOAT, "a dict of numbers"),
}

#: By name, without the arguments that Lightning adds; those of other callbacks are not described.
CALLBACKS: dict[str, Description] = {
    "SameConfig": {
        "settings": Rule(("a dict of settings",), lambda v: isinstance(v, dict) and all(map(TEXT.accepts, v)))
    },
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
        "stopping_reason?": number("[0, 3]", "an integer", int),
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
        checkpoint: what was loaded.
        file: its path, for the error message.
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
    yield from _lengths(checkpoint)
    arguments = checkpoint["hyper_parameters"]
    try:
        with torch.device("meta"):  # names and shapes only
            members, classes = arguments.get("members"), len(arguments["class_names"])
            network = EnsembleNetwork(members, classes) if members else build_network(arguments["name"], classes, None)
    except NotInstalled:
        raise
    except UserError as error:
        yield f"hyper_parameters.name: {first_line(error)}"
        return
    yield from _weights(checkpoint["state_dict"], network)
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


def _lengths(checkpoint: dict[str, Any]) -> Iterator[str]:
    """Yield entries that do not fit the number of images, classes or processes."""
    data = checkpoint["FishDataModule"]
    catalog = data["catalog"]
    images, classes = len(catalog["paths"]), len(catalog["classes"])
    if list(catalog["classes"]) != list(checkpoint["hyper_parameters"]["class_names"]):
        yield "FishDataModule.catalog.classes: expected those of hyper_parameters.class_names"
    if len(catalog["labels"]) != images or max(catalog["labels"]) >= classes:
        yield f"FishDataModule.catalog.labels: expected {images} integers from 0 to {classes - 1}"
    for column in ("photographs", "splits"):
        if len(catalog[column]) != images:
            yield f"FishDataModule.catalog.{column}: expected {images} entries"
    files = data.get("files")
    if files is not None and (files.shape != (images, 2) or files.dtype != torch.int64):
        yield f"FishDataModule.files: expected integers of shape {(images, 2)}"
    if max(checkpoint.get("unreadable", ()), default=0) >= images:
        yield f"unreadable: expected integers from 0 to {images - 1}"
    for name in ("train_loss", "train_accuracy"):
        sums = checkpoint.get(name)
        if sums is not None and [len(pair) for pair in sums] != [2] * data["processes"]:
            yield f"{name}: expected {data['processes']} pairs of numbers, one for each process"


def _weights(weights: dict[str, torch.Tensor], network: nn.Module) -> Iterator[str]:
    """Yield weights that are not those of the network."""
    expected = {PREFIX + name: part for name, part in network.state_dict().items()}
    for name in sorted(weights.keys() ^ expected.keys()):
        yield f"state_dict.{name} " + ("is missing" if name in expected else "belongs to another network")
    for name, part in expected.items():
        found = weights[name]
        if found.shape != part.shape or found.is_floating_point() != part.is_floating_point():
            noun = "numbers" if part.is_floating_point() else "integers"
            yield f"state_dict.{name}: expected {noun} of shape {tuple(part.shape)}"


def _in_groups(network: nn.Module, layer_decay: Any, decay_norms: Any) -> list[tuple[str, nn.Parameter]]:
    """Return the weights of the network in the order of the optimizer's parameter groups, which numbers them."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    if layer_decay is None and decay_norms:
        return [(names[id(weight)], weight) for weight in network.parameters()]
    groups = parameter_groups(network, 1.0, layer_decay, bool(decay_norms))
    return [(names[id(weight)], weight) for group in groups for weight in group["params"]]


def _optimizer(
    checkpoint: dict[str, Any], skipped: int, weights: list[tuple[str, nn.Parameter]], frozen: bool
) -> Iterator[str]:
    """Yield what an optimizer's state lacks for the weights of the network; there is none for frozen ones."""
    indices = list(range(len(weights)))
    stepped = checkpoint["global_step"] > skipped
    for number_, state in enumerate(checkpoint["optimizer_states"]):
        where = f"optimizer_states.{number_}"
        groups, of_weights = state.get("param_groups"), state.get("state")
        if not isinstance(groups, list) or not all(map(_is_group, groups)):
            yield f"{where}.param_groups: expected a list of settings with params and lr"
            return
        if sorted(index for group in groups for index in group["params"]) != indices:
            yield f"{where}.param_groups: expected each of {len(weights)} weights once"
            return
        if not isinstance(of_weights, dict) or not all(
            index in indices and isinstance(part, dict) for index, part in of_weights.items()
        ):
            yield f"{where}.state: expected a dict for each of {len(weights)} weights"
            return
        for group in groups:
            kept = [name for setting, names in _KEPT.items() if group.get(setting) for name in names]
            if kept and stepped and not of_weights:
                yield f"{where}.state is empty"
            for index in group["params"]:
                name, weight = weights[index]
                if index in of_weights:
                    yield from _state_of_weight(of_weights[index], kept, weight.shape, f"{where}.state.{index}")
                elif kept and of_weights and not frozen and not name.startswith(AUXILIARY):
                    yield f"{where}.state.{index} is missing ({name})"


def _state_of_weight(state: dict[str, Any], kept: list[str], shape: torch.Size, where: str) -> Iterator[str]:
    """Yield what is wrong with the state that an optimizer keeps for a weight."""
    steps = state.get("step", 0)
    if not (TENSOR | FLOAT).accepts(steps) or torch.as_tensor(steps).numel() != 1:
        yield f"{where}.step: expected a number"
    for name in kept:
        part = state.get(name)
        if part is None:
            yield f"{where}.{name} is missing"
        elif not TENSOR.accepts(part) or part.shape != shape or not part.is_floating_point():
            yield f"{where}.{name}: expected numbers of shape {tuple(shape)}"
        elif bool(part.isnan().any()):
            yield f"{where}.{name} contains NaN"


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and FLOAT.accepts(group.get("lr"))
        and list_of(NON_NEGATIVE, "").accepts(group.get("params"))
    )
