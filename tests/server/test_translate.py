"""Translating over HTTP: the bytes of ``pix2pix translate``, whatever else is asked at the same time."""

from __future__ import annotations

import io
import json
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pix2pix import checkpoints
from pix2pix.cli import main
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.server.process import Server, encoded, image, multipart


def expected(models, tmp_path, content: bytes, name: str, *options: str, model: str = "colour") -> bytes:
    """The file that ``pix2pix translate`` writes."""
    source = tmp_path / "in" / name
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(content)
    out = tmp_path / "out"
    argv = ["translate", str(source), "-o", f"{out}/", "-m", str(models / f"{model}.safetensors"), "--overwrite", "-q"]
    assert main([*argv, *options]) == 0
    (made,) = (path for path in out.iterdir() if not path.name.startswith("."))
    result = made.read_bytes()
    made.unlink()
    return result


OPTIONS = {
    "": [],
    "?fit=pad": ["--fit", "pad"],
    "?size=64": ["--size", "64"],
    "?size=64x96&format=jpg": ["--size", "64x96", "--format", "jpg"],
    "?fit=pad&size=50x40&format=jpg": ["--fit", "pad", "--size", "50x40", "--format", "jpg"],
    "?pair=AtoB": ["--pair", "AtoB"],
    "?pair=BtoA&fit=pad": ["--pair", "BtoA", "--fit", "pad"],
}


@pytest.mark.parametrize("query", OPTIONS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_bytes_are_those_of_translate(server, models, tmp_path, query, kind):
    content = image(41, 58, 3, kind)
    want = expected(models, tmp_path, content, "x.png" if kind == "PNG" else "x.jpg", *OPTIONS[query])
    answer = server.translate(content, query, Content_Type=f"image/{kind.lower()}")
    assert answer.status == 200 and answer.body == want
    is_jpeg = "format=jpg" in query
    assert answer.headers["Content-Type"] == ("image/jpeg" if is_jpeg else "image/png")


def test_in_8_bit_integers_too(models, tmp_path):
    content = image()
    with Server(models, "--precision", "int8") as server:
        answer = server.translate(content)
    want = expected(models, tmp_path, content, "x.png", "--precision", "int8")
    assert answer.body == want != expected(models, tmp_path, content, "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"])
def test_every_format_that_translate_reads_is_taken(server, models, tmp_path, kind):
    if kind == "AVIF" and "AVIF" not in Image.SAVE and not Image.init() and "AVIF" not in Image.SAVE:
        pytest.skip("needs a Pillow with AVIF")
    content = image(40, 40, 5, kind)
    assert server.translate(content).body == expected(models, tmp_path, content, f"x.{kind.lower()}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_the_same_format(server, models, tmp_path, kind):
    content, name = image(40, 40, 6, kind), f"x.{ {'JPEG': 'jpg'}.get(kind, kind.lower()) }"
    want = expected(models, tmp_path, content, name, "--format", "same")
    assert server.translate(content, "?format=same").body == want
    body, form = multipart({name: content})
    assert server.translate(body, "?format=same", Content_Type=form).body == want


def test_colours_transparency_and_orientation_are_those_of_translate(server, models, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(turned, "JPEG", exif=exif)
    for content, name in ((encoded(pixels), "a.png"), (encoded(pixels[..., 0]), "b.png"), (turned.getvalue(), "c.jpg")):
        for model in ("colour", "grey"):
            want = expected(models, tmp_path, content, name, "--fit", "pad", model=model)
            assert server.ask("POST", f"/models/{model}/translate?fit=pad", content).body == want


def test_a_hundred_requests_of_mixed_sizes_at_once_each_get_their_own_result(server, models, tmp_path):
    sizes = [(32, 32), (32, 64), (64, 32), (40, 40)]
    contents = [image(*sizes[i % 4], seed=i) for i in range(20)]
    alone = [server.translate(content, "?fit=pad").body for content in contents]
    assert len(set(alone)) == 20
    for i in (0, 7):
        assert alone[i] == expected(models, tmp_path, contents[i], f"{i}.png", "--fit", "pad")
    order = list(range(20)) * 5
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda i: server.translate(contents[i], "?fit=pad"), order))
    assert [answer.status for answer in answers] == [200] * 100
    assert all(answer.body == alone[i] for answer, i in zip(answers, order, strict=True))
    batches, images = server.metric("pix2pix_batch_images_count"), server.metric("pix2pix_batch_images_sum")
    assert images > batches, "nothing was computed together"


def test_several_images_in_one_request(server):
    contents = {f"{i}.png": image(seed=i) for i in range(3)}
    alone = {name: server.translate(content).body for name, content in contents.items()}
    files = {**contents, "../../etc/bad.png": b"no image", "photo.jpg": image(seed=9, format="JPEG")}
    body, form = multipart(files)
    answer = server.translate(body, Content_Type=form)
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert sorted(archive.namelist()) == ["0.png", "1.png", "2.png", "failures.json", "photo.jpg.png"]
        assert {name: archive.read(name) for name in alone} == alone
        assert list(json.loads(archive.read("failures.json"))) == ["../../etc/bad.png"]
    assert server.translate(body, Content_Type=form).body == answer.body
    assert server.translate(body, Content_Type=form, Accept="image/png").status == 406
    failed = server.translate(*multipart({"a": b"x", "b": b"y"})[:1], Content_Type=form)
    assert failed.status == 422 and sorted(failed.json["failures"]) == ["a", "b"]


def test_fields_of_a_form_are_options(server):
    body, form = multipart({"x.png": image(40, 50)}, fit="pad", format="jpg")
    assert server.translate(body, Content_Type=form).body == server.translate(image(40, 50), "?fit=pad&format=jpg").body
    body, form = multipart({"x.png": image()}, nonsense="1")
    assert server.translate(body, Content_Type=form).status == 400


ACCEPTED = {
    "*/*": "image/png",
    "image/*": "image/png",
    "image/webp": "image/webp",
    "image/webp;q=0.5, image/jpeg;q=0.9": "image/jpeg",
    "text/html, image/*;q=0.1": "image/png",
    "image/png;q=0, image/*": "image/jpeg",
    "text/html": None,
    "image/avif": None,
    "image/png;q=0": None,
}


@pytest.mark.parametrize("accept", ACCEPTED)
def test_the_format_that_accept_prefers(server, accept):
    answer = server.translate(image(), Accept=accept)
    if ACCEPTED[accept] is None:
        assert answer.status == 406 and "image/png" in answer.json["detail"]
    else:
        assert (answer.status, answer.headers["Content-Type"]) == (200, ACCEPTED[accept])
        with Image.open(io.BytesIO(answer.body)) as made:
            assert Image.MIME[made.format] == ACCEPTED[accept]
    assert server.translate(image(), "?format=jpg", Accept="image/png").status == 406


def test_a_pool_of_workers_gives_the_same_bytes(server, models):
    contents = [image(32, 32 * (1 + i % 2), seed=i) for i in range(16)]
    with Server(models, "--workers", "3") as pool, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda content: pool.translate(content, "?fit=pad"), contents))
    assert [a.body for a in answers] == [server.translate(content, "?fit=pad").body for content in contents]


def test_a_model_of_label_maps(tmp_path, monkeypatch, capsys):
    generator = replace(unet(ngf=2, depth=5, in_channels=7), takes="labels")
    checkpoints.write(tmp_path / "labels.safetensors", generator, random_weights(generator))
    ids = encoded(np.random.default_rng(0).integers(0, 7, (40, 50), dtype=np.uint8))
    model = ("-m", "labels.safetensors")
    with Server(tmp_path, "--no-instance", models=model) as server:
        want = expected(tmp_path, tmp_path, ids, "x.png", "--no-instance", "--fit", "pad", model="labels")
        assert server.translate(ids, "?fit=pad").body == want
        assert server.translate(ids, "?pair=AtoB").status == 422
        assert "label id" in server.translate(encoded(np.full((32, 32), 9, np.uint8))).json["detail"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uvicorn.Server.run", None)  # a server that starts after all would run for ever
    assert main(["serve", *model, "--device", "cpu"]) == 2 and "--no-instance" in capsys.readouterr().err
