"""What a request asks for: its query, and the form of the answer that its Accept header takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.request import parse_http_list

from python_multipart.multipart import parse_options_header

from ..files.codecs import WRITABLE
from ..files.options import Fit, Pair, ServeOptions
from .problems import Problem

ZIP = "application/zip"
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".tiff": "image/tiff",
    ".bmp": "image/bmp",
}
FORMATS = (*(suffix[1:] for suffix in TYPES), "same")
NAMES = ("fit", "size", "pair", "format")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an image is fitted, and the format of its result; ``is_explicit`` says that a query named that format."""

    fit: Fit
    size: tuple[int, int] | None
    pair: Pair | None
    format: str
    is_explicit: bool = False


def wanted(options: ServeOptions, query: Iterable[tuple[str, str]]) -> Wanted:
    """What (name, value) pairs ask for, and ``options`` where they do not. Raises Problem 400 for nonsense."""
    given: dict[str, str] = {}
    for name, value in query:
        if name not in NAMES or name in given:
            what = "twice, expected once" if name in given else f"expected {', '.join(NAMES)}"
            raise Problem(400, f"got {name!r} {what}: correct the query")
        given[name] = value
    result = Wanted(options.fit, options.size, options.pair, options.format)
    values: dict[str, Any] = {}
    for name, choices in (("fit", get_args(Fit)), ("pair", get_args(Pair)), ("format", FORMATS)):
        if name in given:
            if given[name] not in choices:
                raise Problem(400, f"got {name}={given[name]!r}, expected {' or '.join(choices)}")
            values[name] = given[name]
    if "size" in given:
        values["size"] = _size(given["size"])
    return replace(result, **values, is_explicit="format" in given)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(s.isascii() and s.isdecimal() and 0 < len(s) < 8 and int(s) for s in sides):
        raise Problem(400, f"got size={text!r}, expected N or WxH pixels, e.g. 256 or 512x256")
    return int(sides[-1]), int(sides[0])


def suffix_for(request: Wanted, accept: str | None, source: str, channels: int) -> str:
    """The suffix of the result: of the format that was asked for, or of the one that ``accept`` prefers.

    ``source`` is the suffix of the image's own format. Raises Problem: 406 where nothing suits, 400 for a format
    without alpha for a generator of 4 ``channels``.
    """
    possible = [suffix for suffix in TYPES if channels != 4 or WRITABLE[suffix].has_alpha]
    suffix = f".{request.format}"
    if request.format == "same":
        suffix = source if source in possible else ".png"
    if suffix not in possible:
        raise Problem(400, f"got format {suffix[1:]!r}, which has no alpha, for an RGBA image: use png")
    if request.is_explicit:
        possible = [suffix]
    ordered = [suffix, *(other for other in possible if other != suffix)]
    media_type = acceptable(accept, [TYPES[each] for each in ordered])
    return next(each for each in ordered if TYPES[each] == media_type)


def acceptable(accept: str | None, types: Sequence[str]) -> str:
    """The one of ``types``, best first, that an Accept header prefers. Raises Problem 406 if it takes none of them."""
    if not accept:
        return types[0]
    ranges = dict(_range(part) for part in parse_http_list(accept))
    quality = {each: _quality(each, ranges) for each in types}
    best = max(types, key=lambda each: quality[each])  # the first of equals
    if quality[best] <= 0:
        raise Problem(406, f"got Accept {accept[:200]!r}, expected one of {', '.join(types)}")
    return best


def _range(part: str) -> tuple[str, float]:
    name, parameters = parse_options_header(part)
    try:
        quality = float(parameters.get(b"q", b"1"))
    except ValueError:
        quality = 0.0
    return name.decode("latin-1").lower(), quality


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    kind = media_type.partition("/")[0]
    return next((ranges[each] for each in (media_type, f"{kind}/*", "*/*") if each in ranges), 0.0)
