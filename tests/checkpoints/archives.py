"""Keras archives (.keras) that tests change."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path


def changed_archive(
    original: Path,
    path: Path,
    change: Callable[[dict], None] = lambda config: None,
    without: str = "",
    method: int = zipfile.ZIP_STORED,
) -> Path:
    """A copy of an archive at ``path``, after ``change`` of its config and without one of its members."""
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w", method) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            if name != without:
                target.writestr(name, content)
    return path
