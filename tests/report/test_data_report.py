"""``data_report.html``: it shows what is wrong with a data set and needs no other file."""

import base64
import io
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fish_lightning.data.inspection import inspect
from fish_lightning.data.sources import ArchiveSource, FolderSource
from fish_lightning.report.data_report import data_table, findings, problems, write_data_report


class Page(HTMLParser):
    """Text, tags and images of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.images, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data.strip())

    @property
    def text(self):
        return " ".join(text for text in self.texts if text)


@pytest.fixture
def messy(make_folder, tmp_path):
    """Two classes of six images in three photographs each, and one of every problem."""
    root = make_folder(tmp_path / "a&b", ["<i>b&ss", "trout"], 6)
    (root / "eel").mkdir()
    (root / "trout" / "9 broken.png").write_bytes(b"no image")
    (root / "<i>b&ss" / "trout").mkdir()
    shutil.copy(root / "trout" / "000.png", root / "<i>b&ss" / "trout" / 'o\'clock "1".png')
    shutil.copytree(root / "trout", root / "trout GT")
    (root / "trout GT" / "001.png").rename(root / "trout GT" / "lonely.png")
    (root / "trout" / "005.png").rename(root / "trout" / "005.jpg")
    return root


def inspected(root, photographs=True):
    from fish_lightning.data.catalog import EmptyClassError

    with pytest.raises(EmptyClassError) as error:
        FolderSource(root).read()
    catalog = error.value.catalog
    if photographs:
        names = [f"{path.split('/')[0]}/{i // 2}" for i, path in enumerate(catalog.paths)]
        same = [path.endswith(("trout/000.png", 'o\'clock "1".png')) for path in catalog.paths]
        catalog = catalog.with_photographs(np.where(same, "one", names))
    return inspect(catalog, error.value.names)


def test_every_problem_is_found(messy):
    found = inspected(messy)
    assert dict(reversed(pair) for pair in findings(found)) == {
        "unreadable image": 1,
        "class folder without an image": 1,
        "photograph with more than one label": 1,
        "image in a folder of another class": 1,
        "file whose type contradicts its suffix": 1,
        "file identical to another": 1,
        "mask without an image": 1,
        "image without a mask": 1,
    }
    paths = found.catalog.paths
    assert paths[found.unreadable].tolist() == ["trout/9 broken.png"]
    assert paths[found.wrong_suffixes].tolist() == ["trout/005.jpg"]
    assert found.masks_without_image == ["trout GT/lonely.png"]
    assert found.images_without_mask == ["trout/001.png"]
    assert paths[found.misplaced].tolist() == ['<i>b&ss/trout/o\'clock "1".png']
    assert problems(found, skip_unreadable=False) == ["1 unreadable image", "class folders without an image (eel)"]
    assert problems(found, skip_unreadable=True) == ["class folders without an image (eel)"]


def test_the_table_has_a_line_for_each_class_and_each_finding(messy):
    table = data_table(inspected(messy)).splitlines()
    assert table[0].split() == ["class", "images", "photographs", "unreadable"]
    rows = {line.split()[0]: line.split()[1:] for line in table[1:4]}
    assert rows == {"<i>b&ss": ["7", "4", "0"], "eel": ["0", "-", "0"], "trout": ["7", "4", "1"]}
    assert "sizes   24 x 32 (13) (h x w)" in table and "files   PNG RGB (13)" in table
    assert "     1  unreadable image" in table


def test_the_page_shows_every_problem_and_loads_nothing(messy, tmp_path):
    file = tmp_path / "new" / "report.html"
    write_data_report(file, inspected(messy), photographs=4, pictures=2)
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not any(word in text for word in ("href", "url(", "http", "@import"))
    for words in (
        "a&b: 14 images of 2 classes",
        "Unreadable images (1)",
        "trout/9 broken.png: not an image",
        "Class folders without an image (1)",
        "eel",
        "Images in folders of other classes (1)",
        '<i>b&ss/trout/o\'clock "1".png (labeled <i>b&ss)',
        "Masks without an image (1)",
        "Images without a mask (1)",
        "Files whose type contradicts their suffix (1)",
        "trout/005.jpg: PNG",
        "Identical files (1)",
        "Suspected label errors (1)",
        "<i>b&ss, trout",
    ):
        assert words in page.text, words
    titles = {image["title"] for image in page.images}
    assert '<i>b&ss/trout/o\'clock "1".png' in titles and "trout/000.png" in titles
    for image in page.images:
        with Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,")))) as opened:
            assert opened.format == "JPEG" and max(opened.size) <= 96
    assert "prefers-color-scheme: dark" in text


def test_rows_and_pictures_are_limited_and_taken_evenly_from_all_classes(make_folder, tmp_path):
    root = make_folder(tmp_path / "data", 3, 20)
    catalog = FolderSource(root).read()
    catalog = catalog.with_photographs(np.array([f"{p.split('/')[0]}{int(p[-7:-4]) // 5}" for p in catalog.paths]))
    write_data_report(tmp_path / "report.html", inspect(catalog), photographs=6, pictures=3)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.images) == 18
    for name in catalog.classes:
        assert sum(image["title"].startswith(f"{name}/") for image in page.images) == 6
    assert page.text.count("+ 2") == 6 and "6 more are not shown." in page.text
    assert "12 photographs, 12 of them with more than one image" in page.text
    assert "no problems found" in page.text


def test_unknown_photographs_are_reported_as_unknown(make_folder, tmp_path):
    found = inspect(FolderSource(make_folder(tmp_path / "data", 2, 3)).read())
    write_data_report(tmp_path / "report.html", found, photographs=6, pictures=3)
    page = Page((tmp_path / "report.html").read_text())
    assert "It is unknown which images are copies of one photograph: data.find_copies=true" in page.text
    assert data_table(found).splitlines()[1].split()[-2:] == ["-", "0"]


def test_masks_of_the_archive_are_matched_to_its_images(make_archive, tmp_path):
    root = make_archive(tmp_path)
    assert findings(inspect(ArchiveSource(root).read())) == []
    (root / "Fish_Dataset/Fish_Dataset/Trout/Trout GT/00001.png").unlink()
    found = inspect(ArchiveSource(root).read())
    assert found.images_without_mask == ["Fish_Dataset/Fish_Dataset/Trout/Trout/00001.png"]


def test_phones_multi_picture_files_named_jpg_are_no_contradiction(make_folder, tmp_path):
    root = make_folder(tmp_path / "data", 2, 2)
    first, second = (Image.open(root / name / "000.png") for name in ("class a", "class b"))
    first.save(root / "class a" / "phone.jpg", "MPO", save_all=True, append_images=[second])
    found = inspect(FolderSource(root).read())
    assert {fact.format for fact in found.facts} == {"MPO", "PNG"} and findings(found) == []


def test_a_row_of_pictures_does_not_wrap(make_folder, tmp_path):
    """Twelve pictures of 6rem are wider than the page: they shrink, and on a phone the row scrolls."""
    catalog = FolderSource(make_folder(tmp_path / "data", 2, 12)).read()
    catalog = catalog.with_photographs(np.array([path.split("/")[0] for path in catalog.paths]))
    write_data_report(tmp_path / "report.html", inspect(catalog), photographs=2, pictures=12)
    text = (tmp_path / "report.html").read_text()
    assert ".pictures { display: flex; gap: .35rem; overflow-x: auto; }" in text
    assert "figure { flex: 0 1 6rem; min-width: 4rem; margin: 0; }" in text
