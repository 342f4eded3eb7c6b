"""The page in a browser: it loads nothing, its tables sort, its plots and masks are there. Keeps a screenshot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from torch import Tensor

from blast_compile.report.data import Report
from blast_compile.report.page.html import html
from tests.report.browser import chromium

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(
    browser: Browser,
    report: Report,
    masks: dict[str, Tensor],
    tmp_path: Path,
    requests: list[str],
    complaints: list[str],
) -> Iterator[Page]:
    path = tmp_path / "report.html"
    path.write_text(html(report, masks))
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    yield page
    page.close()


def values(page: Page, table: str, column: int) -> list[float]:
    cells = page.locator(f"#{table} tbody tr td:nth-child({column})")
    return [float(cell.get_attribute("data-value") or "nan") for cell in cells.all()]


def test_nothing_is_fetched_and_nothing_complains(page: Page, requests: list[str], complaints: list[str]) -> None:
    page.wait_for_load_state("networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [page.url]
    assert complaints == []  # the policy in the page blocks what it would load, and says so here


def test_a_table_sorts_by_numbers_both_ways(page: Page) -> None:
    place = page.locator("#ops th").all_text_contents().index("largest error")
    head, before = page.locator("#ops th").nth(place), values(page, "ops", place + 1)
    assert before != sorted(before)
    head.locator("button").click()
    assert values(page, "ops", place + 1) == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert values(page, "ops", place + 1) == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"


def test_a_table_sorts_by_words_and_one_column_at_a_time(page: Page) -> None:
    page.locator("#ops th button").nth(2).click()
    page.locator("#ops th button").nth(0).click()
    assert page.locator("#ops tbody td:first-child").all_text_contents() == ["linear", "linear", "mlp", "mlp"]
    assert page.locator("#ops th[aria-sort=ascending]").count() == 1


def test_every_table_can_be_sorted(page: Page) -> None:
    for table in page.locator("table").all():
        assert "sortable" in (table.get_attribute("class") or "")
        num_rows = table.locator("tbody tr").count()
        for button in table.locator("th button").all():
            button.click()
        assert table.locator("tbody tr").count() == num_rows > 0


@pytest.mark.parametrize(("plot", "num_marks"), [("roofline", 8), ("prediction", 5)])
def test_plots_show_every_mark_inside_their_axes(page: Page, plot: str, num_marks: int) -> None:
    frame = page.locator(f"#{plot}").bounding_box()
    assert frame is not None
    assert frame["width"] > 300
    marks = page.locator(f"#{plot} circle").all()
    assert len(marks) == num_marks
    for mark in marks:
        box = mark.bounding_box()
        assert box is not None
        assert box["width"] > 4
        assert frame["x"] < box["x"] < frame["x"] + frame["width"]
        assert frame["y"] < box["y"] < frame["y"] + frame["height"]
        assert mark.locator("title").text_content()


def test_marks_lie_under_the_roof(page: Page) -> None:
    """SVG counts downwards."""
    tops = [float(mark.get_attribute("cy") or 0) for mark in page.locator("#roofline circle:not(.hollow)").all()]
    (roof,) = page.locator("#roofline .roof").all()
    level = float((roof.get_attribute("points") or "").split()[-1].split(",")[1])
    assert all(top > level for top in tops)


def test_warnings_open_by_a_click(page: Page) -> None:
    box = page.locator("#warnings")
    assert box.get_attribute("open") is not None, "few of them are open from the start"
    assert box.locator("summary").text_content() == "1 warning: the model ran as 2 graphs"


@pytest.mark.parametrize("width", [1280, 480])
def test_tables_scroll_and_the_page_does_not(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scroll, cell = page.locator(".scroll:has(#layers)"), page.locator("#layers tbody td").first
    before = cell.bounding_box()
    scroll.evaluate("element => { element.scrollLeft = 200; }")
    assert scroll.evaluate("element => element.scrollLeft") > 0, "the table is wider than the page"
    assert cell.bounding_box() == before, "the name of a layer stays beside its figures"


def test_numbers_stand_under_their_heads(page: Page) -> None:
    for table in page.locator("table").all():
        heads = table.locator("th").all()
        for head, cell in zip(heads, table.locator("tbody tr").first.locator("td").all(), strict=True):
            is_number = cell.get_attribute("data-value") is not None
            assert head.evaluate("element => getComputedStyle(element).textAlign") == ("right" if is_number else "left")


def test_masks_are_images_that_load(page: Page, masks: dict[str, Tensor]) -> None:
    images = page.locator("#masks img").all()
    assert len(images) == len(masks)
    for image, kept in zip(images, masks.values(), strict=True):
        size = image.evaluate("image => [image.naturalHeight, image.naturalWidth]")
        assert tuple(size) == tuple(kept.shape)


def test_screenshots_are_kept(page: Page) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    colors = set()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=SCREENSHOTS / f"report-{scheme}.png", full_page=True)
        assert (SCREENSHOTS / f"report-{scheme}.png").stat().st_size > 50_000
        colors.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colors) == 2
