"""Measure ``predict`` on many files: memory, speed, kills; and the same of an earlier checkout.

    python scripts/benchmark_predict.py [--files 1000,10000,100000] [--kills 10] [--earlier DIR] [--ckpt RUN]
        [--photographs DIR]

The files are hard links to 500 small JPEGs in a temporary folder; the model, unless ``--ckpt`` gives one, is a tiny
network trained for an epoch. Each figure is of a program of its own, ``num_workers=0``: CPU seconds with its imports,
and peak memory of the process.

    memory    peak memory and images/s by the number of files
    listing   memory and seconds of a list of 1,000,000 paths, and of the manifest's digest of it
    kills     a run over 3,000 files is killed at random times and started again: rows lost and repeated
    earlier   3,000 files with this checkout and with an earlier one, alternately (``--earlier DIR``)
    reduced   decoding 12-megapixel JPEGs at 1/2, 1/4 and 1/8 of their size against whole: time, and what it does to the
              probabilities of ``--ckpt RUN``; 12 photographs of ``--photographs DIR``, enlarged, without and with the
              noise of a sensor. It is why ``predict`` decodes them whole.
"""

import argparse
import csv
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TINY = (
    *("model.name=shufflenet_v2_x0_5", "model.weights=null", "transforms.height=32", "transforms.width=32"),
    *("trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "data.num_workers=0", "report=false"),
    *("data.source.photographs_per_kind=3", "data.source.copies=1", "test=false", "hydra.run.dir=run"),
)


def program(name: str, *words: str, cwd: Path, checkout: Path = ROOT) -> "subprocess.Popen[bytes]":
    """Start a program of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"fish_lightning.{name}", *words]
    with (cwd / "output.txt").open("wb") as output:
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603


def measured(process: "subprocess.Popen[bytes]") -> tuple[float, float]:
    """Wait for a program; return its CPU seconds, which other load hardly changes, and its peak memory in MB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args} exited with code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def draw(folder: Path, files: int) -> Path:
    """Make a folder of small images, hard links to 500 of them."""
    folder.mkdir()
    for number in range(min(files, 500)):
        noise = np.random.default_rng(number).normal((number % 250, 90, 160), 25, (48, 64, 3))
        Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(folder / f"{number:06}.jpg")
    for number in range(500, files):
        (folder / f"{number:06}.jpg").hardlink_to(folder / f"{number % 500:06}.jpg")
    return folder


def predict_words(ckpt: Path, folder: Path, out: str) -> tuple[str, ...]:
    """Return the arguments of a run."""
    words = (f"ckpt={ckpt}", f"input={folder}", "trainer=cpu", "num_workers=0", "contact_sheet=0")
    return (*words, f"hydra.run.dir={out}")


def memory(cwd: Path, ckpt: Path, counts: list[int]) -> None:
    """Print peak memory and speed by the number of files."""
    for files in counts:
        folder = draw(cwd / f"photos-{files}", files)
        seconds, peak = measured(program("predict", *predict_words(ckpt, folder, f"out-{files}"), cwd=cwd))
        speed = (cwd / "output.txt").read_text().splitlines()[-1]
        print(f"memory    {files:>9,} files: {peak:,.0f} MB at most, {seconds:.1f} s of CPU time; {speed}", flush=True)


def listing() -> None:
    """Print memory and seconds of a list of a million paths."""
    from fish_lightning.data.inputs import InputFiles

    tracemalloc.start()
    start = time.perf_counter()
    files = InputFiles(f"photographs/of/the/year/2026/camera-{i % 97:02}/IMG_{i:08}.jpeg" for i in range(1_000_000))
    listed = time.perf_counter() - start
    digest = files.digest()[:8]
    kept, peak = (size / 1e6 for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    print(
        f"listing   {len(files):,} paths ({digest}): {kept:.0f} MB, {peak:.0f} MB at most, {listed:.1f} s", flush=True
    )


def kills(cwd: Path, ckpt: Path, count: int) -> None:
    """Kill a run at random times, and count the rows when it has ended at last."""
    files, random_, done = 3000, random.Random(0), 0  # noqa: S311 - times of kills
    folder = draw(cwd / "photos-killed", files)
    words = predict_words(ckpt, folder, "killed")
    parts = cwd / "killed" / "predictions"
    attempts = 0
    while done < count:
        before = len(list(parts.glob("part-*")))
        process = program("predict", *words, cwd=cwd)
        while process.poll() is None and len(list(parts.glob("part-*"))) == before:  # until it predicts
            time.sleep(0.01)
        time.sleep(random_.uniform(0, 0.3))
        process.kill()
        attempts += 1
        if process.wait() != -signal.SIGKILL:
            raise SystemExit("the run ended before it was killed as often as asked: give fewer --kills")
        done += 1
    measured(program("predict", *words, cwd=cwd))
    rows = [row["path"] for part in sorted(parts.glob("part-*")) for row in csv.DictReader(part.open(newline=""))]
    expected = sorted(str(file) for file in folder.iterdir())
    merged = [entry["path"] for entry in json.loads((cwd / "killed" / "predictions.json").read_text())]
    print(
        f"kills     {attempts} kills in a run over {files:,} files: {len(set(expected) - set(rows))} rows lost, "
        f"{len(rows) - len(set(rows))} repeated; in order: {rows == merged == expected}",
        flush=True,
    )


def earlier(cwd: Path, ckpt: Path, checkout: Path, rounds: int = 2) -> None:
    """Print seconds and memory of both checkouts for 3,000 files, alternately."""
    folder = draw(cwd / "photos-3000", 3000)
    for number in range(rounds):
        for name, place in (("this", ROOT), ("earlier", checkout)):
            words = predict_words(ckpt, folder, f"{name}-{number}")
            seconds, peak = measured(program("predict", *words, cwd=cwd, checkout=place))
            print(
                f"earlier  3,000 files, {name} checkout: {seconds:.1f} s of CPU time, {peak:,.0f} MB at most",
                flush=True,
            )


def reduced(ckpt: Path, photographs: Path, count: int = 12) -> None:
    """Print what decoding at reduced scale saves, and how far it moves a probability."""
    import torch

    from fish_lightning.data.listing import images_below
    from fish_lightning.models.trained import open_model

    trained, noise = open_model(ckpt), np.random.default_rng(0)
    files = random.Random(0).sample(sorted(images_below(photographs)), count)  # noqa: S311 - a sample
    for sigma in (0, 6):
        seconds: dict[int, list[float]] = {scale: [] for scale in (1, 2, 4, 8)}
        moved: dict[int, list[float]] = {scale: [] for scale in (1, 2, 4, 8)}
        for file in files:
            with Image.open(file) as image:
                large = np.asarray(image.convert("RGB").resize((4032, 3024), Image.Resampling.BICUBIC))
            buffer = io.BytesIO()
            pixels = np.clip(large + noise.normal(0, sigma, large.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            whole = None
            for scale in (1, 2, 4, 8):
                start = time.process_time()
                with Image.open(buffer) as image:
                    image.draft(None, (image.width // scale, image.height // scale))
                    decoded = np.array(image)
                seconds[scale].append(time.process_time() - start)
                with torch.inference_mode():
                    batch = trained.transform(image=decoded)["image"][None]
                    found = trained.module.logits_and_features(batch)[0].softmax(1)
                whole = found if whole is None else whole
                moved[scale].append(float((found - whole).abs().max()))
        for scale in (2, 4, 8):
            times = [1000 * statistics.median(seconds[each]) for each in (1, scale)]
            beyond = sum(change > 0.01 for change in moved[scale])
            print(
                f"reduced   noise {sigma}: 1/{scale} in {times[1]:.0f} ms, whole in {times[0]:.0f} ms; "
                f"a probability moves by up to {max(moved[scale]):.4f}, beyond 0.01 in {beyond} of {count}",
                flush=True,
            )


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="1000,10000,100000", help="numbers of files, separated by commas; '': none")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--earlier", type=Path, help="a checkout to compare with")
    parser.add_argument("--ckpt", type=Path, help="a run's folder")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs of what that run was trained on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cwd = Path(temporary)
        if options.ckpt is None:
            measured(program("train", *TINY, cwd=cwd))
        ckpt = (cwd / "run" if options.ckpt is None else options.ckpt).absolute()
        listing()
        if options.photographs is not None:
            reduced(ckpt, options.photographs)
        if options.earlier is not None:
            earlier(cwd, ckpt, options.earlier.absolute())
        if options.kills:
            kills(cwd, ckpt, options.kills)
        memory(cwd, ckpt, [int(count) for count in options.files.split(",") if count])


if __name__ == "__main__":
    main()
