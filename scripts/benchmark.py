"""What this machine makes of the project: ratios of two things timed in turns, as a table and as JSON.

    python scripts/benchmark.py [--quick] [--only loader,train,…] [--data DIR] [--output benchmark.json]

Both sides of a ratio are timed in turns, so that what else the machine does meets both; the median of the rounds
counts, and the quartiles say how much they scatter. Parts:

    reseed   beginning an image's random numbers anew: this project against ``Compose.set_random_seed``
    loader   images a second of one loader process: the cache against the notebook's loader and against a memory copy
    train    images a second in a run, its callbacks and loggers included: against a plain fp32 loop with the notebook's
             loader, and against the same model fed one batch that is there already (how much of a step is not waiting)
    goal     seconds of training to the validation accuracy that ``experiment=notebook`` ends with: ``experiment=fast``;
             with ``--data DIR`` on those images and as the recipes stand, but from random weights (an hour on a CPU)
    start    seconds from starting a program: help against ``import hydra``; a run of one step against the imports it
             needs, and where its seconds go
    rows     seconds and memory against the number of images in the table, up to 1,000,000 (simulated)
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fish_lightning  # noqa: E402, F401 - sets what torch and albumentations read when they are imported

# isort: split
from lightning.pytorch.callbacks import Callback  # noqa: E402

PARTS = ("reseed", "loader", "train", "goal", "start", "rows")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: what is compared.
        ratio: median of the rounds; above 1 the project is better, unless the name says otherwise.
        low: lower quartile of the rounds.
        high: upper quartile.
        detail: the two figures.
    """

    name: str
    ratio: float
    low: float
    high: float
    detail: str


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """What both give, one after the other, ``rounds`` times."""
    return [(ours(), theirs()) for _ in range(rounds)]


def row(name: str, pairs: list[tuple[float, float]], unit: str) -> Row:
    """A line from pairs of figures of which more is better."""
    ratios = [ours / theirs for ours, theirs in pairs]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Row(name, statistics.median(ratios), quartiles[0], quartiles[2], f"{ours:,.3g} against {theirs:,.3g} {unit}")


def rate(work: Callable[[], Any], count: int) -> float:
    """Things a second, of ``count`` things that ``work`` does."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


# --- parts ------------------------------------------------------------------------------------------------------------


def reseed(quick: bool) -> list[Row]:
    """Keyed randomness, calls a second."""
    import albumentations as A

    from fish_lightning.data.dataset import KeyedRandomness, keyed_seed

    transform = A.Compose([A.Rotate((-35, 35), p=1.0), A.HorizontalFlip(), A.VerticalFlip(p=0.1)])
    keyed, n = KeyedRandomness(), 300 if quick else 2000

    def ours() -> None:
        for index in range(n):
            keyed.key(transform, keyed_seed(42, 1, index))

    def theirs() -> None:
        for index in range(n):
            transform.set_random_seed(index)

    pairs = in_turns(lambda: rate(ours, n), lambda: rate(theirs, n), 9)
    microseconds = 1e6 / statistics.median(ours for ours, _ in pairs)
    found = row("keyed randomness against set_random_seed", pairs, "images/s")
    found.detail += f"; {microseconds:.1f} µs an image"
    return [found]


class Notebook:
    """The notebook's data set: Pillow opens the file, albumentations resizes, augments and makes a float tensor."""

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
        """Number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """One image, float32, and a label."""
        import numpy as np
        from PIL import Image

        with Image.open(self.files[index]) as image:
            pixels = np.array(image.convert("RGB"))
        return self.transform(image=pixels)["image"], index % 9


def make_images(folder: Path, count: int) -> list[Path]:
    """PNG files of the archive's size, 590x445, with detail as photographs have; nine class folders."""
    import cv2
    import numpy as np

    files = []
    for index in range(count):
        rng = np.random.default_rng(index)
        coarse = cv2.resize(
            rng.integers(0, 256, (12, 16, 3)).astype(np.uint8), (590, 445), interpolation=cv2.INTER_CUBIC
        )
        grain = rng.normal(0, 6, (445, 590, 3))
        file = folder / f"kind {index % 9}" / f"{index:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.clip(coarse + grain, 0, 255).astype(np.uint8))
        files.append(file)
    return files


def compose_run(folder: Path, height: int, width: int, *overrides: str) -> Any:
    """The config of a training run on class folders that writes beside them."""
    from hydra import compose, initialize_config_dir

    from fish_lightning.cli import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(
            "train",
            [
                "data=folder",
                f"data.root={folder}",
                f"paths.cache={folder.parent / 'cache'}",
                f"paths.output={folder.parent / 'run'}",
                "split=random",
                "data.find_copies=false",
                f"transforms.height={height}",
                f"transforms.width={width}",
                "model.weights=null",
                *overrides,
            ],
        )


def make_data(cfg: Any) -> Any:
    """The project's data module, as a run makes it."""
    from hydra.utils import instantiate

    with contextlib.redirect_stdout(sys.stderr):  # its lines are no part of the table
        data = instantiate(cfg.data)
        data.prepare_data()
        data.setup()
    return data


def loader(quick: bool) -> list[Row]:
    """One process, no worker: what a worker does."""
    import numpy as np

    height, width, n = 160, 240, 24 if quick else 64
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder) / "images", 90)
        data = make_data(compose_run(Path(folder) / "images", height, width, "data.num_workers=0"))
        cached, plain = data.dataset("train", train=True), Notebook(files, height, width)
        target, pixels = np.empty((n, height, width, 3), np.uint8), data.pixels.pixels
        order = [index % len(cached) for index in range(n)]

        def copy() -> None:
            for slot, index in enumerate(order):
                target[slot] = pixels[index]

        rates = [
            (
                rate(lambda: [cached[1, index] for index in order], n),
                rate(lambda: [plain[index] for index in range(n)], n),
                rate(copy, n),
            )
            for _ in range(5 if quick else 11)
        ]
    return [
        row(
            "cached loader, a process, against the notebook's",
            [(ours, theirs) for ours, theirs, _ in rates],
            "images/s",
        ),
        row("  … against a memory copy of its pixels", [(ours, copied) for ours, _, copied in rates], "images/s"),
    ]


def train(quick: bool) -> list[Row]:
    """Steps of a run, of a plain loop and of a resident batch in turns, inside one ``Trainer.fit``."""
    import albumentations as A
    import lightning as L
    import torch
    from hydra.utils import instantiate
    from torch.utils.data import DataLoader
    from torchvision.models import resnet34

    from fish_lightning.hardware import default_workers
    from fish_lightning.training.trainer import build_trainer

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    height, width, batch = (160, 240, 128) if gpu else (80, 120, 16) if quick else (160, 240, 32)
    steps, rounds = (20, 5) if gpu else (2, 3) if quick else (3, 7)
    workers = default_workers("auto", cache="off")

    def synchronized() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    class InTurns(L.Callback):
        """Between the fit's own steps, lets the two others take as many."""

        def __init__(self, files: list[Path]) -> None:
            plain = Notebook(files, height, width)
            self.loader = iter(
                DataLoader(
                    torch.utils.data.ConcatDataset([plain] * 1000),  # type: ignore[list-item]
                    batch,
                    num_workers=workers,
                    pin_memory=gpu,
                )
            )
            self.network = resnet34(num_classes=9).to(device)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
            self.rates: list[tuple[float, float, float]] = []
            self.taken = 0
            self.start = 0.0
            self.resident: Any = None

        # What stands ready in a loader's queue was made while others computed: as many steps are not counted.
        ahead = 2 * workers + 1

        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch_: Any, batch_idx: int
        ) -> None:
            self.taken += 1
            self.resident = batch_
            if self.taken == self.ahead:
                self.start = synchronized()
            if self.taken < self.ahead + steps:
                return
            ours = batch * steps / (synchronized() - self.start)
            self.rates.append((ours, self._plain(), self._resident(trainer, pl_module)))
            self.taken = 0

        def _plain(self) -> float:
            for number in range(self.ahead + steps):
                if number == self.ahead:
                    start = synchronized()
                images, labels = next(self.loader)
                self.optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(self.network(images.to(device)), labels.to(device))
                loss.backward()
                torch.nn.utils.clip_grad_value_(self.network.parameters(), 0.1)
                self.optimizer.step()
                loss.item()
            return batch * steps / (synchronized() - start)

        def _resident(self, trainer: L.Trainer, module: Any) -> float:
            optimizer = module.make_optimizer(module.parameters(), lr=0.0)  # the run's own, which moves nothing
            for number in range(1 + steps):
                if number == 1:
                    start = synchronized()
                optimizer.zero_grad()
                with trainer.precision_plugin.forward_context():
                    loss = module.train_criterion(module(self.resident["image"]), self.resident["label"])
                loss.backward()
                torch.nn.utils.clip_grad_value_(module.parameters(), 0.1)
                optimizer.step()
            optimizer.zero_grad()
            return batch * steps / (synchronized() - start)

    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder) / "images", 4 * batch)
        turns = InTurns(files)
        # One epoch is long enough for all rounds: what happens at its end is no step.
        for copy in range(rounds * (turns.ahead + steps) * batch // len(files) + 1):
            for file in files:
                os.link(file, file.with_name(f"{copy} {file.name}"))
        cfg = compose_run(
            *(Path(folder) / "images", height, width),
            *(f"data.batch_size={batch}", "split.test=0.05", "split.val=0.05", "model.name=resnet34"),
            *(f"trainer.max_steps={rounds * (turns.ahead + steps)}", "trainer.max_epochs=-1"),
            *("trainer.limit_val_batches=0", "trainer.enable_progress_bar=false", "callbacks.best=null"),
            *("scheduler=none", "trainer.devices=1"),
        )
        data = make_data(cfg)
        model = instantiate(
            cfg.model,
            class_names=data.catalog.classes,
            eval_transform=A.to_dict(data.eval_transform),
            optimizer=instantiate(cfg.optimizer),
            scheduler=None,
        )
        callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback is not None]
        loggers = [instantiate(logger) for logger in cfg.logger.values()]
        trainer = build_trainer(cfg.trainer, [*callbacks, turns], loggers)
        with contextlib.redirect_stdout(sys.stderr):  # the run's own lines are no part of the table
            trainer.fit(model, datamodule=data)
        precision = trainer.precision
    what = f"ResNet-34, {height}x{width}, batch {batch}, {precision}"
    return [
        row(
            f"training ({what}) against a plain fp32 loop",
            [(ours, plain) for ours, plain, _ in turns.rates],
            "images/s",
        ),
        row("  … against one resident batch", [(ours, fed) for ours, _, fed in turns.rates], "images/s"),
    ]


def goal(quick: bool, data: Path | None = None) -> list[Row]:
    """Sample data and ResNet-18, so that it takes minutes on a CPU; with ``data`` the recipes as they are."""
    settings = ["test=false", "model.weights=null"]
    if data is not None:
        what, seeds = f"{data.name}, ResNet-34", [42]
        settings += [f"data.root={data}"]
    else:
        what, seeds = "sample data, ResNet-18", [42] if quick else [42, 43]
        settings += ["data=sample", "split=random", "model.name=resnet18", "data.batch_size=32"]
        settings += ["data.source.photographs_per_kind=8"] if quick else []
        height, width = (64, 96) if quick else (96, 128)
        settings += [f"transforms.height={height}", f"transforms.width={width}"]
    pairs, details = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            histories = {}
            for recipe in ("notebook", "fast"):
                program("train", f"experiment={recipe}", *settings, f"seed={seed}", f"hydra.run.dir={folder}/{recipe}")
                histories[recipe] = epochs(Path(folder) / recipe)
        target = histories["notebook"][-1][1]
        reached = next((seconds for seconds, accuracy in histories["fast"] if accuracy >= target), None)
        first = next(seconds for seconds, accuracy in histories["notebook"] if accuracy >= target)
        # A recipe that does not get there counts as slower without end.
        pairs.append((1 / reached if reached else 0.0, 1 / first))
        best = max(accuracy for _, accuracy in histories["fast"])
        shown = f"{reached:.0f}" if reached else f"never ({best:.1%})"
        details.append(f"{shown} against {first:.0f} s to {target:.1%}")
    found = row("seconds of training to the notebook's accuracy: notebook / fast", pairs, "")
    found.detail = f"{'; '.join(details)} ({what})"
    return [found]


def epochs(run: Path) -> list[tuple[float, float]]:
    """(seconds so far, validation accuracy) of each epoch of a run, from its checkpoint's history."""
    import torch

    state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    found, seconds = [], 0.0
    for line in state["callbacks"]["History"]["rows"]:
        if line["seconds"] is not None:
            seconds += line["seconds"]
            found.append((seconds, line["val_accuracy"]))
    return found


def program(name: str, *overrides: str) -> None:
    """Run an entry point to its end."""
    done = subprocess.run(  # noqa: S603 - this project's own program
        [sys.executable, "-m", f"fish_lightning.{name}", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr[-2000:]}")


def start(quick: bool) -> list[Row]:
    """Programs from their start, in turns with what they cannot do without."""
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
        seconds(*one_step)  # makes the cache, and Python's compiled files
        stages = []

        def first_step() -> float:
            file = Path(folder) / "stages.json"
            clock = f"+callbacks.clock={{_target_:benchmark.Clock,file:{file},began:{time.time()}}}"
            total = seconds(*one_step, clock)
            stages.append(json.loads(file.read_text()) | {"all": total})
            return total

        imports = "import hydra, torch, torchvision, lightning, albumentations, torchmetrics, matplotlib.pyplot"
        imports += ", torch.utils.tensorboard"
        rounds = 2 if quick else 4
        helps = in_turns(
            lambda: seconds("-m", "fish_lightning.train", "--help"), lambda: seconds("-c", "import hydra"), rounds
        )
        steps = in_turns(first_step, lambda: seconds("-c", imports), rounds)
    keys = ("made", "fit", "step", "all")
    made, fit, step, whole = (statistics.median(stage[key] for stage in stages) for key in keys)
    run = row("a run of one step, time against its imports (less is better)", steps, "s")
    run.detail += (
        f": {made:.1f} to data and network, {fit - made:.1f} trainer and loggers, {step - fit:.1f} first step, "
        f"{whole - step:.1f} validation, plots (and their imports), files"
    )
    return [row("--help, time against import hydra (less is better)", helps, "s"), run]


class Clock(Callback):
    """Notes how long after ``began`` (seconds since 1970) a run comes to its callbacks, its fit and its first step."""

    def __init__(self, file: str, began: float) -> None:
        self.file, self.began, self.stages = Path(file), began, {"made": time.time() - began}

    def on_train_start(self, *_: Any) -> None:
        """All is made."""
        self.stages["fit"] = time.time() - self.began

    def on_train_batch_end(self, *_: Any) -> None:
        """The first step is done."""
        self.stages.setdefault("step", time.time() - self.began)
        self.file.write_text(json.dumps(self.stages))


def rows(quick: bool) -> list[Row]:
    """Each size in a process of its own, so that its peak memory is its own."""
    megabytes = {}

    def seconds(n: int) -> float:
        command = [sys.executable, __file__, "--rows", str(n)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
        measured = json.loads(done.stdout)
        megabytes[n] = measured["megabytes"]
        return float(measured["seconds"])

    found = []
    for n in (100_000,) if quick else (100_000, 1_000_000):
        pairs = in_turns(partial(seconds, n), partial(seconds, 10_000), 3)
        line = row(f"{n:,} images in the table against 10,000 (less is better)", pairs, "s to the first batch's names")
        line.detail += f"; {megabytes[n]:.0f} MB more at most"
        found.append(line)
    return found


def peak_memory() -> float:
    """Most memory that this program has held so far, MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it forked
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def simulate(n: int) -> None:
    """A table of ``n`` images split and shuffled, as a run does before its first step; prints JSON."""
    import numpy as np

    from fish_lightning.data.catalog import make_catalog
    from fish_lightning.data.dataset import KeyedBatches
    from fish_lightning.data.splits import photograph_split

    before = peak_memory()
    lines = [(f"kind {i % 9}/{i:08}.png", f"kind {i % 9}", f"kind {i % 9}/{i // 180}", "") for i in range(n)]
    began = time.perf_counter()
    catalog = make_catalog(Path("simulated"), lines)
    del lines
    catalog = catalog.with_splits(photograph_split(catalog, seed=1))
    batch = next(iter(KeyedBatches(len(catalog.indices("train")), 128, seed=1, shuffle=True)))
    assert len(np.unique([index for _, index in batch])) == 128
    seconds = time.perf_counter() - began
    megabytes = peak_memory() - before
    print(json.dumps({"seconds": seconds, "megabytes": megabytes}))


# --- the table --------------------------------------------------------------------------------------------------------


def machine() -> str:
    """Processor, cores, GPU and versions."""
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: under two minutes on two cores")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="class folders for the part goal")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="the figures, as JSON")
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows:
        simulate(arguments.rows)
        return
    chosen = arguments.only.split(",")
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        parser.error(f"--only: there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    where, table = machine(), []
    print(f"{where}\n\n{'what':<82} {'ratio':>8} {'quartiles':>16}  figures", flush=True)
    for part in chosen:
        extra = {"data": arguments.data.resolve()} if part == "goal" and arguments.data else {}
        for line in globals()[part](arguments.quick, **extra):
            table.append(line)
            spread = f"{line.low:.3g} to {line.high:.3g}"
            print(f"{line.name:<82} {line.ratio:8.3g} {spread:>16}  {line.detail}", flush=True)
    arguments.output.write_text(
        json.dumps({"machine": where, "quick": arguments.quick, "rows": [asdict(line) for line in table]}, indent=2)
        + "\n"
    )
    print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
