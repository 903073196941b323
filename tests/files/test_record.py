"""The run record: what counts as made by the same model and options."""

from __future__ import annotations

import os

import pytest

from pix2pix.files import record
from tests.files.samples import save


def test_only_outputs_of_the_same_run_count_as_finished(tmp_path):
    path, outputs = tmp_path / record.RECORD_NAME, [tmp_path / f"x{i}.png" for i in range(3)]
    assert record.begin(path, {"model": "a"}, outputs, overwrite=False) == set()
    outputs[0].write_bytes(b"a")
    assert record.begin(path, {"model": "a"}, outputs, overwrite=False) == {outputs[0]}
    with pytest.raises(record.RecordError, match=r"model: a there, b now"):
        record.begin(path, {"model": "b"}, outputs, overwrite=False)
    later = path.stat().st_mtime_ns + 10**9
    assert record.begin(path, {"model": "b"}, outputs, overwrite=True) == set()
    # that run was stopped before it came to the first output, which is still the other model's
    os.utime(path, ns=(later, later))
    assert record.begin(path, {"model": "b"}, outputs, overwrite=False) == set()


def test_files_of_unknown_origin_are_not_replaced(tmp_path):
    (tmp_path / "x.png").write_bytes(b"precious")
    with pytest.raises(record.RecordError, match="exists already"):
        record.begin(tmp_path / record.RECORD_NAME, {}, [tmp_path / "x.png"], overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / record.RECORD_NAME).write_text(content)
    with pytest.raises(record.RecordError, match="damaged"):
        record.begin(tmp_path / record.RECORD_NAME, {}, [], overwrite=False)


def test_a_model_is_known_by_its_content(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(10_000))
    (tmp_path / "b.bin").write_bytes(bytes(10_000))
    (tmp_path / "c.bin").write_bytes(bytes(9_999) + b"\1")
    a, b, c = (record.model_identity(tmp_path / f"{name}.bin") for name in "abc")
    assert a == b != c


def test_a_model_of_several_files_is_known_by_all_of_them(tmp_path):
    (tmp_path / "model.json").write_text('{"paths": ["shard1"]}')
    (tmp_path / "shard1").write_bytes(b"1")
    before = [record.model_identity(path) for path in (tmp_path, tmp_path / "model.json")]
    save(tmp_path, "out/x.png")  # results may lie beside the model
    (tmp_path / "out" / record.RECORD_NAME).write_text("{}")
    assert before == [record.model_identity(path) for path in (tmp_path, tmp_path / "model.json")]
    (tmp_path / "shard1").write_bytes(b"22")
    for path, identity in zip((tmp_path, tmp_path / "model.json"), before, strict=True):
        assert record.model_identity(path) != identity
