"""The command ``demo``: translates the embedded images with the embedded model."""

from __future__ import annotations

from pathlib import Path

from .. import demo
from ..files.gallery import GALLERY_NAME
from ..files.options import TranslateOptions
from ..files.sharing import Ranks
from . import translate


def run(output: Path, ranks: Ranks | None = None) -> int:
    """Translate into the folder ``output``, and say where the gallery is. Returns the exit status."""
    with demo.embedded() as (model, images):
        status = translate.run(TranslateOptions(images, output, model, overwrite=True, gallery=True), ranks=ranks)
    if status == 0:
        print(f"open {(output / GALLERY_NAME).resolve()}")
    return status
