"""What tells models and files apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pix2pix.errors import CheckpointError
from pix2pix.files.provenance import Source, model_identity
from pix2pix.files.record import RECORD_NAME
from tests.files.samples import save

DATA = Path(__file__).parents[1] / "checkpoints" / "data"


def test_a_model_is_known_by_its_content(tmp_path):
    model = (DATA / "batch.pth").read_bytes()
    for name, content in {"a": model, "b": model, "c": model[:-1] + b"\1"}.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
    a, b, c = (model_identity(tmp_path / f"{name}.pth") for name in "abc")
    assert a == b != c


def test_a_model_of_several_files_is_known_by_all_of_them(tmp_path):
    weight = {"name": "a/kernel", "shape": [1], "dtype": "float32"}
    manifest = [{"paths": ["shard1", "deep/er/shard2"], "weights": [weight, weight]}]
    (tmp_path / "model.json").write_text(json.dumps({"format": "layers-model", "weightsManifest": manifest}))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "shard2").write_bytes(b"1234")
    (tmp_path / "shard1").write_bytes(b"1234")
    before = [model_identity(path) for path in (tmp_path, tmp_path / "model.json")]
    save(tmp_path, "out/x.png")  # results may lie beside the model
    (tmp_path / "out" / RECORD_NAME).write_text("{}")
    assert before == [model_identity(path) for path in (tmp_path, tmp_path / "model.json")]
    for shard in ("shard1", "deep/er/shard2"):
        (tmp_path / shard).write_bytes(b"5678")
        after = [model_identity(path) for path in (tmp_path, tmp_path / "model.json")]
        assert not set(before) & set(after)
        before = after


def test_a_checkpoint_has_one_identity_whatever_it_is_called_by():
    folder = DATA / "tf1_trained"
    names = ["model-200", "model-200.index", "model-200.data-00000-of-00001"]
    assert len({model_identity(folder / name) for name in names}) == 1


def test_no_model_has_no_identity(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        model_identity(tmp_path / "model")


def test_links_in_a_files_folder_are_followed(tmp_path):
    path = save(tmp_path, "in/x.png")
    (tmp_path / "link").symlink_to(tmp_path / "in", target_is_directory=True)
    assert Source.of(tmp_path / "link" / "x.png") == Source.of(path)
