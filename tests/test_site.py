"""The rendered book in a real browser: served and from the disk, in both themes, wide and as narrow as a telephone."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from conftest import unavailable

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"
PAGES = sorted(page.relative_to(SITE).as_posix() for page in SITE.glob("**/*.html") if "_static" not in page.parts)
# What is measured in a page once it is drawn.
MEASURE = """async () => {
    if (window.MathJax) await MathJax.startup.promise;
    const all = (selector) => [...document.querySelectorAll(selector)];
    return {
        theme: document.documentElement.dataset.theme,
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        ids: all("[id]").map((element) => element.id),
        links: [...document.links].map((link) => link.href),
        pictures: all("article img").map((image) => [image.getAttribute("src"), image.alt]),
        drawings: all("article .cell_output svg")
            .filter((drawing) => !drawing.closest("[aria-hidden=true], .jupyter-widgets, svg svg"))
            .map((drawing) => drawing.getAttribute("aria-label") || drawing.querySelector(":scope > title")?.textContent || ""),
        icons: document.fonts.check('900 16px "Font Awesome 6 Free"'),
        formulas: all(".math").length,
        typeset: all(".math mjx-container").length,
        misspelt: all("mjx-merror").map((error) => error.textContent),
        widgetStates: all('script[type="application/vnd.jupyter.widget-view+json"]').length,
        widgets: all(".jupyter-widgets").length,
    };
}"""

pytestmark = pytest.mark.browser


class Way(NamedTuple):
    """One way of opening the book."""

    scheme: str
    theme: str
    width: int


WAYS = (Way("http", "light", 1400), Way("http", "dark", 360), Way("file", "dark", 1400))


class Visit(NamedTuple):
    """What one page did while it loaded, and what it then showed."""

    url: str
    complaints: list[str]
    hosts: set[str]
    shown: dict


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served():
    """The site's address on localhost."""
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(map(str, way)))
def visits(request, browser, served):
    """Every page, opened in one way."""
    if not PAGES:
        unavailable("there is no rendered book in _build/html: run `make book` first")
    way = request.param
    root = served if way.scheme == "http" else SITE.as_uri()
    with browser.new_context(color_scheme=way.theme, viewport={"width": way.width, "height": 900}) as context:
        context.set_default_timeout(120_000)  # ms; a busy machine draws slowly
        yield way, {page: visit(context, f"{root}/{page}") for page in PAGES}


def visit(context, url: str) -> Visit:
    complaints, hosts = [], set()

    def complain(text: str, about: str) -> None:
        # A page that only sends on to another has no icon of its own. From the disk, Chromium refuses to load the fonts of
        # the icons ahead of time, then loads them all the same.
        early_font = "/webfonts/fa-" in text + about and url.startswith("file:")
        if not early_font and not about.endswith("/favicon.ico"):
            complaints.append(f"{text} ({about})")

    page = context.new_page()
    page.on("console", lambda message: complain(message.text, message.location["url"]) if message.type == "error" else None)
    page.on("pageerror", lambda error: complain(str(error), url))
    page.on("requestfailed", lambda request: complain("failed", request.url))
    page.on("response", lambda answer: complain(str(answer.status), answer.url) if answer.status >= 400 else None)
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(url)
    page.wait_for_load_state("networkidle")
    shown = page.evaluate(MEASURE)
    url = page.url  # the first page sends on to another
    page.close()
    return Visit(url, complaints, hosts, shown)


def test_every_page_loads_without_a_complaint_in_the_theme_asked_for(visits):
    way, pages = visits
    assert {page: visit.complaints for page, visit in pages.items() if visit.complaints} == {}
    assert {page: visit.shown["theme"] for page, visit in pages.items() if visit.shown["theme"] != way.theme} == {}
    assert all(visit.shown["icons"] for visit in pages.values())


def test_no_page_asks_another_host_for_anything(visits, served):
    way, pages = visits
    own = {urlsplit(served).netloc if way.scheme == "http" else "", ""}
    assert {page: visit.hosts - own for page, visit in pages.items() if visit.hosts - own} == {}


def test_no_page_scrolls_sideways(visits):
    _, pages = visits
    assert {page: visit.shown["overflow"] for page, visit in pages.items() if visit.shown["overflow"] > 0} == {}


def test_every_formula_is_typeset(visits):
    _, pages = visits
    assert sum(visit.shown["formulas"] for visit in pages.values()) > 0
    for page, visit in pages.items():
        assert visit.shown["typeset"] >= visit.shown["formulas"], page
        assert visit.shown["misspelt"] == [], page


def test_every_widget_is_drawn(visits):
    _, pages = visits
    for page, visit in pages.items():
        assert visit.shown["widgets"] >= visit.shown["widgetStates"], page


def test_every_link_within_the_book_leads_somewhere(visits):
    _, pages = visits
    ids = {visit.url.split("#")[0]: set(visit.shown["ids"]) for visit in pages.values()}
    root = next(iter(ids)).split("/book/")[0].split("/chapters/")[0]
    broken = []
    for page, visit in pages.items():
        for link in filter(lambda link: link.startswith(root), visit.shown["links"]):
            address, anchor = urldefrag(link)
            file = SITE / unquote(address.removeprefix(root)).lstrip("/")
            missing_anchor = anchor and address in ids and unquote(anchor) not in ids[address]
            if missing_anchor or not (file if file.suffix else file / "index.html").is_file():
                broken.append(f"{page}: {link}")
    assert broken == []


def test_every_picture_says_what_it_shows(visits):
    _, pages = visits
    for page, visit in pages.items():
        for source, text in visit.shown["pictures"]:
            assert text.strip(), f"{page}: {source} has no alternative text"
            assert not text.endswith((".png", ".svg", ".jpg", ".gif")), (
                f"{page}: the alternative text of {source} is a file's name"
            )
        assert all(visit.shown["drawings"]), f"{page}: a drawing has neither aria-label nor title"


def test_every_control_of_an_explorable_figure_changes_its_picture(browser, served):
    explorable = [page for page in PAGES if 'class="mrl-explore"' in (SITE / page).read_text(encoding="utf-8")]
    assert explorable
    for name in explorable:
        page = browser.new_page(viewport={"width": 360, "height": 800})
        page.goto(f"{served}/{name}")
        for figure in page.locator(".mrl-explore").all():
            shown = figure.locator(".pictures > div:not([hidden])")
            for control in figure.locator(".controls [data-n]").all():
                before = shown.inner_html()
                if control.evaluate("control => control.tagName") == "SELECT":
                    index = int(control.evaluate("control => control.selectedIndex"))
                    control.select_option(index=index - 1 if index else 1)
                else:
                    control.press("ArrowLeft" if control.input_value() == control.get_attribute("max") else "ArrowRight")
                assert shown.count() == 1 and shown.is_visible()
                assert shown.inner_html() != before, f"{name}: {control.get_attribute('data-values')}"
        page.close()
