"""The gallery page."""

from __future__ import annotations

import base64
import html.parser
import io
import math
import re
from urllib.parse import unquote

import pytest
from PIL import Image

from pix2pix.files.gallery import Gallery, Thumbnails, thumbnail_edge
from tests.files.samples import noisy


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def every(self, tag: str, attribute: str) -> list[str]:
        return [attrs[attribute] for name, attrs in self.tags if name == tag and attribute in attrs]


def thumbnails(target: bool = True, h: int = 50, w: int = 70) -> Thumbnails:
    a, b = noisy(h, w)
    return Thumbnails.of(a, b, a if target else None, 32)


def page_of(tmp_path, names, title="title", facts=None, compared=None, target=True) -> Page:
    with Gallery(tmp_path / "gallery.html") as gallery:
        for name in names:
            gallery.add(name, thumbnails(target), compared)
        gallery.write(title, facts or {})
    assert [p.name for p in tmp_path.iterdir()] == ["gallery.html"]
    return Page((tmp_path / "gallery.html").read_text(encoding="utf-8"))


def test_the_page_shows_every_image_in_order_with_metrics(tmp_path):
    compared = {"psnr": 21.5, "ssim": 0.75, "l1": 0.0625}
    page = page_of(tmp_path, ["x10.png", "sub/y.png", "x2.png"], facts={"Model": "net.pth"}, compared=compared)
    links = page.every("a", "href")
    assert links[::2] == links[1::2] == ["sub/y.png", "x2.png", "x10.png"]
    assert page.every("img", "alt") == ["input", "output", "target"] * 3
    text = " ".join(page.text)
    for expected in ("net.pth", "21.50 dB", "0.7500", "0.0625", "Mean PSNR", "70", "50"):
        assert expected in text


def test_the_page_works_alone(tmp_path):
    page = page_of(tmp_path, ["x.png"], target=False)
    sources = page.every("img", "src")
    assert len(sources) == 2
    for source in sources:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (32, 23)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    assert not re.search(r"https?:|url\(|@import", (tmp_path / "gallery.html").read_text())


def test_names_are_text_whatever_they_are(tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'&amp;$title$cards{facts} %#?.png"
    page = page_of(tmp_path, [evil], title=evil, facts={"Model": evil})
    assert set(page.every("img", "alt")) == {"input", "output", "target"}
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert page.text.count(evil) == 4  # the window's title, the heading, the fact and the image's name
    assert {unquote(link) for link in page.every("a", "href")} == {evil}


def test_names_that_are_no_text_are_shown_and_linked(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert page_of(tmp_path, [name]).every("a", "href") == ["caf%E9.png"] * 2


def test_equal_images_are_said_to_be(tmp_path):
    page = page_of(tmp_path, ["x.png"], compared={"psnr": math.inf, "ssim": 1.0, "l1": 0.0})
    assert "identical" in page.text


def test_two_thousand_images_stay_below_forty_megabytes(tmp_path):
    a, b = noisy(256, 256, noise=20)
    edge = thumbnail_edge(2000)
    shown = Thumbnails.of(a, b, None, edge)
    with Gallery(tmp_path / "gallery.html") as gallery:
        for i in range(2000):
            gallery.add(f"x{i}.png", shown, None)
        gallery.write("many", {})
    assert (tmp_path / "gallery.html").stat().st_size < 40e6


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_thumbnails_of_all_channels(channels):
    image, _ = noisy(300, 20, channels)
    shown = Thumbnails.of(image, image[..., :1], None, 64)
    with Image.open(io.BytesIO(shown.input)) as image:
        assert image.size[1] == 64 and image.mode == ("L" if channels == 1 else "RGB")
    assert shown.size == (300, 20) and shown.target is None
