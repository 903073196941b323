"""Runs over files: which outputs, what survives bad pictures, full disks and interruptions, and what is kept."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pix.engines.reference import ReferenceEngine
from pix2pix.errors import InputError
from pix2pix.files import images, jobs, metrics, record
from pix2pix.files import stream as translate
from pix2pix.files.images import Fitting
from pix2pix.files.jobs import Job, find_jobs, output_name, single_job
from pix2pix.model.generator import Generator
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

SIZE = 32


def engine_of(generator: Generator) -> ReferenceEngine:
    return ReferenceEngine(generator, random_weights(generator), np.float32)


@pytest.fixture(scope="module")
def engine() -> ReferenceEngine:
    return engine_of(unet(ngf=2, depth=5))


def picture(h: int = SIZE, w: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(folder: Path, name: str, *args: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(*args)).save(path)
    return path


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# -- names and inputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("x.png", "png", "x.png"),
        ("x.jpg", "png", "x.jpg.png"),
        ("x.PNG", "png", "x.PNG.png"),
        ("x.jpg.png", "png", "x.jpg.png.png"),
        ("x.v2.png", "png", "x.v2.png"),
        ("x", "png", "x.png"),
        ("x.jpg", "jpg", "x.jpg"),
        ("x.jpeg", "jpg", "x.jpeg.jpg"),
        ("x.png", "jpg", "x.png.jpg"),
        ("x.webp", "same", "x.webp"),
        ("x.TIF", "same", "x.TIF"),
        ("x.gif", "same", "x.gif.png"),
        ("x.gif.png", "same", "x.gif.png.png"),
    ],
)
def test_output_names(name, format, expected):
    assert output_name(name, format) == expected


@pytest.mark.parametrize("format", ["png", "jpg", "same"])
def test_no_two_names_in_a_folder_give_the_same_output(format):
    suffixes = (".png", ".PNG", ".jpg", ".jpeg", ".gif", ".tif")
    names = {"x" + "".join(s) for n in (1, 2, 3) for s in itertools.product(suffixes, repeat=n)}
    outputs = {output_name(name, format) for name in names}
    assert len(outputs) == len(names)
    assert all(Path(name).suffix.lower() in images.WRITERS for name in outputs)


def test_folders_are_taken_whole_in_natural_order_without_what_is_hidden(tmp_path):
    for name in ("a/x10.png", "a/x2.png", "a/deep/er/y.jpg", "a/.hidden.png", "a/.cache/z.png"):
        save(tmp_path, name)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    found = find_jobs([tmp_path / "a"], tmp_path / "out")
    assert [job.name for job in found] == ["deep/er/y.jpg.png", "x2.png", "x10.png"]
    assert found[0] == Job(tmp_path / "a/deep/er/y.jpg", tmp_path / "out/deep/er/y.jpg.png", "deep/er/y.jpg.png")


def test_an_output_folder_inside_the_input_is_not_an_input(tmp_path):
    save(tmp_path, "x.png")
    save(tmp_path, "out/x.png")
    assert [job.name for job in find_jobs([tmp_path], tmp_path / "out")] == ["x.png"]


def test_linked_folders_are_followed_once_and_never_in_circles(tmp_path):
    for name in ("in/b/x.png", "elsewhere/deep/y.png", "elsewhere/.hidden/z.png", "out/w/w.png"):
        save(tmp_path, name)
    links = {"in/a": "in/b", "in/c": "elsewhere", "elsewhere/deep/up": "elsewhere", "in/b/top": "in", "in/o": "out/w"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    assert [job.name for job in find_jobs([tmp_path / "in"], tmp_path / "out")] == ["b/x.png", "c/deep/y.png"]
    (tmp_path / "linked").symlink_to(tmp_path / "in", target_is_directory=True)
    assert len(find_jobs([tmp_path / "linked"], tmp_path / "out")) == 2


def test_what_a_killed_run_left_is_no_input(tmp_path):
    save(tmp_path, "x.png")
    (tmp_path / ".x.png.123.partial").write_bytes(b"half")
    assert [job.name for job in find_jobs([tmp_path], tmp_path / "out")] == ["x.png"]


def test_several_folders_keep_their_names_and_files_given_twice_count_once(tmp_path):
    for name in ("a/x.png", "b/x.png", "y.png"):
        save(tmp_path, name)
    given = [tmp_path / "a", tmp_path / "b", tmp_path / "y.png", tmp_path / "a" / ".." / "y.png"]
    assert [job.name for job in find_jobs(given, tmp_path / "out")] == ["a/x.png", "b/x.png", "y.png"]


def test_inputs_with_the_same_output_are_refused(tmp_path):
    paths = [save(tmp_path, "a/x.png"), save(tmp_path, "b/x.png")]
    with pytest.raises(InputError, match=r"a/x\.png.*b/x\.png.*would both be written to"):
        find_jobs(paths, tmp_path / "out")
    with pytest.raises(InputError, match="would both be written to"):
        save(tmp_path, "c/a/x.png")
        find_jobs([tmp_path / "a", tmp_path / "c" / "a"], tmp_path / "out")


def test_outputs_never_replace_inputs(tmp_path):
    path = save(tmp_path, "x.png")
    for refused in (
        lambda: find_jobs([tmp_path], tmp_path),
        lambda: find_jobs([path], tmp_path),
        lambda: single_job(path, tmp_path / "sub" / ".." / "x.png"),
    ):
        with pytest.raises(InputError, match="is the input folder|would replace an input"):
            refused()


def test_inputs_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file or folder .*nothing"):
        find_jobs([tmp_path / "nothing"], tmp_path / "out")
    with pytest.raises(InputError, match="found no pictures"):
        find_jobs([tmp_path], tmp_path / "out")


# -- translating ----------------------------------------------------------------------------------------------


def run(engine, jobs, fitting=None, **options) -> dict[str, translate.Outcome]:
    fitting = fitting or Fitting.of(engine.generator)
    outcomes = list(translate.translate_files(engine, jobs, fitting, **options))
    assert len(outcomes) == len(jobs)
    return {outcome.job.name: outcome for outcome in outcomes}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_outputs_are_what_the_engine_makes_of_each_picture(tmp_path, engine, batch_size):
    for i in range(10):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert {o.status for o in run(engine, found, batch_size=batch_size).values()} == {"done"}
    for i in range(10):
        expected = engine.translate(picture(SIZE, SIZE, i))
        np.testing.assert_array_equal(pixels_of(tmp_path / f"out/x{i}.png"), expected)
    assert len({pixels_of(job.output).tobytes() for job in found}) == 10


def test_padded_outputs_have_the_inputs_size(tmp_path, engine):
    sizes = [(SIZE, SIZE), (40, 50), (7, 100), (40, 50), (1, 1), (100, 7)] * 3
    for i, (h, w) in enumerate(sizes):
        save(tmp_path, f"in/x{i}.png", h, w, i)
    run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"), Fitting.of(engine.generator, "pad"), batch_size=4)
    for i, (h, w) in enumerate(sizes):
        expected = engine.translate(images.pad(picture(h, w, i), 32))[:h, :w]
        np.testing.assert_array_equal(pixels_of(tmp_path / f"out/x{i}.png"), expected)


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1), (4, 4)])
def test_other_channels(tmp_path, channels):
    engine = engine_of(unet(2, 5, *channels))
    path = save(tmp_path, "x.png")
    run(engine, [single_job(path, tmp_path / "y.png")])
    read = images.read(path, Fitting.of(engine.generator)).pixels
    with Image.open(tmp_path / "y.png") as image:
        assert image.mode == images.MODES[channels[1]]
    expected = engine.translate(read)
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png").reshape(expected.shape), expected)


def test_what_the_format_cannot_hold_is_refused_before_the_run(tmp_path):
    engine = engine_of(unet(2, 5, 3, 4))
    job = single_job(save(tmp_path, "x.png"), tmp_path / "y.jpg")
    with pytest.raises(ValueError, match="no alpha"):
        translate.translate_files(engine, [job], Fitting.of(engine.generator))


def test_bad_pictures_fail_alone(tmp_path, engine):
    for i in range(6):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    (tmp_path / "in/x1.png").write_bytes(b"no picture")
    (tmp_path / "in/x4.png").write_bytes((tmp_path / "in/x4.png").read_bytes()[:1500])
    outcomes = run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"), batch_size=2)
    failed = {name: o.reason for name, o in outcomes.items() if o.status == "failed"}
    assert failed == {"x1.png": "damaged, or no picture of a known format", "x4.png": "image file is truncated"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x0.png", "x2.png", "x3.png", "x5.png"]


def test_only_bad_pictures(tmp_path, engine):
    for i in range(30):
        (tmp_path / f"x{i}.png").write_bytes(b"no picture")
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
    write, count = images.write, itertools.count()

    def fail_later(path, data):
        if next(count) >= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(images, "write", fail_later)
    with pytest.raises(OSError, match="No space left"):
        run(engine, find_jobs([tmp_path / "in"], tmp_path / "out"), batch_size=2)
    assert len(list((tmp_path / "out").iterdir())) == 10


class Forgetful(ReferenceEngine):
    """Has no memory for pictures above a size, and remembers what it was given."""

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator, random_weights(generator), np.float32)
        self.shapes = []

    def _translate(self, b, out, stop):
        self.shapes.append(b.shape)
        if b.shape[1] > 64:
            raise MemoryError
        super()._translate(b, out, stop)


def test_a_picture_too_large_for_the_memory_fails_alone(tmp_path):
    engine = Forgetful(unet(2, 5))
    for i in range(12):
        save(tmp_path, f"in/x{i}.png", 80 if i % 5 == 0 else SIZE, SIZE, i)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    outcomes = run(engine, found, Fitting.of(engine.generator, "pad"), batch_size=2)
    failed = {name for name, o in outcomes.items() if o.status == "failed"}
    assert failed == {"x0.png", "x5.png", "x10.png"}
    assert "not enough memory to translate 32x96 pixels" in outcomes["x0.png"].reason
    np.testing.assert_array_equal(pixels_of(tmp_path / "out/x7.png"), engine.translate(picture(SIZE, SIZE, 7)))


def test_batches_hold_pictures_of_one_size_and_no_more_pixels_than_asked(tmp_path):
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
    read, count = images.read, itertools.count(1)
    decoded = [0]

    def counting(*args):
        decoded[0] = next(count)
        return read(*args)

    monkeypatch.setattr(images, "read", counting)
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    fitting = Fitting.of(engine.generator, "pad")
    ahead = [decoded[0] - n for n, _ in enumerate(translate.translate_files(engine, found, fitting, batch_size=4))]
    waiting, decoding, running_and_writing = 4 * 4, 4 + translate.io_threads(), 2 * 4 + 2 * 4
    assert decoded[0] == 60 and max(ahead) <= waiting + decoding + running_and_writing < 60


def test_a_run_can_be_left_midway(tmp_path, engine):
    for i in range(30):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    before = threading.active_count()
    found = find_jobs([tmp_path / "in"], tmp_path / "out")
    outcomes = translate.translate_files(engine, found, Fitting.of(engine.generator), batch_size=2)
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
    assert first["x0.png"].metrics == metrics.compare(y, picture(SIZE, 2 * SIZE, 0)[:, SIZE:])


def test_batch_sizes_below_one_are_refused(engine):
    with pytest.raises(ValueError, match="batch size of 0"):
        translate.translate_files(engine, [], Fitting.of(engine.generator), batch_size=0)


# -- raw files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (32, 64)])
def test_raw_files(tmp_path, size):
    engine = engine_of(unet(2, 5, 3, 1))
    frames = np.stack([picture(*(size or (SIZE, SIZE)), i) for i in range(7)])
    (tmp_path / "in.rgb").write_bytes(frames.tobytes())
    output = tmp_path / "deep" / "out.rgb"
    counts = list(translate.translate_raw(engine, tmp_path / "in.rgb", output, size, batch_size=3))
    assert counts == [3, 3, 1]
    assert output.read_bytes() == engine.translate(frames).tobytes()
    assert [p.name for p in output.parent.iterdir()] == ["out.rgb"]


@pytest.mark.parametrize("length", [0, 1, 32 * 32 * 3 + 1])
def test_raw_files_of_no_whole_frames_are_refused(tmp_path, engine, length):
    (tmp_path / "in.rgb").write_bytes(bytes(length))
    with pytest.raises(ValueError, match=f"has {length} bytes, expected a multiple of 3072"):
        list(translate.translate_raw(engine, tmp_path / "in.rgb", tmp_path / "out.rgb"))
    assert not (tmp_path / "out.rgb").exists()


def test_a_raw_output_appears_only_when_it_is_whole(tmp_path, engine):
    (tmp_path / "in.rgb").write_bytes(bytes(9 * SIZE * SIZE * 3))
    frames = translate.translate_raw(engine, tmp_path / "in.rgb", tmp_path / "out.rgb", batch_size=2)
    next(frames)
    assert {p.name for p in tmp_path.iterdir()} == {"in.rgb", "out.rgb.partial"}
    frames.close()
    assert not (tmp_path / "out.rgb").exists()


# -- the run record -------------------------------------------------------------------------------------------


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


def test_natural_order():
    names = ["x10.png", "x2.png", "x2b.png", "b/1.png", "X1.png", "x02.png"]
    ordered = sorted(map(Path, names), key=jobs.natural)
    assert [str(p) for p in ordered] == ["X1.png", "b/1.png", "x02.png", "x2.png", "x2b.png", "x10.png"]
