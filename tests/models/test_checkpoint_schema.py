"""What is wrong with a checkpoint is found before anything in it is used: each entry of the description has a row."""

import copy
import math

import pytest
import torch

from fish_lightning.errors import UserError
from fish_lightning.models.checkpoint import load_checkpoint
from fish_lightning.models.checkpoint_schema import require_well_formed
from fish_lightning.models.network import PREFIX, build_network
from fish_lightning.models.whitelist import MAX_SIZE

GONE = object()
HUGE = 200_000
NETWORK = "state_dict.network.conv1.0.weight"
DATA, CATALOG = "FishDataModule", "FishDataModule.catalog"
PIPELINE = "hyper_parameters.eval_transform"
FIT, OPTIMIZER = "loops.fit_loop", "optimizer_states.0"


@pytest.fixture(scope="module")
def file(trained):
    return trained.folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def whole(file):
    return torch.load(file, weights_only=True)


def changed(node, keys, value):
    """Return ``node`` with another entry at ``keys``; a callable makes it from the present one."""
    if not keys:
        return value(node) if callable(value) else value
    node, (first, *rest) = copy.copy(node), keys
    if value is GONE and not rest:
        del node[first]
    else:
        node[first] = changed(node[first], rest, value)
    return node


def path_of(checkpoint, where):
    """Return the keys of ``a.b.c``, of which some have dots in them; callbacks are named without arguments."""
    keys, node, parts = [], checkpoint, where.split(".")
    while parts:
        for count in range(len(parts), 0, -1):
            name = ".".join(parts[:count])
            if isinstance(node, list):
                key = int(name) if name.isdigit() else None
            else:
                known = [k for k in node if k == name or str(k) == name or str(k).partition("{")[0] == name]
                key = known[0] if known else None
            if key is not None:
                break
        assert key is not None, f"no entry {where}"
        node, parts = node[key], parts[count:]
        keys.append(key)
    return keys


def message(checkpoint, resumable):
    with pytest.raises(UserError) as raised:
        require_well_formed(checkpoint, "last.ckpt", resumable)
    return str(raised.value)


#: Entry, what it is replaced by, and the words about it, where they are not "ENTRY: expected …".
ALWAYS = [
    ("state_dict", {}, ""),
    ("state_dict", [1], ""),
    (NETWORK, GONE, f"{NETWORK} is missing"),
    (NETWORK, "text", "state_dict: expected a dict of tensors"),
    (NETWORK, torch.zeros(3), "expected numbers of shape (24, 3, 3, 3)"),
    (NETWORK, torch.zeros(24, 3, 3, 3, dtype=torch.int64), "expected numbers of shape"),
    (NETWORK, torch.zeros(24, 3, 3, 3).to_sparse(), "state_dict: expected a dict of tensors"),
    (NETWORK, torch.zeros(24, 3, 3, 3, device="meta"), "state_dict: expected a dict of tensors"),
    ("state_dict", lambda weights: weights | {"network.more": torch.zeros(1)}, "network.more belongs to another"),
    ("hyper_parameters", {}, "hyper_parameters.class_names is missing"),
    ("hyper_parameters", [1], "hyper_parameters: expected a dict"),
    ("hyper_parameters.class_names", [1, 2, 3], "expected at least two different names"),
    ("hyper_parameters.class_names", ["a", "a", "b"], "expected at least two different names"),
    ("hyper_parameters.class_names", ["a", ["b"], "c"], "expected at least two different names"),
    ("hyper_parameters.class_names", "abc", ""),
    ("hyper_parameters.class_names", ["a", "b"], f"{CATALOG}.classes: expected those of hyper_parameters"),
    ("hyper_parameters.name", 5, ""),
    ("hyper_parameters.name", "resnet", "hyper_parameters.name: model.name: torchvision has no"),
    ("hyper_parameters.mean", [0.5], "expected three numbers"),
    ("hyper_parameters.std", [0.5, 0.5, 0.0], "expected three numbers above 0"),
    ("hyper_parameters.label_smoothing", 2, "expected a number in [0, 1]"),
    ("hyper_parameters.channels_last", "yes", ""),
    (PIPELINE, None, ""),
    (PIPELINE, {"a": 1}, ""),
    (f"{PIPELINE}.transform.transforms", [], PIPELINE),
    (f"{PIPELINE}.transform.transforms", 5, PIPELINE),
    (f"{PIPELINE}.transform.transforms.0", "Resize", PIPELINE),
    (f"{PIPELINE}.transform.transforms.0.__class_fullname__", "TextImage", PIPELINE),
    (f"{PIPELINE}.transform.transforms.0.height", HUGE, PIPELINE),
    (f"{PIPELINE}.transform.transforms.0.width", HUGE, PIPELINE),
    (DATA, [], ""),
    (CATALOG, GONE, f"{CATALOG} is missing"),
    (f"{CATALOG}.root", None, ""),
    (f"{CATALOG}.root", "a\0b", ""),
    (f"{CATALOG}.paths", [], "expected a list of at least one path"),
    (f"{CATALOG}.paths", lambda paths: paths[1:], f"{CATALOG}.labels: expected 35 integers from 0 to 2"),
    (f"{CATALOG}.paths", lambda paths: [None, *paths[1:]], ""),
    (f"{CATALOG}.labels", lambda labels: labels[1:], "expected 36 integers from 0 to 2"),
    (f"{CATALOG}.labels", lambda labels: [3, *labels[1:]], "expected 36 integers from 0 to 2"),
    (f"{CATALOG}.labels", lambda labels: [-1, *labels[1:]], ""),
    (f"{CATALOG}.labels", lambda labels: ["0", *labels[1:]], ""),
    (f"{CATALOG}.labels", [], "expected 36 integers"),
    (f"{CATALOG}.splits", lambda splits: splits[1:], "expected 36 entries"),
    (f"{CATALOG}.splits", lambda splits: ["exam", *splits[1:]], ""),
    (f"{CATALOG}.photographs", lambda names: names[1:], "expected 36 entries"),
    (f"{CATALOG}.photographs", 1.0, ""),
    (f"{CATALOG}.classes", ["class a", "class b", 3], ""),
    (f"{DATA}.split", None, ""),
    (f"{DATA}.files", lambda files: files[1:], f"{DATA}.files: expected integers of shape (36, 2)"),
    (f"{DATA}.files", [(1, 2)], ""),
    (f"{DATA}.seed", GONE, f"{DATA}.seed is missing"),
    (f"{DATA}.seed", -1, "expected an integer in [0, 4294967295]"),
    (f"{DATA}.batch_size", 0, "expected an integer of at least 1"),
    (f"{DATA}.batch_size", "4", ""),
    (f"{DATA}.batch_size", True, ""),
    (f"{DATA}.processes", 0, ""),
    (f"{DATA}.next", {"epoch": 1}, f"{DATA}.next.batches is missing"),
    (f"{DATA}.next.epoch", -1, ""),
    ("precision", "13-true", ""),
    ("unreadable", [36], "expected integers from 0 to 35"),
    ("unreadable", None, ""),
    ("train_loss", [(1.0,)], "expected 1 pairs of numbers"),
    ("train_loss", [(1.0, "a")], ""),
    ("train_accuracy", [], "expected 1 pairs of numbers"),
]
RESUMED = [
    ("epoch", None, ""),
    ("global_step", "14", ""),
    ("global_step", 1.5, ""),
    ("pytorch-lightning_version", GONE, "pytorch-lightning_version is missing"),
    ("optimizer_states", [], ""),
    ("optimizer_states", [{}], f"{OPTIMIZER}.param_groups is missing"),
    (f"{OPTIMIZER}.param_groups", [1], f"{OPTIMIZER}.param_groups: expected"),
    (f"{OPTIMIZER}.state", {}, f"{OPTIMIZER}.state is empty"),
    (f"{OPTIMIZER}.state", [1], f"{OPTIMIZER}.state: expected a dict for each of"),
    (f"{OPTIMIZER}.state", lambda state: state | {999: {}}, f"{OPTIMIZER}.state: expected a dict for each of"),
    (f"{OPTIMIZER}.state.0", GONE, f"{OPTIMIZER}.state.0 is missing (conv1.0.weight)"),
    (f"{OPTIMIZER}.state.0", {}, f"{OPTIMIZER}.state.0.exp_avg is missing"),
    (f"{OPTIMIZER}.state.0.exp_avg", GONE, f"{OPTIMIZER}.state.0.exp_avg is missing"),
    (f"{OPTIMIZER}.state.0.exp_avg", torch.zeros(2), "expected numbers of shape (24, 3, 3, 3)"),
    (f"{OPTIMIZER}.state.0.exp_avg_sq", 0.5, "expected numbers of shape (24, 3, 3, 3)"),
    (f"{OPTIMIZER}.state.0.exp_avg_sq", lambda part: part * math.nan, f"{OPTIMIZER}.state.0.exp_avg_sq contains NaN"),
    (f"{OPTIMIZER}.state.0.step", "two", ""),
    (f"{OPTIMIZER}.state.0.step", torch.zeros(3), ""),
    (f"{OPTIMIZER}.param_groups", [], "expected each of"),
    (f"{OPTIMIZER}.param_groups.0.lr", "fast", f"{OPTIMIZER}.param_groups: expected"),
    (f"{OPTIMIZER}.param_groups.0.params", [0, 0], f"{OPTIMIZER}.param_groups: expected each of"),
    ("lr_schedulers", None, ""),
    ("lr_schedulers", [{}], ""),
    ("loops", {}, "loops.fit_loop is missing"),
    (f"{FIT}.epoch_progress.current.processed", "1", ""),
    (f"{FIT}.epoch_loop.batch_progress.current", {}, f"{FIT}.epoch_loop.batch_progress.current.ready is missing"),
    (f"{FIT}.epoch_loop.state_dict._batches_that_stepped", None, ""),
    (f"{FIT}.epoch_loop.val_loop.batch_progress.is_last_batch", "no", ""),
    (f"{FIT}.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.ready", -1, ""),
    ("callbacks", {}, ""),
    ("callbacks.SameConfig", GONE, "callbacks.SameConfig is missing"),
    ("callbacks.SameConfig.settings", [1], ""),
    ("callbacks.SameConfig.settings.model.name", "resnet18", "hyper_parameters.name: expected model.name of the"),
    ("callbacks.History", [], "callbacks: expected a dict of states"),
    ("callbacks.History.rows", "text", ""),
    ("callbacks.History.rows", [{"epoch": "1"}], ""),
    ("callbacks.History.seconds", None, ""),
    ("callbacks.History.validated", 3, ""),
    ("callbacks.NonFiniteLoss.skipped", None, ""),
    ("callbacks.BestCheckpoint.best_k_models", [], ""),
    ("callbacks.BestCheckpoint.best_model_path", None, ""),
    ("callbacks.BestCheckpoint.best_epoch", "one", ""),
    ("callbacks.BestCheckpoint.best_metrics", {"val/accuracy": "high"}, ""),
    ("next_row", [1], ""),
    ("next_row", {"train/loss": "low"}, ""),
]


@pytest.mark.parametrize(
    ("where", "value", "words", "resumable"),
    [(*row, False) for row in ALWAYS] + [(*row, True) for row in RESUMED],
)
def test_what_is_not_as_described_is_named(whole, where, value, words, resumable):
    text = message(changed(whole, path_of(whole, where), value), resumable)
    assert text.startswith("ckpt: last.ckpt is corrupt or incomplete (") and len(text.splitlines()) == 1
    assert (words or f"({where}: expected") in text, text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_nan_or_infinite_are_refused(whole, value, tmp_path):
    weight = whole["state_dict"]["network.fc.bias"].clone()
    weight[0] = value
    bad = changed(whole, path_of(whole, "state_dict.network.fc.bias"), weight)
    torch.save(bad, tmp_path / "best.ckpt")
    with pytest.raises(UserError) as raised:
        load_checkpoint(tmp_path / "best.ckpt")
    first, second = str(raised.value).splitlines()
    assert first == f"ckpt: {tmp_path / 'best.ckpt'} contains NaN or infinite weights (network.fc.bias)"
    assert second.startswith("the model diverged in training")


def test_checkpoints_of_runs_are_as_described(trained, whole):
    require_well_formed(whole, "last.ckpt", resumable=True)
    load_checkpoint(trained.folder)
    sgd = changed(whole, path_of(whole, f"{OPTIMIZER}.state"), {})  # without momentum it keeps nothing
    groups = [{"lr": 0.1, "momentum": 0, "params": whole["optimizer_states"][0]["param_groups"][0]["params"]}]
    require_well_formed(changed(sgd, path_of(sgd, f"{OPTIMIZER}.param_groups"), groups), "last.ckpt", resumable=True)
    limit = changed(whole, path_of(whole, f"{PIPELINE}.transform.transforms.0.height"), MAX_SIZE)
    require_well_formed(limit, "last.ckpt")


def test_auxiliary_heads_have_no_state_of_the_optimizer(whole):
    with torch.device("meta"):
        network = build_network("googlenet", 3, None)
    weights = {PREFIX + name: torch.zeros(part.shape, dtype=part.dtype) for name, part in network.state_dict().items()}
    state = {
        index: {"step": torch.tensor(14.0), **dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.zeros(part.shape))}
        for index, (name, part) in enumerate(network.named_parameters())
        if not name.startswith("aux")
    }
    changes = {"state_dict": weights, f"{OPTIMIZER}.state": state, "hyper_parameters.name": "googlenet"}
    changes["callbacks.SameConfig.settings.model.name"] = "googlenet"
    changes[f"{OPTIMIZER}.param_groups.0.params"] = list(range(len(list(network.parameters()))))
    for where, value in changes.items():
        whole = changed(whole, path_of(whole, where), value)
    require_well_formed(whole, "last.ckpt", resumable=True)


@pytest.mark.parametrize("program", ["train", "evaluate", "predict"])
def test_programs_refuse_a_corrupt_checkpoint_in_a_line(trained, train_tiny, run, tiny_data, tmp_path, whole, program):
    torch.save(changed(whole, path_of(whole, f"{DATA}.batch_size"), "4"), tmp_path / "last.ckpt")
    if program == "train":
        done = train_tiny(tmp_path, "ckpt=last.ckpt")
    else:
        done = run(
            program, "ckpt=last.ckpt", "trainer=cpu", *[f"input={tiny_data}"] * (program == "predict"), cwd=tmp_path
        )
    words = f"ckpt: last.ckpt is corrupt or incomplete ({DATA}.batch_size: expected an integer of at least 1)"
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr
