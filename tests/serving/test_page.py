"""The page in a real browser, as wide as a phone and as a screen: from pictures to answers."""

import base64

import pytest
from browser import headless_chromium, resize

WAIT = 20  # seconds


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    started = headless_chromium()
    yield started
    started.quit()


def until(page, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, WAIT, poll_frequency=0.05).until(condition)


def status(page):
    return page.find_element("id", "status").text


def answered(page, text):
    """Wait until the status says it."""
    until(page, lambda _: text in status(page))
    return page.find_elements("css selector", "#answers li")


def texts(card, *names):
    return [card.find_element("class name", name).text for name in names]


@pytest.fixture
def files(tmp_path, picture):
    """Paths of two pictures and of a file that is none, and the content of the pictures."""
    contents = [picture((200, 60, 60), 0, size=(300, 400)), picture((60, 180, 70), 1, size=(300, 200))]
    for name, content in (*zip(("a.png", "b.png"), contents, strict=True), ("c.png", b"no picture")):
        (tmp_path / name).write_bytes(content)
    return [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")], contents


def console(page):
    """What the page has complained about, but for refused pictures, which the browser reports itself."""
    return [entry["message"] for entry in page.get_log("browser") if "status of 4" not in entry["message"]]


@pytest.mark.parametrize("width", [400, 1300])
def test_pictures_get_their_answers(browser, server, files, width):
    paths, contents = files
    resize(browser, width, 900)
    browser.get(f"{server.url}/")
    until(browser, lambda page: page.find_element("id", "input").is_displayed())
    assert "class a, class b, class c" in browser.find_element("id", "model").text
    browser.find_element("id", "files").send_keys("\n".join(paths))
    cards = answered(browser, "2 of 3 pictures classified, 1 failed")
    for card, path, answer in zip(cards, paths, answers_of(server, contents), strict=False):
        name, verdict, told = texts(card, "name", "verdict", "class")
        assert name == path.rpartition("/")[2]
        ranked = answer["calibrated_probabilities"]
        if answer["unknown"]:
            assert (verdict, told) == ("None of these", f"{answer['class']} is the nearest class")
        else:
            assert (verdict, told) == ("", answer["class"])
            bars = card.find_element("class name", "bars").text
            assert "calibrated probability" in bars and f"runner-up: {list(ranked)[1]}" in bars
            assert f"{list(ranked.values())[1]:.1%}".replace("%", " %") in bars
        assert card.find_element("tag name", "img").get_attribute("alt") == name
        assert card.find_element("tag name", "img").get_property("naturalWidth") > 0
    assert texts(cards[2], "class") == ["Not an image (PNG, JPEG, WebP, BMP or TIFF)."]
    page_width = browser.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= width and console(browser) == []


def answers_of(server, contents):
    return server.predict(*[(str(i), content) for i, content in enumerate(contents)]).json["predictions"]


def test_the_heat_map_is_shown_and_hidden_by_the_keyboard(browser, server, files):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key):
        ActionChains(browser).send_keys(key).perform()

    browser.get(f"{server.url}/")
    until(browser, lambda page: page.find_element("id", "input").is_displayed())
    browser.find_element("id", "files").send_keys(files[0][0])
    (card,) = answered(browser, "a.png: ")
    browser.find_element("tag name", "h1").click()
    seen = []
    while "heat" not in seen:  # Tab reaches every control
        press(Keys.TAB)
        seen.append(browser.switch_to.active_element.get_attribute("id"))
        assert len(seen) < 9, seen
    assert "files" in seen
    press(Keys.SPACE)
    heat = card.find_element("class name", "heat")
    until(browser, lambda _: heat.is_displayed())
    assert heat.get_property("naturalWidth") == 32 and "Grad-CAM heat map for class" in heat.get_attribute("alt")
    press(Keys.SPACE)
    until(browser, lambda _: not heat.is_displayed())


PASTE = """
const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
dispatchEvent(arguments[1] === "paste" ? new ClipboardEvent("paste", { clipboardData: data })
  : new DragEvent("drop", { dataTransfer: data, cancelable: true }));
"""


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(browser, server, picture, way):
    browser.get(f"{server.url}/")
    until(browser, lambda page: page.find_element("id", "input").is_displayed())
    browser.execute_script(PASTE, base64.b64encode(picture()).decode(), way)
    (card,) = answered(browser, "pasted.png: ")
    assert "class" in texts(card, "class")[0]
    browser.find_element("id", "clear").click()
    assert browser.find_elements("css selector", "#answers li") == [] and status(browser) == ""


def test_the_page_asks_for_the_token_and_a_phone_for_its_camera(browser, serve, files):
    client = serve("serve.token=secret")
    browser.get(f"{client.url}/")
    until(browser, lambda page: page.find_element("id", "access").is_displayed())
    assert not browser.find_element("id", "input").is_displayed()
    for given, element in (("wrong", "access-error"), ("secret", "input")):
        browser.find_element("id", "token").clear()
        browser.find_element("id", "token").send_keys(given)
        browser.find_element("css selector", "#access button").click()
        until(browser, lambda page, name=element: page.find_element("id", name).text)
    assert browser.find_element("id", "camera").get_attribute("capture") == "environment"
    browser.find_element("id", "files").send_keys(files[0][0])
    answered(browser, "a.png: ")
