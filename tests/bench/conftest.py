"""A fixture of all tests of benchmarks."""

from __future__ import annotations

import json

import pytest

from bench import common


@pytest.fixture
def saved(monkeypatch) -> dict[str, dict]:
    """The records that benchmarks save, by name; no file is written."""
    records: dict[str, dict] = {}
    monkeypatch.setattr(common, "save", lambda name, record: records.update({name: json.loads(json.dumps(record))}))
    return records
