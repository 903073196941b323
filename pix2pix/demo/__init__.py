"""The embedded demo: a small generator (labels -> facade), label images, and the programs that made both.

``facades.safetensors`` holds the weights, ``labels-*.png`` the images. :mod:`.facades` draws more of them, and
:mod:`.train` trains such a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path


@contextmanager
def embedded() -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """(model, images): files that exist while the block runs. Raises RuntimeError if they are missing."""
    with resources.as_file(resources.files(__name__)) as folder:
        images = tuple(sorted(folder.glob("labels-*.png")))
        models = sorted(folder.glob("*.safetensors"))
        if not images or not models:
            raise RuntimeError(f"the demo's model or images are missing in {folder}: install the package again")
        yield models[0], images
