"""Measure this project against what it replaces: ratios of two things timed alternately, as a table and as JSON.

    python scripts/benchmark.py [--gpu [--tests]] [--quick] [--only loader,train,…] [--data DIR] [--output FILE]

Both sides of a ratio are timed alternately, so that other load on the machine affects both. The ratio is the median of
the rounds; their quartiles show how much they scatter. Parts:

    reseed   restarting the random numbers of an image: this project vs ``Compose.set_random_seed``
    loader   images/s of one loader process: the cache vs the notebook's loader and vs a memory copy
    train    images/s of a run, with its callbacks and loggers: vs a plain fp32 loop with the notebook's loader, and vs
             the same model on one resident batch (what a step does not wait)
    goal     seconds of training to the validation accuracy that ``experiment=notebook`` ends with: ``experiment=fast``;
             with ``--data DIR`` on those images and as the recipes stand, from random weights (an hour on a CPU)
    start    seconds from starting a program: help vs ``import hydra``; a run of one step vs the imports it needs, and
             where its seconds go
    catalog  seconds and memory by the number of images in the catalog, up to 1,000,000 (simulated)

``--gpu`` measures ``train`` on one CUDA GPU, with augment=gpu, model.compile=true and peak memory, and ``goal`` if time
is left: 8 minutes in all. ``--tests`` first runs the tests that need a GPU.

``--report`` measures what the report of 1,350 test images adds to a run, step by step, in CPU seconds (which other load
does not change) and seconds: ResNet-34 with random weights at 112x168, images of the archive's size with masks, and as
many errors as a report lists.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fish_lightning  # noqa: E402, F401 - sets what torch and albumentations read when they are imported

# isort: split
from lightning.pytorch.callbacks import Callback  # noqa: E402

PARTS = ("reseed", "loader", "train", "goal", "start", "catalog")
GPU_PARTS = ("train", "goal")
GPU_SECONDS = 8 * 60
#: Seconds that ``goal`` takes on a GPU: two runs, their imports, and the sample data where it is not drawn yet.
GOAL_SECONDS = 150


@dataclass
class Row:
    """One row of the table.

    Attributes:
        name: what is compared.
        ratio: median of the rounds; above 1 the project is better, unless the name says otherwise.
        low: lower quartile of the rounds.
        high: upper quartile.
        detail: both figures.
    """

    name: str
    ratio: float
    low: float
    high: float
    detail: str


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        quick: fewer and smaller.
        accelerator: ``"cpu"`` or ``"gpu"``.
        data: class folders for ``goal``.
        deadline: time by ``time.monotonic`` at which the table must be complete.
    """

    quick: bool = False
    accelerator: str = "cpu"
    data: Path | None = None
    deadline: float = math.inf

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


def in_turns(rounds: int, *sides: Callable[[], float], deadline: float = math.inf) -> list[tuple[float, ...]]:
    """Return what each side measures, one after the other, ``rounds`` times; three times are enough at the deadline."""
    measured: list[tuple[float, ...]] = []
    while len(measured) < rounds and (len(measured) < 3 or time.monotonic() < deadline):
        measured.append(tuple(side() for side in sides))
    return measured


def row(name: str, pairs: Sequence[tuple[float, ...]], unit: str) -> Row:
    """Return a row from pairs of figures."""
    ratios = [ours / theirs for ours, theirs in pairs]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Row(name, statistics.median(ratios), quartiles[0], quartiles[2], f"{ours:,.3g} vs {theirs:,.3g} {unit}")


def rate(work: Callable[[], Any], count: int) -> float:
    """Return things per second, of ``count`` things that ``work`` does."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


# --- parts ------------------------------------------------------------------------------------------------------------


def reseed(options: Options) -> list[Row]:
    """Measure keyed randomness, calls per second."""
    import albumentations as A

    from fish_lightning.data.dataset import KeyedRandomness
    from fish_lightning.data.keys import keyed_seed

    transform = A.Compose([A.Rotate((-35, 35), p=1.0), A.HorizontalFlip(), A.VerticalFlip(p=0.1)])
    keyed, n = KeyedRandomness(), 300 if options.quick else 2000

    def ours() -> None:
        for index in range(n):
            keyed.key(transform, keyed_seed(42, 1, index))

    def theirs() -> None:
        for index in range(n):
            transform.set_random_seed(index)

    pairs = in_turns(9, lambda: rate(ours, n), lambda: rate(theirs, n))
    microseconds = 1e6 / statistics.median(ours for ours, _ in pairs)
    found = row("keyed randomness vs set_random_seed", pairs, "images/s")
    found.detail += f"; {microseconds:.1f} µs per image"
    return [found]


class Notebook:
    """The notebook's dataset: Pillow opens the file, albumentations resizes, augments and returns a float tensor."""

    def __init__(self, files: list[Path], height: int, width: int) -> None:
        import albumentations as A
        import cv2
        from albumentations.pytorch import ToTensorV2

        cv2.setNumThreads(0)
        self.files = files
        self.transform = A.Compose(
            [
                A.Resize(height, width),
                A.Rotate((-35, 35), p=1.0, border_mode=4),
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.1),
                A.Normalize(mean=(0, 0, 0), std=(1, 1, 1)),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one image, float32, and a label."""
        import numpy as np
        from PIL import Image

        with Image.open(self.files[index]) as image:
            pixels = np.array(image.convert("RGB"))
        return self.transform(image=pixels)["image"], index % 9


def make_images(folder: Path, count: int) -> list[Path]:
    """Write PNG files of the archive's size, 590x445, as detailed as photographs, into nine class folders."""
    import cv2
    import numpy as np

    from fish_lightning.hardware import cores

    def make(index: int) -> Path:
        rng = np.random.default_rng(index)
        coarse = cv2.resize(
            rng.integers(0, 256, (12, 16, 3)).astype(np.uint8), (590, 445), interpolation=cv2.INTER_CUBIC
        )
        grain = rng.normal(0, 6, (445, 590, 3))
        file = folder / f"class {index % 9}" / f"{index:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.clip(coarse + grain, 0, 255).astype(np.uint8))
        return file

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(make, range(count)))


def compose_run(folder: Path, height: int, width: int, *overrides: str) -> Any:
    """Return the config of a training run on class folders that writes beside them."""
    from hydra import compose, initialize_config_dir

    from fish_lightning.cli import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(
            "train",
            [
                "data=folder",
                f"data.root={folder}",
                f"paths.cache={folder.parent / 'cache'}",
                f"paths.output={tempfile.mkdtemp(prefix='run-', dir=folder.parent)}",
                "split=random",
                "data.find_copies=false",
                f"transforms.height={height}",
                f"transforms.width={width}",
                "model.weights=null",
                *overrides,
            ],
        )


def make_data(cfg: Any) -> Any:
    """Return the data module of a run, set up."""
    from hydra.utils import instantiate

    data = instantiate(cfg.data)
    data.prepare_data()
    data.setup()
    return data


def loader(options: Options) -> list[Row]:
    """Measure one process without workers: what a worker does."""
    import numpy as np

    height, width, n = 160, 240, 24 if options.quick else 64
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder) / "images", 90)
        data = make_data(compose_run(Path(folder) / "images", height, width, "data.num_workers=0"))
        cached, plain = data.dataset("train", train=True), Notebook(files, height, width)
        target, pixels = np.empty((n, height, width, 3), np.uint8), data.pixels.pixels
        order = [index % len(cached) for index in range(n)]

        def copy() -> None:
            for slot, index in enumerate(order):
                target[slot] = pixels[index]

        rates = in_turns(
            5 if options.quick else 11,
            lambda: rate(lambda: [cached[1, index] for index in order], n),
            lambda: rate(lambda: [plain[index] for index in range(n)], n),
            lambda: rate(copy, n),
        )
    return [
        row("cached loader, one process, vs the notebook's", [(ours, plain) for ours, plain, _ in rates], "images/s"),
        row("  … vs a memory copy of its pixels", [(ours, copied) for ours, _, copied in rates], "images/s"),
    ]


@dataclass(frozen=True)
class Load:
    """What ``train`` computes.

    Attributes:
        accelerator: ``"cpu"`` or ``"gpu"``.
        batch: images per step.
        steps: timed in each round.
        rounds: how often each side is timed.
        variants: also time augment=gpu and model.compile=true, and compare peak memory.
        height: of the images, pixels.
        width: of the images, pixels.
        model: torchvision's name of the network.
    """

    accelerator: str
    batch: int
    steps: int
    rounds: int
    variants: bool = False
    height: int = 160
    width: int = 240
    model: str = "resnet34"

    @property
    def device(self) -> Any:
        """The device, as torch names it."""
        import torch

        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")

    @property
    def workers(self) -> int:
        """Processes of the notebook's loader."""
        from fish_lightning.hardware import default_workers

        return default_workers(self.accelerator, cache="off")

    @property
    def skipped(self) -> int:
        """Steps at the start of a turn that are not timed: their batches were loaded while others computed."""
        return 2 * self.workers + 1

    def now(self) -> float:
        """Return the time in seconds at which the device is done."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def rate(self, step: Callable[[], Any]) -> float:
        """Return images/s of a step, after those that are skipped."""
        for _ in range(self.skipped):
            step()
        start = self.now()
        for _ in range(self.steps):
            step()
        return self.batch * self.steps / (self.now() - start)


LOADS = {
    # (accelerator, quick)
    ("cpu", False): Load("cpu", batch=32, steps=3, rounds=7),
    ("cpu", True): Load("cpu", batch=16, steps=2, rounds=3, height=80, width=120),
    ("gpu", False): Load("gpu", batch=128, steps=40, rounds=7, variants=True),
    ("gpu", True): Load("gpu", batch=128, steps=20, rounds=3, variants=True),
}


class StepTimer(Callback):
    """Times the steps of a fit that count."""

    def __init__(self, load: Load) -> None:
        self.load, self.taken, self.times = load, 0, [load.now()]

    def on_train_batch_end(self, *_: Any) -> None:
        """Note when the first step, the last skipped one and the last one are done."""
        self.taken += 1
        if self.taken in (1, self.load.skipped, self.load.skipped + self.load.steps):
            self.times.append(self.load.now())

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.load.batch * self.load.steps / (self.times[-1] - self.times[-2])


class Run:
    """A training run of this project, a few steps at a time.

    Args:
        images: class folders.
        load: what is computed.
        overrides: of its config.

    Attributes:
        model: the classifier, after the first call.
        first_step: seconds from the start of the first fit to the end of its first step.
    """

    def __init__(self, images: Path, load: Load, *overrides: str) -> None:
        self.images, self.load, self.overrides = images, load, overrides
        self.model: Any = None
        self.first_step = math.nan
        self.precision: Any = None

    def __call__(self) -> float:
        """Fit for ``skipped + steps`` steps with a new trainer and data module; return images/s."""
        import albumentations as A
        from hydra.utils import instantiate

        from fish_lightning.training.trainer import build_trainer

        load = self.load
        cfg = compose_run(
            *(self.images, load.height, load.width),
            *(f"model.name={load.model}", f"data.batch_size={load.batch}", "split.test=0.05", "split.val=0.05"),
            *(f"trainer.accelerator={load.accelerator}", "trainer.devices=1", "scheduler=none"),
            *(f"trainer.max_steps={load.skipped + load.steps}", "trainer.max_epochs=-1", "trainer.limit_val_batches=0"),
            # A checkpoint at the end of each turn is not part of its steps.
            *("trainer.enable_progress_bar=false", "callbacks.best=null", "callbacks.last=null"),
            *self.overrides,
        )
        with contextlib.redirect_stdout(sys.stderr):  # its output is not part of the table
            data = make_data(cfg)
            if self.model is None:
                self.model = instantiate(
                    cfg.model,
                    class_names=data.catalog.classes,
                    eval_transform=A.to_dict(data.eval_transform),
                    optimizer=instantiate(cfg.optimizer),
                    scheduler=None,
                )
            callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback is not None]
            loggers = [instantiate(logger) for logger in cfg.logger.values()]
            timer = StepTimer(load)
            trainer = build_trainer(cfg.trainer, [*callbacks, timer], loggers)
            trainer.fit(self.model, datamodule=data)
        if math.isnan(self.first_step):
            self.first_step = timer.times[1] - timer.times[0]
        self.precision = trainer.precision_plugin
        self.model.trainer = None  # which keeps the loader's workers, and images on the device
        return timer.rate


class PlainLoop:
    """A plain fp32 PyTorch loop with the notebook's loader, and with PyTorch's defaults for cuDNN and TF32."""

    def __init__(self, files: list[Path], load: Load) -> None:
        import torch
        from torch.utils.data import ConcatDataset, DataLoader

        images: Any = ConcatDataset([Notebook(files, load.height, load.width)] * 1000)  # type: ignore[list-item]
        pin = load.accelerator == "gpu"
        self.load = load
        self.loader = iter(DataLoader(images, load.batch, num_workers=load.workers, pin_memory=pin))
        self.defaults = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()

    def __call__(self) -> float:
        """Return images/s."""
        import torch
        from torchvision.models import get_model

        device = self.load.device
        network = get_model(self.load.model, num_classes=9).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

        def step() -> None:
            images, labels = next(self.loader)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images.to(device)), labels.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_value_(network.parameters(), 0.1)
            optimizer.step()
            loss.item()

        with _numerics(*self.defaults):
            return self.load.rate(step)


@contextlib.contextmanager
def _numerics(benchmark: bool, precision: str) -> Iterator[None]:
    """Set how cuDNN picks its algorithms and how fp32 products are computed, and restore it."""
    import torch

    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])


class ResidentBatch:
    """The model and optimizer of a run on one batch that is on the device: nothing to wait for."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self) -> float:
        """Return images/s."""
        import torch

        load, model = self.run.load, self.run.model.to(self.run.load.device).train()
        images = torch.randint(256, (load.batch, 3, load.height, load.width), dtype=torch.uint8, device=load.device)
        labels = torch.arange(load.batch, device=load.device) % 9
        optimizer = model.make_optimizer(model.parameters(), lr=0.0)

        def step() -> None:
            optimizer.zero_grad()
            with self.run.precision.forward_context():
                loss = model.train_criterion(model(images), labels)
            loss.backward()
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
            optimizer.step()

        try:
            return load.rate(step)
        finally:
            optimizer.zero_grad()
            model.cpu()


def train(options: Options) -> list[Row]:
    """Measure training steps."""
    return compare_training(LOADS[options.accelerator, options.quick], options.deadline - GOAL_SECONDS)


def compare_training(load: Load, deadline: float = math.inf) -> list[Row]:
    """Time the steps of a run, of what it is compared with and of its variants, alternately.

    Args:
        load: what is computed.
        deadline: no further round starts after it, by ``time.monotonic``.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        images = Path(folder) / "images"
        files = make_images(images, max(36, 4 * load.batch))
        # One epoch is long enough for a turn: what happens at its end is no step.
        for copy in range(math.ceil((load.skipped + load.steps) * load.batch / 0.9 / len(files))):
            for file in files:
                os.link(file, file.with_name(f"{copy} {file.name}"))
        run = Run(images, load)
        sides: dict[str, Callable[[], float]] = {"run": run, "plain": PlainLoop(files, load), "fed": ResidentBatch(run)}
        variants = {"augment=gpu": Run(images, load, "augment=gpu"), "compile": Run(images, load, "model.compile=true")}
        for side in sides.values():
            side()  # compiles, and lets cuDNN try its algorithms
        if load.variants:
            sides |= that_run(variants)
        peaks: dict[str, list[float]] = {name: [] for name in sides}
        rounds = in_turns(
            load.rounds,
            *(partial(_with_peak, side, load, peaks[name]) for name, side in sides.items()),
            deadline=deadline,
        )
        precision = run.precision.precision
    rates = dict(zip(sides, zip(*rounds, strict=True), strict=True))
    what = f"{load.model}, {load.height}x{load.width}, batch {load.batch}, {precision}, {load.workers} workers"

    def compare(name: str, ours: str, theirs: str) -> Row:
        return row(name, list(zip(rates[ours], rates[theirs], strict=True)), "images/s")

    def memory(name: str, ours: str, theirs: str) -> Row:
        return row(f"  peak memory, {name} (less is better)", list(zip(peaks[ours], peaks[theirs], strict=True)), "GB")

    found = [
        compare(f"training ({what}) vs a plain fp32 loop", "run", "plain"),
        compare("  … vs one resident batch (what a step does not wait)", "run", "fed"),
    ]
    if load.variants:
        found.append(memory("run vs plain fp32 loop", "run", "plain"))
    if "augment=gpu" in rates:
        found.append(compare("augment=gpu vs augment=cpu", "augment=gpu", "run"))
        found.append(memory("augment=gpu vs augment=cpu", "augment=gpu", "run"))
    if "compile" in rates:
        found.append(compare("model.compile=true vs false", "compile", "run"))
        found[-1].detail += f"; first step after {variants['compile'].first_step:.0f} vs {run.first_step:.0f} s"
        found.append(memory("model.compile=true vs false", "compile", "run"))
    return found


def that_run(variants: dict[str, Any]) -> dict[str, Any]:
    """Call each once and return those that run here; the table does without the others."""
    from fish_lightning.errors import first_line

    found = {}
    for name, variant in variants.items():
        try:
            variant()
        except Exception as error:  # a missing compiler, too little memory
            print(f"skipped {name}: {first_line(error.__cause__ or error)}", file=sys.stderr)
        else:
            found[name] = variant
    return found


def _with_peak(side: Callable[[], float], load: Load, peaks: list[float]) -> float:
    """Return what a side measures, and note the peak memory of its tensors on the GPU (CPU: of the process), GB."""
    import torch

    gc.collect()
    if load.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    measured = side()
    peaks.append(torch.cuda.max_memory_allocated() / 1e9 if load.device.type == "cuda" else peak_memory() / 1e3)
    return measured


def goal(options: Options) -> list[Row]:
    """Measure on sample data with ResNet-18, in minutes on a CPU; with ``data``, the recipes as they stand."""
    settings = ["test=false", "model.weights=null", f"trainer.accelerator={options.accelerator}", "trainer.devices=1"]
    if options.data is not None:
        what, seeds = f"{options.data.name}, ResNet-34", [42]
        settings += [f"data.root={options.data}"]
    else:
        what, seeds = "sample data, ResNet-18", [42] if options.quick or options.accelerator == "gpu" else [42, 43]
        settings += ["data=sample", "split=random", "model.name=resnet18", "data.batch_size=32"]
        settings += ["data.source.photographs_per_kind=8"] if options.quick else []
        height, width = (64, 96) if options.quick else (96, 128)
        settings += [f"transforms.height={height}", f"transforms.width={width}"]
    pairs, details = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            histories = {}
            for recipe in ("notebook", "fast"):
                overrides = (*settings, f"seed={seed}", f"hydra.run.dir={folder}/{recipe}")
                program("train", f"experiment={recipe}", *overrides, timeout=options.seconds_left)
                histories[recipe] = epochs(Path(folder) / recipe)
        target = histories["notebook"][-1][1]
        reached = next((seconds for seconds, accuracy in histories["fast"] if accuracy >= target), None)
        first = next(seconds for seconds, accuracy in histories["notebook"] if accuracy >= target)
        # A recipe that does not reach it counts as infinitely slow.
        pairs.append((1 / reached if reached else 0.0, 1 / first))
        best = max(accuracy for _, accuracy in histories["fast"])
        shown = f"{reached:.0f}" if reached else f"never ({best:.1%})"
        details.append(f"{shown} vs {first:.0f} s to {target:.1%}")
    found = row("seconds of training to the notebook's accuracy: notebook / fast", pairs, "")
    found.detail = f"{'; '.join(details)} ({what})"
    return [found]


def epochs(run: Path) -> list[tuple[float, float]]:
    """Return (seconds so far, validation accuracy) of each epoch of a run, from the history in its checkpoint."""
    import torch

    state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    found, seconds = [], 0.0
    for line in state["callbacks"]["History"]["rows"]:
        if line["seconds"] is not None:
            seconds += line["seconds"]
            found.append((seconds, line["val_accuracy"]))
    return found


def program(name: str, *overrides: str, timeout: float = math.inf) -> None:
    """Run an entry point to its end.

    Raises:
        subprocess.TimeoutExpired: after ``timeout`` seconds.
    """
    done = subprocess.run(  # noqa: S603 - this project's own program
        [sys.executable, "-m", f"fish_lightning.{name}", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=None if math.isinf(timeout) else max(1.0, timeout),
    )
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr[-2000:]}")


def start(options: Options) -> list[Row]:
    """Time programs from their start, alternately with what they cannot do without."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])}

    def seconds(*arguments: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, check=True)  # noqa: S603
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images", 36)
        one_step = [
            *("-m", "fish_lightning.train", "data=folder", f"data.root={folder}/images", f"paths.cache={folder}/cache"),
            *(
                "split=random",
                "data.find_copies=false",
                "model.name=resnet18",
                "model.weights=null",
                "validate_first=false",
            ),
            *("test=false", "data.batch_size=8", "transforms.height=64", "transforms.width=64", "data.num_workers=0"),
            *("trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "trainer.max_epochs=1"),
            f"paths.logs={folder}/logs",
        ]
        seconds(*one_step)  # writes the cache and Python's compiled files
        stages = []

        def first_step() -> float:
            file = Path(folder) / "stages.json"
            clock = f"+callbacks.clock={{_target_:benchmark.Clock,file:{file},began:{time.time()}}}"
            total = seconds(*one_step, clock)
            stages.append(json.loads(file.read_text()) | {"all": total})
            return total

        imports = "import hydra, torch, torchvision, lightning, albumentations, torchmetrics, matplotlib.pyplot"
        imports += ", torch.utils.tensorboard"
        rounds = 2 if options.quick else 4
        helps = in_turns(
            rounds, lambda: seconds("-m", "fish_lightning.train", "--help"), lambda: seconds("-c", "import hydra")
        )
        steps = in_turns(rounds, first_step, lambda: seconds("-c", imports))
    keys = ("made", "fit", "step", "all")
    made, fit, step, whole = (statistics.median(stage[key] for stage in stages) for key in keys)
    run = row("a run of one step, time vs its imports (less is better)", steps, "s")
    run.detail += (
        f": {made:.1f} to data and network, {fit - made:.1f} trainer and loggers, {step - fit:.1f} first step, "
        f"{whole - step:.1f} validation, plots (and their imports), files"
    )
    return [row("--help, time vs import hydra (less is better)", helps, "s"), run]


class Clock(Callback):
    """Writes the seconds from ``began`` (since 1970) to a run's callbacks, the start of its fit, and its first step."""

    def __init__(self, file: str, began: float) -> None:
        self.file, self.began, self.stages = Path(file), began, {"made": time.time() - began}

    def on_train_start(self, *_: Any) -> None:
        """Note the start of the fit."""
        self.stages["fit"] = time.time() - self.began

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the end of the first step."""
        self.stages.setdefault("step", time.time() - self.began)
        self.file.write_text(json.dumps(self.stages))


def measure_report(count: int, height: int, width: int, model: str) -> None:
    """Print what each step of a report costs: CPU seconds of all threads, and seconds.

    Args:
        count: number of test images; half as many are validated, and as many are trained on, a photograph each.
        height: of the model's input, pixels.
        width: likewise.
        model: of torchvision.
    """
    import albumentations as A
    import cv2
    import numpy as np
    import torch
    from hydra.utils import instantiate

    from fish_lightning.evaluation.outputs import Outputs, Predictions
    from fish_lightning.report import run
    from fish_lightning.training.trainer import build_trainer

    def timed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **settings: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            result = step(*arguments, **settings)
            print(f"{name:<52} {time.process_time() - cpu:8.1f} {time.perf_counter() - wall:8.1f}", flush=True)
            return result

        return measured

    with tempfile.TemporaryDirectory() as temporary:
        folder, splits = Path(temporary) / "images", {"train": count, "val": count // 2, "test": count}
        drawn = make_images(Path(temporary) / "drawn", 45)
        mask = Path(temporary) / "mask.png"
        cv2.imwrite(str(mask), cv2.ellipse(np.zeros((445, 590), np.uint8), (295, 220), (200, 80), 0, 0, 360, 255, -1))
        for split, images in splits.items():
            for index in range(images):  # links: the files of a large set need not be drawn
                name, stem = f"class {index % 9}", f"{index:05}.png"
                for file, kind in ((drawn[index % 45], name), (mask, f"{name} GT")):
                    (folder / split / kind).mkdir(parents=True, exist_ok=True)
                    os.link(file, folder / split / kind / stem)
        cfg = compose_run(folder, height, width, f"model.name={model}", "split=folders", "data.cache=off", "seed=1")
        data = make_data(cfg)
        network = instantiate(
            cfg.model,
            class_names=data.catalog.classes,
            eval_transform=A.to_dict(data.eval_transform),
            optimizer=instantiate(cfg.optimizer),
            scheduler=None,
        )
        network.trainer = build_trainer(cfg.trainer)  # whose precision a report computes in, as a run's test does
        rng = np.random.default_rng(0)  # as many errors as a report lists, whatever the network computes
        at = np.flatnonzero(data.catalog.splits != "train")
        logits = rng.normal(0, 2, (len(at), 9)).astype(np.float32)
        blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        features = rng.normal(size=(len(at), network.eval().logits_and_features(blank)[1].shape[1]))
        outputs = Outputs.of(
            Predictions(at, data.catalog.labels[at], logits, features.astype(np.float16)), data.catalog
        )
        print(f"{'step':<52} {'CPU s':>8} {'s':>8}")
        output = Path(cfg.paths.output)
        steps = ("training_outputs", "analyze", "audit_report", "error_heat_maps", "write_report")
        whole = timed(f"report of {count:,} images ({model}, {height}x{width})", run.explain)
        with patch.multiple(run, **{name: timed(f"  {name}", getattr(run, name)) for name in steps}):
            whole(output, network, data, outputs, cfg)
        sizes = (
            f"{(output / name).stat().st_size / 1e6:.1f} MB {name}" for name in ("report.html", "report_inputs.npz")
        )
        print("; ".join(sizes))


def catalog(options: Options) -> list[Row]:
    """Measure each size in a process of its own, so that its peak memory is its own."""
    megabytes = {}

    def seconds(n: int) -> float:
        command = [sys.executable, __file__, "--catalog", str(n)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
        measured = json.loads(done.stdout)
        megabytes[n] = measured["megabytes"]
        return float(measured["seconds"])

    found = []
    for n in (100_000,) if options.quick else (100_000, 1_000_000):
        pairs = in_turns(3, partial(seconds, n), partial(seconds, 10_000))
        line = row(f"{n:,} images in the catalog vs 10,000 (less is better)", pairs, "s to the first batch's paths")
        line.detail += f"; {megabytes[n]:.0f} MB more at most"
        found.append(line)
    return found


def peak_memory() -> float:
    """Return the most memory that this process has used so far, MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent used when it forked
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def simulate(n: int) -> None:
    """Split and shuffle a catalog of ``n`` images, as a run does before its first step; print JSON."""
    import numpy as np

    from fish_lightning.data.catalog import make_catalog
    from fish_lightning.data.dataset import KeyedBatches
    from fish_lightning.data.splits import photograph_split

    before = peak_memory()
    lines = [(f"class {i % 9}/{i:08}.png", f"class {i % 9}", f"class {i % 9}/{i // 180}", "") for i in range(n)]
    began = time.perf_counter()
    images = make_catalog(Path("simulated"), lines)
    del lines
    images = images.with_splits(photograph_split(images, seed=1))
    batch = next(iter(KeyedBatches(len(images.indices("train")), 128, seed=1, shuffle=True)))
    assert len(np.unique([index for _, index in batch])) == 128
    seconds = time.perf_counter() - began
    megabytes = peak_memory() - before
    print(json.dumps({"seconds": seconds, "megabytes": megabytes}))


# --- the table --------------------------------------------------------------------------------------------------------


def machine() -> str:
    """Return processor, cores, GPU and versions."""
    import lightning
    import torch

    from fish_lightning.hardware import cores, cpu_has_bf16

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    bf16 = " with bf16" if cpu_has_bf16() else ""
    return f"{name}{bf16}, {cores()} cores{gpu}; torch {torch.__version__}, lightning {lightning.__version__}"


def require_gpu() -> None:
    """End the program where there is no CUDA GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"error: --gpu: torch {torch.__version__} finds no CUDA GPU on this machine")


def measure(part: str, options: Options) -> Iterator[Row]:
    """Yield the rows of a part; on a GPU, none where time is short."""
    try:
        if part == "goal" and options.seconds_left < GOAL_SECONDS:
            raise subprocess.TimeoutExpired("goal", GOAL_SECONDS)
        yield from globals()[part](options)
    except subprocess.TimeoutExpired:
        print(f"skipped {part}: no time left; measure it on its own: --gpu --only {part}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="measure on one CUDA GPU, within 8 minutes")
    parser.add_argument("--tests", action="store_true", help="with --gpu: first run the tests that need one")
    parser.add_argument("--report", action="store_true", help="only: what the report of 1,350 images adds to a run")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: under two minutes on two cores")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}; with --gpu of {','.join(GPU_PARTS)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="class folders for the part goal")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="file for the results, as JSON")
    parser.add_argument("--catalog", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.catalog:
        simulate(given.catalog)
        return
    if given.report:
        print(f"{machine()}\n")
        measure_report(*((54, 32, 48, "shufflenet_v2_x0_5") if given.quick else (1350, 112, 168, "resnet34")))
        return
    parts = GPU_PARTS if given.gpu else PARTS
    chosen = given.only.split(",") if given.only else parts
    unknown = sorted(set(chosen) - set(parts))
    if unknown:
        parser.error(f"--only: unknown part {', '.join(unknown)}; choose from {', '.join(parts)}")
    tests = [sys.executable, "-m", "pytest", "-m", "gpu"]
    if given.gpu:
        require_gpu()
        if given.tests:
            subprocess.run(tests, cwd=ROOT, check=False)  # noqa: S603
        else:
            print(f"tests that need a GPU: {' '.join(['python', *tests[1:]])}, or --tests\n")
    options = Options(
        given.quick,
        "gpu" if given.gpu else "cpu",
        given.data and given.data.resolve(),
        time.monotonic() + GPU_SECONDS if given.gpu else math.inf,
    )
    where, table = machine(), []
    print(f"{where}\n\n{'what':<88} {'ratio':>8} {'quartiles':>16}  figures", flush=True)
    for part in chosen:
        for line in measure(part, options):
            table.append(line)
            spread = f"{line.low:.3g} to {line.high:.3g}"
            print(f"{line.name:<88} {line.ratio:8.3g} {spread:>16}  {line.detail}", flush=True)
    figures = {"machine": where, "quick": given.quick, "rows": [asdict(line) for line in table]}
    given.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nwritten to {given.output}")


if __name__ == "__main__":
    main()
