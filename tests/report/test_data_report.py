"""``data_report.html``: what is wrong with a data set can be seen in it, and it needs no other file."""

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
    """Text and attributes of a page, and whether its tags close."""

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
    """Two kinds, of six images in three photographs each, and one of everything that can be wrong."""
    root = make_folder(tmp_path / "a&b", ["<i>b&ss", "trout"], 6)
    (root / "eel").mkdir()
    (root / "trout" / "9 broken.png").write_bytes(b"no image")
    (root / "<i>b&ss" / "trout").mkdir()
    shutil.copy(root / "trout" / "000.png", root / "<i>b&ss" / "trout" / 'o\'clock "1".png')
    shutil.copytree(root / "trout", root / "trout GT")
    (root / "trout GT" / "001.png").rename(root / "trout GT" / "lonely.png")
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


def test_everything_that_is_wrong_is_found(messy):
    found = inspected(messy)
    assert dict(reversed(pair) for pair in findings(found)) == {
        "image that cannot be read": 1,
        "class folder without an image": 1,
        "photograph with copies under more than one label": 1,
        "image in a folder named as another class": 1,
        "file that is equal to another": 1,
        "mask without an image": 1,
        "image without a mask beside masks": 1,
    }
    paths = found.catalog.paths
    assert paths[found.unreadable].tolist() == ["trout/9 broken.png"]
    assert found.masks_without_image == ["trout GT/lonely.png"]
    assert found.images_without_mask == ["trout/001.png"]
    assert paths[found.misplaced].tolist() == ['<i>b&ss/trout/o\'clock "1".png']
    assert problems(found, skip_unreadable=False) == ["1 unreadable image", "class folders without an image (eel)"]
    assert problems(found, skip_unreadable=True) == ["class folders without an image (eel)"]


def test_the_table_has_a_line_for_each_kind_and_each_finding(messy):
    table = data_table(inspected(messy)).splitlines()
    assert table[0].split() == ["kind", "images", "photographs", "unreadable"]
    rows = {line.split()[0]: line.split()[1:] for line in table[1:4]}
    assert rows == {"<i>b&ss": ["7", "4", "0"], "eel": ["0", "-", "0"], "trout": ["7", "4", "1"]}
    assert "sizes   32 x 24 (13)" in table and "files   PNG RGB (13)" in table
    assert "     1  image that cannot be read" in table


def test_the_page_shows_it_all_and_loads_nothing(messy, tmp_path):
    file = tmp_path / "new" / "report.html"
    write_data_report(file, inspected(messy), photographs=4, pictures=2)
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not any(word in text for word in ("href", "url(", "http", "@import"))
    for words in (
        "a&b: 14 images of 2 kinds",
        "Images that cannot be read (1)",
        "trout/9 broken.png: not an image",
        "Class folders without an image (1)",
        "eel",
        "Images in a folder named as another class (1)",
        '<i>b&ss/trout/o\'clock "1".png (labelled <i>b&ss)',
        "Masks without an image (1)",
        "Images without a mask (1)",
        "Equal files (1)",
        "Suspected label errors (1)",
    ):
        assert words in page.text, words
    titles = {image["title"] for image in page.images}
    assert '<i>b&ss/trout/o\'clock "1".png' in titles and "trout/000.png" in titles
    for image in page.images:
        with Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,")))) as opened:
            assert opened.format == "JPEG" and max(opened.size) <= 96
    assert "prefers-color-scheme: dark" in text


def test_rows_and_pictures_are_limited_spread_over_the_kinds_and_what_is_left_out_is_said(make_folder, tmp_path):
    root = make_folder(tmp_path / "data", 3, 20)
    catalog = FolderSource(root).read()
    catalog = catalog.with_photographs(np.array([f"{p.split('/')[0]}{int(p[-7:-4]) // 5}" for p in catalog.paths]))
    write_data_report(tmp_path / "report.html", inspect(catalog), photographs=6, pictures=3)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.images) == 18
    for kind in "abc":
        assert sum(image["title"].startswith(f"kind {kind}/") for image in page.images) == 6
    assert page.text.count("+ 2") == 6 and "6 more are not shown." in page.text
    assert "12 photographs, 12 of them with more than one image" in page.text
    assert "nothing to mend was found" in page.text


def test_where_copies_were_not_looked_for_it_says_so(make_folder, tmp_path):
    found = inspect(FolderSource(make_folder(tmp_path / "data", 2, 3)).read())
    write_data_report(tmp_path / "report.html", found, photographs=6, pictures=3)
    assert "was not looked for (data.find_copies=true)" in Page((tmp_path / "report.html").read_text()).text
    assert data_table(found).splitlines()[1].split()[-2:] == ["-", "0"]


def test_the_archive_s_masks_belong_to_its_images(make_archive, tmp_path):
    root = make_archive(tmp_path)
    assert findings(inspect(ArchiveSource(root).read())) == []
    (root / "Fish_Dataset/Fish_Dataset/Trout/Trout GT/00001.png").unlink()
    found = inspect(ArchiveSource(root).read())
    assert found.images_without_mask == ["Fish_Dataset/Fish_Dataset/Trout/Trout/00001.png"]
