"""Pages in a real browser: whole, quiet, readable at every size, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from tests import browser as chromium
from tests.server.reports.documents import image_report, policy_result

from onnx_audit import v1
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.html import page
from onnx_audit_server.store.blobs import BlobStore

LONG = "a_name_without_any_place_to_break_it_" * 6

# Contrast of every text with what lies behind it (WCAG 2.1, 1.4.3): those below 4.5.
CONTRAST = """() => {
  const parse = text => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(srgb') ? [...parts.slice(0, 3).map(v => 255 * v), parts[3] ?? 1]
      : [...parts.slice(0, 3), parts[3] ?? 1];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let e = node; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const element = text.parentElement;
    if (!text.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.tagName === 'text' ? style.fill : style.color);
    const levels = [light(ink), light(behind(element))].sort((a, b) => b - a);
    const ratio = (levels[0] + 0.05) / (levels[1] + 0.05);
    if (ratio < 4.5) poor.push([text.data.trim(), ratio]);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as running:
        yield running


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section, and names that are too long for any screen."""
    folder = tmp_path_factory.mktemp("page")
    blobs = BlobStore(folder)
    report = image_report(blobs)
    report.execution.model_display_name = LONG
    report.warnings[0].message = LONG
    report.lipschitz.layers[0].name = report.units.layers[0].value = LONG
    report.transfer.models[0] = LONG
    result = policy_result()
    result.gates[1].figures[0].expression = LONG
    path = folder / "report.html"
    path.write_bytes(page.render(Document(report, result, report, blobs)))
    return path


class Visit:
    """A page that is open, with what the browser had to say about it."""

    def __init__(self, browser: Browser, path: Path, width: int, **settings: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, **settings)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        ))  # fmt: skip


@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_and_asks_for_nothing(browser: Browser, document: Path, width: int) -> None:
    visit = Visit(browser, document, width)
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith("data:")] == [document.as_uri()]
    broken = visit.page.evaluate(
        "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    )
    assert broken == []
    assert visit.page.evaluate("document.images.length") > 20
    assert visit.overflow() == 0
    visit.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(browser: Browser, document: Path, scheme: str) -> None:
    visit = Visit(browser, document, 1280, color_scheme=scheme)
    assert visit.page.evaluate(CONTRAST) == []
    paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 21, 27)"}[scheme]
    visit.page.close()


def test_it_prints_whole(browser: Browser, document: Path) -> None:
    visit = Visit(browser, document, 794, color_scheme="dark")
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    visit.page.emulate_media(media="print", color_scheme="dark")
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert visit.page.locator("nav").is_hidden()
    # What is folded on the screen is on paper.
    assert visit.page.locator("details table").first.bounding_box() is not None
    assert visit.page.pdf().startswith(b"%PDF")
    visit.page.close()


def test_the_keyboard_reaches_everything(browser: Browser, document: Path) -> None:
    visit = Visit(browser, document, 1280)
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "content"
    unreachable = visit.page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex !== 0).length"
    )
    assert unreachable == 0
    visit.page.close()


def test_nothing_in_it_runs(browser: Browser, tmp_path: Path) -> None:
    """Names that are scripts do nothing, and the page's own policy would stop them."""
    blobs = BlobStore(tmp_path)
    report = v1.Report()
    report.execution.model_display_name = "</title><script>document.title='owned'</script>"
    path = tmp_path / "report.html"
    content = page.render(Document(report, None, None, blobs)).decode()
    injected = "<img src='https://example.org/x.png'><script>document.title='owned'</script>"
    path.write_text(content.replace("</main>", f"{injected}</main>"), encoding="utf-8")
    visit = Visit(browser, path, 800)
    assert "script>" in visit.page.title()
    assert visit.page.title() != "owned"
    assert any("Content Security Policy" in text for text in visit.said)
    visit.page.close()
