"""``compare.html``: one file that shows what only one of two models gets right; names in it are text."""

import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
from compared_runs import save_run

from fish_lightning.evaluation.runs import compare_pair, load_run, match
from fish_lightning.report.comparison import write_comparison

HOSTILE = '<img src="x" onerror="document.title = 1">'


class Page(HTMLParser):
    """Texts, tags and attributes of a page."""

    def __init__(self, file):
        super().__init__()
        self.texts, self.tags, self.images, self.links = [], Counter(), [], []
        self.feed(file.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def page(tmp_path):
    """``page(a, b, root=None)``: what ``compare.html`` of two run folders contains."""

    def make(folder_a, folder_b, root=None):
        a, b = load_run("a", folder_a), load_run("b", folder_b)
        pair = match(a, b)
        write_comparison(tmp_path / "out", a, b, pair, compare_pair(pair, 0.01), root)
        return Page(tmp_path / "out" / "compare.html")

    return make


@pytest.fixture
def photos(make_folder, tmp_path):
    """60 images of two classes, six copies of each photograph; A misses 40 of them, B the two last."""
    root = make_folder(tmp_path / "photos", ["bass", "trout"], 30)
    paths = [f"{name}/{number:03}.png" for name in ("bass", "trout") for number in range(30)]
    labels, groups = [0] * 30 + [1] * 30, [f"p{i // 6}" for i in range(60)]
    shared = {"classes": ("bass", "trout"), "data": str(root)}
    save_run(tmp_path / "a", paths, labels, range(40), groups, surer=[7], **shared)
    save_run(tmp_path / "b", paths, labels, [58, 59], groups, **shared)
    return root


def test_galleries_show_what_only_one_of_them_gets_right(tmp_path, photos, page, capsys):
    shown = page(tmp_path / "a", tmp_path / "b")
    assert "B is better than A" in shown.text
    assert "Only A is right (2)" in shown.text and "Only B is right (40)" in shown.text
    assert "24 of 40: one copy of each photograph first" in shown.text
    assert len(shown.images) == 2 + 24
    assert "bass bass/007.png A: trout 99.8% B: bass 88.1%" in shown.text
    first = [image["alt"].split()[1] for image in shown.images[2:9]]
    assert first[0] == "bass/007.png"  # where they disagree most
    assert len({(path[:4], int(path[-7:-4]) // 6) for path in first}) == 7  # of 7 photographs
    assert "cannot be read" not in capsys.readouterr().out


def test_of_1000_classes_those_are_listed_on_which_the_two_disagree(tmp_path, page):
    classes = tuple(f"class {i:04}" for i in range(1000))
    paths = [f"{name}/1.png" for name in classes]
    for name, wrong in (("a", [990]), ("b", [7])):
        save_run(tmp_path / name, paths, range(1000), wrong, classes=classes)
    shown = page(tmp_path / "a", tmp_path / "b")
    listed = shown.text.partition("only B right class")[2].partition("900 more classes, with fewer images")[0]
    assert listed.count("class ") == 99 and "0007 1 0.0%" not in listed  # the first is cut off above
    assert "class 0990 1 0.0% 100.0% 0 1" in listed and shown.tags["tr"] < 120


def test_the_page_loads_nothing(tmp_path, photos, page):
    shown = page(tmp_path / "a", tmp_path / "b")
    assert all(link.startswith("data:image/jpeg;base64,") for link in shown.links)
    assert not {"script", "link", "iframe"} & set(shown.tags)
    assert (tmp_path / "out" / "compare.html").stat().st_size < 300_000


def test_images_that_moved_are_named_unless_their_folder_is_given(tmp_path, photos, page, capsys):
    photos.rename(tmp_path / "elsewhere")
    shown = page(tmp_path / "a", tmp_path / "b")
    assert not shown.images and "bass/007.png" in shown.text
    assert (
        "26 images cannot be read and are listed by name only; set data.root=DIR to the folder they are in"
        in shown.text
    )
    assert "compare.html, without 26 images that cannot be read (set data.root=DIR)" in capsys.readouterr().out
    assert len(page(tmp_path / "a", tmp_path / "b", tmp_path / "elsewhere").images) == 26


def test_a_training_runs_images_are_found_through_its_config(tmp_path, photos, page):
    for name in ("a", "b"):
        hydra = tmp_path / name / ".hydra"
        hydra.mkdir()
        (tmp_path / name / "summary.json").write_text("{}")
        (hydra / "hydra.yaml").write_text(f"hydra: {{runtime: {{cwd: '{tmp_path}'}}}}")
        (hydra / "config.yaml").write_text("folder: photos\ndata: {root: '${folder}', cache: '${absent:1}'}")
    assert len(page(tmp_path / "a", tmp_path / "b").images) == 26


@pytest.mark.parametrize("width", [400, 1300])
def test_a_phone_and_a_desktop_show_the_page_without_scrolling_sideways(
    tmp_path, photos, page, browser, resized, width
):
    for name in ("a", "b"):
        (tmp_path / name / ".hydra").mkdir()
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(f"- data.root={'x' * 200}\n- seed=1\n")
    page(tmp_path / "a", tmp_path / "b")
    resized(width)
    browser.get((tmp_path / "out" / "compare.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_html_in_class_and_file_names_stays_text(tmp_path, page):
    paths = [f"{HOSTILE}/{i}.png" for i in range(4)]
    for name, wrong in (("a", [0]), ("b", [1])):
        save_run(tmp_path / name, paths, [0, 0, 1, 1], wrong, classes=(HOSTILE, "trout & co"))
    shown = page(tmp_path / "a", tmp_path / "b")
    assert not shown.images
    assert f"{HOSTILE} {HOSTILE}/1.png A: {HOSTILE} 88.1% B: trout & co 88.1%" in shown.text
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("read as text, but no Chromium is installed to open it in")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    address = (tmp_path / "out" / "compare.html").as_uri()
    opened = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>Not decided: A or B</title>" in opened  # no handler ran
    assert "&lt;img src=" in opened and "<img" not in opened
