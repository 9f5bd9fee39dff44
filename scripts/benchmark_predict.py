"""Measure ``predict`` on many files: memory, speed, kills; and the same of an earlier checkout.

    python scripts/benchmark_predict.py [--files 1000,10000,100000] [--kills 10] [--earlier DIR] [--ckpt RUN]

The files are hard links to 500 small JPEGs in a temporary folder; the model, unless ``--ckpt`` gives one, is a tiny
network trained for an epoch. Each figure is of a program of its own, ``num_workers=0``: CPU seconds with its imports,
and peak memory of the process.

    memory    peak memory and images/s by the number of files
    listing   memory and seconds of a list of 1,000,000 paths, and of the manifest's digest of it
    kills     a run over 3,000 files is killed at random times and started again: rows lost and repeated
    earlier   3,000 files with this checkout and with an earlier one, in turns (``--earlier DIR``)
"""

import argparse
import csv
import json
import os
import random
import signal
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
        print(f"memory   {files:>9,} files: {peak:,.0f} MB at most, {seconds:.1f} s of CPU time; {speed}", flush=True)


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
    print(f"listing  {len(files):,} paths ({digest}): {kept:.0f} MB, {peak:.0f} MB at most, {listed:.1f} s", flush=True)


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
        f"kills    {attempts} kills in a run over {files:,} files: {len(set(expected) - set(rows))} rows lost, "
        f"{len(rows) - len(set(rows))} repeated; in order: {rows == merged == expected}",
        flush=True,
    )


def earlier(cwd: Path, ckpt: Path, checkout: Path, rounds: int = 2) -> None:
    """Print seconds and memory of both checkouts for 3,000 files, in turns."""
    folder = draw(cwd / "photos-3000", 3000)
    for number in range(rounds):
        for name, place in (("this", ROOT), ("earlier", checkout)):
            words = predict_words(ckpt, folder, f"{name}-{number}")
            seconds, peak = measured(program("predict", *words, cwd=cwd, checkout=place))
            print(
                f"earlier  3,000 files, {name} checkout: {seconds:.1f} s of CPU time, {peak:,.0f} MB at most",
                flush=True,
            )


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="1000,10000,100000", help="numbers of files, with commas between; '': none")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--earlier", type=Path, help="a checkout to compare with")
    parser.add_argument("--ckpt", type=Path, help="a run's folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cwd = Path(temporary)
        if options.ckpt is None:
            measured(program("train", *TINY, cwd=cwd))
        ckpt = (cwd / "run" if options.ckpt is None else options.ckpt).absolute()
        listing()
        if options.earlier is not None:
            earlier(cwd, ckpt, options.earlier.absolute())
        if options.kills:
            kills(cwd, ckpt, options.kills)
        memory(cwd, ckpt, [int(count) for count in options.files.split(",") if count])


if __name__ == "__main__":
    main()
