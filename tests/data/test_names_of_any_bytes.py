"""File and class names of any bytes go through every program, and none reaches a terminal or a spreadsheet as it is."""

import json
import os

import pytest

from fish_lightning.data.catalog import make_catalog
from fish_lightning.data.sources import CatalogSource, FolderSource
from fish_lightning.data.splits import file_split, random_split
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.files import read_rows

ODD = {
    "not UTF-8": b"caf\xe9",
    "escape code": b"\x1b[31mred",
    "formula": b"=1+1",
    "line break": b"two\nlines",
    "quotes": b'a "b", c',
    "mathematics": b"cost $x_$",
}


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory, make_image):
    """A class, and an image in each of two classes, for each odd name."""
    root = tmp_path_factory.mktemp("odd") / "images"
    for label, name in enumerate([*ODD.values(), b"plain"]):
        for number, stem in enumerate((b"1", b"2", b"3", b"4", name)):
            file = make_image(root / "drawn.png", (40 * label, 90, 200), 9 * label + number)
            folder = os.path.join(os.fsencode(root), name)  # noqa: PTH118 - bytes
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            os.rename(file, os.path.join(folder, stem + b".png"))  # noqa: PTH104, PTH118
    return root


def test_a_split_file_and_a_table_keep_every_name(odd_images, tmp_path):
    catalog = FolderSource(odd_images).read()
    splits = random_split(catalog, seed=0, test=0.3, val=0.3)
    catalog.with_splits(splits).write_csv(tmp_path / "split.csv")
    assert file_split(catalog, 0, str(tmp_path / "split.csv")).tolist() == splits.tolist()
    again = CatalogSource(odd_images, tmp_path / "split.csv").read()
    assert again.paths.tolist() == catalog.paths.tolist() and again.classes == catalog.classes
    assert set(map(os.fsencode, again.classes)) == {*ODD.values(), b"plain"}


def printed_is_harmless(done):
    text = done.stdout + done.stderr
    text.encode("utf-8")
    assert "\x1b" not in text and "Traceback" not in text, text


def no_formulas(file):
    rows = read_rows(file, "file", ())
    assert rows and not any((cell or "").startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    return rows


def test_every_program_works_with_such_names(odd_images, tmp_path, run, train_tiny):
    done = run("prepare", "data=folder", f"data.root={odd_images}", "data.find_copies=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed_is_harmless(done)
    assert r"caf\xe9" in done.stdout and r"\x1b[31mred" in done.stdout
    (report,) = tmp_path.glob("logs/prepare/runs/*/data_report.html")
    assert r"caf\xe9" in report.read_text(encoding="utf-8") and "\x1b" not in report.read_text(encoding="utf-8")

    done = train_tiny(tmp_path, "trainer.max_epochs=1", "data.cache=off", "hydra.run.dir=run", data=odd_images)
    assert done.returncode == 0, done.stderr
    printed_is_harmless(done)
    json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    no_formulas(tmp_path / "run" / "test_predictions.csv")

    done = run("evaluate", "ckpt=run", "subset=all", "trainer=cpu", "hydra.run.dir=evaluated", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed_is_harmless(done)
    outputs = Outputs.load(tmp_path / "evaluated" / "logits.npz")
    assert outputs.paths.tolist() == FolderSource(odd_images).read().paths.tolist()

    os.symlink(odd_images / "=1+1", tmp_path / "=in")  # noqa: PTH211
    done = run("predict", "ckpt=run", "input='=in'", "trainer=cpu", "hydra.run.dir=predicted", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed_is_harmless(done)
    paths = {row["path"] for row in no_formulas(tmp_path / "predicted" / "predictions.csv")}
    assert "./=in/=1+1.png" in paths

    done = run("predict", "ckpt=run", f"input={odd_images}", "trainer=cpu", "hydra.run.dir=all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed_is_harmless(done)
    known = json.loads((tmp_path / "all" / "predictions.json").read_text(encoding="utf-8"))
    assert all(os.path.isfile(row["path"]) for row in known)  # noqa: PTH113
    assert any(b"caf\xe9" in os.fsencode(row["path"]) for row in known)


def test_a_table_in_another_encoding_asks_for_utf8(make_folder, tmp_path):
    make_folder(tmp_path, ["é", "x"], 1)
    (tmp_path / "table.csv").write_text("path,label\né/000.png,a\nx/000.png,b\n", encoding="latin-1")
    with pytest.raises(Exception, match=r"missing, the first is .*000\.png\n.*\nis the table saved as UTF-8\?"):
        CatalogSource(None, tmp_path / "table.csv").read()


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\xff", "path,label\na,b\n".encode("utf-16"), b""])
def test_what_is_no_table_is_said_to_be_none(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(Exception, match=r"is not a CSV file|has no rows with the columns"):
        read_rows(tmp_path / "table.csv", "data.catalog", ("path", "label"))


def test_an_error_shows_names_as_a_terminal_can(capsys):
    from fish_lightning.errors import UserError, end_with

    with pytest.raises(SystemExit):
        end_with(UserError("data.root: a\x1b[31mb caf\udce9\nsecond line"))
    assert capsys.readouterr().err == "error: data.root: a\\x1b[31mb caf\\xe9\nsecond line\n"


def test_notes_show_names_as_a_terminal_can(tmp_path, capsys):
    make_catalog(tmp_path, [("a/1.png", "\x1ba", "", ""), ("b/1.png", "\x1bA", "", "")])
    assert r"'\x1bA', '\x1ba'" in capsys.readouterr().out
