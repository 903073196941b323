"""The name of the package's sources."""

from __future__ import annotations

from bench import sources


def test_it_changes_with_what_it_is_asked_for_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("1")
    one = sources.fingerprint()
    (tmp_path / "table.json").write_text("{}")
    assert sources.fingerprint() == one and sources.fingerprint(".json") != one
    (tmp_path / "a.py").write_text("2")
    assert sources.fingerprint() != one and len(one) == 12
