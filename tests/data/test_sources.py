"""Sources: the archive from each of its folders, class folders, split folders, tables, and inputs of predict."""

import re

import pytest
from helpers import message_of

from fish_lightning.data.listing import input_catalog
from fish_lightning.data.sources import ArchiveSource, CatalogSource, FolderSource, OriginalsSource
from fish_lightning.errors import UserError

NINE = (
    "Black Sea Sprat",
    "Gilt-Head Bream",
    "Hourse Mackerel",
    "Red Mullet",
    "Red Sea Bream",
    "Sea Bass",
    "Shrimp",
    "Striped Red Mullet",
    "Trout",
)


@pytest.mark.parametrize("below", ["", "Fish_Dataset", "Fish_Dataset/Fish_Dataset"])
def test_archive_is_read_from_each_of_its_three_folders(make_archive, tmp_path, below):
    root = make_archive(tmp_path) / below
    catalog = ArchiveSource(root).read()
    assert catalog.classes == ("Sea Bass", "Trout")
    assert len(catalog) == 6 and catalog.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert catalog.root == root and all((root / path).is_file() for path in catalog.paths)
    assert set(catalog.splits) == {""}


def test_masks_and_originals_are_not_training_images(make_archive, tmp_path):
    root = make_archive(tmp_path)
    assert len(list(root.rglob("*.png"))) == 12 and len(list(root.rglob("*.JPG"))) == 2
    paths = ArchiveSource(root).read().paths.tolist()
    assert len(paths) == 6
    assert not any(" GT/" in path or "NA_Fish_Dataset" in path for path in paths)


def test_real_photographs_have_nine_classes(shared_fish):
    catalog = ArchiveSource(shared_fish).read()
    assert catalog.classes == NINE
    assert len(catalog) == 3976


def test_class_folders_are_searched_recursively_and_suffixes_may_be_upper_case(make_image, tmp_path):
    suffixes = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "PNG", "JPG", "Jpeg", "TIFF"]
    for number, suffix in enumerate(suffixes):
        make_image(tmp_path / "bass" / "2024" / "may" / f"{number:02}.{suffix}", (90, 90, 90), number)
    make_image(tmp_path / "trout" / "1.png", (90, 200, 90), 1)
    make_image(tmp_path / "trout" / ".hidden.png", (90, 200, 90), 1)
    (tmp_path / "trout" / "notes.txt").write_text("no image")
    make_image(tmp_path / ".cache" / "1.png", (90, 200, 90), 1)
    catalog = FolderSource(tmp_path).read()
    assert catalog.classes == ("bass", "trout")
    expected = [f"bass/2024/may/{number:02}.{suffix}" for number, suffix in enumerate(suffixes)]
    assert catalog.paths.tolist() == [*expected, "trout/1.png"]
    assert set(catalog.splits) == {""}


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_named_train_val_and_test_define_the_split(make_folder, tmp_path, val):
    for part, count in (("train", 3), (val, 2), ("test", 1)):
        make_folder(tmp_path / part, 2, count)
    catalog = FolderSource(tmp_path).read()
    assert catalog.classes == ("class a", "class b")
    assert catalog.counts() == {"train": 6, "val": 4, "test": 2}
    for path, split in zip(catalog.paths, catalog.splits, strict=True):
        assert path.startswith("val" if split == "val" else split)


def test_class_may_be_called_test_without_a_train_folder(make_folder, tmp_path):
    make_folder(tmp_path, ["test", "trout"], 2)
    catalog = FolderSource(tmp_path).read()
    assert catalog.classes == ("test", "trout") and set(catalog.splits) == {""}


@pytest.mark.parametrize("source", [ArchiveSource, FolderSource])
def test_missing_root_is_reported_with_the_working_directory(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = message_of(source("photos").read)
    assert text == f"data.root: photos does not exist (working directory: {tmp_path})\npass a folder: data.root=DIR"


@pytest.mark.parametrize("source", [ArchiveSource, FolderSource])
def test_root_that_is_a_file_is_an_error(source, tmp_path):
    (tmp_path / "photos").write_text("")
    assert f"data.root: {tmp_path / 'photos'} is a file, not a folder" in message_of(source(tmp_path / "photos").read)


def test_empty_root_is_an_error_with_the_expected_layout(tmp_path):
    assert f"no images in {tmp_path}\nexpected {tmp_path}/<class>/<image>" in message_of(FolderSource(tmp_path).read)
    text = message_of(ArchiveSource(tmp_path).read)
    assert f"{tmp_path} is not in the fish archive's layout" in text and "data=folder" in text


def test_images_without_class_folders_are_an_error(make_image, tmp_path):
    make_image(tmp_path / "1.png", (9, 9, 9), 1)
    assert f"no images in {tmp_path}" in message_of(FolderSource(tmp_path).read)


def test_class_folders_read_as_the_archive_are_an_error_that_suggests_data_folder(make_folder, tmp_path):
    assert "for plain class folders use data=folder" in message_of(ArchiveSource(make_folder(tmp_path, 2)).read)


def test_class_folder_without_an_image_is_an_error(make_folder, make_archive, tmp_path):
    make_folder(tmp_path / "plain", 2)
    (tmp_path / "plain" / "eel").mkdir()
    (tmp_path / "plain" / "eel" / "readme.txt").write_text("")
    text = message_of(FolderSource(tmp_path / "plain").read)
    assert text.startswith("class folder without an image: eel (in ") and "remove the folder" in text
    make_archive(tmp_path / "kaggle")
    (tmp_path / "kaggle/Fish_Dataset/Fish_Dataset/Shrimp/Shrimp").mkdir(parents=True)
    assert "class folder without an image: Shrimp" in message_of(ArchiveSource(tmp_path / "kaggle").read)


def test_single_class_is_an_error(make_folder, tmp_path):
    text = message_of(FolderSource(make_folder(tmp_path, ["trout"])).read)
    assert text.startswith(f"only one class, 'trout', in {tmp_path}")


@pytest.mark.parametrize("below", ["", "NA_Fish_Dataset"])
def test_originals_get_the_archives_class_names_whatever_their_file_type(make_image, tmp_path, below):
    files = ("Gilt Head Bream/1.JPG", "Gilt Head Bream/2.jpg", "Horse Mackerel/00001.png", "Trout/3.JPG")
    for number, file in enumerate(files):
        make_image(tmp_path / "NA_Fish_Dataset" / file, (90, 90, 90), number)
    (tmp_path / "Fish_Dataset" / "Fish_Dataset").mkdir(parents=True)
    catalog = OriginalsSource(tmp_path / below).read()
    assert catalog.classes == ("Gilt-Head Bream", "Hourse Mackerel", "Trout")
    assert catalog.labels.tolist() == [0, 0, 1, 2]
    assert catalog.paths.tolist() == [f"{'' if below else 'NA_Fish_Dataset/'}{file}" for file in files]
    assert all((catalog.root / path).is_file() for path in catalog.paths)


@pytest.mark.parametrize(
    "below", ["Fish_Dataset", "Fish_Dataset/Fish_Dataset", "Fish_Dataset/Fish_Dataset/Trout/Trout"]
)
def test_folder_without_originals_is_an_error_with_a_remedy(make_archive, tmp_path, below):
    text = message_of(OriginalsSource(make_archive(tmp_path) / below).read)
    assert "does not contain the originals (NA_Fish_Dataset/<Class>/*.jpg)" in text and "data.root=DIR" in text


@pytest.fixture
def write_table(make_folder, tmp_path):
    """``write_table(lines)`` writes photos/class {a,b}/00{0,1,2}.png and photos/table.csv; returns the table."""

    def write(lines, encoding="utf-8"):
        make_folder(tmp_path / "photos", 2, 3)
        file = tmp_path / "photos" / "table.csv"
        file.write_text("\n".join(lines) + "\n", encoding=encoding)
        return file

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_table_overrides_label_photograph_and_split_of_folders(write_table, tmp_path, encoding):
    lines = ["note,split,label,path,photograph", "x,train,Bréam,class a/000.png,1", ",test,Trout,class a/001.png,2"]
    catalog = CatalogSource(None, write_table([*lines, ",,Trout,class b/000.png,"], encoding)).read()
    assert catalog.root == tmp_path / "photos" and catalog.classes == ("Bréam", "Trout")
    assert catalog.paths.tolist() == ["class a/000.png", "class a/001.png", "class b/000.png"]
    assert catalog.labels.tolist() == [0, 1, 1]
    assert catalog.photographs.tolist() == ["1", "2", ""] and catalog.splits.tolist() == ["train", "test", ""]


def test_table_with_two_columns_is_enough_and_may_be_outside_its_root(write_table, tmp_path):
    table = write_table(["path,label", "class a/000.png,x", "class b/000.png,y"])
    moved = table.rename(tmp_path / "elsewhere.csv")
    catalog = CatalogSource(tmp_path / "photos", moved).read()
    assert not catalog.photographs_known and set(catalog.splits) == {""}
    assert f"paths are relative to {tmp_path}; to change it: data.root=DIR" in message_of(
        CatalogSource(None, moved).read
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,kind", "class a/000.png,x"], "table.csv has no rows with the columns 'path' and 'label'"),
        (["path,label"], "table.csv has no rows with the columns 'path' and 'label'"),
        (
            ["path,label", "class a/000.png,x", "class a/7.png,x", "z.png,y"],
            "lists 3 images, 2 of them missing, the first is class a/7.png",
        ),
        (
            ["path,label", "class a/000.png,x", "class a/000.png,y"],
            "1 images more than once, the first is class a/000.png",
        ),
        (
            ["path,label", "class a/000.png,x", "./class a/000.png,y"],
            "images more than once, the first is class a/000.png",
        ),
        (["path,label,split", "class a/000.png,x,training"], "the split 'training'; allowed: train, val, test"),
        (
            ["path,label", "class a/000.png,x", "class a/001.png,"],
            "1 rows without a path or a label, the first is row 3",
        ),
        (["path,label", "class a/000.png"], "1 rows without a path or a label, the first is row 2"),
        (["path,label", "class a/000.png,x"], "only one class, 'x'"),
    ],
)
def test_invalid_table_is_an_error(write_table, lines, message):
    assert message in message_of(CatalogSource(None, write_table(lines)).read)


def test_missing_or_binary_table_is_an_error(make_image, tmp_path):
    assert "data.catalog: no file" in message_of(CatalogSource(None, tmp_path / "no.csv").read)
    assert "is not a CSV file" in message_of(CatalogSource(None, make_image(tmp_path / "photo.png", (9, 9, 9), 1)).read)


def test_split_csv_of_a_run_is_a_table(write_table, tmp_path):
    table = write_table(["path,label,photograph,split", "class a/000.png,x,1,train", "class b/000.png,y,2,test"])
    catalog = CatalogSource(None, table).read()
    catalog.write_csv(tmp_path / "split.csv")
    again = CatalogSource(tmp_path / "photos", tmp_path / "split.csv").read()
    assert again.state() == catalog.state()


def test_no_root_is_an_error():
    assert message_of(lambda: FolderSource(None)) == (
        "data.root: no folder of images was specified\npass it with data.root=DIR"
    )


def test_input_is_a_file_a_folder_or_a_pattern(make_folder, tmp_path, monkeypatch):
    make_folder(tmp_path / "photos", 2, 2)
    monkeypatch.chdir(tmp_path)
    assert input_catalog("photos/class a/001.png", ["x"]).paths.tolist() == ["photos/class a/001.png"]
    everything = [f"photos/class {name}/00{number}.png" for name in "ab" for number in (0, 1)]
    assert input_catalog("photos", ["x"]).paths.tolist() == everything
    assert input_catalog("photos/*/000.png", ["x"]).paths.tolist() == everything[::2]
    assert input_catalog(f"{tmp_path}/**/*1.png", ["x"]).paths.tolist() == [f"{tmp_path}/{p}" for p in everything[1::2]]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nothing/*.jpg", "matches no file"), ("empty", "contains no image"), ("no.png", "matches")],
)
def test_input_without_images_is_an_error(tmp_path, monkeypatch, pattern, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    text = message_of(lambda: input_catalog(pattern, ["x"]))
    assert re.match(rf"input: {re.escape(pattern)} {message}", text) and str(tmp_path) in text


def test_archive_is_not_read_as_class_folders(make_archive, tmp_path):
    with pytest.raises(UserError, match="is the fish archive: for its classes use data=fish"):
        FolderSource(make_archive(tmp_path)).read()
