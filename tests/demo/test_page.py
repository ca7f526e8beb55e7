"""The page in headless Chromium: a user's actions work, and nothing leaves the machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    expect,
    sync_playwright,
)

from featkit.index import Index, Refinement
from tests.demo.conftest import HOSTILE, Gallery

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    " --disable-sync --no-first-run"
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER TESTED: no chromium on PATH; apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, page_address: str) -> Iterator[Page]:
    """Open the page; fail the test on a script error or a request to another host."""
    beyond: list[str] = []
    errors: list[str] = []

    def seen(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            beyond.append(request.url)

    def asked(dialog: Dialog) -> None:
        errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def said(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            errors.append(message.text)

    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, permissions=["clipboard-read", "clipboard-write"]
    )
    opened = context.new_page()
    opened.on("request", seen)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("dialog", asked)
    opened.on("console", said)
    opened.goto(page_address)
    expect(opened.locator(".fk-card").first).to_be_visible()
    yield opened
    opened.wait_for_load_state("networkidle")
    context.close()
    assert beyond == []
    assert errors == []


def names(page: Page) -> list[str]:
    return [name.strip() for name in page.locator(".fk-card .fk-name").all_text_contents()]


def scores(page: Page) -> list[float]:
    return [float(score) for score in page.locator(".fk-score").all_text_contents()]


def test_an_uploaded_image_finds_its_original_first(page: Page, gallery: Gallery) -> None:
    page.set_input_files("input[type=file]", gallery.images / "scenes/lake/lake-1-day.jpg")
    expect(page.locator("h1")).to_have_text("Nearest images")
    assert names(page)[0] == "lake-1-day.jpg"
    assert scores(page)[0] == pytest.approx(1, abs=0.002)
    assert scores(page) == sorted(scores(page), reverse=True)
    expect(page.locator(".fk-query-name")).to_have_text("lake-1-day.jpg")


def test_a_click_on_a_result_searches_with_it(page: Page) -> None:
    page.get_by_role("button", name="Search with objects/mug/mug-1-front.jpg").click()
    expect(page.locator("h1")).to_have_text("Nearest images")
    assert names(page)[0] == "mug-1-front.jpg"
    second = page.locator(".fk-card").nth(1)
    key = second.get_attribute("title")
    second.click()
    expect(page.locator(".fk-query-name")).to_have_text(str(key))
    expect(page.locator(".fk-card").first).to_have_attribute("title", str(key))
    page.go_back()
    expect(page.locator(".fk-query-name")).to_have_text("objects/mug/mug-1-front.jpg")
    page.get_by_role("button", name="Back to the gallery", exact=True).click()
    expect(page.locator("h1")).to_have_text("Pick an image to start from")


def test_a_pasted_image_is_searched_with(page: Page) -> None:
    page.evaluate("""async () => {
        const image = document.querySelector('[title="objects/fish/fish-1-front.jpg"] img');
        const blob = await (await fetch(image.src)).blob();
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([blob], 'shot.jpg', {type: 'image/jpeg'}));
        document.dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true}));
    }""")
    expect(page.locator("h1")).to_have_text("Nearest images")
    assert names(page)[0] == "fish-1-front.jpg"


def test_a_dropped_image_is_searched_with(page: Page) -> None:
    page.evaluate("""async () => {
        const image = document.querySelector('[title="textures/tiles/tiles-1-flat.jpg"] img');
        const blob = await (await fetch(image.src)).blob();
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([blob], 'dropped.jpg', {type: 'image/jpeg'}));
        const options = {dataTransfer, bubbles: true, cancelable: true};
        for (const kind of ['dragenter', 'dragover', 'drop'])
            document.dispatchEvent(new DragEvent(kind, options));
    }""")
    expect(page.locator("h1")).to_have_text("Nearest images")
    assert names(page)[0] == "tiles-1-flat.jpg"
    expect(page.locator(".fk-veil")).to_be_hidden()


def test_a_file_that_is_not_an_image_is_refused(page: Page, gallery: Gallery) -> None:
    page.set_input_files(
        "input[type=file]", {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"dear diary"}
    )
    expect(page.get_by_role("alert")).to_have_text(
        "notes.jpg is not an image in a format that can be read."
    )
    page.set_input_files("input[type=file]", gallery.images / "objects/mug/mug-1-side.jpg")
    expect(page.locator(".fk-query-name")).to_have_text("mug-1-side.jpg")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_file_names_are_never_markup(page: Page) -> None:
    page.locator(f'[title="odd/{HOSTILE}"]').click()
    expect(page.locator(".fk-query-name")).to_have_text(f"odd/{HOSTILE}")
    assert HOSTILE in names(page)
    assert page.locator(".fk-page img[src='x']").count() == 0


def test_the_keyboard_suffices(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".fk-skip")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('fk-card')"):
            break
    key = page.evaluate("document.activeElement.title")
    page.keyboard.press("Enter")
    expect(page.locator(".fk-query-name")).to_have_text(key)
    expect(page.locator("h1")).to_be_focused()


def test_every_image_and_button_has_a_name(page: Page) -> None:
    page.locator(".fk-card").first.click()
    expect(page.locator("h1")).to_have_text("Nearest images")
    unnamed = """() => {
        const all = (selector) => [...document.querySelectorAll(selector)];
        const images = all('.fk-page img:not([hidden])').filter((image) => !image.alt);
        const buttons = all('.fk-page button').filter((b) => !b.ariaLabel && !b.innerText.trim());
        return images.length + buttons.length;
    }"""
    assert page.evaluate(unnamed) == 0


def test_thumbnails_are_the_only_images_fetched(page: Page) -> None:
    sources = page.evaluate(
        "[...document.querySelectorAll('.fk-card img')].map(i => new URL(i.src).pathname)"
    )
    assert sources
    assert all(
        source.startswith("/v1/items/") and source.endswith("/thumbnail") for source in sources
    )


def test_the_page_fits_a_phone_in_dark_mode(browser: Browser, page_address: str) -> None:
    with browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme="dark"
    ) as context:
        phone = context.new_page()
        phone.goto(page_address)
        expect(phone.locator(".fk-card").first).to_be_visible()
        red, green, blue = phone.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert red + green + blue < 150
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        first, second = (phone.locator(".fk-card").nth(k).bounding_box() for k in (0, 1))
        assert first is not None
        assert second is not None
        assert first["y"] == pytest.approx(second["y"], abs=12)  # two in a row
        expect(phone.locator("footer")).to_be_hidden()


def test_uploads_over_the_limit_are_refused(page: Page, gallery: Gallery) -> None:
    huge = gallery.images.parent / "huge.png"
    Image.new("1", (8000, 8000)).save(huge)  # 64 megapixels in a few kilobytes of PNG
    page.set_input_files("input[type=file]", huge)
    expect(page.get_by_role("alert")).to_contain_text("huge.png has 64,000,000 pixels")


def test_a_filter_limits_the_gallery_and_the_hits(page: Page) -> None:
    field = page.get_by_role("searchbox")
    field.fill("folder = 'objects/mug'")
    field.press("Enter")
    expect(page.locator(".fk-card")).to_have_count(3)
    assert all(name.startswith("mug") for name in names(page))
    page.locator(".fk-card").first.click()
    expect(page.locator("h1")).to_have_text("Nearest images")
    expect(page.locator(".fk-card")).to_have_count(3)
    expect(page.locator("[data-part=status]")).to_contain_text("3 of 3 images")
    page.reload()
    expect(page.get_by_role("searchbox")).to_have_value("folder = 'objects/mug'")
    expect(page.locator(".fk-card")).to_have_count(3)
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page.locator(".fk-card").nth(5)).to_be_visible()
    assert "where" not in page.url


def test_hits_are_ordered_as_chosen(page: Page) -> None:
    page.get_by_role("button", name="Search with objects/mug/mug-1-front.jpg").click()
    expect(page.locator("h1")).to_have_text("Nearest images")
    order = page.get_by_label("Order of the hits")
    for choice, asked in (("Shared neighbors first", "rerank=100"), ("Expanded query", "expand=3")):
        with page.expect_response(re.compile(f"&{asked}")) as answer:
            order.select_option(label=choice)
        expect(page.locator(".fk-page")).to_have_attribute("data-state", "ready")
        hits = answer.value.json()["hits"]
        assert names(page) == [hit["key"].rpartition("/")[2] for hit in hits]
        assert asked.replace("=", "%3D") in page.url
    page.reload()
    expect(order).to_have_value("expand=3")
    order.select_option(label="Nearest first")
    expect(page.locator("h1")).to_have_text("Nearest images")
    assert "order" not in page.url
    assert scores(page) == sorted(scores(page), reverse=True)


def test_an_uploads_hits_are_ordered_as_chosen(page: Page, gallery: Gallery) -> None:
    image = gallery.images / "scenes/lake/lake-1-day.jpg"
    page.get_by_label("Order of the hits").select_option(label="Different images first")
    page.set_input_files("input[type=file]", image)
    expect(page.locator("h1")).to_have_text("Nearest images")
    with Index.open(gallery.index) as index:
        plain = [hit.key.rpartition("/")[2] for hit in index.search(image, k=24)]
        refined = index.search(image, k=24, refine=Refinement(diversity=0.3))
    assert names(page) == [hit.key.rpartition("/")[2] for hit in refined]
    assert names(page) != plain


def test_a_wrong_filter_is_explained_next_to_it(page: Page) -> None:
    page.get_by_role("searchbox").fill("foldr = 'objects/mug'")
    page.get_by_role("button", name="Filter", exact=True).click()
    alert = page.locator("[data-part=filterAlert]")
    expect(alert).to_have_text(
        "The filter `foldr = 'objects/mug'` is wrong at column 1: there is no column 'foldr'; did"
        " you mean folder?"
    )
    page.get_by_role("searchbox").fill("folder = 'objects/mug'")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(alert).to_be_hidden()
    expect(page.locator(".fk-card")).to_have_count(3)
