"""Raw files of frames."""

from __future__ import annotations

import numpy as np
import pytest

from pix2pix.atomic import process_name
from pix2pix.cpu.engine import CpuEngine
from pix2pix.files.raw import translate_raw
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.files.samples import SIZE, engine_of, noise


@pytest.mark.parametrize("size", [None, (32, 64)])
def test_raw_files(tmp_path, size):
    engine = engine_of(unet(2, 5, 3, 1))
    frames = np.stack([noise(*(size or (SIZE, SIZE)), i) for i in range(7)])
    (tmp_path / "in.rgb").write_bytes(frames.tobytes())
    output = tmp_path / "deep" / "out.rgb"
    counts = list(translate_raw(engine, tmp_path / "in.rgb", output, size, batch_size=3))
    assert counts == [3, 3, 1]
    assert output.read_bytes() == engine.translate(frames).tobytes()
    assert [p.name for p in output.parent.iterdir()] == ["out.rgb"]


@pytest.mark.parametrize("length", [0, 1, 32 * 32 * 3 + 1])
def test_raw_files_of_no_whole_frames_are_refused(tmp_path, engine, length):
    (tmp_path / "in.rgb").write_bytes(bytes(length))
    with pytest.raises(ValueError, match=f"has {length} bytes, expected a multiple of 3072"):
        list(translate_raw(engine, tmp_path / "in.rgb", tmp_path / "out.rgb"))
    assert not (tmp_path / "out.rgb").exists()


def test_a_raw_output_appears_only_when_it_is_whole(tmp_path, engine):
    (tmp_path / "in.rgb").write_bytes(bytes(9 * SIZE * SIZE * 3))
    frames = translate_raw(engine, tmp_path / "in.rgb", tmp_path / "out.rgb", batch_size=2)
    next(frames)
    assert {p.name for p in tmp_path.iterdir()} == {"in.rgb", f".out.rgb.{process_name()}.partial"}
    frames.close()
    assert not (tmp_path / "out.rgb").exists()


def test_frames_that_are_not_finite_end_the_run(tmp_path):
    generator = unet(2, 5)
    huge = {name: value * np.float32(1e30) for name, value in random_weights(generator).items()}
    (tmp_path / "in.rgb").write_bytes(noise(2 * SIZE, SIZE).tobytes())
    with CpuEngine(generator, huge, threads=1) as engine, pytest.raises(ValueError, match="frame 0: .*not finite"):
        list(translate_raw(engine, tmp_path / "in.rgb", tmp_path / "out.rgb"))
    assert not (tmp_path / "out.rgb").exists()
