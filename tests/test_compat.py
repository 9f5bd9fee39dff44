"""Internals of other libraries that ``fish_lightning/compat.py`` relies on.

A test that fails here names what an upgrade has changed, and the version that has changed it.
"""

import ast
import copy
import importlib
import inspect
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import warnings
from functools import reduce
from importlib.metadata import version
from operator import attrgetter

import lightning as L
import pytest
import torch
import torchvision
from helpers import REPOSITORY
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fish_lightning import compat
from fish_lightning.data.dataset import KeyedBatches


def changed(library, what):
    """Return the message of a failing test."""
    return f"{library} {version(library)}: {what} has changed, on which fish_lightning/compat.py relies"


# Lightning: a fit, looked at from inside


class Module(L.LightningModule):
    """Trains on 4 batches and validates after every second one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def train_dataloader(self):
        return DataLoader(torch.randn(4, 2))

    val_dataloader = train_dataloader

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).sum()
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layer(batch).sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(Logger):
    """Notes what is logged among the hooks of ``Hooks``."""

    name = version = ""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def log_metrics(self, metrics, step):
        self.calls.append("log " + " ".join(sorted(set(metrics) - {"epoch"})))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Hooks(L.Callback):
    """Notes the order of hooks, and the trainer's attributes at the end of the second batch, which is saved."""

    def __init__(self, calls, file=None):
        self.calls, self.file, self.seen = calls, file, {}
        self.handlers = None

    def on_train_start(self, trainer, module):
        self.calls.append("on_train_start")
        self.handlers = signal.getsignal(signal.SIGTERM)

    def on_train_epoch_start(self, *_):
        self.calls.append("on_train_epoch_start")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.calls.append(f"on_train_batch_start {batch_idx}")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.calls.append(f"on_train_batch_end {batch_idx}")
        if batch_idx == 1 and self.file:
            for path in ATTRIBUTES:
                try:
                    self.seen[path] = attrgetter(path)(trainer)
                except AttributeError as error:
                    self.seen[path] = error
            self.seen["is_between_steps"] = compat.is_between_steps(trainer, batch_idx)
            self.seen["next_batch"] = compat.next_batch(trainer)
            self.seen["metrics_to_be_logged"] = compat.metrics_to_be_logged(trainer)
            trainer.save_checkpoint(self.file)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        if self.file:
            self.seen["unscheduled"] = {**checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]}
            compat.schedule_pending_validation(trainer, checkpoint)

    def on_validation_start(self, *_):
        self.calls.append("on_validation_start")

    def on_validation_end(self, *_):
        self.calls.append("on_validation_end")

    def on_train_epoch_end(self, *_):
        self.calls.append("on_train_epoch_end")


class Last(Checkpoint):
    """Notes when Lightning calls a ``Checkpoint``."""

    def __init__(self, calls):
        self.calls = calls

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.calls.append(f"checkpoint {batch_idx}")

    def on_train_epoch_end(self, *_):
        self.calls.append("checkpoint of epoch")


#: Attributes of a trainer, at the end of the second of four batches; functions by their parameters.
ATTRIBUTES = {
    "_accelerator_connector.cluster_environment": ClusterEnvironment,
    "_logger_connector._first_loop_iter": False,
    "_logger_connector.metrics": dict,
    "_logger_connector.should_update_logs": True,
    "_results": object,
    "_val_check_time_interval": None,
    "current_epoch": 0,
    "fit_loop._can_stop_early": True,
    "fit_loop._data_fetcher": object,
    "fit_loop.epoch_loop._broadcast_sigterm_tensor": [],
    "fit_loop.epoch_loop._should_check_val_fx": ["data_fetcher"],
    "fit_loop.epoch_loop.batch_progress.current.completed": 1,
    "fit_loop.epoch_loop.batch_progress.current.processed": 2,
    "fit_loop.epoch_loop.batch_progress.is_last_batch": False,
    "num_training_batches": 4,
    "should_stop": False,
}
#: Keys of a checkpoint saved there.
LOOPS = ("loops", "fit_loop")
KEYS = {
    ("global_step",): 2,
    ("callbacks",): dict,
    ("optimizer_states",): list,
    (*LOOPS, "epoch_progress", "current", "processed"): 0,
    (*LOOPS, "epoch_loop.batch_progress", "current", "completed"): 1,
    (*LOOPS, "epoch_loop.batch_progress", "current", "processed"): 2,
    (*LOOPS, "epoch_loop.state_dict", "_batches_that_stepped"): int,
    (*LOOPS, "epoch_loop.val_loop.batch_progress", "total"): {"ready": 1, "started": 1, "processed": 0, "completed": 0},
    (*LOOPS, "epoch_loop.val_loop.batch_progress", "current"): dict.fromkeys(
        ("ready", "started", "processed", "completed"), 0
    ),
}


def fit(calls, file=None, ckpt=None):
    """Fit, with everything noted in ``calls``; return the callback."""
    hooks = Hooks(calls, file)
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        val_check_interval=2,
        log_every_n_steps=1,
        callbacks=[Last(calls), hooks],
        logger=[Recorder(calls)],
        **settings,
    )
    trainer.fit(Module(), ckpt_path=ckpt, weights_only=True)
    return hooks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A fit of an epoch: ``.calls``, ``.seen`` and ``.file``, the checkpoint of its second step."""
    hooks = fit([], tmp_path_factory.mktemp("compat") / "mid.ckpt")
    return hooks


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_a_trainer_has_the_attribute(whole, path):
    value, expected = whole.seen[path], ATTRIBUTES[path]
    if callable(value):
        value = list(inspect.signature(value).parameters)
    right = isinstance(value, expected) if isinstance(expected, type) else value == expected
    assert right and not isinstance(value, Exception), changed("lightning", f"Trainer.{path}")


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_a_checkpoint_has_the_key(whole, path):
    try:
        value = reduce(lambda node, key: node[key], path, torch.load(whole.file, weights_only=True))
    except LookupError:
        pytest.fail(changed("lightning", f"checkpoint{list(path)}"))
    expected = KEYS[path]
    assert value == expected or (isinstance(expected, type) and isinstance(value, expected)), changed(
        "lightning", f"checkpoint{list(path)}"
    )


def entries(rules, path=()):
    """Yield the path and rule of each entry of ``compat.LOOPS``."""
    if isinstance(rules, dict):
        for key, part in rules.items():
            yield from entries(part, (*path, key))
    else:
        yield path, rules


@pytest.mark.parametrize(
    ("path", "rule"), [pytest.param(*entry, id=".".join(entry[0])) for entry in entries(compat.LOOPS)]
)
def test_the_loops_of_a_checkpoint_have_the_entry(whole, path, rule):
    try:
        value = reduce(lambda node, key: node[key], path, torch.load(whole.file, weights_only=True)["loops"])
    except LookupError:
        value = None
    assert rule.accepts(value), changed("lightning", f"checkpoint['loops']{list(path)}")


def test_the_states_of_callbacks_are_found_by_the_names_of_their_classes():
    checkpoint = {"callbacks": {ModelCheckpoint(monitor="val/loss").state_key: 1, Last([]).state_key: 2}}
    assert list(checkpoint["callbacks"]) != ["ModelCheckpoint", "Last"], "the names alone would do"
    assert compat.callback_states(checkpoint) == {"ModelCheckpoint": 1, "Last": 2}, changed(
        "lightning", "Callback.state_key"
    )


def test_the_position_of_a_run_is_read(whole):
    assert whole.seen["next_batch"] == (0, 2), changed("lightning", "the progress of the epoch loop")
    assert whole.seen["is_between_steps"] is True
    assert set(whole.seen["metrics_to_be_logged"]) == {"train/loss_step"}, changed("lightning", "what a step logs")
    checkpoint = torch.load(whole.file, weights_only=True)
    assert compat.is_saved_within_epoch(checkpoint)
    assert compat.epochs_processed(checkpoint) == 0


VALIDATION = ["on_validation_start", "log val/loss", "on_validation_end"]


def step(i):
    return [f"on_train_batch_start {i}", f"on_train_batch_end {i}", f"checkpoint {i}", "log train/loss_step"]


EPOCH = ["on_train_start", "on_train_epoch_start", *step(0), *step(1), *VALIDATION, *step(2), *step(3), *VALIDATION]
EPOCH += ["on_train_epoch_end", "checkpoint of epoch", "log train/loss_epoch"]


def test_a_step_is_logged_after_its_checkpoint_which_comes_after_other_callbacks(whole):
    assert whole.calls == EPOCH, changed("lightning", "the order of hooks and logging")


def test_a_run_resumed_from_a_step_begins_with_the_validation_that_was_due(whole):
    resumed = fit([], ckpt=whole.file)
    # on_train_epoch_start is not called again: History and FishClassifier rely on that.
    assert resumed.calls == ["on_train_start", *EPOCH[EPOCH.index("on_validation_start") :]], changed(
        "lightning", "the restart of _TrainingEpochLoop.advance"
    )


def test_the_number_of_steps_is_one_less_in_a_checkpoint_before_a_validation(whole):
    loop = torch.load(whole.file, weights_only=True)["loops"]["fit_loop"]["epoch_loop.state_dict"]
    assert loop["_batches_that_stepped"] == whole.seen["unscheduled"]["_batches_that_stepped"] - 1 == 0
    assert "_batches_that_stepped += 1" in inspect.getsource(_TrainingEpochLoop.reset), changed(
        "lightning", "_TrainingEpochLoop.reset"
    )


def test_signal_handlers_of_lightning_are_installed_before_training_and_removed_after_it(whole):
    assert "lightning" in type(whole.handlers).__module__, changed("lightning", "its signal handlers")
    assert "lightning" not in str(getattr(signal.getsignal(signal.SIGTERM), "__module__", ""))


def test_sigterm_is_synchronized_by_a_method_that_can_be_replaced():
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop.advance), changed(
        "lightning", "_TrainingEpochLoop._broadcast_sigterm_tensor"
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    compat.disable_sigterm_broadcast(trainer)
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None


@pytest.mark.parametrize(
    "key", ["best_k_models", *(f"{name}_model_path" for name in ("best", "kth_best", "last")), "dirpath"]
)
def test_the_state_of_a_model_checkpoint_has_the_key(key):
    assert key in ModelCheckpoint().state_dict(), changed("lightning", f"ModelCheckpoint.state_dict()[{key!r}]")


CLIPPING = ("gradient_clip_val", "gradient_clip_algorithm")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (ModelCheckpoint.check_monitor_top_k, ["self", "trainer", "current"]),
        (L.LightningModule.configure_gradient_clipping, ["self", "optimizer", *CLIPPING]),
        (L.LightningModule.clip_gradients, ["self", "optimizer", *CLIPPING]),
        (MixedPrecision.clip_gradients, ["self", "optimizer", "clip_val", "gradient_clip_algorithm"]),
        (L.LightningDataModule.on_before_batch_transfer, ["self", "batch", "dataloader_idx"]),
        (L.LightningDataModule.on_after_batch_transfer, ["self", "batch", "dataloader_idx"]),
        (L.Callback.on_save_checkpoint, ["self", "trainer", "pl_module", "checkpoint"]),
        (L.Callback.on_before_optimizer_step, ["self", "trainer", "pl_module", "optimizer"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_hook_of_lightning_has_the_parameters(function, parameters):
    assert list(inspect.signature(function).parameters) == parameters, changed("lightning", function.__qualname__)


@pytest.mark.parametrize(("requeue", "expected"), [(True, signal.SIGUSR1), (False, None)])
def test_the_requeue_signal_of_slurm_is_found_for_a_single_device(requeue, expected):
    settings = {"logger": False, "enable_checkpointing": False}
    plugin = SLURMEnvironment(auto_requeue=requeue)
    trainer = L.Trainer(accelerator="cpu", devices=1, plugins=[plugin], **settings)
    assert compat.requeue_signal(trainer) == expected, changed("lightning", "SLURMEnvironment.requeue_signal")
    assert compat.requeue_signal(L.Trainer(accelerator="cpu", **settings)) is None


def test_gradients_of_a_fused_optimizer_are_clipped_under_bf16_where_lightning_refuses():
    module = Module()
    module._trainer = L.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    module.layer.weight.grad = torch.full((2, 2), 5.0)
    assert module.trainer.precision_plugin.scaler is None, changed("lightning", "MixedPrecision.scaler")
    with pytest.raises(RuntimeError, match="fused"):
        module.clip_gradients(optimizer, 0.5, "value")
    compat.clip_gradients(module, optimizer, 0.5, "value")
    assert module.layer.weight.grad.max() == 0.5, changed("lightning", "MixedPrecision.clip_gradients")


def test_a_setting_that_lightning_refuses_is_known():
    with pytest.raises(Exception) as raised:
        L.Trainer(accelerator="cpu", fast_dev_run=-1, logger=False)
    assert compat.is_misconfiguration(raised.value), changed("lightning", "MisconfigurationException")


#: Where each warning comes from.
WARNINGS = {
    "lightning.pytorch.trainer.connectors.data_connector": "does not have many workers",
    "lightning.pytorch.loops.training_epoch_loop": "is not resumable",
    "lightning.pytorch.callbacks.model_checkpoint": "exists and is not empty",
    "lightning.pytorch.loops.fit_loop": "smaller than the logging interval",
    "torch.optim.lr_scheduler": "lr_scheduler.step",
    "lightning.pytorch.trainer.call": "Please add the following callbacks",
    "torch.utils._pytree": "LeafSpec",
    "lightning.pytorch.utilities.data": "custom batch sampler",
}


def texts(module):
    """Yield the string literals of a module, with ``['Timer']`` for the values of f-strings."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(importlib.import_module(module)))))
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "['Timer']" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("pattern", compat.QUIET_WARNINGS)
def test_a_silenced_warning_has_the_text(pattern):
    (module,) = [module for module, words in WARNINGS.items() if re.search(words.replace(" ", ".?"), pattern)]
    found = any(re.match(pattern, text, re.IGNORECASE) for text in texts(module))
    assert found, changed(module.split(".")[0], f"the warning {pattern!r} of {module}")


@pytest.mark.parametrize("name", compat.QUIET_LOGGERS)
def test_a_silenced_logger_has_the_name(name):
    module = importlib.import_module(name)
    logger = getattr(module, "log", None) or module.rank_zero_module.log
    assert logger.name == name, changed("lightning", f"the logger {name}")


# torch: its messages, provoked


def message(function, *arguments):
    """Return what the function raises."""
    with pytest.raises((RuntimeError, ValueError, AssertionError)) as raised:
        function(*arguments)
    return raised.value


@pytest.mark.parametrize(
    ("words", "name", "size"),
    [
        ("Kernel size can't be greater than actual input size", "inception_v3", 32),
        ("Output size is too small", "squeezenet1_1", 8),
        ("Wrong image height", "vit_b_16", 32),
        ("Wrong image width", "vit_b_16", (224, 32)),
        ("is invalid for input of size", "maxvit_t", 96),
        ("doesn't match model", "timm/vit_tiny_patch16_224", 96),
        ("divisible by", "timm/test_vit", 100),
        ("must match the size of tensor", "timm/levit_128", 96),
    ],
)
def test_a_network_rejects_an_image_size_in_these_words(words, name, size):
    settings = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("cpu" if "levit" in name else "meta"):  # on meta, broadcasting has other words
        if name.startswith("timm/"):
            timm = pytest.importorskip("timm", reason="the timm extra is not installed")
            network = timm.create_model(name.removeprefix("timm/"))
        else:
            network = torchvision.models.get_model(name, weights=None, **settings)
        image = torch.zeros(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    error = message(network.eval(), image)
    assert words in str(error), changed("torch", f"the error {words!r} of {name}: {error}")
    assert words in compat.WRONG_SIZE and compat.is_wrong_image_size(error)


def test_all_words_about_image_sizes_are_provoked():
    (mark,) = test_a_network_rejects_an_image_size_in_these_words.pytestmark
    assert {words for words, *_ in mark.args[1]} == {*compat.WRONG_SIZE}


def test_batch_normalization_rejects_a_single_value_in_these_words():
    error = message(nn.BatchNorm2d(3), torch.zeros(1, 3, 1, 1))
    assert compat.is_too_small_for_batch_norm(error), changed("torch", f"an error of batch normalization: {error}")


def lose(rank, folder, said):
    """Be one of two processes, of which the second dies and the first puts gloo's error into ``said``."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.distributed.all_reduce(torch.zeros(1))
    if rank == 1:
        os._exit(9)
    try:
        while True:
            torch.distributed.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        said.put(str(error))


def test_gloo_reports_a_lost_process_in_these_words(tmp_path):
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    processes = [context.Process(target=lose, args=(rank, tmp_path, said), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    error = said.get(timeout=60)
    for process in processes:
        process.join()
    assert compat.is_lost_peer(RuntimeError(error)), changed("torch", f"gloo's error {error}")


def test_torch_names_the_code_that_it_refuses_to_load(tmp_path):
    torch.save({"code": os.path.join}, tmp_path / "code.ckpt")
    with pytest.raises(Exception) as raised:
        torch.load(tmp_path / "code.ckpt", weights_only=True)
    assert compat.refused_global(raised.value) == "posixpath.join", changed("torch", f"its refusal {raised.value}")
    assert compat.refused_global(EOFError("Ran out of input")) is None


def test_tensorboard_forgets_points_from_a_step_on(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    for second, (begin, values) in enumerate(((0, range(5)), (2, range(20, 23)))):
        # Files are read in the order of their names, which begin with the second: a run is not resumed within one.
        monkeypatch.setattr("time.time", lambda now=1_700_000_000.0 + second: now)
        writer = SummaryWriter(tmp_path)
        if begin:
            compat.forget_later_points(writer, begin)
        for step, value in enumerate(values, begin):
            writer.add_scalar("loss", value, step)
        writer.close()
    points = [(point.step, point.value) for point in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")]
    assert points == [(0, 0), (1, 1), (2, 20), (3, 21), (4, 22)], changed("tensorboard", "SessionLog.START")


def test_a_logger_has_no_writer_before_it_is_used(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    assert not compat.has_started(logger), changed("lightning", "TensorBoardLogger._experiment")
    assert logger.experiment and compat.has_started(logger), changed("lightning", "TensorBoardLogger._experiment")


class Unreadable(Dataset):
    """One item, whose error is raised in a loader worker."""

    class Error(Exception):
        """With a message of two lines."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise Unreadable.Error("a.png is empty\nremove it")


def test_a_worker_puts_its_traceback_before_the_message():
    with pytest.raises(Unreadable.Error) as raised:
        next(iter(DataLoader(Unreadable(), num_workers=1)))
    assert "Traceback" in str(raised.value)
    said = compat.without_worker_traceback(raised.value)
    assert said == "a.png is empty\nremove it", changed("torch", "ExceptionWrapper's message")


def test_lightning_sets_the_epoch_of_what_a_batch_sampler_samples_from():
    from lightning.fabric.utilities.data import _set_sampler_epoch

    sampler = KeyedBatches(4, 2, seed=0, shuffle=True)
    _set_sampler_epoch(DataLoader(range(4), batch_sampler=sampler), 3)
    assert sampler.epoch == 3, changed("lightning", "batch_sampler.sampler.set_epoch")


# Hydra


#: Starts each command line of ``argv`` twice, with and without ``composed_already``; prints both runs' files.
STARTS = """
import contextlib, json, pathlib, shutil, sys
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from fish_lightning import compat, train

load, seen = ConfigLoaderImpl.load_configuration, []
ConfigLoaderImpl.load_configuration = lambda *given, **named: seen.append(0) or load(*given, **named)
train.train = lambda cfg: None
commands = [command.split() for command in sys.argv[1:]]
found = []
for hand_over in (compat.composed_already, lambda cfg: contextlib.nullcontext()):
    compat.composed_already = hand_over
    for words in commands:
        seen.clear()
        sys.argv = ["train.py", *words, "hydra.run.dir=run"]
        train.main()
        found.append([len(seen), *(file.read_text() for file in sorted(pathlib.Path("run/.hydra").iterdir()))])
        shutil.rmtree("run")
print(json.dumps(found))
"""


def test_hydra_runs_a_composed_config_as_it_would_compose_it_itself(tmp_path):
    commands = ["seed=1", "--run hydra.mode=RUN hydra.job.name=other optimizer=sgd ++seed=2 ~logger.csv"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STARTS, *commands]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    given, composed = found[: len(commands)], found[len(commands) :]
    assert [run[0] for run in given] == [1, 1], changed("hydra-core", "Hydra.get_mode or Hydra.run")
    assert [run[0] for run in composed] == [3, 3], changed("hydra-core", "the compositions of a start")
    assert [run[1:] for run in given] == [run[1:] for run in composed], changed("hydra-core", "Hydra.compose_config")


def test_hydra_copies_what_it_reads_from_its_store_and_not_the_store():
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore

    compat.share_config_store()
    store = ConfigStore.instance()
    repository = copy.deepcopy(ConfigLoaderImpl(create_config_search_path(None)).repository)
    assert repository.get_schema_source().store is store, changed("hydra-core", "StructuredConfigSource.store")
    store.load("hydra/config.yaml").node.verbose = "changed"
    assert store.load("hydra/config.yaml").node.verbose is False, changed("hydra-core", "ConfigStore.load")


def test_hydra_asks_a_static_method_whether_it_may_instantiate_a_plugin(monkeypatch):
    from hydra.core.plugins import Plugins

    found = inspect.getattr_static(Plugins, "is_in_toplevel_plugins_module", None)
    assert isinstance(found, staticmethod), changed("hydra-core", "Plugins.is_in_toplevel_plugins_module")
    source = inspect.getsource(Plugins._instantiate)
    assert "is_in_toplevel_plugins_module" in source, changed("hydra-core", "Plugins._instantiate")
    monkeypatch.setattr(Plugins, "is_in_toplevel_plugins_module", found)
    compat.allow_plugins(lambda target: target == "here")
    assert Plugins.is_in_toplevel_plugins_module("here") and not Plugins.is_in_toplevel_plugins_module("there")


def test_hydras_grid_sweeper_has_a_launcher_and_a_config():
    from hydra.plugins.sweeper import Sweeper

    sweeper, config = compat.basic_sweeper()
    assert issubclass(sweeper, Sweeper), changed("hydra-core", "BasicSweeper")
    assert list(inspect.signature(sweeper).parameters) == ["max_batch_size", "params"]
    assert sweeper(None, None).launcher is None, changed("hydra-core", "BasicSweeper.launcher")
    assert config(_target_="x")._target_ == "x", changed("hydra-core", "BasicSweeperConf")


def test_hydra_reports_errors_by_a_function_that_can_be_replaced(monkeypatch):
    from hydra._internal import utils

    assert "run_and_report(" in inspect.getsource(utils._run_hydra), changed("hydra-core", "utils._run_hydra")
    monkeypatch.setattr(utils, "run_and_report", lambda run: run())
    seen = []
    compat.before_hydra_reports(seen.append)
    with pytest.raises(ZeroDivisionError):
        utils.run_and_report(lambda: 1 / 0)
    assert len(seen) == 1, changed("hydra-core", "utils.run_and_report")


@pytest.mark.parametrize(
    ("node", "target", "words", "was_called"),
    [
        ({"_target_": "math.sqrt", "_args_": [-1]}, "math.sqrt", "math domain error", True),
        ({"_target_": "no.callback.here"}, "no.callback.here", "Error locating target", False),
        ({"_target_": "math.no_such"}, "math.no_such", "Error locating target", False),
    ],
)
def test_hydra_says_what_it_cannot_instantiate(node, target, words, was_called):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with pytest.raises(Exception) as raised:
        instantiate(OmegaConf.create({"a": {"b": node}}).a.b)
    failed = compat.failed_target(raised.value)
    assert failed is not None, changed("hydra-core", "InstantiationException")
    assert (failed.key, failed.target, failed.was_called) == ("a.b", target, was_called), changed(
        "hydra-core", f"the error {raised.value}"
    )
    assert words in failed.words and "full_key" not in failed.words
    assert raised.value.__cause__ is not None, changed("hydra-core", "InstantiationException.__cause__")
    assert compat.failed_target(raised.value.__cause__) is None


def test_hydras_warning_of_a_config_named_as_one_in_its_store_is_silenced(tmp_path, monkeypatch):
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    (tmp_path / "named.yaml").write_text("a: 1")
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**ConfigStore.instance().repo})
    ConfigStore.instance().store("named", {"a": 0})
    with warnings.catch_warnings(record=True) as told, initialize_config_dir(str(tmp_path), version_base="1.3"):
        warnings.simplefilter("always")
        compose("named")
        before = len(told)
        compat.quiet_hydra()
        compose("named")
    assert before == 1, changed("hydra-core", "the warning of a config with the name of another")
    assert len(told) == 1, changed("hydra-core", f"the text {told[-1].message}")


def test_plugins_of_hydra_and_installed_ones_have_these_names():
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core import plugins

    for plugin in (BasicLauncher, compat.basic_sweeper()[0]):
        assert plugin.__module__.startswith(compat.PLUGINS[0]), changed("hydra-core", plugin.__name__)
    assert f'"{compat.PLUGINS[1]}"' in inspect.getsource(plugins), changed("hydra-core", "the package of plugins")


# Optuna


def test_a_running_trial_of_optuna_is_opened_and_keeps_what_it_has_drawn(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the optuna extra is not installed")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    values = optuna.distributions.FloatDistribution(0.0, 1.0)
    drawn = compat.suggest(study.ask(), "x", values)
    assert hasattr(study.get_trials()[0], "_trial_id"), changed("optuna", "FrozenTrial._trial_id")
    trial = compat.running_trial(study, 0)
    assert trial.number == 0, changed("optuna", "Trial.__init__")
    assert compat.suggest(trial, "x", values) == drawn, changed("optuna", "Trial._suggest")
    study.tell(trial, 1.0)
    assert study.best_value == 1.0


# The versions that were verified


@pytest.mark.parametrize("library", ["lightning", "hydra-core", "optuna"])
def test_a_library_with_internals_is_bounded(library):
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert re.search(rf'"{library}>=[\d.]+,<[\d.]+"', text), f"{library} has no upper bound in pyproject.toml"
