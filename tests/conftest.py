"""Fixtures: small data sets of real files, small models, and the programs run as a user runs them."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; more threads on busy cores are 20 times slower

import json
import shutil
import socket
import tempfile
from functools import partial
from types import SimpleNamespace

import pytest
import yaml
from helpers import COLORS, DDP, HELPERS, REPOSITORY, TINY, draw
from programs import Programs

yaml.SafeLoader = yaml.CSafeLoader  # of OmegaConf: a quarter of the time that Hydra takes to compose a config


def pytest_configure(config):
    """Keep what is cached out of the user's folder; processes of pytest-xdist inherit the variable."""
    if "FISH_LIGHTNING_CACHE" not in os.environ:
        os.environ["FISH_LIGHTNING_CACHE"] = folder = tempfile.mkdtemp(prefix="fish_lightning-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def make_image():
    """``make_image(path, color, seed, size=(height, width))`` writes one image in the format of its suffix."""
    return draw


@pytest.fixture(scope="session")
def make_folder():
    """``make_folder(root, classes=3, per_class=4)`` writes ``root/<class>/<number>.png``, one color per class."""

    def make(root, classes=3, per_class=4, size=(24, 32), suffix=".png"):
        names = classes if isinstance(classes, list) else [f"class {'abcdef'[i]}" for i in range(classes)]
        for label, name in enumerate(names):
            for number in range(per_class):
                draw(root / name / f"{number:03}{suffix}", COLORS[label], 1000 * label + number, size)
        return root

    return make


@pytest.fixture(scope="session")
def make_archive():
    """``make_archive(root)`` writes the layout of the Kaggle archive, with masks and originals; returns ``root``."""

    def make(root, classes=("Sea Bass", "Trout"), per_class=3):
        for label, name in enumerate(classes):
            for number in range(1, per_class + 1):
                folder = root / "Fish_Dataset" / "Fish_Dataset" / name
                draw(folder / name / f"{number:05}.png", COLORS[label], 1000 * label + number)
                draw(folder / f"{name} GT" / f"{number:05}.png", (0, 0, 0), number)
            draw(root / "NA_Fish_Dataset" / name / "1.JPG", COLORS[label], 77)
        return root

    return make


@pytest.fixture(scope="session")
def shared_fish():
    """The folder of the real photographs; skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "fish"
    if not folder.is_dir():
        pytest.skip(f"no real photographs: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def start():
    """``start("train", "trainer.max_epochs=1", cwd=tmp_path)`` starts a program in its own process (a ``Program``)."""
    programs = Programs()

    def start_program(module, *overrides, cwd, env=None):
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        name = module if module in ("faults", "torch.distributed.run") else f"fish_lightning.{module}"
        return programs.start(name, overrides, cwd, environment)

    yield start_program
    programs.close()


@pytest.fixture(scope="session")
def run(start):
    """``run("train", "trainer.max_epochs=1", cwd=tmp_path)`` runs a program and returns its exit code and output."""

    def run_program(module, *overrides, cwd, env=None, timeout=300):
        return start(module, *overrides, cwd=cwd, env=env).communicate(timeout)

    return run_program


@pytest.fixture(scope="session")
def make_data():
    """``make_data(root, **settings)``: a ``FishDataModule`` after ``setup``, 32 x 32 pixels, no workers."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    from fish_lightning.data.datamodule import FishDataModule
    from fish_lightning.data.sources import FolderSource
    from fish_lightning.data.splits import random_split

    def make(root, **settings):
        plain = [A.Resize(32, 32), ToTensorV2()]
        defaults = {
            "source": FolderSource,
            "split": partial(random_split, test=0.2, val=0.2),
            "train_transform": A.Compose([A.Resize(32, 32), A.Rotate((-35, 35), p=1.0), ToTensorV2()]),
            "eval_transform": A.Compose(plain),
            "batch_size": 4,
        }
        data = FishDataModule(root, **(defaults | settings))
        data.prepare_data()
        data.setup()
        return data

    return make


@pytest.fixture(scope="session")
def make_model():
    """``make_model(data, **settings)``: a small ``FishClassifier`` for the classes of ``data``."""
    import albumentations as A
    import torch

    from fish_lightning.models.classifier import FishClassifier

    def make(data, **settings):
        torch.manual_seed(0)
        defaults = {
            "name": "shufflenet_v2_x0_5",
            "eval_transform": A.to_dict(data.eval_transform),
            "optimizer": partial(torch.optim.Adam, lr=0.003),
        }
        return FishClassifier(data.catalog.classes, **(defaults | settings))

    return make


@pytest.fixture
def make_trainer(tmp_path):
    """``make_trainer(**settings)``: a quiet ``lightning.Trainer`` on the CPU that writes to ``tmp_path``."""
    import lightning as L

    from fish_lightning.compat import quiet_lightning

    def make(**settings):
        quiet_lightning()
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
        }
        defaults["enable_checkpointing"] = any("Checkpoint" in type(c).__name__ for c in settings.get("callbacks", []))
        return L.Trainer(**(defaults | settings))

    return make


@pytest.fixture
def make_scripted():
    """``make_scripted(accuracies, losses, seconds=0, batches=3)``: a module whose validations log these values.

    One of each per epoch. It trains on batches of 2 images, ``seconds`` each; its training loss is the step number.
    """
    import time

    import lightning as L
    import torch
    from torch.utils.data import DataLoader

    class Scripted(L.LightningModule):
        def __init__(self, accuracies, losses, seconds=0.0, batches=3):
            super().__init__()
            self.accuracies, self.losses, self.pause, self.batches = accuracies, losses, seconds, batches
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def train_dataloader(self):
            return DataLoader([{"label": 0}] * (2 * self.batches), batch_size=2)

        def val_dataloader(self):
            return DataLoader([{"label": 0}])

        def training_step(self, batch, batch_idx):
            time.sleep(self.pause)
            loss = self.weight.sum() + self.global_step
            self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=2)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val/accuracy", float(self.accuracies[self.current_epoch]), batch_size=1)
            self.log("val/loss", float(self.losses[self.current_epoch]), batch_size=1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    return Scripted


class Interrupted(Exception):
    """Raised by ``stop_at``."""


@pytest.fixture
def stop_at():
    """``stop_at(step, file)``: a callback that saves ``file`` after a step and raises ``stop_at.error``."""
    import lightning as L

    class StopAt(L.Callback):
        error = Interrupted

        def __init__(self, step, file=None):
            self.step, self.file = step, file

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == self.step:
                if self.file is not None:
                    trainer.save_checkpoint(self.file)
                raise Interrupted

    return StopAt


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory, make_folder):
    """Three classes of twelve images in class folders."""
    return make_folder(tmp_path_factory.mktemp("images") / "fish", classes=3, per_class=12)


@pytest.fixture
def damaged(tmp_path, make_folder):
    """Three classes of twelve images, of which one is empty and one is truncated."""
    root = make_folder(tmp_path / "damaged", classes=3, per_class=12)
    (root / "class a" / "003.png").write_bytes(b"")
    truncated = root / "class b" / "004.png"
    truncated.write_bytes(truncated.read_bytes()[:300])
    return root


@pytest.fixture(scope="session")
def train_tiny(run, tiny_data):
    """``train_tiny(cwd, *overrides, data=DIR)``: a training run of two seconds in its own process."""

    def train(cwd, *overrides, data=tiny_data, env=None):
        return run("train", *TINY, f"data.root={data}", *overrides, cwd=cwd, env=env)

    return train


@pytest.fixture(scope="session")
def train_ranks(start, tiny_data):
    """``train_ranks(cwd, *overrides, data=DIR)``: a tiny run of two processes, started as by torchrun; both results."""

    def train(cwd, *overrides, data=tiny_data, env=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | (env or {})
        ranks = [
            start(
                *("train", *TINY, f"data.root={data}", *DDP, *overrides),
                cwd=cwd,
                env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            )
            for rank in "01"
        ]
        return [rank.communicate() for rank in ranks]

    return train


@pytest.fixture(scope="session")
def trained(tmp_path_factory, run, tiny_data):
    """A finished run that many tests look at: ``.folder`` and ``.stdout``."""
    cwd = tmp_path_factory.mktemp("trained")
    words = [word for word in TINY if word != "callbacks.tensorboard=null"]
    done = run("train", *words, f"data.root={tiny_data}", cwd=cwd)
    assert done.returncode == 0, done.stderr
    done.folder = next((cwd / "logs" / "train" / "runs").iterdir())
    done.cwd = cwd
    return done


@pytest.fixture(scope="session")
def faults():
    """Environment of a program whose config names callbacks of ``faults.py``."""
    return HELPERS


@pytest.fixture(scope="session")
def attempts(run, tiny_data):
    """``attempts(cwd, (folder, overrides), …)``: tiny runs, one after the other (``faults.py``): code, out, err."""

    def carry_out(cwd, *orders):
        tiny = [(folder, [*TINY, f"data.root={tiny_data}", *overrides]) for folder, overrides in orders]
        (cwd / "orders.json").write_text(json.dumps(tiny))
        done = run("faults", "orders.json", cwd=cwd, env=HELPERS)
        assert done.returncode == 0, done.stderr
        codes = json.loads((cwd / "codes.json").read_text())
        outputs = [[(cwd / f"attempt-{i}.{name}").read_text() for name in ("out", "err")] for i in range(len(codes))]
        return [SimpleNamespace(code=code, out=out, err=err) for code, (out, err) in zip(codes, outputs, strict=True)]

    return carry_out


@pytest.fixture
def ctrl_c():
    """``ctrl_c(step)``: a callback that presses Ctrl-C while that step, counted from 1, is computed."""
    import signal

    import lightning as L

    class CtrlC(L.Callback):
        def __init__(self, step):
            self.step = step

        def on_before_optimizer_step(self, trainer, *_):
            if trainer.global_step == self.step - 1:
                signal.raise_signal(signal.SIGINT)

    return CtrlC


def pytest_xdist_auto_num_workers():
    """Run one worker more than there are cores: programs wait for files, for signals and for one another."""
    return os.cpu_count() + 1


def pytest_collection_modifyitems(items):
    """Start the longest test first, so that no core is idle while it ends."""
    items.sort(key=lambda item: "the_default_run" not in item.name)


def pytest_runtest_setup(item):
    """Skip tests that are marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("requires a CUDA GPU")
