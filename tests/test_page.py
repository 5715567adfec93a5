"""The HTML page: what stands in it, and what headless Chromium makes of it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.images import write_image
from reproduction.page import CHART_WIDTH, PHOTO_WIDTH, Picture, Section, Table, data_uri, write_page

NASTY = '<img src=x onerror="alert(1)"> & "Erdrutsch" \u6ed1\u5761'
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def example(folder: Path) -> Path:
    """A page with everything: a long and wide table, charts, photos, folded sections, hostile names."""
    write_image(folder / "chart.png", noise(300, 200))
    write_image(folder / "photo \u6ed1\u5761.png", noise(500, 300))
    columns = ["Model", "P", "R", "AP (paper)", "Difference, 95 % interval", "Seeds", "Remark", *(f"column {n}" for n in range(8))]
    values = [("yolov5s", "96.57"), ("ls-yolo", "9.5"), (NASTY, "100.00"), ("gone", "-"), ("negative", "\u22123.2")]
    rows = [[name, value, "91.09", "94.88", "+1.05 (\u22120.20 to +2.31) *", "3", "as in the paper", *["0.123"] * 8] for name, value in values]
    table = Table(f"Table III {NASTY}", columns, rows, "* the interval holds 0", marked=[1])
    pictures = [Picture(folder / "chart.png", f"Fig. 14 {NASTY}"), Picture(folder / "photo \u6ed1\u5761.png", "Fig. 17", photo=True)]
    sections = [Section("Results", ["A paragraph."], [table], pictures), Section(f"Row {NASTY}", [], [], pictures, folded=True)]
    return write_page(folder / "index.html", f"Ablation {NASTY}", [f"data: {NASTY}", "\udcff undecodable"], sections, ["SHORTENED: 2 epochs", NASTY])


def test_everything_is_escaped_and_nothing_is_fetched(tmp_path: Path) -> None:
    text = example(tmp_path).read_text(encoding="utf-8")
    assert "<img src=x" not in text and "onerror=&quot;alert(1)&quot;" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert text.count('<div class="warning"') == 1 and "SHORTENED: 2 epochs" in text


def test_code_and_nothing_else_is_marked_up(tmp_path: Path) -> None:
    text = write_page(tmp_path / "a.html", "a", ["protocol `paper`, `<b>`, one ` alone"], []).read_text(encoding="utf-8")
    assert "<p>protocol <code>paper</code>, <code>&lt;b&gt;</code>, one ` alone</p>" in text


def test_no_warning_box_without_a_warning(tmp_path: Path) -> None:
    assert '<div class="warning"' not in write_page(tmp_path / "a.html", "a", [], []).read_text(encoding="utf-8")


@pytest.mark.parametrize(("photo", "limit", "kind"), [(False, CHART_WIDTH, "PNG"), (True, PHOTO_WIDTH, "JPEG")])
def test_pictures_are_made_smaller_never_larger(tmp_path: Path, photo: bool, limit: int, kind: str) -> None:
    for given, expected in (((4000, 1000), (limit, limit // 4)), ((90, 60), (90, 60))):
        write_image(tmp_path / "a.png", np.full((given[1], given[0], 3), (200, 30, 60), np.uint8))
        uri, width, height = data_uri(tmp_path / "a.png", photo)
        with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
            assert image.format == kind and image.size == (width, height) == expected
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - (200, 30, 60)).max() <= 3


def test_columns_of_dashes_and_of_check_marks(tmp_path: Path) -> None:
    table = Table("a", ["Model", "MSFE", "FPS", "empty"], [["a", "\u2713", "\u2013", ""], ["b", "", "-", ""]])
    text = write_page(tmp_path / "a.html", "a", [], [Section("a", (), [table])]).read_text(encoding="utf-8")
    assert re.findall(r'<th scope="col"( class="\w+")?', text) == ["", ' class="mark"', ' class="number"', ' class="mark"']


def test_columns_of_numbers_are_told_from_columns_of_words(tmp_path: Path) -> None:
    text = example(tmp_path).read_text(encoding="utf-8")
    head = re.findall(r'<th scope="col"( class="number")?><button type="button"( data-number=1)?>([^<]*)', text)
    assert [name for number, sort, name in head if number and sort] == [name for _, _, name in head if name not in ("Model", "Remark")]


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, where this machine has one: Debian's package `chromium`, driven by the PyPI package `playwright`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install --no-install-recommends chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield running
        running.close()


class Visit:
    """An open page and everything that went wrong on it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.faults.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.goto(path.as_uri(), wait_until="load")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def check(visit: Visit, images: int) -> None:
    """Nothing in the console, nothing requested, every image there."""
    visit.page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    widths = visit.page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) == images and all(width > 0 for width in widths)
    assert visit.faults == []


def test_page_opens_without_a_fault(browser: Any, tmp_path: Path) -> None:
    with Visit(browser, example(tmp_path)) as visit:
        check(visit, images=4)
        assert visit.page.locator("tbody tr").count() == 5 and visit.page.locator("thead th").count() == 15
        assert visit.page.locator("tbody tr").nth(2).locator("th").inner_text() == NASTY.replace("  ", " ")
        assert visit.page.locator("tr.marked th").inner_text() == "ls-yolo"
        folded = visit.page.locator("details figure").first
        assert not folded.is_visible()
        visit.page.locator("summary").click()
        assert folded.is_visible()
        assert visit.faults == []


def test_a_fault_would_be_seen(browser: Any, tmp_path: Path) -> None:
    """The net that the other tests rely on: a broken image and a foreign source are both noticed."""
    path = example(tmp_path)
    text = path.read_text(encoding="utf-8").replace("</main>", '<img src="https://example.org/a.png"></main>')
    path.write_text(text, encoding="utf-8")
    with Visit(browser, path) as visit:
        assert visit.faults
        assert visit.page.evaluate("document.images[document.images.length - 1].naturalWidth") == 0


def test_columns_sort(browser: Any, tmp_path: Path) -> None:
    with Visit(browser, example(tmp_path)) as visit:
        names, buttons = visit.page.locator("tbody th"), visit.page.locator("thead button")
        original = names.all_inner_texts()
        buttons.nth(1).click()  # numbers: the largest first, what is none last
        assert names.all_inner_texts() == [original[i] for i in (2, 0, 1, 4, 3)]
        buttons.nth(1).click()
        assert names.all_inner_texts() == [original[i] for i in (4, 1, 0, 2, 3)]
        buttons.nth(0).click()  # words: in the order of the alphabet
        assert [name for name in names.all_inner_texts() if name != original[2]] == ["gone", "ls-yolo", "negative", "yolov5s"]
        assert visit.page.locator("th[aria-sort]").count() == 1 and visit.faults == []


def test_page_fits_a_phone_and_follows_the_theme(browser: Any, tmp_path: Path) -> None:
    path, backs = example(tmp_path), []
    for scheme in ("light", "dark"):
        with Visit(browser, path, 375, scheme) as visit:
            check(visit, images=4)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
            assert visit.page.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.scroll'))")  # the table scrolls within its frame
            first = visit.page.locator("tbody th").first
            visit.page.evaluate("document.querySelector('.scroll').scrollLeft = 300")
            assert first.bounding_box()["x"] >= 0  # the row's name stays in sight
            backs.append(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backs[0] == "rgb(255, 255, 255)" and backs[1] != backs[0]
