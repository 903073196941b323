"""``pix2pix translate`` of films: frames, times, colours, what is copied, what is refused, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="pip install 'pix2pix[video]'")

import av

import pix2pix
from pix2pix import checkpoints, demo
from pix2pix.model.resnet import resnet
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.cli.commands import names, pixels_of, translate
from tests.video.clips import EVEN, UNEVEN, Clip, content, halved, make, planes, rgb, translated

B_FRAMES = (("crf", "12"), ("bf", "3"), ("b-adapt", "0"))
CLIPS = {
    "plain": Clip(),
    "one frame": Clip(pts=(0,)),
    "two frames": Clip(pts=(0, 4000)),
    "variable rate": Clip(pts=UNEVEN),
    "variable rate, B-frames": Clip(pts=UNEVEN, options=B_FRAMES),
    "begins late": Clip(pts=[pts + 4501 for pts in UNEVEN], options=B_FRAMES),
    "odd sizes": Clip(size=(47, 63), format="yuv444p"),
    "smaller than the network's multiple": Clip(size=(10, 18)),
    "full range": Clip(range=2),
    "BT.709": Clip(matrix=1),
    "BT.709, full range": Clip(matrix=1, range=2),
    "4:4:4": Clip(format="yuv444p"),
    "4:2:2": Clip(format="yuv422p"),
    "10 bits": Clip(format="yuv420p10le"),
    "10 bits, BT.709, full range": Clip(format="yuv420p10le", matrix=1, range=2),
    "sound": Clip(audio="aac"),
    "sound and subtitles": Clip(pts=UNEVEN, audio="aac", subtitles="mov_text", options=B_FRAMES),
    "late, sound": Clip(pts=[pts + 4501 for pts in UNEVEN], audio="aac"),
    "turned by 90": Clip(rotation=90),
    "turned by 180, B-frames": Clip(rotation=180, options=B_FRAMES),
    "turned by -90, sound": Clip(rotation=-90, audio="aac", size=(32, 96)),
    "MOV": Clip(name="in.mov", audio="aac", pts=UNEVEN),
    "Matroska": Clip(name="in.mkv", audio="libopus", subtitles="subrip", pts=UNEVEN, options=B_FRAMES),
    "HEVC, 10 bits": Clip(name="in.mkv", codec="libx265", format="yuv420p10le", options=(("crf", "12"),)),
    "WebM": Clip(name="in.webm", codec="libvpx-vp9", audio="libopus"),
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_every_frame_at_its_time_in_its_colours(folder, engine, clip):
    """The output is losslessly encoded, so that it can be compared with what is decoded, translated and converted by
    hand."""
    source = make(clip, folder)
    lossless = [] if source.suffix == ".webm" else ["--crf", "0"]
    output = Path("out" + source.suffix)
    assert translate(str(source), "-o", str(output), *lossless) == 0
    before, after = content(source), content(output)
    assert len(before.times) == len(clip.pts)
    assert after.times == before.times
    assert after.packets == before.packets
    is_full = clip.range == 2
    for was, now in zip(before.frames, after.frames, strict=True):
        expected = translated(engine, np.rot90(rgb(was, clip.matrix, is_full), clip.rotation // 90))
        assert (now.height, now.width) == expected.shape[:2]
        assert (int(now.colorspace), int(now.color_range)) == (clip.matrix, clip.range)
        assert now.rotation == 0
        if lossless:
            for stored, wanted in zip(planes(now), halved(expected, clip.matrix, is_full), strict=True):
                assert np.abs(stored - wanted).max() <= 2
    shown = np.array([planes(frame)[0].mean() for frame in after.frames])
    assert len(shown) == 1 or np.ptp(shown) > 0  # frames differ, so that a mistaken order would show


@pytest.mark.parametrize("network", ["demo", "ResNet"])
def test_networks_that_colours_matter_to(folder, network):
    with demo.embedded() as (embedded, _):
        if network == "ResNet":
            generator = resnet(ngf=8, blocks=2)
            checkpoints.write("resnet.safetensors", generator, random_weights(generator))
            embedded = Path("resnet.safetensors")
        make(Clip(pts=UNEVEN[:3], size=(90, 120)), folder)
        assert translate("in.mp4", "-o", "out.mp4", "--crf", "0", model=str(embedded)) == 0
        before, after = content(Path("in.mp4")), content(Path("out.mp4"))
        with pix2pix.load(embedded) as engine:
            for was, now in zip(before.frames, after.frames, strict=True):
                expected = halved(translated(engine, rgb(was, 6, False)), 6, False)
                for stored, wanted in zip(planes(now), expected, strict=True):
                    assert np.abs(stored - wanted).max() <= 2


def test_the_default_quality_is_near_to_lossless(folder):
    make(Clip(), folder)
    assert translate("in.mp4", "-o", "out.mp4") == 0
    assert translate("in.mp4", "-o", "lossless.mp4", "--crf", "0") == 0
    for ours, exact in zip(content(Path("out.mp4")).frames, content(Path("lossless.mp4")).frames, strict=True):
        assert np.abs(planes(ours)[0] - planes(exact)[0]).mean() < 3


@pytest.mark.parametrize("options", [(("bf", "0"),), B_FRAMES], ids=["in order", "B-frames"])
def test_last_frame_is_shown_as_long_as_before(folder, options):
    make(Clip(pts=UNEVEN, options=options), folder)
    assert translate("in.mp4", "-o", "out.mp4") == 0
    with av.open("in.mp4") as before, av.open("out.mp4") as after:
        ends = [film.streams.video[0].duration / 90_000 for film in (before, after)]
    assert ends[0] > 0.54 and abs(ends[1] - ends[0]) < 0.001  # MP4 stores the end in thousandths


def test_avi_says_when_frames_are_decoded_and_not_when_they_are_shown(folder):
    clip = Clip(name="in.avi", options=B_FRAMES)
    before = content(make(clip, folder)).times
    assert before != sorted(before)
    assert translate("in.avi", "-o", "out.mp4") == 0
    assert content(Path("out.mp4")).times == sorted(before)


def test_pixels_that_are_not_square_stay_so(folder):
    source = make(Clip(), folder)
    with av.open(str(source)) as film, av.open("wide.mp4", "w") as wide:
        video = wide.add_stream("libx264", rate=25)
        video.height, video.width, video.codec_context.sample_aspect_ratio = 48, 64, Fraction(4, 3)
        for frame in film.decode(video=0):
            wide.mux(video.encode(frame))
        wide.mux(video.encode())
    assert translate("wide.mp4", "-o", "out.mp4") == 0
    with av.open("out.mp4") as film:
        assert film.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize("name", ["out.mkv", "out.mov", "out.m4v"])
def test_other_containers(folder, name):
    make(Clip(audio="aac"), folder)
    assert translate("in.mp4", "-o", name) == 0
    before, after = content(Path("in.mp4")), content(Path(name))
    assert [round(t * 1000) for t in after.times] == [round(t * 1000) for t in before.times]
    assert [data for _, data in after.packets["audio"]] == [data for _, data in before.packets["audio"]]


def test_gif_in_and_out(folder, capsys):
    make(Clip(audio="aac", pts=EVEN), folder)
    assert translate("in.mp4", "-o", "out.gif") == 0
    assert "left out: audio stream 1" in capsys.readouterr().err
    before, gif = content(Path("in.mp4")), content(Path("out.gif"))
    assert gif.times == before.times
    assert translate("out.gif", "-o", "again.mkv", "--codec", "ffv1") == 0
    assert content(Path("again.mkv")).times == gif.times
    assert translate("out.gif", "-o", "again.mp4") == 0
    assert content(Path("again.mp4")).times == gif.times


def test_a_gif_is_an_image_where_the_output_is_one(folder):
    make(Clip(), folder)
    assert translate("in.mp4", "-o", "x.gif") == 0
    assert translate("x.gif", "-o", "images/") == 0
    assert "x.gif.png" in names("images")


def test_codec_and_size(folder, engine):
    make(Clip(), folder)
    assert translate("in.mp4", "-o", "out.mkv", "--codec", "ffv1", "--fit", "resize", "--size", "96x64") == 0
    after = content(Path("out.mkv"))
    assert after.times == [Fraction(pts, 90_000) for pts in EVEN]
    assert after.frames[0].format.is_rgb and (after.frames[0].width, after.frames[0].height) == (96, 64)
    assert translate("in.mp4", "-o", "hevc.mp4", "--codec", "libx265") == 0
    with av.open("hevc.mp4") as film:
        assert film.streams.video[0].codec_context.name == "hevc"


def test_output_folder(folder):
    make(Clip(name="my%20dog.mp4"), folder)
    assert translate("my%20dog.mp4", "-o", "films/") == 0
    assert names("films") == ["my%20dog.mp4"]


def test_batches_do_not_change_a_frame(folder):
    make(Clip(), folder)
    for size in ("1", "3"):
        assert translate("in.mp4", "-o", f"{size}.mkv", "--codec", "ffv1", "--batch-size", size) == 0
    one, three = (content(Path(name)).frames for name in ("1.mkv", "3.mkv"))
    for a, b in zip(one, three, strict=True):
        assert bytes(a.planes[0]) == bytes(b.planes[0])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.mp4", "-o", "out.mp4"], "there is no file 'none.mp4'"),
        (["model.safetensors", "-o", "out.mp4"], "as a film"),
        (["sound.mp4", "-o", "out.webm"], "give an --output ending in .mkv"),
        (["sound.mp4", "-o", "out.png"], "cannot write 'out.png'"),
        (["sound.mp4", "-o", "sound.mp4"], "would replace the input"),
        (["sound.mp4", "-o", "there.mp4"], "exists already"),
        (["sound.mp4", "sound.mp4", "-o", "out.mp4"], "translated alone"),
        (["sound.mp4", "-o", "out.mp4", "--codec", "h265x"], "expected an encoder"),
        (["sound.mp4", "-o", "out.mp4", "--codec", "aac"], "expected one for video"),
        (["sound.mp4", "-o", "out.mkv", "--codec", "ffv1", "--crf", "3"], "takes no --crf"),
        (["sound.mp4", "-o", "out.mp4", "--codec", "gif"], "takes no yuv420p"),
        (["sound.mp4", "-o", "out.mp4", "--codec", "libvpx"], "cannot write 64x48 pixels"),
        (["sound.mp4", "-o", "out.mp4", "--gallery"], "takes no --pair"),
        (["sound.mp4", "-o", "%05d.png", "--crf", "3"], "take no --codec"),
        (["%05d.png", "-o", "out.mp4"], "such as '00001.png'"),
    ],
)
def test_what_is_refused(folder, capsys, argv, message):
    make(Clip(name="sound.mp4", audio="aac"), folder)
    Path("there.mp4").write_bytes(b"")
    before = names(".")
    assert translate(*argv) == 2
    assert message in capsys.readouterr().err
    assert names(".") == before


def test_overwrite(folder):
    make(Clip(), folder)
    Path("out.mp4").write_bytes(b"other")
    assert translate("in.mp4", "-o", "out.mp4", "--overwrite") == 0
    assert len(content(Path("out.mp4")).times) == len(EVEN)


# -- damage ---------------------------------------------------------------------------------------------------

LONG = Clip(pts=range(0, 60 * 3600, 3600), options=(("crf", "12"), ("g", "10")))
FASTSTART = {"movflags": "faststart"}


def remade(source: Path, name: str, options: dict[str, str]) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as film, av.open(name, "w", container_options=options) as other:
        copies = {s.index: other.add_stream_from_template(s) for s in film.streams}
        for packet in film.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                other.mux(packet)
    return Path(name)


@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv"])
def test_a_film_that_is_cut_off(folder, capsys, name):
    whole = remade(make(replace(LONG, audio="aac"), folder), name, FASTSTART if name.endswith("mp4") else {})
    data = whole.read_bytes()
    cut = Path("cut" + whole.suffix)
    cut.write_bytes(data[: len(data) * 2 // 3])
    assert translate(str(cut), "-o", "out.mp4") == 1
    assert "cut off" in capsys.readouterr().err
    before, after = content(whole), content(Path("out.mp4"))
    count = len(after.times)
    assert 20 < count < 60
    times, there = ([round(t * 1000) for t in found.times] for found in (after, before))
    assert set(times) <= set(there)
    assert times[:-3] == there[: count - 3]  # B-frames between the last two whole frames are missing


def test_a_film_with_a_damaged_frame(folder, capsys):
    whole = make(LONG, folder)
    with av.open(str(whole)) as film:
        packets = [(p.pos, p.size, p.pts) for p in film.demux(video=0) if p.size]
    data = bytearray(whole.read_bytes())
    position, size, _ = packets[30]  # a key frame
    data[position + 40 : position + size] = np.random.default_rng(0).bytes(size - 40)
    Path("bad.mp4").write_bytes(data)
    assert translate("bad.mp4", "-o", "out.mp4", "--crf", "0") == 1
    assert "cannot be decoded" in capsys.readouterr().err
    before, after = content(whole), content(Path("out.mp4"))
    assert after.times == before.times[: len(after.times)]
    assert 20 <= len(after.times) <= 30


def test_a_film_without_a_whole_frame(folder, capsys):
    whole = remade(make(LONG, folder), "whole.mkv", {})
    Path("cut.mkv").write_bytes(whole.read_bytes()[:900])
    assert translate("cut.mkv", "-o", "out.mp4") == 2
    assert "no frame" in capsys.readouterr().err and not Path("out.mp4").exists()


# -- interrupts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_film(folder, number):
    make(Clip(pts=range(0, 400 * 3600, 3600), size=(128, 192), options=(("preset", "ultrafast"),)), folder)
    command = [sys.executable, "-m", "pix2pix", "translate", "in.mp4", "-o", "out.mp4", "-m", "model.safetensors"]
    before = names(".")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        while not any(name.endswith(".partial") and Path(name).stat().st_size for name in names(".")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert b"Traceback" not in told
    assert names(".") == before


def test_a_disk_that_is_full_leaves_no_film(folder):
    make(LONG, folder)
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
    command = [sys.executable, "-c", limit + "from pix2pix.cli import main; sys.exit(main())"]
    command += ["translate", "in.mp4", "-o", "out.mp4", "-m", "model.safetensors", "--crf", "0"]
    before = names(".")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, env=environment, check=False, text=True)
    assert done.returncode == 1 and "stopped: " in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert names(".") == before


# -- numbered images ------------------------------------------------------------------------------------------


def test_numbered_images(folder, engine):
    make(Clip(), folder)
    assert translate("in.mp4", "-o", "frames/%05d.png") == 0
    assert names("frames") == [f"{number:05}.png" for number in range(1, len(EVEN) + 1)]
    assert translate("frames/%05d.png", "-o", "again/%05d.png") == 0
    assert names("again") == names("frames")
    assert translate("frames/%05d.png", "-o", "out.mkv", "--codec", "ffv1", "--fps", "30000/1001") == 0
    film = content(Path("out.mkv"))
    assert [round(t * 1000) for t in film.times] == [round(Fraction(1_001_000 * i, 30_000)) for i in range(len(EVEN))]
    for number, frame in enumerate(film.frames, 1):
        image = pixels_of(f"frames/{number:05}.png")
        assert (pixels_of(f"again/{number:05}.png") == translated(engine, image)).all()
        assert (frame.to_ndarray(format="rgb24") == translated(engine, image)).all()


def test_generators_of_other_channels(folder, capsys):
    make(Clip(), folder)
    for channels in (1, 4):
        generator = unet(ngf=2, depth=5, in_channels=channels, out_channels=channels)
        checkpoints.write(f"{channels}.safetensors", generator, random_weights(generator))
    assert translate("in.mp4", "-o", "grey.mkv", "--codec", "ffv1", model="1.safetensors") == 0
    assert translate("in.mp4", "-o", "grey/%05d.png", model="1.safetensors") == 0
    grey = content(Path("grey.mkv")).frames[0].to_ndarray(format="rgb24")
    assert (grey == pixels_of("grey/00001.png")[:, :, None]).all()
    assert translate("in.mp4", "-o", "rgba.mkv", model="4.safetensors") == 2
    assert "numbered .png files do" in capsys.readouterr().err
    assert translate("in.mp4", "-o", "rgba/%05d.jpg", model="4.safetensors") == 2
    assert translate("in.mp4", "-o", "rgba/%05d.png", model="4.safetensors") == 0
    assert pixels_of("rgba/00001.png").shape == (48, 64, 4)


def test_numbered_images_keep_their_numbers_and_may_be_damaged(folder, capsys):
    make(Clip(), folder)
    assert translate("in.mp4", "-o", "frames/%03d.png") == 0
    Path("frames/001.png").unlink()
    data = Path("frames/006.png").read_bytes()
    Path("frames/006.png").write_bytes(data[: len(data) // 2])
    assert translate("frames/%03d.png", "-o", "out/%03d.png") == 1
    assert "006.png" in capsys.readouterr().err
    assert names("out") == ["002.png", "003.png", "004.png", "005.png"]
