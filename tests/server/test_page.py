"""The page: its files, and how it works in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pix2pix.demo.canvas import PALETTE
from tests.server.browser import CHROMIUM, Browser
from tests.server.process import Server, image

page = pytest.importorskip("pix2pix.server.page")

FOLDER = Path(page.__file__).parent
FILES = [path.name for path in FOLDER.iterdir() if path.suffix in page.TYPES]
DEMO = ("--demo", "--no-browser")
ARTEFACTS = Path("build/page")  # screenshots, to be looked at


def test_files_of_the_page(server):
    assert {"index.html", "app.js", "style.css"} <= set(FILES)
    assert sum((FOLDER / name).stat().st_size for name in FILES) < 60_000
    for name in FILES:
        answer = server.ask("GET", "/" if name == "index.html" else f"/page/{name}")
        assert answer.status == 200 and answer.body == (FOLDER / name).read_bytes()
        assert answer.headers["Content-Type"].startswith(page.TYPES[Path(name).suffix])
        assert b"http:" not in answer.body and b"https:" not in answer.body
    assert server.ask("GET", "/page/settings.json").json == {"examples": [], "token": False}
    assert server.ask("GET", "/page/index.html").status == 404


def test_the_labels_of_a_model_are_those_of_its_file(server):
    palettes = {model["name"]: model["palette"] for model in server.ask("GET", "/models").json["models"]}
    assert palettes == {"colour": [], "grey": [{"name": "ink", "colour": "#000000"}]}


def test_the_demo(tmp_path, monkeypatch):
    opened = tmp_path / "opened"
    monkeypatch.setenv("BROWSER", f"sh -c 'echo %s > {opened}'")
    with Server(tmp_path, models=("--demo",)) as server:
        settings = server.ask("GET", "/page/settings.json").json
        (model,) = server.ask("GET", "/models").json["models"]
        assert [label["name"] for label in model["palette"]] == list(PALETTE)
        assert model["palette"][0]["colour"] == "#aadcff"
        assert len(settings["examples"]) == 8
        example = server.ask("GET", settings["examples"][0])
        assert server.translate(example.body).status == 200
        end = time.monotonic() + 10
        while not (opened.exists() and opened.read_text()) and time.monotonic() < end:
            time.sleep(0.02)
    assert opened.read_text() == f"http://127.0.0.1:{server.port}\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("demo"), models=DEMO) as running:
        yield running


PIXELS = """
Array.from(document.getElementById("%s").getContext("2d").getImageData(0, 0, 256, 256).data).join()
"""
IDLE = "document.getElementById('status').textContent === 'Ready'"


@pytest.fixture
def browser(demo, tmp_path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path / "profile") as running:
        running.resize(1280, 900)
        running.open(f"http://127.0.0.1:{demo.port}/")
        running.until(IDLE)
        yield running
        assert not running.errors()
        assert all(url.startswith((f"http://127.0.0.1:{demo.port}/", "data:", "blob:")) for url in running.requested())


def settled(browser: Browser) -> str:
    """The result's pixels once it is that of the present drawing."""
    browser.until("""
        (async () => {
          const pixels = (id) => document.getElementById(id).getContext("2d").getImageData(0, 0, 256, 256).data;
          const drawn = pixels("drawing");
          return pixels("before").every((value, i) => value === drawn[i]);
        })()
    """)
    return browser.run(PIXELS % "result")


def on_canvas(browser: Browser, x: float, y: float) -> tuple[float, float]:
    """Where on the screen a point of the drawing is; both in 0..1."""
    box = browser.run(
        "(() => { const b = document.getElementById('drawing').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    return box[0] + x * box[2], box[1] + y * box[3]


@pytest.mark.full
def test_drawing_undoing_and_redoing(browser):
    blank, empty = browser.run(PIXELS % "drawing"), settled(browser)
    browser.drag(*(on_canvas(browser, x, 0.5) for x in (0.2, 0.4, 0.6)))
    drawn, result = browser.run(PIXELS % "drawing"), settled(browser)
    assert drawn != blank and result != empty
    browser.key("z", 2)
    assert browser.run(PIXELS % "drawing") == blank and settled(browser) == empty
    browser.key("Z", 2 | 8)
    assert browser.run(PIXELS % "drawing") == drawn and settled(browser) == result
    browser.run("document.getElementById('clear').click()")
    assert browser.run(PIXELS % "drawing") == blank
    browser.run("document.querySelector('#examples button').click()")
    assert browser.run(PIXELS % "drawing") not in (blank, drawn)
    for expected in (blank, drawn, blank):
        browser.run("document.getElementById('undo').click()")
        assert browser.run(PIXELS % "drawing") == expected
    assert browser.run("document.getElementById('undo').disabled")


@pytest.mark.full
def test_every_tool(browser):
    seen = {browser.run(PIXELS % "drawing")}
    brick, window = "#be3c28", "#005ae6"
    for key, colour, y in (
        ("b", brick, 0.1),
        ("l", brick, 0.3),
        ("r", window, 0.5),
        ("f", brick, 0.55),
        ("e", brick, 0.3),
        ("f", window, 0.9),
    ):
        browser.key(key)
        browser.run(f"document.querySelector('#palette input[value=\"{colour}\"]').click()")
        browser.drag(*(on_canvas(browser, 0.3 + i / 10, y + i / 20) for i in range(4)))
        pixels = browser.run(PIXELS % "drawing")
        assert pixels not in seen, key
        seen.add(pixels)
    colours = browser.run(f"new Set(({PIXELS % 'drawing'}).match(/\\d+,\\d+,\\d+,255/g)).size")
    assert colours <= 3, "labels are not anti-aliased"
    browser.key("i")
    browser.drag(on_canvas(browser, 0.95, 0.05), on_canvas(browser, 0.95, 0.05))
    assert browser.run("document.getElementById('other').value") == browser.run(
        "'#' + Array.from(document.getElementById('drawing').getContext('2d').getImageData(243, 12, 1, 1).data)"
        ".slice(0, 3).map((v) => v.toString(16).padStart(2, '0')).join('')"
    )


@pytest.mark.full
def test_pens_fingers_and_the_slider(browser):
    x, y = on_canvas(browser, 0.2, 0.5)
    changed = []
    for force in (0.1, 1.0):
        blank = browser.run(PIXELS % "drawing").split(",")
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, x, y, pointerType="pen", force=force)
        changed.append(sum(a != b for a, b in zip(blank, browser.run(PIXELS % "drawing").split(","), strict=True)))
        browser.key("z", 2)
    assert 0 < 10 * changed[0] < changed[1], "a pen that is pressed draws wider"
    before = browser.run(PIXELS % "drawing")
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchMove", [{"x": x + 90, "y": y}]), ("touchEnd", [])):
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    browser.until(f"{PIXELS % 'drawing'} !== '{before}'")
    browser.run(
        "(() => { const s = document.getElementById('slider'); s.value = 40; s.dispatchEvent(new Event('input')); })()"
    )
    assert "60%" in browser.run("getComputedStyle(document.getElementById('before')).clipPath")


@pytest.mark.full
def test_fast_strokes_end_with_the_result_of_the_last(browser, demo):
    for i in range(20):
        y = 0.05 + i / 22
        browser.drag(*(on_canvas(browser, x, y) for x in (0.1, 0.9)))
    result = settled(browser)
    again = browser.run("""
        (async () => {
          const blob = await new Promise((done) => document.getElementById("drawing").toBlob(done));
          const answer = await fetch("/translate", { method: "POST", body: blob });
          const canvas = new OffscreenCanvas(256, 256);
          canvas.getContext("2d").drawImage(await createImageBitmap(await answer.blob()), 0, 0);
          return Array.from(canvas.getContext("2d").getImageData(0, 0, 256, 256).data).join();
        })()
    """)
    assert result == again


@pytest.mark.full
def test_the_keyboard_alone(browser):
    blank = browser.run(PIXELS % "drawing")
    browser.run("document.getElementById('drawing').focus()")
    browser.key(" ")
    for _ in range(4):
        browser.key("ArrowRight", 8)
    browser.key(" ")
    drawn = browser.run(PIXELS % "drawing")
    assert drawn != blank
    browser.key("ArrowDown", 8)
    assert browser.run(PIXELS % "drawing") == drawn, "the pen is up"
    reached = set()
    for _ in range(60):
        browser.key("Tab")
        reached.add(browser.run("document.activeElement.id || document.activeElement.name"))
    assert {"drawing", "undo", "clear", "save-output", "slider", "tools", "palette", "open", "size"} <= reached


@pytest.mark.full
def test_uploading_saving_and_reloading(browser, demo, tmp_path):
    file, downloads = tmp_path / "x.png", tmp_path / "downloads"
    file.write_bytes(image(100, 80))
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    before = browser.run(PIXELS % "drawing")
    node = browser.call("DOM.getDocument")["root"]["nodeId"]
    chosen = browser.call("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=chosen, files=[str(file)])
    browser.until(f"({PIXELS % 'drawing'}).length && !document.getElementById('undo').disabled")
    loaded = browser.run(PIXELS % "drawing")
    assert loaded != before
    settled(browser)
    for which in ("input", "output"):
        browser.run(f"document.getElementById('save-{which}').click()")
    names = {"drawing.png", "result.png"}
    browser.until("new Promise((done) => setTimeout(() => done(true), 1500))")
    assert {path.name for path in downloads.iterdir()} == names
    assert demo.translate((downloads / "drawing.png").read_bytes()).status == 200
    browser.open(f"http://127.0.0.1:{demo.port}/?again")
    browser.until(IDLE)
    assert browser.run(PIXELS % "drawing") == loaded


DROPPED = """
(async () => {
  const canvas = new OffscreenCanvas(40, 40);
  const context = canvas.getContext("2d");
  context.fillStyle = "%s";
  context.fillRect(0, 0, 40, 40);
  const data = new DataTransfer();
  data.items.add(new File([await canvas.convertToBlob()], "x.png", { type: "image/png" }));
  document.dispatchEvent(%s);
})()
"""
PASTE = 'new ClipboardEvent("paste", { clipboardData: data })'
DROP = 'new DragEvent("drop", { dataTransfer: data, cancelable: true })'
CORNER = "document.getElementById('drawing').getContext('2d').getImageData(3, 3, 1, 1).data.join()"


@pytest.mark.full
def test_pasting_dropping_and_the_webcam(browser):
    browser.run(DROPPED % ("#010203", PASTE))
    browser.until(f"{CORNER} === '1,2,3,255'")
    browser.run(DROPPED % ("#040506", DROP))
    browser.until(f"{CORNER} === '4,5,6,255'")
    browser.run("document.getElementById('camera').click()")
    browser.until("document.getElementById('video').videoWidth > 0")
    browser.run("document.getElementById('snap').click()")
    browser.until(f"{CORNER} !== '4,5,6,255' && !document.getElementById('camera-dialog').open")
    browser.until("document.getElementById('video').srcObject === null")


@pytest.mark.full
@pytest.mark.parametrize("width, height", [(360, 740), (800, 900), (1440, 900)])
def test_every_width(browser, width, height):
    browser.resize(width, height)
    browser.run("document.querySelectorAll('#examples button')[2].click()")
    settled(browser)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    browser.screenshot(ARTEFACTS / f"{width}.png")
