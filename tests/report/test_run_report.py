"""``report.html``: one file that anyone can read, click through and pass on."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic import TEXTS, halves, make_outputs, make_single

from fish_lightning.evaluation.analysis import ERRORS, analyze, calibration_of
from fish_lightning.evaluation.calibration import HOTTEST
from fish_lightning.evaluation.label_suspects import LabelSuspect
from fish_lightning.report.charts import Chart, ticks
from fish_lightning.report.run_report import verdict, write_report

HISTORY = [
    {"epoch": 0.0, "train_loss": None, "val_loss": 1.5, "train_accuracy": None, "val_accuracy": 0.25},
    {"epoch": 1.0, "train_loss": 1.2, "val_loss": float("nan"), "train_accuracy": 0.5, "val_accuracy": 0.6},
    {"epoch": 2.0, "train_loss": 0.7, "val_loss": 0.8, "train_accuracy": 0.9, "val_accuracy": 0.8},
]
FIGURE = {"value": 0.6, "ci95": (0.5, 0.7), "n": 40, "photographs": 12}
AUDITED = {
    "accuracy": FIGURE,
    "mean_background": FIGURE | {"value": 0.55},
    "other_background": None,
    "object_removed": FIGURE | {"value": 0.21},
    "chance": 0.25,
    "follows_object": FIGURE | {"value": 0.83},
    "heat_on_object": FIGURE | {"value": 0.77},
    "object_share": FIGURE,
    "skipped": 3,
}
AUDIT = {
    "looks_at": "object",
    "verdict": "the model looks at the object",
    "tested": AUDITED,
    "training": AUDITED | {"other_background": FIGURE | {"value": 0.31}, "heat_on_object": None, "skipped": 0},
}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.opened = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.opened.pop()

    def handle_data(self, data):
        if not self.opened:
            self.texts.append(data)

    def all(self, tag, name=None):
        return [attrs for found, attrs in self.tags if found == tag and (name is None or name in attrs)]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def noise(path):
    """A picture that a JPEG can hardly compress."""
    return np.random.default_rng(len(path)).integers(0, 256, (144, 192, 3), dtype=np.uint8)


def paths_of_errors(analysis, most=None):
    return [analysis.images.paths[error.image] for error in analysis.errors[:most]]


def gray(path):
    return np.full((30, 40, 3), 120, dtype=np.uint8)


def write(file, analysis, thumbnail=gray, training_thumbnail=None, heat=None, pictures=300, **texts):
    write_report(file, analysis, TEXTS | texts, thumbnail, training_thumbnail, heat, pictures)


@pytest.fixture
def report(tmp_path):
    """``report(analysis, **settings)`` writes a report and reads it."""

    def write_and_read(analysis, **settings):
        write(tmp_path / "report.html", analysis, **settings)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write_and_read


@pytest.fixture(scope="module")
def outputs():
    return make_outputs(noise=2.0)


@pytest.fixture(scope="module")
def analysis(outputs):
    return analyze(*halves(outputs))


def test_the_page_loads_nothing(report, analysis):
    page = report(analysis, history=HISTORY, audit=AUDIT, heat={paths_of_errors(analysis)[0]: np.ones((2, 3))})
    assert all(img["src"].startswith("data:image/") for img in page.all("img"))
    assert not page.all("link")
    assert not page.all("script", "src")
    assert not re.search(r"(?:https?:|url\(|@import)", " ".join(str(attrs) for _, attrs in page.tags))
    assert not list(filter(re.compile(r"https?:").search, page.texts))


def test_curves_of_training_and_validation_share_a_chart(report, analysis):
    spike = {"epoch": 3.0, "train_loss": 0.6, "val_loss": 400.0, "train_accuracy": 0.95, "val_accuracy": 0.1}
    page = report(analysis, history=[*HISTORY, spike])
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert "Accuracy over 3 epochs: training from 50.0% to 95.0%; validation from 25.0% to 10.0%." in labels
    assert "Loss over 3 epochs: training from 1.200 to 0.600; validation from 1.500 to 400.000." in labels
    # The axis ends at ten times the median; the spike is drawn at the top of the chart.
    assert {"0", "2", "4", "6", "8", "10"} <= set(page.texts) and "100" not in page.texts and "400" not in page.texts


def test_every_picture_is_described_and_every_link_leads_somewhere(report, analysis):
    page = report(analysis, history=HISTORY, best_epoch=2, audit=AUDIT, config="a: 1")
    assert len(page.all("img")) > 300
    assert all(img["alt"] for img in page.all("img"))
    assert all(svg["aria-label"] for svg in page.all("svg"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    links = [a["href"] for a in page.all("a")]
    assert len(links) == 11
    assert {link[1:] for link in links} <= set(ids)
    assert "Loss over 2 epochs: training from 1.200 to 0.700; validation from 1.500 to 0.800." in [
        svg["aria-label"] for svg in page.all("svg")
    ]


def test_figures_of_every_section_are_told(report, analysis):
    text = report(analysis, history=HISTORY, audit=AUDIT, config="seed: 7", environment={"torch": "2.0"}).text
    assert f"{analysis.scores['accuracy']:.1%} of 500 images" in text
    assert f"{analysis.votes['accuracy']:.1%} of 100 photographs" in text
    assert f"{analysis.per_class[0]['recall']:.1%}" in text
    assert f"The temperature {analysis.calibration['temperature']:.3f} was fitted on 400 validation images" in text
    assert f"{analysis.calibration['after']['ece']:.1%}" in text
    assert analysis.guarantee.sentence[1:] in text
    assert "Each is shown with the nearest of 60 training photographs and their" in text
    assert "Bound: selective risk control (Geifman and El-Yaniv 2017) with photographs" in text
    assert f"below {analysis.unknowns['threshold']:.4g}, which keeps 95% of the validation photographs" in text
    assert "The model looks at the object." in text
    assert "heat on the object 77.0%" in text
    assert "not as the background 83.0%" in text
    assert re.search(r"background of another class . 31\.0%", text)  # test beside training
    assert "3 more have a mask that is empty" in text
    assert "seed: 7" in text
    assert "torch 2.0" in text
    assert "300 of 500 shown" in text


def test_the_verdict_has_three_sentences(outputs):
    both, training = halves(outputs)
    clean = verdict(analyze(both, training), "photograph")
    assert re.fullmatch(
        r"The model recognizes 8\d\.\d% of 500 test images; on other images like these expect \d\d\.\d% to "
        r"\d\d\.\d% \(95% CI, clustered by photograph, n=100\)\.",
        clean[0],
    )
    assert clean[1].startswith("None of them has a copy among the training images (split=photograph), so the score")
    assert re.fullmatch(
        r"The class with the lowest recall is class \w, \d+ of 125 recognized and \d+ predicted as class \w: .*\.",
        clean[2],
    )
    leaked = np.arange(len(both)) % 2 == 0
    leaky = verdict(analyze(both, training, leaked=leaked), "random")
    assert "250 of the 500 have a copy among the training images (split=random)" in leaky[1]
    assert "on the other 250 the accuracy is" in leaky[1]
    assert "train again with split=photograph" in leaky[2]
    assert "there are no others" in verdict(analyze(both, leaked=leaked | True))[1]
    assert "is unknown, so the score may be too high" in verdict(analyze(both))[1]
    assert "trained on these images" in verdict(analyze(outputs, subset="all"))[1]
    assert "the checkpoint was chosen" in verdict(analyze(both, training, subset="val"))[1]
    assert "if no image is a copy of another" in verdict(analyze(*halves(make_outputs(known=False))))[0]
    assert verdict(analyze(make_single(1)))[2] == (
        "There are no errors, but the test set is too small to conclude much: test it on more photographs."
    )
    perfect = make_outputs({"test": 50}, copies=1, noise=0.1)
    assert verdict(analyze(perfect))[2].startswith("No class has an error")


def test_what_is_absent_is_said(report, outputs, analysis):
    text = report(analyze(outputs.subset("test"))).text
    assert "no validation images, so no temperature was fitted" in text
    assert text.count("no validation images, so no threshold was chosen") == 2
    assert "neither training nor validation features" in text
    assert "Curves" not in text
    assert "Audit" not in text
    assert "Config" not in text
    assert "there are no masks." not in text
    assert "There are no masks." in report(analysis, audit="there are no masks").text
    unknown = report(analyze(*halves(make_outputs(known=False))))
    assert "It is unknown which images are copies of one photograph" in unknown.text
    assert "neighbors come from the validation images" in report(analyze(halves(outputs)[0])).text
    assert "No heat maps for ViT." in report(analysis, heat_note="no heat maps for ViT").text


def test_what_limits_a_figure_is_said(report, outputs, analysis):
    page = report(analysis, history=HISTORY, best_epoch=2, training_photographs=828)
    assert "the nearest of 60 training photographs (a sample of all 828) and their" in page.text
    assert "checkpoint: epoch 2" in page.text
    calibration = analysis.calibration
    assert f"calibration error (ECE), {calibration['ece']:.1%} before temperature scaling" in page.text
    assert "at the bound of its range" not in page.text
    hottest = report(replace(analysis, calibration=calibration | {"temperature": HOTTEST})).text
    assert "It is at the bound of its range (0.01 to 100): no temperature calibrates this model." in hottest
    assert "the error probability is divided by" not in page.text
    assert "divided by 12, the number of checkpoints" in report(replace(analysis, candidates=12)).text
    assert "All copies are recognized for 1 photograph, some for 0, none for 3." in (
        report(replace(analysis, copies_correct=(1, 0, 3))).text
    )


def test_a_single_photograph_comes_before_suspects_in_the_advice(analysis):
    few = [score | {"photographs": 1} for score in analysis.per_class]
    suspect = LabelSuspect(np.array([0]), ("a.png",), 0, 1, 0.1, 0.9)
    suspects = [replace(suspect, given=label) for label in range(4)]
    assert "only 1 photograph of it was tested" in verdict(replace(analysis, per_class=few, suspects=suspects))[2]
    assert "first check the 1 label suspect of that class" in verdict(replace(analysis, suspects=suspects))[2]


def test_a_model_that_contradicts_too_many_labels_has_no_suspects(report, analysis):
    assert (len(analysis.suspects), analysis.suspect_photographs) == (0, 22)  # of 180 photographs
    text = report(analysis).text
    assert "The model contradicts the label of 22 photographs with confidence" in text
    assert "so the model is probably wrong, and none are listed" in text


def test_no_axis_has_half_an_epoch_or_more_than_all_answers(report, analysis):
    hopeless = replace(analysis, curve=replace(analysis.curve, risk=np.full_like(analysis.curve.risk, 0.97)))
    texts = report(hopeless, history=HISTORY).texts
    assert ticks(0, 2, whole=True) == [0, 1, 2] and ticks(0, 2) == [0, 0.5, 1, 1.5, 2]
    assert texts.count("1.5") == 1 and texts.count("2") == 2  # on the axis of the loss; on two axes of epochs
    assert "100%" in texts and "120%" not in texts


def test_stored_figures_are_told_apart_from_fitted_ones(report, outputs, analysis):
    text = report(analyze(outputs.subset("test"), stored=calibration_of(analysis))).text
    assert "comes from the validation images of the training run" in text
    assert "On the validation images of the training run no threshold could guarantee an error of at most 5.0%" in text
    assert "no validation images" not in text


def test_validation_images_that_leak_are_told(report, outputs):
    both, training = halves(outputs)
    text = report(analyze(both, training, leaked=both.splits == "val")).text
    assert "400 of the validation images have a copy among the training images" in text


@pytest.mark.parametrize("outputs", [make_single(1), make_single(40, labels=np.zeros(40, dtype=int))])
def test_tiny_tests_have_a_report(report, outputs):
    page = report(analyze(outputs), history=HISTORY[:1])
    assert f"{len(outputs)} of {len(outputs)} shown" in page.text


def test_a_class_never_predicted_has_a_report(report, outputs):
    logits = outputs.logits.copy()
    logits[:, 1] = -99
    text = report(analyze(*halves(replace(outputs, logits=logits)))).text
    assert "never predicted" in text
    assert "class b, 0 of 125 recognized" in text


def test_unknown_images_have_a_table(report, outputs):
    both, training = halves(outputs)
    foreign = replace(training, logits=np.zeros_like(training.logits))
    text = report(analyze(both, training, unknown=foreign)).text
    assert "How well each score separates 300 unknown images" in text
    assert all(name in text for name in ("max_softmax", "max_logit", "energy", "feature_norm", "knn"))


def test_names_stay_text(report, outputs, tmp_path):
    names = np.array(["<b>bold</b>", '"><script>hacked=1</script>', "it's {{ 7*7 }}", "a & b"])
    paths = np.char.add('<img src=x onerror="hacked=1">', outputs.paths)
    analysis = analyze(*halves(replace(outputs, classes=names, paths=paths)))
    page = report(analysis, title="</title><i>", config="</pre><i>")
    assert not [attrs for attrs in page.all("img") if "onerror" in attrs]
    assert len(page.all("script")) == 1
    assert "<b>bold</b>" in page.text
    assert "it's {{ 7*7 }}" in page.text
    assert "</title><i>" in page.text
    undecodable = replace(outputs, paths=np.char.add("\udcff", outputs.paths))
    assert r"\xffclass" in report(analyze(*halves(undecodable))).text


def test_many_classes_show_the_most_confused(report):
    page = report(analyze(*halves(make_outputs(classes=120, noise=2.0, photographs={"val": 120, "test": 600}))))
    assert len(page.all("th", "title")) == 30 + 30 + 100
    assert "The 30 most confused of 120 classes" in page.text
    assert "20 more classes, with a higher recall, are in summary.json" in page.text


def test_the_gallery_has_pictures_of_every_cell(report, analysis):
    page = report(analysis, pictures=60)
    cells = [button["data-cell"] for button in page.all("button") if "-" in button["data-cell"]]
    shown = Counter(figure["data-cell"] for figure in page.all("figure", "data-cell"))
    assert set(shown) == set(cells)
    assert sum(shown.values()) == 60
    assert "60 of 500 shown" in page.text
    numbers = {button["data-cell"]: int(button["data-n"]) for button in page.all("button")}
    assert sum(numbers[cell] for cell in cells) == numbers["all"] == 500
    everything = report(analysis, pictures=10_000)
    shown = Counter(figure["data-cell"] for figure in everything.all("figure", "data-cell"))
    assert shown == {cell: numbers[cell] for cell in cells}


def test_the_gallery_prefers_other_photographs_to_copies(report, analysis):
    page = report(analysis, pictures=40)
    owner = dict(zip(analysis.images.paths, analysis.images.photographs, strict=True))
    gallery = page.tags[next(i for i, (_, attrs) in enumerate(page.tags) if attrs.get("id") == "gallery") :]
    paths = [attrs["title"] for tag, attrs in gallery if tag == "img"][:40]
    assert len({owner[path] for path in paths}) > 25


def test_heat_maps_lie_over_their_errors(report, analysis):
    heat = {path: np.linspace(0, 1, 6).reshape(2, 3) for path in paths_of_errors(analysis, 2)}
    page = report(analysis, heat=heat)
    maps = [img for img in page.all("img") if img.get("class") == "heat"]
    assert [img["alt"] for img in maps] == [
        f"Heat map: evidence for {analysis.classes[analysis.images.preds[error.image]]}"
        for error in analysis.errors[:2]
    ]
    assert all(img["src"].startswith("data:image/png") and len(img["src"]) < 400 for img in maps)
    assert [tag for tag in page.all("input") if tag["id"] == "heat"]
    assert not report(analysis).all("input")


def test_training_pictures_come_from_their_own_function(report, outputs, analysis):
    asked = {"tested": set(), "training": set()}

    def source(name):
        return lambda path: (asked[name].add(path), gray(path))[1]

    report(analysis, thumbnail=source("tested"), training_thumbnail=source("training"))
    assert asked["training"] <= set(outputs.subset("train").paths)
    assert asked["training"] >= {near.path for near in analysis.errors[0].neighbors}
    assert not asked["tested"] & set(outputs.subset("train").paths)
    asked["tested"].clear()
    report(analysis, thumbnail=source("tested"))
    assert asked["tested"] & set(outputs.subset("train").paths)


def test_a_report_of_1350_images_is_small(report, tmp_path):
    outputs = make_outputs({"train": 600, "val": 60, "test": 135}, copies=10, classes=9, noise=3.0)
    analysis = analyze(*halves(outputs))
    page = report(
        analysis, thumbnail=noise, history=HISTORY, heat={p: np.ones((10, 15)) for p in paths_of_errors(analysis)}
    )
    assert len(analysis.errors) == ERRORS < analysis.error_photographs
    assert len([image for image in page.all("img") if image.get("class") == "heat"]) == ERRORS
    assert len(page.all("img")) > 450
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_ticks_are_round():
    assert ticks(0, 2, whole=True) == [0, 1, 2]
    assert ticks(0, 12, whole=True) == [0, 2, 4, 6, 8, 10, 12]
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(0, 2.52) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert ticks(1, 100) == [20, 40, 60, 80, 100]
    assert ticks(3, 3) == [3]


def test_points_that_are_nan_are_left_out_of_charts():
    chart = Chart("t", "a", (0, 2), (0, 1), "x")
    chart.line("l", [0, 1, 2], [0, float("nan"), 1], "first")
    assert chart.lines[0]["points"] == "44.0,200.0 340.0,10.0"
    chart.band([0, 1], [0, float("nan")], [1, float("nan")], "first")
    assert chart.bands[0]["points"] == "44.0,10.0 44.0,200.0"


@pytest.fixture
def opened(browser, tmp_path):
    """``opened(analysis, **settings)`` writes a report and opens it in the browser."""

    def write_and_open(analysis, **settings):
        write(tmp_path / "a report.html", analysis, **settings)
        browser.get((tmp_path / "a report.html").as_uri())
        return browser

    return write_and_open


def shown(page):
    """(cell, CSS classes) of the gallery's visible pictures."""
    visible = "[...document.querySelectorAll('#gallery figure')].filter((figure) => figure.offsetHeight)"
    return page.execute_script(f"return {visible}.map((figure) => [figure.dataset.cell, figure.className])")


def status(page):
    return page.find_element("id", "gallery-status").text


def test_a_cell_of_the_confusion_matrix_filters_the_gallery(opened, analysis):
    page = opened(analysis, pictures=100)
    assert len(shown(page)) == 100
    label, pred = np.argwhere(analysis.confusion * (1 - np.eye(4, dtype=int)))[0]
    cell = page.find_element("css selector", f"[data-cell='{label}-{pred}']")
    assert cell.accessible_name == (
        f"{analysis.confusion[label, pred]} images: {analysis.classes[label]}, predicted as {analysis.classes[pred]}"
    )
    cell.click()
    figures = shown(page)
    assert 0 < len(figures) < 100
    assert {cell for cell, _ in figures} == {f"{label}-{pred}"}
    assert cell.get_attribute("aria-pressed") == "true"
    assert status(page) == (
        f"{analysis.classes[label]}, predicted as {analysis.classes[pred]}: {len(figures)} of "
        f"{analysis.confusion[label, pred]} shown"
    )
    cell.click()
    assert len(shown(page)) == 100
    page.find_element("css selector", "[data-cell='wrong']").click()
    assert {name for _, name in shown(page)} == {"wrong"}
    page.find_element("css selector", "[data-cell='all']").click()
    assert status(page) == "All images: 100 of 500 shown"


def test_cells_are_reached_and_pressed_with_the_keyboard(opened, analysis):
    from selenium.webdriver.common.keys import Keys

    page = opened(analysis, pictures=100)
    page.find_elements("css selector", "nav a")[-1].send_keys(Keys.TAB)
    active = page.switch_to.active_element
    assert active.get_attribute("data-cell") == "0-0"
    active.send_keys(Keys.ENTER)
    assert {cell for cell, _ in shown(page)} == {"0-0"}
    active.send_keys(Keys.SPACE)
    assert len(shown(page)) == 100


def test_names_run_nothing_in_a_browser(opened, outputs):
    names = np.array(["<b>bold</b>", '"><script>window.hacked=1</script>', "'--> {{ 7*7 }}", "x" * 150])
    paths = np.char.add('"><img src=x onerror="window.hacked=1">', outputs.paths)
    analysis = analyze(*halves(replace(outputs, classes=names, paths=paths)))
    page = opened(analysis, title="</title><script>window.hacked=1</script>", config="</pre><script>hacked=1</script>")
    for cell in page.find_elements("css selector", ".matrix button"):
        cell.click()
    assert "predicted as" in status(page) or "recognized" in status(page)
    assert page.execute_script("return window.hacked") is None
    headings = [h3.text for h3 in page.find_elements("css selector", ".card h3")]
    assert any("<b>bold</b>" in text for text in headings)
    assert page.execute_script("return document.querySelectorAll('b b, h3 b').length") == 0
    assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("width", [400, 1300])
def test_a_phone_and_a_desktop_show_the_page_without_scrolling_sideways(opened, resized, analysis, width):
    resized(width)
    for settings in ({"history": HISTORY, "audit": AUDIT, "config": "long: " + 300 * "x"}, {}):
        page = opened(analysis, **settings, environment={"path": 200 * "y"})
        assert page.execute_script("return document.documentElement.scrollWidth") == width
    cut = "[...document.querySelectorAll('.audit th')].filter((th) => th.scrollWidth > th.clientWidth)"
    assert opened(analysis, audit=AUDIT).execute_script(f"return {cut}.map((th) => th.textContent)") == []
    loaded = "return performance.getEntriesByType('resource').filter(entry => !entry.name.startsWith('data:'))"
    assert page.execute_script(loaded) == []


def test_the_page_follows_dark_mode_and_hides_heat_maps(opened, browser, analysis):
    color = "return getComputedStyle(document.body).backgroundColor"
    page = opened(analysis, heat={path: np.ones((2, 3)) for path in paths_of_errors(analysis)})
    light = page.execute_script(color)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert page.execute_script(color) != light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    heat = page.find_element("css selector", ".heat")
    assert heat.is_displayed()
    page.find_element("id", "heat").click()
    assert not heat.is_displayed()
