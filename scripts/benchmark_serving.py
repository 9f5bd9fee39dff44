"""Measure ``python -m fish_lightning.serve``: is every answer right under load, and what does serving cost?

    python scripts/benchmark_serving.py RUN [--only soak|throughput] [--requests 2000] [--rounds 5] [--images DIR]

``RUN`` is a run's folder; its images (or those of ``--images``) are what clients send. Two parts:

    soak        requests of good and hostile files, 32 at a time: each answer is compared with what ``predict`` writes,
                each refusal with its code; the server's memory after each tenth
    throughput  images/s of 32 clients that send one file per request, against the bare model in batches of 32 (decoded
                before), against decoding and the model one after the other, as a loop of ``predict`` batches does, and
                against a minimal server on LitServe (``pip install litserve``), all alternately; ratios are medians of
                the rounds; and CPU seconds of an image, which other programs on the machine do not change

Clients are threads of this process: what they take of the machine counts against the servers.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fish_lightning  # noqa: E402, F401 - sets what torch and albumentations read when they are imported

CLIENTS = 32
BATCH = 32
FILES = 64  # different files that are sent
MARGIN = 0.02  # a class may change only if the two most probable were closer
BOUNDARY = "benchmark"


def bomb(side: int) -> bytes:
    """Return a PNG of a few bytes that says to be of any size."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def hostile(good: bytes) -> list[tuple[bytes, str]]:
    """Return files that are refused, and the code of the error."""
    return [
        (b"", "unreadable_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n", "unreadable_image"),
        (b"GIF89a" + bytes(200), "unreadable_image"),
        (good[: len(good) // 2], "unreadable_image"),
        (b"\xff\xd8\xff\xe0" + os.urandom(2000), "unreadable_image"),
        (bomb(20_000), "too_many_pixels"),
        (bomb(100_000), "too_many_pixels"),
        (bytes(20_000_001), "file_too_large"),
    ]


def post(connection: http.client.HTTPConnection, files: Sequence[tuple[str, bytes]]) -> tuple[int, Any]:
    """Send files; return status and JSON."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    connection.request("POST", "/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def in_parallel(port: int, work: Sequence[Any], each: Callable[[http.client.HTTPConnection, Any], Any]) -> list[Any]:
    """Do work with ``CLIENTS`` clients, each with a connection of its own; return what each piece gave, in order."""

    def client(number: int) -> list[Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        done = [each(connection, piece) for piece in work[number::CLIENTS]]
        connection.close()
        return done

    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = list(pool.map(client, range(CLIENTS)))
    return [parts[i % CLIENTS][i // CLIENTS] for i in range(len(work))]


@contextlib.contextmanager
def program(*command: str) -> Iterator[int]:
    """Run a server on a free port, which replaces PORT in the command, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, *(word.replace("PORT", str(port)) for word in command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        started = subprocess.Popen(  # noqa: S603
            *(words,), cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_for(port, started)
            yield port
        finally:
            started.terminate()
            started.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)  # LitServe's workers survive their parent's SIGTERM


def wait_for(port: int, started: "subprocess.Popen[bytes]") -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if started.poll() is not None:
            sys.exit(f"error: the server ended with exit code {started.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    sys.exit("error: the server does not answer")


def predicted(run: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """Return what ``predict`` writes for files, by name."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        words = [f"ckpt={run}", f"input={folder}", "num_workers=0", "contact_sheet=0", "trainer.accelerator=cpu"]
        command = [sys.executable, "-m", "fish_lightning.predict", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        (written,) = Path(folder).rglob("predictions.json")
        return {Path(row["path"]).name: row for row in json.loads(written.read_text(encoding="utf-8"))}


def metric(port: int, name: str) -> float:
    """Return a figure of the server's process."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    found = re.search(rf"^process_{name} ([\d.e+]+)$", text, re.M)
    return float(found[1]) if found else float("nan")


def soak(port: int, files: dict[str, bytes], truth: dict[str, Any], count: int) -> tuple[int, int, float]:
    """Send mixed requests and print what was wrong.

    Args:
        port: of the server.
        files: to send, by name.
        truth: rows of ``predictions.json``, by name.
        count: of requests.

    Returns:
        Answers that are wrong, lost or another request's; images whose class is not that of ``truth``; the largest
        difference in a probability.
    """
    draw = random.Random(0)  # noqa: S311
    names = list(files)
    bad = hostile(next(iter(files.values())))
    orders: list[tuple[list[tuple[str, bytes]], list[str] | str]] = []
    for number in range(count):
        chosen = draw.choices(names, k=draw.choice((1, 1, 1, 2, 5)))
        sent = [(f"{number}-{place}", files[name]) for place, name in enumerate(chosen)]
        expected: list[str] | str = chosen
        if number % 4 == 3:
            content, expected = draw.choice(bad)
            sent.insert(draw.randrange(len(sent) + 1), (f"{number}-bad", content))
        orders.append((sent, expected))
    worst, flips, wrong = 0.0, 0, []
    times: list[float] = []

    def ask(connection: http.client.HTTPConnection, order: tuple[list[tuple[str, bytes]], Any]) -> tuple[int, Any]:
        start = time.perf_counter()
        answer = post(connection, order[0])
        times.append(time.perf_counter() - start)
        return answer

    start, answers, memory = time.perf_counter(), [], []
    for tenth in range(10):
        answers += in_parallel(port, orders[len(orders) * tenth // 10 : len(orders) * (tenth + 1) // 10], ask)
        memory.append(f"{metric(port, 'resident_memory_bytes') / 1e6:.0f}")
    seconds = time.perf_counter() - start
    codes: Counter[str] = Counter()
    for (sent, expected), (status, found) in zip(orders, answers, strict=True):
        if isinstance(expected, str):
            codes[expected] += 1
            if status == 200 or found["error"]["code"] != expected:
                wrong.append(f"{status} {found} for {expected}")
            continue
        codes["answered"] += 1
        if status != 200 or [answer["file"] for answer in found["predictions"]] != [name for name, _ in sent]:
            wrong.append(f"{status} {found}")
            continue
        for answer, name in zip(found["predictions"], expected, strict=True):
            ranked = list(truth[name]["probabilities"].values())
            worst = max(
                [worst, *(abs(p - truth[name]["probabilities"][c]) for c, p in answer["probabilities"].items())]
            )
            if answer["class"] != truth[name]["prediction"] and ranked[0] - ranked[1] > MARGIN:
                flips += 1
    print(f"{count:,} requests, {CLIENTS} at a time, in {seconds:.0f} s: {dict(codes)}")
    print(f"  wrong, lost or mixed up: {len(wrong)}; classes other than predict's: {flips}; max |dp| {worst:.1e}")
    print(f"  p50 {1000 * statistics.median(times):.0f} ms, p99 {1000 * statistics.quantiles(times, n=100)[98]:.0f} ms")
    print(f"  memory after each tenth, MB: {' '.join(memory)}", flush=True)
    for line in wrong[:3]:
        print(f"  {line[:300]}")
    return len(wrong), flips, worst


class Bare:
    """The model without a server."""

    def __init__(self, run: Path) -> None:
        import torch

        from fish_lightning.models.trained import open_model

        trained = open_model(run)
        mixed = trained.precision == "bf16-mixed"
        self.model, self.transform = trained.module, trained.transform
        self.context = lambda: torch.autocast("cpu", torch.bfloat16, enabled=mixed)

    def decoded(self, content: bytes) -> Any:
        """Return an image as the model takes it."""
        from fish_lightning.data.decoding import InMemory, decode

        return self.transform(image=decode(InMemory(content, "benchmark")))["image"]

    def compute(self, images: Any) -> Any:
        """Return the logits of a batch."""
        import torch

        with torch.inference_mode(), self.context():
            return self.model.logits_and_features(images)[0]

    def batch(self, files: Sequence[bytes], start: int) -> Any:
        """Return a batch of decoded images."""
        import torch

        return torch.stack([self.decoded(files[i % len(files)]) for i in range(start, start + BATCH)])


def throughput(run: Path, files: Sequence[bytes], ports: dict[str, int], rounds: int, count: int) -> None:
    """Print images/s and ratios; the first round warms up and does not count."""
    bare = Bare(run)
    decoded = bare.batch(files, 0)
    times: list[float] = []

    def ask(connection: http.client.HTTPConnection, number: int) -> None:
        start = time.perf_counter()
        status, found = post(connection, [(str(number), files[number % len(files)])])
        times.append(time.perf_counter() - start)
        if status != 200:
            sys.exit(f"error: {status} {found}")

    def of_server(port: int) -> Callable[[int], Any]:
        return lambda n: in_parallel(port, range(n), ask)

    sides: dict[str, Callable[[int], Any]] = {
        "serve": of_server(ports["serve"]),
        "bare model in batches of 32": lambda n: [bare.compute(decoded) for _ in range(n // BATCH)],
        "loop of predict batches": lambda n: [bare.compute(bare.batch(files, i)) for i in range(0, n, BATCH)],
    }
    if "litserve" in ports:
        sides["minimal server on LitServe"] = of_server(ports["litserve"])
    clocks = dict.fromkeys(sides, time.process_time) | {"serve": lambda: metric(ports["serve"], "cpu_seconds_total")}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    costs: dict[str, list[float]] = {name: [] for name in sides}
    latencies: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            times.clear()
            start, cpu = time.perf_counter(), clocks[name]()
            side(count)
            if turn:
                rates[name].append(count / (time.perf_counter() - start))
                costs[name].append((clocks[name]() - cpu) / count)
                latencies[name] += times
    costs.pop("minimal server on LitServe", None)  # several processes
    print(f"\n{'what':<30} {'images/s':>9} {'serve is':>9} {'CPU/image':>10} {'p50':>8} {'p99':>8}")
    for name in sides:
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["serve"], rates[name], strict=True))
        marks = statistics.quantiles(latencies[name], n=100)[49::49] if latencies[name] else []
        cells = [f"{1000 * seconds:.0f} ms" for seconds in marks] or ["", ""]
        cost = f"{1000 * statistics.median(costs[name]):.1f} ms" if name in costs else ""
        figures = f"{statistics.median(rates[name]):>9.1f} {ratio:>8.2f}x {cost:>10} {cells[0]:>8} {cells[1]:>8}"
        print(f"{name:<30} {figures}".rstrip())


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--images", type=Path, help="folder of the images that are sent")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--only", choices=("soak", "throughput"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="200 requests, 2 rounds of fewer images")
    given = parser.parse_args()
    from fish_lightning.hardware import cores

    run = given.run.resolve()
    files = {f"{i:02}{file.suffix}": file.read_bytes() for i, file in enumerate(images_of(run, given.images))}
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}\n")
    serve = ("-m", "fish_lightning.serve", f"model={run}", "port=PORT", "trainer.accelerator=cpu")
    with program(*serve) as port:
        if given.only != "throughput":
            soak(port, files, predicted(run, files), 200 if given.quick else given.requests)
        if given.only == "soak":
            return
        ports = {"serve": port}
        rounds, count = (2, 4 * BATCH) if given.quick else (given.rounds, 16 * BATCH)
        if find_spec("litserve") is None:
            print("\nLitServe is not installed: pip install litserve")
            throughput(run, list(files.values()), ports, rounds, count)
            return
        with program(str(ROOT / "scripts" / "serve_litserve.py"), str(run), "PORT") as other:
            throughput(run, list(files.values()), ports | {"litserve": other}, rounds, count)


def images_of(run: Path, folder: Path | None) -> list[Path]:
    """Return ``FILES`` images of a folder, or of a run's test."""
    if folder is None:
        from fish_lightning.models.trained import open_model

        root = Path(open_model(run).data["catalog"]["root"])
        rows = (run / "test_predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
        found = [root / row.split(",")[0] for row in rows]
    else:
        found = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in (".png", ".jpg", ".jpeg")]
    if not found:
        sys.exit(f"error: no images in {folder or run}")
    return [found[i * len(found) // FILES] for i in range(FILES)]


if __name__ == "__main__":
    main()
