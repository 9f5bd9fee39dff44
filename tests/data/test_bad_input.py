"""Invalid photographs, tables and zip files, through the configs of the programs."""

import shutil
import zipfile
from collections import namedtuple

import hydra
import pytest
from helpers import message_of
from hydra import compose, initialize_config_dir

from fish_lightning.cli import CONF
from fish_lightning.prepare import prepare


@pytest.fixture
def composed(tmp_path, make_folder, monkeypatch):
    """``composed(program, *overrides)``: a config for photos/class {a,b}/0{00..11}.png, in the working directory."""
    make_folder(tmp_path / "photos", 2, 12)
    monkeypatch.chdir(tmp_path)

    def make(program, *overrides):
        places = (f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}")
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose(program, ["data=folder", *places, *overrides])

    return make


@pytest.fixture
def train_data(composed):
    """``train_data(*overrides)``: the data module of a training run with these overrides, set up."""

    def make(*overrides):
        data = hydra.utils.instantiate(composed("train", *overrides).data)
        data.prepare_data()
        data.setup()
        return data

    return make


ROOT = "data.root=photos"


def test_class_with_one_photograph_is_trained_on_and_reported(train_data, make_image, tmp_path, capsys):
    make_image(tmp_path / "photos" / "class c" / "1.png", (9, 99, 9), 5)
    data = train_data(ROOT)
    said = capsys.readouterr().out
    assert "note: class 'class c' has only one photograph and is missing from val and test" in said
    assert data.catalog.splits[data.catalog.paths == "class c/1.png"].tolist() == ["train"]
    assert data.catalog.leaked().sum() == 0


def test_photographs_larger_than_a_target_stay_whole_and_each_split_has_one(train_data, tmp_path):
    # 000 to 005, 006 to 010 and 011: the targets are 1.8 and 1.0 of 12 images.
    table = ["path,label,photograph"]
    table += [f"class {c}/{i:03}.png,{c},{c}{(i > 5) + (i > 10)}" for c in "ab" for i in range(12)]
    (tmp_path / "photos" / "table.csv").write_text("\n".join(table))
    catalog = train_data("data.catalog=photos/table.csv").catalog
    for label in (0, 1):
        mine = catalog.labels == label
        assert set(catalog.splits[mine]) == {"train", "val", "test"}
        assert len({(p, s) for p, s in zip(catalog.photographs[mine], catalog.splits[mine], strict=True)}) == 3
    assert catalog.leaked().sum() == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([ROOT, "data.photograph='IMG_[0-9]+'"], "data.photograph: 'IMG_[0-9]+' matches none of the paths, such as"),
        ([ROOT, "data.photograph='('"], "data.photograph: '(' is not a regular expression"),
        ([], "data.root: no folder of images was specified\npass it with data.root=DIR"),
        (["data.catalog=photos/absent.csv"], "data.catalog: no file photos/absent.csv ("),
        (["data.catalog=gone.csv"], "lists 3 images, 2 of them missing, the first is photos/class a/77.png"),
        (["data.catalog=twice.csv"], "lists 1 images more than once, the first is photos/class a/001.png"),
        (["data.catalog=unlabeled.csv"], "has 1 rows without a path or a label, the first is row 2"),
        (["data.catalog=unknown.csv"], "contains the split 'holdout'; allowed: train, val, test"),
        (["data.catalog=columns.csv"], "columns.csv has no rows with the columns 'path' and 'label'."),
    ],
)
def test_invalid_pattern_or_table_is_a_short_error(train_data, tmp_path, overrides, message):
    first = "photos/class a/001.png"
    tables = {
        "gone": f"path,label\n{first},a\nphotos/class a/77.png,a\nphotos/x.png,b",
        "twice": f"path,label\n{first},a\n{first},b",
        "unlabeled": f"path,label\n{first},",
        "unknown": f"path,label,split\n{first},a,holdout",
        "columns": f"file,class\n{first},a",
    }
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    assert message in message_of(train_data, *overrides)


def test_photograph_with_two_labels_is_reported_and_stays_on_one_side(train_data, tmp_path, capsys):
    rows = [f"photos/class {c}/{i:03}.png,{c},{i // 2}" for c in "ab" for i in range(12)]
    (tmp_path / "table.csv").write_text(
        "\n".join(["path,label,photograph", *rows[:12], *(f"{r}b" for r in rows[12:22])])
    )
    with (tmp_path / "table.csv").open("a") as stream:
        stream.write(f"\n{rows[23].rsplit(',', 1)[0]},0\n")  # an image of b is a copy of photograph 0 of a
    data = train_data("data.catalog=table.csv")
    assert "note: copies of one photograph under more than one label: photos/class a/000.png" in capsys.readouterr().out
    assert len(set(data.catalog.splits[data.catalog.photographs == "0"])) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside", "contains '../evil.png', which would be written outside data.root"),
        ("half", "half.zip is not a zip file, or is incomplete ("),
        ("text", "text.zip is not a zip file, or is incomplete (9 bytes)"),
        ("empty", "empty.zip contains no files"),
        ("full", "not enough space for the data: new needs 24 bytes, 10 bytes are free"),
    ],
)
def test_invalid_zip_file_or_a_full_disk_is_a_short_error(composed, tmp_path, monkeypatch, name, message):
    contents = {"outside": {"../evil.png": b"x"}, "half": {"a/1.png": bytes(9999)}, "empty": {}}
    for zipped, members in (contents | {"full": {"a/1.png": b"1" * 12, "b/1.png": b"2" * 12}}).items():
        with zipfile.ZipFile(tmp_path / f"{zipped}.zip", "w") as opened:
            for member, content in members.items():
                opened.writestr(member, content)
    (tmp_path / "half.zip").write_bytes((tmp_path / "half.zip").read_bytes()[:5000])
    (tmp_path / "text.zip").write_text("not a zip")
    if name == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(90, 80, 10))
    assert message in message_of(prepare, composed("prepare", "data.root=new", f"data.archive={name}.zip"))
    assert not (tmp_path / "new").exists() and not (tmp_path / "evil.png").exists()
