"""Many files: shards, processes, parts that are not merged, what the system refuses, hostile images."""

import json
import os
import re
import resource
import struct
import zlib
from itertools import chain
from pathlib import Path

import pytest
from PIL import Image

from fish_lightning.errors import UserError, full_disk
from fish_lightning.predicting import loop
from fish_lightning.report import predictions as program

GOOD = "input='{photos}/[01]?.png'"


def test_the_first_rows_are_printed_before_the_last_are_predicted(predict_here, photos, capsys):
    predict_here(GOOD.format(photos=photos))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["path", "prediction", "probability"]
    assert [line.split()[0] for line in lines[1:21]] == [str(photos / f"{number:02}.png") for number in range(20)]
    assert lines[21] != ""


def test_progress_is_a_bar_on_a_terminal_and_a_line_now_and_then_elsewhere(predict_here, photos, capsys, monkeypatch):
    predict_here(f"input='{photos}/0?.png'", "trainer.enable_progress_bar=true")
    assert re.search(r"10/10 \[00:\d\d<00:00, +[\d.]+ images/s\]", capsys.readouterr().out)
    monkeypatch.setattr(loop, "PAUSE", -1)
    predict_here(f"input='{photos}/1?.png'", f"paths.output={photos.parent / 'out'}")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    assert re.fullmatch(r"2 of 10 images, \d+ images/s, 0:00:0\d left", lines[0]) and len(lines) == 5


def test_shards_are_disjoint_and_the_last_one_merges_them(predict_here, photos, out, capsys):
    predict_here(GOOD.format(photos=photos), "paths.output=" + str(out.folder.parent / "whole"))
    whole = out.entries(out.folder.parent / "whole")
    written = []
    for shard in ("2/3", "1/3", "3/3"):
        capsys.readouterr()
        assert not (out.folder / "predictions.csv").exists()
        predict_here(GOOD.format(photos=photos), f"shard={shard}")
        written.append(len(out.parts()))
        is_last = shard == "3/3"
        assert (
            f"shard {shard.replace('/', ' of ')} is complete; other shards are not yet" in capsys.readouterr().out
        ) != is_last
    assert written == [2, 4, 5]  # of 5 parts: 1 and 4; 0 and 3; 2
    assert out.entries() == whole
    assert [*chain(*out.parts())] == [entry["path"] for entry in whole]


def test_two_processes_share_the_work(run, trained, photos, tmp_path):
    words = (f"ckpt={trained.folder}", f"input={photos}", "batch_size=2", "part_rows=4", "num_workers=0")
    ddp = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.run.dir=out", "contact_sheet=0")
    done = run("predict", *words, *ddp, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: 2 of 24 files could not be read: see the error column of predictions.csv"
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["path"] for entry in entries] == [str(file) for file in sorted(photos.iterdir())]
    assert "12 images in " in done.stdout  # of 24, on this process


def test_beyond_a_number_of_files_the_parts_are_not_merged(predict_here, photos, out, monkeypatch, capsys):
    monkeypatch.setattr(program, "MERGED", 23)
    with pytest.raises(UserError, match=r"2 of 24 files .* of predictions/part-\*\.csv"):
        predict_here(f"input={photos}", "contact_sheet=3")
    printed = capsys.readouterr().out
    assert "20 of 24 files; all in predictions/part-*.csv\n" in printed
    assert "(predictions/part-*.csv, contact_sheet.png: 3 of 24 files)" in printed
    assert {file.name for file in out.folder.iterdir()} == {"predictions", "contact_sheet.png"}
    assert sum(map(len, out.parts())) == 24


def test_parquet_has_the_same_rows(predict_here, photos, out, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for kind in ("csv", "parquet"):
        with pytest.raises(UserError, match="2 of 24"):
            predict_here(f"input={photos}", f"format={kind}", f"paths.output={tmp_path / kind}")
    same = [(tmp_path / kind / "predictions.json").read_text() for kind in ("csv", "parquet")]
    assert same[0] == same[1]
    table = parquet.read_table(tmp_path / "parquet" / "predictions" / "part-00005.parquet").to_pylist()
    assert [row["error"] is None for row in table] == [True, True, False, False]
    assert sum(dict(table[0]["probabilities"]).values()) == pytest.approx(1)
    assert table[2]["prediction"] is table[2]["probability"] is None


def test_a_full_disk_in_a_part_costs_that_part(predict_here, photos, out):
    predict_here(GOOD.format(photos=photos), "paths.output=" + str(out.folder.parent / "whole"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))  # of the 900 bytes of a part, whose manifest is as large
    try:
        with pytest.raises(OSError) as failed:
            predict_here(GOOD.format(photos=photos), "paths.output=" + str(out.folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full_disk(failed.value) is not None
    assert not list(out.folder.glob("predictions/*part*"))
    predict_here(GOOD.format(photos=photos))
    assert len(out.entries()) == 20


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/sys/kernel").is_dir(), reason="no folder that root cannot write to"
)
def test_a_folder_without_permission_is_refused(predict_here, photos, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    place = "/sys/kernel" if os.geteuid() == 0 else tmp_path / "closed"
    with pytest.raises(OSError) as refused:
        predict_here(GOOD.format(photos=photos), f"paths.output={place}/out")
    assert refused.value.filename


def png_of(width, height):
    """A valid PNG header of an image with hardly any data."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_hostile_files_are_rows_that_say_why(predict_here, photos, out, tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    good = (photos / "00.png").read_bytes()
    (folder / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (folder / "empty.png").write_bytes(b"")
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / "huge.png").write_bytes(png_of(15_000, 14_000))
    (folder / "postscript.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "truncated.png").write_bytes(good[:200])
    (folder / "mislabeled.jpg").write_bytes(good)
    with Image.open(photos / "01.png") as image:
        image.convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "formula\n=1.png").write_bytes(good)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    with pytest.raises(UserError, match="6 of 9 files could not be read"):
        predict_here(f"input={folder}")
    errors = {entry["path"].rpartition("/")[2]: entry["error"] for entry in out.entries()}
    assert {name for name, error in errors.items() if error is None} == {
        "mislabeled.jpg",
        "cmyk.jpg",
        "formula\n=1.png",
    }
    assert "more than 200 million pixels" in errors["bomb.png"] and "more than 200" in errors["huge.png"]
    assert "No such file" in errors["gone.png"] and "empty" in errors["empty.png"]


def test_logits_that_are_nan_are_a_row_that_says_so(predict_here, photos, out, monkeypatch):
    from fish_lightning.models.classifier import FishClassifier

    whole = FishClassifier.logits_and_features

    def broken(self, images):
        logits, features = whole(self, images)
        logits[0] = float("nan")
        return logits, features

    monkeypatch.setattr(FishClassifier, "logits_and_features", broken)
    with pytest.raises(UserError, match="10 of 20 files could not be read"):
        predict_here(GOOD.format(photos=photos))
    errors = [entry["error"] for entry in out.entries()]
    assert errors[1::2] == [None] * 10 and errors[0].endswith("00.png: the model's logits are NaN or infinite")
