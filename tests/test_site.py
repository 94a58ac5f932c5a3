"""The built site, where it was built (`make docs`): in a browser no page is wider than its window, and pictures load."""

import functools
import html
import http.server
import json
import re
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
pytestmark = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site is not built: make docs")
WIDTHS = (1280, 390)
# Pages of single functions are alike, so some of them stand for all.
SHARE_OF_API = 12
# Frames load while the page does, so its own load event comes after all of theirs.
HARNESS = """<!doctype html><body>{frames}<script>window.onload = () => {{
  document.body.dataset.found = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
    const inside = frame.contentDocument, root = inside.documentElement;
    const beyond = [...inside.querySelectorAll(".bd-article *")].filter(
      part => part.getBoundingClientRect().right > frame.clientWidth + 1 && !part.closest(
        ".pst-scrollable-table-container, pre, .math, .output, .highlight, .sd-tab-set, mjx-container"));
    const tables = [...inside.querySelectorAll(".pst-scrollable-table-container")];
    return {{page: frame.dataset.page, cut: tables.filter(table => table.scrollWidth > table.clientWidth + 1).length, width: frame.clientWidth, content: root.scrollWidth,
      beyond: beyond.slice(0, 3).map(part => part.tagName + ": " + part.textContent.trim().slice(0, 60)),
      lost: [...inside.images].filter(image => !image.naturalWidth).map(image => image.getAttribute("src"))}};
  }}));
}}</script></body>"""


def pages():
    """All written pages, and some of the pages of single functions."""
    names = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if "_static" not in path.parts)
    api = [name for name in names if name.startswith("generated/")]
    written = [name for name in names if not name.startswith("generated/") and name != "search.html"]
    return [*written, *api[::SHARE_OF_API]]


@pytest.fixture(scope="module")
def server():
    """Serve the site from this machine, as scripts of pages read from files may not look at each other."""
    checks = {}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path not in checks:
                return super().do_GET()
            body = checks[self.path].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return None

        def log_message(self, *parts):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=SITE))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", checks
    running.shutdown()
    running.server_close()


def shown(chromium, address, *options):
    """The page as the browser has built it, without anything from other machines."""
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    return chromium(alone, "--dump-dom", *options, address, timeout=600)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window_and_all_pictures_load(server, chromium, width):
    address, checks = server
    found = []
    names = pages()
    for start in range(0, len(names), 15):
        frames = "".join(
            f'<iframe src="/{name}" data-page="{name}" width="{width}" height="900" style="border:0"></iframe>'
            for name in names[start : start + 15]
        )
        checks["/check"] = HARNESS.format(frames=frames)
        dom = shown(chromium, f"{address}/check", "--window-size=1400,1000")
        found += json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom).group(1)))
    assert [page["page"] for page in found] == names
    assert {page["width"] for page in found} == {width}
    assert {page["page"]: page["beyond"] for page in found if page["content"] > width or page["beyond"]} == {}
    # On a phone, tables scroll in place.
    assert width < 1000 or {page["page"]: page["cut"] for page in found if page["cut"]} == {}
    assert {page["page"]: page["lost"] for page in found if page["lost"]} == {}


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("visium", "tutorials/visium.html"),
        ("xenium", "tutorials/hd_and_xenium.html"),
        ("svs", "tutorials/slide_file.html"),
    ],
)
def test_search_finds_the_page_that_shows_it(server, chromium, words, page):
    dom = shown(chromium, f"{server[0]}/search.html?q={words}", "--virtual-time-budget=20000")
    results = re.search(r'<ul[^>]*class="search".*?</ul>', dom, flags=re.DOTALL).group()
    links = re.findall(r'href="([^"?#]+)', results)
    assert page in [link.removeprefix("/") for link in links[:6]]


@pytest.mark.parametrize("path", sorted(SITE.glob("tutorials/*.html")) + sorted(SITE.glob("guide/*.html")), ids=str)
def test_no_executed_page_shows_a_warning_of_a_library(path):
    outputs = re.findall(r'<div class="output stderr.*?</div>\s*</div>', path.read_text(), flags=re.DOTALL)
    assert not [output for output in outputs if re.search(r"\w*Warning\b", re.sub("<[^>]*>", "", output))]
