"""The gallery of a run: one HTML page that shows every input, output and target, with PSNR, SSIM and L1.

The page is one file that works alone, opened from disk: it contains its images as JPEG thumbnails. Those of 2,000
images take some tens of megabytes, and wait in a temporary file beside the page, so that memory does not grow.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..atomic import open_atomically
from . import metrics
from .codecs import image_of, in_mode
from .jobs import natural

GALLERY_NAME = "gallery.html"
UNITS = {"psnr": ("PSNR", "{:.2f} dB"), "ssim": ("SSIM", "{:.4f}"), "l1": ("L1", "{:.4f}")}


def thumbnail_edge(count: int) -> int:
    """How large thumbnails may be, in pixels, so that a page of ``count`` images stays below some 40 MB."""
    return 256 if count <= 500 else 160


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """JPEG files: of an input, its output, and its target if there is one. ``size`` is the output's (H, W)."""

    input: bytes
    output: bytes
    target: bytes | None
    size: tuple[int, int]

    @classmethod
    def of(cls, input: np.ndarray, output: np.ndarray, target: np.ndarray | None, edge: int) -> Thumbnails:
        """Thumbnails of uint8 images (H,W,C), at most ``edge`` pixels wide and high."""
        shown = None if target is None else _jpeg(target, edge)
        return cls(_jpeg(input, edge), _jpeg(output, edge), shown, output.shape[:2])


def _jpeg(pixels: np.ndarray, edge: int) -> bytes:
    image = image_of(pixels)
    image = in_mode(image, "L" if image.mode == "L" else "RGB")
    image.thumbnail((edge, edge), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72)
    return buffer.getvalue()


class Gallery:
    """Collects images, in any order, and writes the page. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spool = tempfile.SpooledTemporaryFile(max_size=32 << 20, dir=str(path.parent))
        self._cards: list[tuple[str, int, int]] = []  # name, where its card lies in the spool, how long it is
        self._metrics: list[Mapping[str, float]] = []

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._spool.close()

    def add(self, name: str, thumbnails: Thumbnails, compared: Mapping[str, float] | None) -> None:
        """Add an image: its output's path relative to the page, with /, and what :func:`metrics.compare` said."""
        card = _card(name, thumbnails, compared).encode("utf-8", "replace")
        self._cards.append((name, self._spool.tell(), len(card)))
        self._spool.write(card)
        if compared:
            self._metrics.append(compared)

    def write(self, title: str, facts: Mapping[str, str]) -> None:
        """Write the page, whole or not at all: images in natural order below ``facts`` and the means."""
        values = [_fact(name, value) for name, value in {"Images": f"{len(self._cards):,}", **facts}.items()]
        values += [_fact(f"Mean {UNITS[k][0]}", _number(k, v)) for k, v in metrics.means(self._metrics).items()]
        before, after = _PAGE.split("$cards")
        before = Template(before).substitute(title=html.escape(title), facts="\n".join(values))
        with open_atomically(self.path) as page:
            page.write(before.encode("utf-8", "replace"))
            for _, start, length in sorted(self._cards, key=lambda card: natural(Path(card[0]))):
                self._spool.seek(start)
                page.write(self._spool.read(length))
            page.write(after.encode())
        self._spool.seek(0, os.SEEK_END)


def _card(name: str, thumbnails: Thumbnails, compared: Mapping[str, float] | None) -> str:
    height, width = thumbnails.size
    link = html.escape(quote(os.fsencode(name)))
    shown = {"input": thumbnails.input, "output": thumbnails.output, "target": thumbnails.target}
    figures = "".join(_figure(role, data, link) for role, data in shown.items() if data is not None)
    numbers = "".join(f"<span>{UNITS[k][0]} <b>{_number(k, compared[k])}</b></span>" for k in UNITS if compared)
    return (
        f'<article class="n{3 if thumbnails.target else 2}"><div class="row">{figures}</div>'
        f'<p><a href="{link}">{html.escape(name)}</a><span class="size">{width} &times; {height}</span>{numbers}</p>'
        f"</article>\n"
    )


def _figure(role: str, data: bytes, link: str) -> str:
    image = f'<img alt="{role}" loading="lazy" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
    if role == "output":
        image = f'<a href="{link}">{image}</a>'
    return f"<figure>{image}<figcaption>{role}</figcaption></figure>"


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"


def _number(name: str, value: float) -> str:
    return UNITS[name][1].format(value) if math.isfinite(value) else "identical"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ground: #f6f6f4; --card: #fff; --text: #1d1d1b; --faint: #6b6b66; --line: #e2e2dd; --accent: #2458c5 }
@media (prefers-color-scheme: dark) {
  :root { --ground: #151517; --card: #1f1f22; --text: #ececea; --faint: #9a9a9f; --line: #313136; --accent: #8ab0ff }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 1800px; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0 0 1.25rem; font-size: 1.5rem; font-weight: 650; overflow-wrap: anywhere }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 0 0 2rem; padding: 0 0 1.5rem;
  border-bottom: 1px solid var(--line) }
dt, figcaption { color: var(--faint); font-size: .8rem }
dd { margin: 0; font-size: 1.05rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)) }
main:has(.n3) { grid-template-columns: repeat(auto-fill, minmax(min(100%, 36rem), 1fr)) }
article { padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  content-visibility: auto; contain-intrinsic-size: auto 20rem }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .75rem }
figure { margin: 0 }
img { display: block; width: 100%; border-radius: 5px }
figcaption { margin-top: .35rem; text-align: center }
p { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .6rem 0 0; font-variant-numeric: tabular-nums }
p a { flex: 1 1 12rem; overflow-wrap: anywhere }
p span, .size { color: var(--faint) }
b { color: var(--text); font-weight: 600 }
a { color: var(--accent); text-decoration: none }
a:hover { text-decoration: underline }
</style>
</head>
<body>
<h1>$title</h1>
<dl>
$facts
</dl>
<main>
$cards</main>
</body>
</html>
"""
