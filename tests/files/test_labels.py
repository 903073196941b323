"""Label maps as pix2pixHD encodes them, and whole runs over folders of them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pix2pix import checkpoints
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.errors import ImageError, InputError, RecordError
from pix2pix.files import labels
from pix2pix.files.fitting import Fitting
from pix2pix.files.options import TranslateOptions
from pix2pix.files.provenance import Source
from pix2pix.files.translate import translate
from pix2pix.model.generator import Generator
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.mpi.messages import packed_job, unpacked_job
from tests.checkpoints.seeded import state_dict
from tests.files.samples import pixels_of
from tests.files.test_translate import Notes

DATA = Path(__file__).parent / "data"
EXPECTED = np.load(DATA / "labels.npz")
SHAPES = np.load(Path(__file__).parents[1] / "checkpoints" / "data" / "resnets.npz")
LABELS, SIZE = 6, 32


def generator(channels: int = LABELS + 1) -> Generator:
    return dataclasses.replace(unet(2, 5, channels), takes="labels")


def fitting(size: tuple[int, int] | None = None, channels: int = LABELS + 1, with_instances: bool = True) -> Fitting:
    """That of label maps that are not padded, unless they have a size that no multiple of 32 is."""
    fitted = Fitting.of(generator(channels), "pad", size, with_instances=with_instances)
    return dataclasses.replace(fitted, multiple=1)


def draw(seed: int, h: int = SIZE, w: int = SIZE, most: int = LABELS) -> np.ndarray:
    """Blocks of ids below ``most``: uint8 (h,w)."""
    blocks = np.random.default_rng(seed).integers(0, most, (-(-h // 4), -(-w // 4)), dtype=np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)[:h, :w]


def save(path: Path, ids: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)
    return ids


# -- encoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", EXPECTED.files)
def test_encoding_is_that_of_pix2pixhd(key):
    """The data were computed by tests/files/data/make_labels.py."""
    name, size, instances = key.split("/")
    width, height = map(int, size.split("x"))
    with_instances = instances != "none"
    channels = LABELS + with_instances
    fitted = fitting((height, width), channels, with_instances)
    encoded = fitted.read(DATA / name, instances=DATA / instances if with_instances else None)
    expected = np.unpackbits(EXPECTED[key], count=channels * height * width).reshape(channels, height, width)
    assert expected.any((1, 2)).all() and (encoded.height, encoded.width) == (height, width)
    np.testing.assert_array_equal(encoded.pixels, 255 * expected.transpose(1, 2, 0))


def test_both_pixels_of_a_pair_are_edges():
    instances = np.zeros((5, 6), int)
    instances[2, 3] = 1000
    expected = ["000000", "000100", "001110", "000100", "000000"]
    assert ["".join(row) for row in labels.edges(instances).astype(int).astype(str)] == expected
    assert not labels.edges(np.full((1, 4), 7)).any() and labels.edges(np.array([[1, 1, 2]])).tolist() == [[0, 1, 1]]


def palette_image(ids: np.ndarray, bits: int) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
    return image


def test_ids_are_taken_as_they_are_stored(tmp_path):
    ids = draw(1, 24, 40)
    scaled = {"two.png": (2, 3), "four.png": (4, LABELS)}
    for name, (bits, most) in scaled.items():  # greys of few bits, which Pillow cannot write: from a palette's
        palette_image(ids % most, bits).save(tmp_path / name, bits=bits)
        content = bytearray((tmp_path / name).read_bytes())
        header = content.index(b"IHDR")
        content[header + 13] = 0  # the kind of colour: grey
        end = content.index(b"PLTE") - 4
        length = int.from_bytes(content[end : end + 4])
        del content[end : end + 12 + length]
        (tmp_path / name).write_bytes(_with_checksum(bytes(content)))
        with Image.open(tmp_path / name) as image:
            assert image.mode == "L" and np.asarray(image).max() > LABELS  # scaled
        found = fitting(None, LABELS, False).read(tmp_path / name).pixels
        np.testing.assert_array_equal(found.argmax(2), ids % most)
    saved = {
        "palette.png": palette_image(ids, 8),
        "few.png": palette_image(ids, 4),
        "grey.png": Image.fromarray(ids),
        "wide.png": Image.fromarray(ids.astype(np.uint16)),
        "wide.tif": Image.fromarray(ids.astype(np.int32)),
        "one.png": Image.fromarray(ids > 2),
    }
    for name, image in saved.items():
        image.save(tmp_path / name)
        found = fitting(None, LABELS, False).read(tmp_path / name).pixels
        np.testing.assert_array_equal(found.argmax(2), ids > 2 if name == "one.png" else ids, err_msg=name)


def _with_checksum(png: bytes) -> bytes:
    """A PNG whose first chunk has the checksum of what it holds."""
    import zlib

    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4) + png[33:]


def test_instances_may_have_wide_ids(tmp_path):
    ids = save(tmp_path / "x.png", draw(1))
    wide = draw(2).astype(np.int32) * 1000 + 70000
    Image.fromarray(wide).save(tmp_path / "wide.tif")
    Image.fromarray((wide - 60000).astype(np.uint16)).save(tmp_path / "sixteen.png")
    for name in ("wide.tif", "sixteen.png"):
        found = fitting().read(tmp_path / "x.png", instances=tmp_path / name).pixels
        np.testing.assert_array_equal(found, labels.encode(ids, LABELS, wide))


@pytest.mark.parametrize(
    ("image", "inside", "message"),
    [
        (np.full((9, 9), 6, np.uint8), None, "label id 6, expected 0 to 5: the generator takes 6 labels"),
        (np.full((9, 9), 300, np.uint16), None, "label id 300"),
        (np.full((9, 9), -1, np.int32), None, "label id -1"),
        (np.zeros((9, 9, 3), np.uint8), None, "pixels of mode RGB, expected greys or palette indices"),
        (np.zeros((9, 9), np.uint8), np.zeros((9, 8), np.uint8), "8x9 pixels, the label map has 9x9"),
        (np.zeros((9, 4), np.uint8), np.zeros((4, 9), np.uint8), "9x4 pixels, the label map has 4x9"),
        (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.uint8), "image of its instances.*mode RGB"),
    ],
)
def test_images_that_are_no_label_maps_are_refused(image, inside, message, tmp_path):
    save(tmp_path / "x.tif", image)
    if inside is not None:
        save(tmp_path / "y.tif", inside)
    with pytest.raises(ImageError, match=message):
        fitting().read(tmp_path / "x.tif", instances=None if inside is None else tmp_path / "y.tif")


def test_people_see_colours():
    ids = np.arange(LABELS, dtype=np.uint8).repeat(4)[None].repeat(3, 0)
    encoded = labels.encode(ids, LABELS, np.zeros_like(ids))
    colours = labels.shown(encoded, LABELS)[0, ::4].astype(int)
    assert min(abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 60
    edged = labels.shown(labels.encode(ids, LABELS, ids), LABELS)
    assert (edged[0, 4] == 255).all() and (edged[0, 1] == colours[0]).all()


def test_padding_continues_labels_and_edges(tmp_path):
    ids, inside = save(tmp_path / "x.png", draw(1, 20, 70)), save(tmp_path / "y.png", draw(2, 20, 70))
    image = Fitting.of(generator(), "pad", with_instances=True).read(tmp_path / "x.png", instances=tmp_path / "y.png")
    assert image.pixels.shape == (32, 96, LABELS + 1) and (image.height, image.width) == (20, 70)
    whole = labels.encode(ids, LABELS, inside)
    np.testing.assert_array_equal(image.pixels, np.pad(whole, ((0, 12), (0, 26), (0, 0)), mode="reflect"))


# -- whole runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Label maps in the folder labels, images of instances in the folder instances, two models."""
    monkeypatch.chdir(tmp_path)
    for channels, name in ((LABELS, "plain"), (LABELS + 1, "model")):
        checkpoints.write(Path(f"{name}.safetensors"), generator(channels), random_weights(generator(channels)))
    for seed, name in enumerate(["a.png", "deep/b.png", "c_gtFine_%s.png"]):
        save(Path("labels", name.replace("%s", "labelIds")), draw(seed))
        save(Path("instances", name.replace("%s", "instanceIds")), draw(seed + 10).astype(np.uint16) * 1000)
    return tmp_path


def run(*inputs: str, model: str = "model", output: str = "out", **fields: object) -> Notes:
    """Translate; what was heard of the images."""
    given = {"instances": Path("instances")} if model == "model" else {"no_instance": True}
    options = TranslateOptions(
        tuple(map(Path, inputs)) or (Path("labels"),), Path(output), Path(f"{model}.safetensors"), **given | fields
    )
    notes = Notes()
    translate(options, notes)
    return notes


def expected(seed: int, with_instances: bool = True) -> np.ndarray:
    model = "model.safetensors" if with_instances else "plain.safetensors"
    inside = draw(seed + 10) if with_instances else None
    with ReferenceEngine(*checkpoints.read(Path(model))) as engine:
        return engine.translate(labels.encode(draw(seed), LABELS, inside))


def check(path: str, seed: int, with_instances: bool = True) -> None:
    """Whether an output is that of a label map, up to the direction of rounding."""
    wanted = expected(seed, with_instances).astype(int)
    assert wanted.std() > 1 and abs(pixels_of(Path(path)) - wanted).max() <= 1


def statuses(notes: Notes) -> dict[str, tuple[str, str]]:
    return {o.job.name: (o.status, o.reason) for o in notes.outcomes}


def test_a_folder_with_instances(folder):
    notes = run(gallery=True)
    assert {status for status, _ in statuses(notes).values()} == {"done"}
    for seed, name in enumerate(["a.png", "deep/b.png", "c_gtFine_labelIds.png"]):
        check(f"out/{name}", seed)
    assert "data:image/jpeg" in Path("out/gallery.html").read_text()


def test_a_folder_without_instances(folder):
    run(model="plain")
    check("out/a.png", 0, with_instances=False)
    assert abs(expected(0).astype(int) - expected(0, with_instances=False)).max() > 5


def test_one_label_map(folder):
    run("labels/deep/b.png", output="y.png", instances=Path("instances/deep/b.png"))
    check("y.png", 1)
    run("labels/a.png", "labels/deep", output="several", size=(SIZE, SIZE))
    assert statuses(run("labels/a.png", output="one"))["a.png"][0] == "done"
    check("several/a.png", 0)


def test_one_bad_image_stops_no_other(folder):
    save(Path("labels/bad.png"), np.full((SIZE, SIZE), 99, np.uint8))
    save(Path("instances/bad.png"), draw(0))
    save(Path("labels/lonely.png"), draw(0))
    save(Path("labels/uneven.png"), draw(0))
    save(Path("instances/uneven.png"), draw(0, 16, 16))
    found = statuses(run())
    assert found["bad.png"] == ("failed", "label id 99, expected 0 to 5: the generator takes 6 labels")
    assert found["lonely.png"] == (
        "failed",
        f"there is no image of its instances, expected {str(Path('instances/lonely.png'))!r}",
    )
    assert found["uneven.png"][0] == "failed" and "16x16 pixels, the label map has 32x32" in found["uneven.png"][1]
    assert [found[name][0] for name in ("a.png", "deep/b.png")] == ["done", "done"]


def test_what_changes_is_made_again(folder):
    run()
    assert {status for status, _ in statuses(run()).values()} == {"skipped"}
    save(Path("instances/a.png"), draw(3).astype(np.uint16))
    save(Path("labels/new.png"), draw(4))
    save(Path("instances/new.png"), draw(14))
    found = {name: status for name, (status, _) in statuses(run()).items()}
    assert found == {"a.png": "done", "deep/b.png": "skipped", "c_gtFine_labelIds.png": "skipped", "new.png": "done"}
    check("out/new.png", 4)
    for path in (Path("instances/a.png"), Path("labels/a.png")):
        os.utime(path)
    assert {status for status, _ in statuses(run()).values()} == {"skipped"}  # the content is the same


def test_other_labels_are_another_run(folder):
    run()
    with pytest.raises(RecordError, match="labels: 6 there, 7 now"):
        run(instances=None, no_instance=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instances": None}, "give --instances and the folder .* or --no-instance"),
        ({"instances": Path("nowhere")}, "there is no file or folder 'nowhere' with images of instances"),
        ({"instances": Path("instances/a.png")}, "are one file: expected a folder"),
        ({"output": "instances"}, "would replace an image of instances"),
        ({"pair": "AtoB"}, "takes label maps: they are files of their own"),
        ({"size": (30, 30)}, "multiples of 32"),
    ],
)
def test_a_run_that_cannot_start(fields, message, folder):
    with pytest.raises(ValueError, match=message):
        run(**fields)
    assert not Path("out").exists() or not list(Path("out").glob("*.png"))


def test_a_generator_of_images_has_no_instances(folder):
    plain = unet(2, 5)
    checkpoints.write(Path("rgb.safetensors"), plain, random_weights(plain))
    with pytest.raises(ValueError, match="takes images: label maps alone can have images of instances"):
        run(model="rgb", instances=Path("instances"), no_instance=False)
    with pytest.raises(InputError, match="takes --size alone"):
        Path("x.rgb").write_bytes(b"")
        run("x.rgb", model="rgb", output="y.rgb", instances=Path("instances"), no_instance=False)


def test_a_model_of_pix2pixhd(folder):
    """Its file as that program names the tensors."""
    save_file(state_dict(json.loads(str(SHAPES["shapes/hd_global"]))), "hd.safetensors")
    ids, inside = save(Path("labels/hd.png"), draw(7, 48, 80, 35)), draw(8, 48, 80).astype(np.uint16) * 1000
    save(Path("instances/hd.png"), inside)
    assert run("labels/hd.png", model="hd", instances=Path("instances"), no_instance=False, size=(48, 80)).count == 1
    given = np.zeros((48, 80, 36), np.float32)
    given[..., :35] = ids[..., None] == np.arange(35)
    given[..., 35] = labels.edges(inside)
    with ReferenceEngine(*checkpoints.read(Path("hd.safetensors"))) as engine:
        wanted = engine.run(2 * given - 1)
    result = pixels_of(Path("out/hd.png"))
    assert result.std() > 5 and np.abs(result - np.clip((wanted + 1) * 127.5, 0, 255)).max() <= 1.01


# -- parts --------------------------------------------------------------------------------------------------------


def test_an_input_of_two_files_is_known_by_both(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"12"), b.write_bytes(b"345")
    both = Source.of(a, b)
    assert both.size == 5 and both.digest not in (Source.of(a).digest, Source.of(b).digest, Source.of(b, a).digest)
    assert both.found_at(a, b, verify=False) == both == both.found_at(a, b, verify=True)
    b.write_bytes(b"346")
    assert both.found_at(a, b, verify=True) is None
    os.utime(b, ns=(0, 0))
    assert both.found_at(a, b, verify=False) is None and both.found_at(a, verify=False) is None


def test_jobs_travel_with_their_instances(folder):
    notes = run()
    jobs = [outcome.job for outcome in notes.outcomes]
    assert all(job.instances is not None for job in jobs)
    assert [unpacked_job(packed_job(job)) for job in jobs] == jobs
