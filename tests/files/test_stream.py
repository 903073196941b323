"""Streams of image files: what is made, and what survives bad images, full disks and broken engines."""

from __future__ import annotations

import errno
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.files import codecs, metrics
from pix2pix.files import outcome as outcomes_module
from pix2pix.files.codecs import MODES
from pix2pix.files.fitting import Fitting, pad
from pix2pix.files.jobs import find_jobs, single_job
from pix2pix.files.outcome import Outcome
from pix2pix.files.stream import io_threads, translate_files
from pix2pix.model.generator import Generator
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.files.samples import SIZE, engine_of, noise, pixels_of, save


def run(engine, jobs, fitting=None, **options) -> dict[str, Outcome]:
    fitting = fitting or Fitting.of(engine.generator)
    outcomes = list(translate_files(engine, jobs, fitting, **options))
    assert len(outcomes) == len(jobs)
    return {outcome.job.name: outcome for outcome in outcomes}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_outputs_are_what_the_engine_makes_of_each_image(tmp_path, engine, batch_size):
    for i in range(10):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert {o.status for o in run(engine, found, batch_size=batch_size).values()} == {"done"}
    for i in range(10):
        expected = engine.translate(noise(SIZE, SIZE, i))
        np.testing.assert_array_equal(pixels_of(tmp_path / f"out/x{i}.png"), expected)
    assert len({pixels_of(job.output).tobytes() for job in found}) == 10


def test_padded_outputs_have_the_inputs_size(tmp_path, engine):
    sizes = [(SIZE, SIZE), (40, 50), (7, 100), (40, 50), (1, 1), (100, 7)] * 3
    for i, (h, w) in enumerate(sizes):
        save(tmp_path, f"in/x{i}.png", h, w, i)
    run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"), Fitting.of(engine.generator, "pad"), batch_size=4)
    for i, (h, w) in enumerate(sizes):
        expected = engine.translate(pad(noise(h, w, i), 32))[:h, :w]
        np.testing.assert_array_equal(pixels_of(tmp_path / f"out/x{i}.png"), expected)


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1), (4, 4)])
def test_other_channels(tmp_path, channels):
    engine = engine_of(unet(2, 5, *channels))
    path = save(tmp_path, "x.png")
    run(engine, [single_job(path, tmp_path / "y.png")])
    read = Fitting.of(engine.generator).read(path).pixels
    with Image.open(tmp_path / "y.png") as image:
        assert image.mode == MODES[channels[1]]
    expected = engine.translate(read)
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png").reshape(expected.shape), expected)


def test_what_the_format_cannot_hold_is_refused_before_the_run(tmp_path):
    engine = engine_of(unet(2, 5, 3, 4))
    job = single_job(save(tmp_path, "x.png"), tmp_path / "y.jpg")
    with pytest.raises(ValueError, match="no alpha"):
        translate_files(engine, [job], Fitting.of(engine.generator))


def test_bad_images_fail_alone(tmp_path, engine):
    for i in range(6):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    (tmp_path / "in/x1.png").write_bytes(b"no image")
    (tmp_path / "in/x4.png").write_bytes((tmp_path / "in/x4.png").read_bytes()[:1500])
    outcomes = run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"), batch_size=2)
    failed = {name: o.reason for name, o in outcomes.items() if o.status == "failed"}
    assert failed == {"x1.png": "damaged, or no image of a known format", "x4.png": "image file is truncated"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x0.png", "x2.png", "x3.png", "x5.png"]


def test_only_bad_images(tmp_path, engine):
    for i in range(30):
        (tmp_path / f"x{i}.png").write_bytes(b"no image")
    outcomes = run(engine, find_jobs([tmp_path], tmp_path / "out"))
    assert {o.status for o in outcomes.values()} == {"failed"}


def test_an_output_that_cannot_be_written_fails_alone(tmp_path, engine):
    for i in range(3):
        save(tmp_path, f"in/x{i}.png")
    (tmp_path / "out/x1.png").mkdir(parents=True)
    outcomes = run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"))
    assert [o.status for _, o in sorted(outcomes.items())] == ["done", "failed", "done"]
    assert "cannot write" in outcomes["x1.png"].reason
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x0.png", "x1.png", "x2.png"]


def test_a_full_disk_stops_the_run(tmp_path, engine, monkeypatch):
    for i in range(40):
        save(tmp_path, f"in/x{i}.png")
    write, count = outcomes_module.write_atomically, itertools.count()

    def fail_later(path, data, **options):
        if next(count) >= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data, **options)

    monkeypatch.setattr(outcomes_module, "write_atomically", fail_later)
    with pytest.raises(OSError, match="No space left"):
        run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"), batch_size=2)
    assert len(list((tmp_path / "out").iterdir())) == 10


class Forgetful(ReferenceEngine):
    """Has no memory for images above a size, and remembers what it was given."""

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator, random_weights(generator), np.float32)
        self.shapes = []

    def _translate(self, b, out, stop):
        self.shapes.append(b.shape)
        if b.shape[1] > 64:
            raise MemoryError
        super()._translate(b, out, stop)


def test_an_image_too_large_for_the_memory_fails_alone(tmp_path):
    engine = Forgetful(unet(2, 5))
    for i in range(12):
        save(tmp_path, f"in/x{i}.png", 80 if i % 5 == 0 else SIZE, SIZE, i)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    outcomes = run(engine, found, Fitting.of(engine.generator, "pad"), batch_size=2)
    failed = {name for name, o in outcomes.items() if o.status == "failed"}
    assert failed == {"x0.png", "x5.png", "x10.png"}
    assert "not enough memory to translate 32x96 pixels" in outcomes["x0.png"].reason
    np.testing.assert_array_equal(pixels_of(tmp_path / "out/x7.png"), engine.translate(noise(SIZE, SIZE, 7)))


def test_batches_hold_images_of_one_size_and_no_more_pixels_than_asked(tmp_path):
    engine = Forgetful(unet(2, 5))
    for i in range(20):
        save(tmp_path, f"in/x{i}.png", *((64, 64) if i < 10 else (SIZE, SIZE)), i)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    run(engine, found, Fitting.of(engine.generator, "pad"), batch_size=8)
    assert sum(shape[0] for shape in engine.shapes) == 20
    assert {shape[1]: shape[0] for shape in reversed(engine.shapes)} == {64: 2, 32: 8}


class Broken(ReferenceEngine):
    def _translate(self, b, out, stop):
        raise RuntimeError("the device is gone")


def test_a_broken_engine_stops_the_run_and_leaves_no_threads(tmp_path):
    generator = unet(2, 5)
    for i in range(30):
        save(tmp_path, f"in/x{i}.png")
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(Broken(generator, random_weights(generator)), find_jobs([tmp_path / "in"], tmp_path / "out"))
    assert threading.active_count() == before


@pytest.mark.parametrize("sizes", [1, 12], ids=["one size", "many sizes"])
def test_decoding_stays_a_few_batches_ahead(tmp_path, monkeypatch, sizes):
    engine = engine_of(unet(2, 5, size=256))
    for i in range(60):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE * (1 + i * 7 % sizes), i)
    read, count = Fitting.read, itertools.count(1)
    decoded = [0]

    def counting(*args):
        decoded[0] = next(count)
        return read(*args)

    monkeypatch.setattr(Fitting, "read", counting)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    fitting = Fitting.of(engine.generator, "pad")
    ahead = [decoded[0] - n for n, _ in enumerate(translate_files(engine, found, fitting, batch_size=4))]
    waiting, decoding, running_and_writing = 4 * 4, 4 + io_threads(), 2 * 4 + 2 * 4
    assert decoded[0] == 60 and max(ahead) <= waiting + decoding + running_and_writing < 60


def test_a_run_can_be_left_midway(tmp_path, engine):
    for i in range(30):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    before = threading.active_count()
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    outcomes = translate_files(engine, found, Fitting.of(engine.generator), batch_size=2)
    next(outcomes)
    outcomes.close()
    assert threading.active_count() == before
    names = [p.name for p in (tmp_path / "out").iterdir()]
    assert names and not any(name.endswith(".partial") for name in names)
    for name in names:
        assert pixels_of(tmp_path / "out" / name).shape == (SIZE, SIZE, 3)


def test_finished_outputs_are_kept_and_compared_again(tmp_path, engine):
    for i in range(5):
        save(tmp_path, f"in/x{i}.png", SIZE, 2 * SIZE, i)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    fitting = Fitting.of(engine.generator, pair="AtoB")
    first = run(engine, found, fitting, thumbnail_edge=16)
    finished = {job.output for job in found[:3]}
    stamps = {path: path.stat().st_mtime_ns for path in finished}
    again = run(engine, found, fitting, thumbnail_edge=16, finished=finished)
    assert [again[job.name].status for job in found] == ["skipped"] * 3 + ["done"] * 2
    assert {path: path.stat().st_mtime_ns for path in finished} == stamps
    for name, outcome in again.items():
        assert outcome.metrics == first[name].metrics and outcome.thumbnails == first[name].thumbnails
    y = pixels_of(found[0].output)
    assert first["x0.png"].metrics == metrics.compare(y, noise(SIZE, 2 * SIZE, 0)[:, SIZE:])


def test_batch_sizes_below_one_are_refused(engine):
    with pytest.raises(ValueError, match="batch size of 0"):
        translate_files(engine, [], Fitting.of(engine.generator), batch_size=0)


def test_an_output_too_large_for_its_format_fails_alone(tmp_path, engine):
    save(tmp_path, "in/a.webp")
    save(tmp_path, "in/b.webp", 1, 16383)
    fitting = Fitting.of(engine.generator, "pad", None)
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out", "same")
    Image.fromarray(noise(1, 16384)).save(tmp_path / "in/b.webp", "PNG")
    outcomes = run(engine, jobs, fitting)
    assert outcomes["a.webp"].status == "done" and "WEBP takes up to 16383 pixels" in outcomes["b.webp"].reason


def test_lossy_outputs_are_compared_as_they_were_written(tmp_path, engine):
    for i in range(4):
        save(tmp_path, f"in/x{i}.png", SIZE, 2 * SIZE, i)
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out", "jpg")
    fitting = Fitting.of(engine.generator, pair="AtoB")
    first = run(engine, jobs, fitting, thumbnail_edge=16)
    again = run(engine, jobs, fitting, thumbnail_edge=16, finished=[job.output for job in jobs[:2]])
    for name, outcome in again.items():
        assert (outcome.metrics, outcome.thumbnails) == (first[name].metrics, first[name].thumbnails)
    shown = metrics.compare(pixels_of(jobs[0].output), noise(SIZE, 2 * SIZE, 0)[:, SIZE:])
    assert first[jobs[0].name].metrics == shown


@pytest.mark.parametrize("error", [MemoryError, OSError(5, "Input/output error")])
def test_an_output_that_cannot_be_encoded_fails_alone(tmp_path, engine, monkeypatch, error):
    for i in range(6):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    encode = codecs.encode

    def fail_once(pixels, suffix):
        if (pixels == engine.translate(noise(SIZE, SIZE, 3))).all():
            raise error
        return encode(pixels, suffix)

    monkeypatch.setattr(codecs, "encode", fail_once)
    outcomes = run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"), batch_size=2)
    assert [name for name, outcome in outcomes.items() if outcome.status == "failed"] == ["x3.png"]


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_what_is_not_finite_is_no_image(tmp_path):
    """A damaged model gives failures, and not white images; a model that makes white images does not."""
    generator = unet(2, 5)
    huge = {name: value * np.float32(1e30) for name, value in random_weights(generator).items()}
    white = {name: np.zeros_like(value) for name, value in random_weights(generator).items()}
    white["decoder_1.bias"] += 100
    jobs = [single_job(save(tmp_path, f"x{i}.png", SIZE, SIZE, i), tmp_path / f"y{i}.png") for i in range(3)]
    for weights, status in ((huge, "failed"), (white, "done")):
        outcomes = run(CpuEngine(generator, weights, threads=1), jobs)
        assert {outcome.status for outcome in outcomes.values()} == {status}
        assert all("not finite" in outcome.reason for outcome in outcomes.values() if status == "failed")
    assert (pixels_of(tmp_path / "y0.png") == 255).all()
