"""The benchmarks of films and pipes on small ones: what they verify and what they record."""

from __future__ import annotations

import pytest

pytest.importorskip("av", reason="pip install 'pix2pix[video]'")

from bench import common
from bench.video import films, pipe
from pix2pix.cpu.engine import CpuEngine
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

pytestmark = pytest.mark.full


def test_films(saved, monkeypatch):
    generator = unet(ngf=2, depth=5)
    monkeypatch.setattr(common, "model", lambda: (generator, random_weights(generator)))
    monkeypatch.setattr(films, "HD", (96, 128))
    assert films.main(["--blocks", "1", "--frames", "8", "--long", "20"]) == 0
    record = saved["films"]
    for network, frames in (("demo", 8), ("unet", 2)):
        assert record[network]["frames"] == frames
        assert all(cost > 0 for cost in record[network]["processor_ms_per_frame"].values())
        assert 0 < record[network]["command_line_over_engine"]
    assert record["memory"].keys() == {"2_frames_mib", "20_frames_mib"}


def test_another_film_is_found(tmp_path):
    generator = unet(ngf=2, depth=5)
    images = list(films.frames(2, (64, 64)))
    films.write_film(tmp_path / "same.mp4", 2, (64, 64))
    with CpuEngine(generator, random_weights(generator)) as engine:
        with pytest.raises(RuntimeError, match="dB"):
            films.verify(tmp_path / "same.mp4", images, engine)


def test_pipe(saved):
    assert pipe.main(["--blocks", "2", "--frames", "3", "--size", "96x64"]) == 0
    for network in ("tiny", "demo"):
        assert saved["pipe"][network]["median_ms"].keys() == {"engine", "stream", "round_trip"}
        assert saved["pipe"][network]["added_ms"].keys() == {"stream", "round_trip"}
