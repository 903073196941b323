"""The command line as a user meets it: exit statuses, messages, summaries, stopping and starting again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pix2pix
from pix2pix import checkpoints
from pix2pix.cli import main
from pix2pix.files.images import pad
from pix2pix.files.record import RECORD_NAME
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

GENERATOR = unet(ngf=2, depth=5, origin="a test")
ROOT = Path(pix2pix.__file__).resolve().parents[1]


def picture(h: int = 32, w: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A current folder with a model and five pictures in ``in``."""
    monkeypatch.chdir(tmp_path)
    checkpoints.write("model.safetensors", GENERATOR, random_weights(GENERATOR))
    for i in range(5):
        save(f"in/x{i}.png", 32, 32, i)
    return tmp_path


def save(name: str, *args: int) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(*args)).save(name)


def translate(*argv: str, model: str = "model.safetensors") -> int:
    return main(["translate", *argv, "-m", model])


def names(folder: str) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def pixels_of(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def expected(*args: int, fit: str = "resize") -> np.ndarray:
    x = picture(*args)
    h, w = x.shape[:2]
    with pix2pix.load("model.safetensors") as engine:
        return engine.translate(pad(x, 32))[:h, :w]


# -- what is made ---------------------------------------------------------------------------------------------


def test_a_folder(capsys):
    assert translate("in", "-o", "out") == 0
    assert names("out") == [RECORD_NAME, *(f"x{i}.png" for i in range(5))]
    np.testing.assert_array_equal(pixels_of("out/x3.png"), expected(32, 32, 3))
    printed = capsys.readouterr()
    assert "5 done, 0 skipped, 0 failed" in printed.out
    assert printed.err.startswith("device: cpu, ")


def test_padding_keeps_sizes():
    save("in/wide.png", 20, 70, 9)
    assert translate("in", "-o", "out", "--fit", "pad") == 0
    np.testing.assert_array_equal(pixels_of("out/wide.png"), expected(20, 70, 9))


def test_a_size_of_its_own():
    assert translate("in", "-o", "out", "--size", "96x64") == 0
    assert pixels_of("out/x0.png").shape == (64, 96, 3)


@pytest.mark.parametrize("output", ["y.png", "deep/y.jpg"])
def test_one_picture_to_a_file(output):
    assert translate("in/x1.png", "-o", output) == 0
    result = pixels_of(output).astype(int)
    assert abs(result - expected(32, 32, 1)).max() <= (0 if output.endswith("png") else 60)
    assert not list(Path().rglob(RECORD_NAME))
    assert translate("in/x1.png", "-o", output) == 2
    assert translate("in/x1.png", "-o", output, "--overwrite") == 0


def test_formats():
    assert translate("in", "-o", "jpg", "-f", "jpg") == 0
    assert names("jpg")[1] == "x0.png.jpg"
    Path("in/x0.png").rename("in/x0.webp")
    assert translate("in", "-o", "same", "--format", "same") == 0
    assert names("same")[1:3] == ["x0.webp", "x1.png"]


def test_options_reach_the_engine():
    assert translate("in/x0.png", "-o", "a.png") == 0
    assert translate("in/x0.png", "-o", "b.png", "--set", "output_scale=100", "--set", "eps=0.5") == 0
    with pix2pix.load("model.safetensors", overrides={"output_scale": 100, "eps": 0.5}) as engine:
        np.testing.assert_array_equal(pixels_of("b.png"), engine.translate(picture()))
    assert (pixels_of("a.png") != pixels_of("b.png")).any()
    assert translate("in", "-o", "c", "--threads", "1", "--batch-size", "2", "--tune", "latency") == 0
    np.testing.assert_array_equal(pixels_of("a.png"), pixels_of("c/x0.png"))


def test_the_summary_as_json():
    Path("in/x2.png").write_bytes(b"no picture")
    assert translate("in", "-o", "out", "--json", "deep/summary.json") == 1
    summary = json.loads(Path("deep/summary.json").read_text())
    assert (summary["done"], summary["skipped"], summary["failed"]) == (4, 0, 1)
    failure = {"input": str(Path("in/x2.png")), "reason": "damaged, or no picture of a known format"}
    assert summary["failures"] == [failure]
    assert summary["device"] == "cpu" and summary["threads"] >= 1 and summary["images_per_second"] > 0
    assert summary["metrics"] is None and summary["stopped"] is None
    assert sorted(image["status"] for image in summary["images"]) == ["done"] * 4 + ["failed"]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_the_summary_as_json_on_stdout(capsys, quiet):
    assert translate("in", "-o", "out", "--json", "-", *quiet) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["done"] == 5
    assert ("5 done" in printed.err) == (not quiet) and not Path("-").exists()


def test_a_summary_that_cannot_be_written_is_refused_before_the_run(monkeypatch, capsys):
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "closed")  # root may write everywhere
    assert translate("in", "-o", "out", "--json", "closed/deep/j.json") == 2
    assert "may not be written to" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("output", ["a.tga/", "b.png/", "c.v2", "there.tga"])
def test_outputs_that_are_folders(output):
    Path("there.tga").mkdir()
    assert translate("in/x1.png", "-o", output) == 0
    assert names(output) == [RECORD_NAME, "x1.png"]


def test_pairs_are_compared_and_shown(capsys):
    y = expected(32, 32, 0)
    Path("pairs").mkdir()
    Image.fromarray(np.hstack([picture(32, 32, 0), y])).save("pairs/same.png")
    Image.fromarray(np.hstack([picture(32, 32, 0), 255 - y])).save("pairs/other.png")
    assert translate("pairs", "-o", "out", "--pair", "AtoB", "--gallery", "--json", "j.json") == 0
    summary = json.loads(Path("j.json").read_text())
    same, other = sorted(summary["images"], key=lambda image: image["input"], reverse=True)
    assert (same["psnr"], same["l1"]) == (None, 0) and same["ssim"] == pytest.approx(1)
    assert other["psnr"] == summary["metrics"]["psnr"] and other["l1"] > 0
    assert "mean PSNR" in capsys.readouterr().out
    page = Path("out/gallery.html").read_text()
    assert page.count("<figcaption>target</figcaption>") == 2 and "identical" in page


def test_the_gallery_shows_what_was_made_earlier_too():
    assert translate("in", "-o", "out") == 0
    save("in/new.png", 32, 32, 9)
    assert translate("in", "-o", "out", "--gallery", "--json", "j.json") == 0
    assert json.loads(Path("j.json").read_text())["skipped"] == 5
    assert Path("out/gallery.html").read_text().count("<article") == 6


def test_quiet_says_the_device_and_failures_alone(capsys):
    Path("in/x2.png").write_bytes(b"no picture")
    assert translate("in", "-o", "out", "-q") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    device, failed = printed.err.splitlines()
    assert device.startswith("device: cpu") and failed.startswith(f"failed: {Path('in/x2.png')}: damaged")


# -- raw files ------------------------------------------------------------------------------------------------


def test_raw_files(capsys):
    frames = np.stack([picture(32, 32, i) for i in range(5)])
    Path("in.rgb").write_bytes(frames.tobytes())
    assert translate("in.rgb", "-o", "out.rgb", "--batch-size", "2", "--json", "j.json") == 0
    with pix2pix.load("model.safetensors") as engine:
        assert Path("out.rgb").read_bytes() == engine.translate(frames).tobytes()
    assert json.loads(Path("j.json").read_text())["done"] == 5
    stamp = Path("out.rgb").stat().st_mtime_ns
    assert translate("in.rgb", "-o", "out.rgb") == 0
    assert "0 done, 5 skipped" in capsys.readouterr().out and Path("out.rgb").stat().st_mtime_ns == stamp
    assert translate("in.rgb", "-o", "out.rgb", "--set", "eps=0.1") == 2
    assert translate("in.rgb", "-o", "out.rgb", "--set", "eps=0.1", "--overwrite") == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["in.rgb", "-o", "out"], "into an --output that is a .rgb file"),
        (["in.rgb", "in", "-o", "out.rgb"], "translated alone"),
        (["in.rgb", "-o", "out.rgb", "--gallery"], "takes --size alone"),
        (["in.rgb", "-o", "out.rgb", "--size", "64"], "expected a multiple of 12288"),
        (["in.rgb", "-o", "out.rgb", "--size", "33"], "multiples of 32"),
        (["in.rgb", "-o", "./in.rgb"], "would replace an input"),
        (["none.rgb", "-o", "out.rgb"], "there is no file 'none.rgb'"),
    ],
)
def test_raw_files_that_cannot_be_translated(capsys, argv, message):
    Path("in.rgb").write_bytes(bytes(5 * 32 * 32 * 3))
    assert translate(*argv) == 2
    assert message in capsys.readouterr().err and not Path("out.rgb").exists()


# -- runs that go on, and those that don't start --------------------------------------------------------------


def test_what_is_made_is_kept():
    assert translate("in", "-o", "out") == 0
    stamps = {name: Path("out", name).stat().st_mtime_ns for name in names("out")}
    Path("out/x3.png").unlink()
    assert translate("in", "-o", "out", "--json", "j.json") == 0
    summary = json.loads(Path("j.json").read_text())
    assert (summary["done"], summary["skipped"]) == (1, 4)
    del stamps["x3.png"]
    assert {name: Path("out", name).stat().st_mtime_ns for name in stamps} == stamps


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        (["--fit", "pad"], "fit: resize there, pad now"),
        (["--size", "64"], "size: 32x32 there, 64x64 now"),
        (["--set", "eps=0.5"], "overrides: {} there, {'eps': 0.5} now"),
        (["--plan", "direct"], " there, direct now"),
        (["--format", "jpg"], "format: png there, jpg now"),
    ],
)
def test_other_options_are_never_mixed(capsys, option, difference):
    assert translate("in", "-o", "out") == 0
    before = pixels_of("out/x0.png")
    assert translate("in", "-o", "out", *option) == 2
    printed = capsys.readouterr().err
    assert difference in printed and "--overwrite" in printed
    np.testing.assert_array_equal(pixels_of("out/x0.png"), before)
    assert translate("in", "-o", "out", *option, "--overwrite") == 0
    assert translate("in", "-o", "out", *option) == 0


def test_a_plan_is_known_by_what_it_does(monkeypatch, capsys):
    from pix2pix.plans import plan

    assert translate("in", "-o", "out", "--plan", "direct") == 0
    monkeypatch.setattr(plan, "_on_cpu", lambda *_: "direct")  # as another version of the package might choose
    assert translate("in", "-o", "out") == 0
    monkeypatch.setattr(plan, "_on_cpu", lambda *_: "winograd2")
    assert translate("in", "-o", "out") == 2
    assert "plan: direct there" in capsys.readouterr().err


def test_another_model_is_never_mixed(capsys):
    assert translate("in", "-o", "out") == 0
    checkpoints.write("other.safetensors", GENERATOR, random_weights(GENERATOR, seed=1))
    assert translate("in", "-o", "out", model="other.safetensors") == 2
    assert "model: " in capsys.readouterr().err
    Path("other.safetensors").write_bytes(Path("model.safetensors").read_bytes())
    assert translate("in", "-o", "out", model="other.safetensors") == 0


def test_files_of_the_user_are_not_replaced(capsys):
    save("out/x0.png", 32, 32, 77)
    assert translate("in", "-o", "out") == 2
    assert "exists already" in capsys.readouterr().err
    np.testing.assert_array_equal(pixels_of("out/x0.png"), picture(32, 32, 77))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing", "-o", "out"], "there is no file or folder 'nothing'"),
        (["empty", "-o", "out"], "found no pictures in empty"),
        (["in", "-o", "in"], "is the input folder"),
        (["in", "-o", "model.safetensors"], "is a file: expected a folder"),
        (["in/x0.png", "same/x0.png", "-o", "out"], "would both be written to"),
        (["in", "-o", "out", "--size", "100"], "takes multiples of 32"),
        (["in", "-o", "out", "--device", "cuda:99"], "cuda"),
        (["in", "-o", "out", "--device", "tpu"], "expected auto, cpu, cuda"),
        (["in", "-o", "out", "--precision", "float16"], "in float32 or bfloat16"),
        (["in", "-o", "out", "--gpu-layers", "auto", "--device", "cpu"], "places layers on a GPU"),
        (["in", "-o", "out", "--set", "beta=1"], "cannot override 'beta'"),
        (["in", "-o", "out", "--statistics", "running"], "holds none: it needs 'image'"),
        (["in", "-o", "out", "--plan", "none.json"], "cannot read a plan"),
        (["in/x0.png", "-o", "y.png", "--gallery"], "is the name of a file"),
        (["in/x0.png", "-o", "y.gif"], "expected a name ending in .png"),
        (["in/x0.png", "-o", "y.tga"], "expected a name ending in .png, .jpg"),
        (["in/x0.png", "-o", "y.jpge"], "or a folder: 'y.jpge/'"),
        (["in", "-o", "out", "--json", "in"], "--json 'in' is a folder"),
        (["in", "-o", "out", "--json", "in/x0.png/j.json"], "is no folder"),
        (["in", "-o", "y.png"], "the name of one picture: expected a folder"),
    ],
)
def test_runs_that_cannot_start(capsys, argv, message):
    Path("empty").mkdir()
    save("same/x0.png")
    before = names(".")
    assert translate(*argv) == 2
    assert message in capsys.readouterr().err
    assert names(".") == before


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["translate", "in"],
        ["translate", "in", "-o", "out", "-m", "m", "--size", "0"],
        ["translate", "in", "-o", "out", "-m", "m", "--size", "1x2x3"],
        ["translate", "in", "-o", "out", "-m", "m", "--batch-size", "-1"],
        ["translate", "in", "-o", "out", "-m", "m", "--set", "eps"],
        ["translate", "in", "-o", "out", "-m", "m", "--overw"],
    ],
)
def test_command_lines_that_make_no_sense(argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_a_model_that_is_none(capsys):
    Path("bad.pth").write_bytes(b"no model")
    assert translate("in", "-o", "out", model="bad.pth") == 2
    assert translate("in", "-o", "out", model="none.pth") == 2
    assert "bad.pth" in (printed := capsys.readouterr().err) and "none.pth" in printed
    assert not Path("out").exists()


def test_channels_that_files_cannot_hold(capsys):
    for channels, argv in (((3, 2), []), ((3, 4), ["-f", "jpg"])):
        generator = unet(2, 5, *channels)
        checkpoints.write("model.safetensors", generator, random_weights(generator))
        assert translate("in", "-o", "out", *argv) == 2
    printed = capsys.readouterr().err
    assert "makes pictures of 2 channels" in printed and "no alpha" in printed
    assert not Path("out").exists()


# -- as a process ---------------------------------------------------------------------------------------------


def process(*argv: str, code: str = "") -> subprocess.Popen:
    start = ["-c", code] if code else ["-m", "pix2pix"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *start, *argv], env=environment, stdout=pipe, stderr=pipe, text=True)


SLOW = """
import signal, sys, time
from pix2pix.cpu.engine import CpuEngine
from pix2pix.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a shell's background job ignores it
translate = CpuEngine._translate
def slowly(self, b, out, stop):
    time.sleep(0.1)
    translate(self, b, out, stop)
CpuEngine._translate = slowly
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(how):
    for i in range(40):
        save(f"many/x{i}.png", 32, 32, i)
    argv = ["translate", "many", "-o", "out", "-m", "model.safetensors", "--batch-size", "1", "--json", "j.json"]
    stopped = process(*argv, code=SLOW)
    deadline = time.monotonic() + 30
    while len(list(Path().glob("out/*.png"))) < 3 and stopped.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.send_signal(how)
    started = time.monotonic()
    _, err = stopped.communicate(timeout=30)
    assert time.monotonic() - started < 5
    made = {p.name for p in Path("out").glob("*.png")}
    assert 3 <= len(made) < 40
    for name in made:
        assert pixels_of(f"out/{name}").shape == (32, 32, 3)
    if how == signal.SIGINT:
        assert stopped.returncode == 130 and "give the same command again" in err
        assert json.loads(Path("j.json").read_text())["stopped"] == "interrupted"
        assert not list(Path("out").glob(".*.partial"))
    stamps = {name: Path("out", name).stat().st_mtime_ns for name in made}
    assert main(argv) == 0
    assert {name: Path("out", name).stat().st_mtime_ns for name in made} == stamps
    assert json.loads(Path("j.json").read_text())["skipped"] == len(made)
    assert names("out") == sorted([RECORD_NAME, *(f"x{i}.png" for i in range(40))])


def test_a_full_disk_stops_the_run_with_a_message(monkeypatch, capsys):
    from pix2pix.files import images

    write = images.write

    def fail(path, data):
        if path.name == "x3.png":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(images, "write", fail)
    assert translate("in", "-o", "out", "--gallery", "--json", "j.json") == 1
    assert "stopped: [Errno 28] No space left on device" in capsys.readouterr().err
    assert "No space left" in json.loads(Path("j.json").read_text())["stopped"]


def test_python_m_pix2pix():
    done = process("--version")
    assert done.communicate(timeout=30)[0] == f"pix2pix {pix2pix.__version__}\n" and done.returncode == 0
    failed = process("translate", "nothing", "-o", "out", "-m", "model.safetensors")
    err = failed.communicate(timeout=30)[1]
    assert failed.returncode == 2 and err == "pix2pix: error: there is no file or folder 'nothing'\n"


def test_commands_wait_only_for_what_they_need():
    code = "import sys, pix2pix.cli; sys.exit(any(m in sys.modules for m in ('PIL', 'tqdm', 'safetensors')))"
    assert process(code=code).wait(timeout=30) == 0


def test_a_terminal_gets_a_bar():
    from pix2pix.files.report import Progress

    class Terminal(list):
        write, flush, isatty = list.append, staticmethod(lambda: None), staticmethod(lambda: True)

    terminal = Terminal()
    with Progress(10, terminal) as progress:
        progress.update(4)
        progress.message("failed: x.png: damaged")
    printed = "".join(terminal)
    assert "4/10" in printed and "failed: x.png: damaged\n" in printed


def test_a_log_gets_a_line_every_few_seconds(monkeypatch, capsys):
    from pix2pix.files import report

    monkeypatch.setattr(report, "SECONDS_BETWEEN_LINES", 0.0)
    with report.Progress(10, sys.stderr) as progress:
        progress.update(4)
    assert capsys.readouterr().err.startswith("4/10 images, ")


# -- the other commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2)])
def test_convert(dtype, tolerance):
    assert main(["convert", "model.safetensors", "new.safetensors", "--dtype", dtype, "--set", "eps=0.5"]) == 0
    generator, _ = checkpoints.read(Path("new.safetensors"))
    assert generator.eps == 0.5
    assert translate("in/x0.png", "-o", "a.png", "--set", "eps=0.5") == 0
    assert translate("in/x0.png", "-o", "b.png", model="new.safetensors") == 0
    assert abs(pixels_of("a.png").astype(int) - pixels_of("b.png")).max() <= tolerance


def test_conversions_that_make_no_sense(capsys):
    assert main(["convert", "model.safetensors", "new.pth"]) == 2
    assert main(["convert", "model.safetensors", "./model.safetensors"]) == 2
    printed = capsys.readouterr().err
    assert "ending in .safetensors" in printed and "is the source" in printed


def test_info_of_this_build(capsys):
    assert main(["info", "--measure"]) == 0
    printed = capsys.readouterr().out
    assert pix2pix.__version__ in printed and "instruction set" in printed and "gflops" in printed


def test_info_of_a_model(capsys):
    assert main(["info", "model.safetensors", "--plan", "--set", "eps=0.25"]) == 0
    printed = capsys.readouterr().out
    parameters = sum(int(np.prod(shape)) for shape in GENERATOR.tensors().values())
    for fact in ("eps 0.25", "32x32, takes multiples of 32", f"{parameters:,}", "encoder_5", "decoder_1", "plan"):
        assert fact in printed
    assert main(["info", "--plan"]) == 2
    capsys.readouterr()


def plan_column(argv, capsys) -> dict[str, str]:
    """What ``info`` shows as the plan of each layer."""
    assert main(argv) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = {layer.name for layer in GENERATOR.layers}
    return {line[0]: " ".join(line[-2:]) for line in lines if line and line[0] in names}


def test_info_of_a_plan(capsys):
    from pix2pix.plans.plan import choose

    default = choose(GENERATOR, "throughput")
    shown = plan_column(["info", "model.safetensors", "--plan"], capsys)
    assert shown == {name: f"cpu {algorithm}" for name, algorithm in default.layers.items()}
    assert shown == plan_column(["info", "--plan", "model.safetensors"], capsys)
    direct = plan_column(["info", "model.safetensors", "--plan", "direct"], capsys)
    assert set(direct.values()) == {"cpu direct"}
    placed = plan_column(["info", "model.safetensors", "--gpu-layers", "encoder_2-4", "--plan", "im2col"], capsys)
    assert [name for name, what in placed.items() if what == "cuda im2col"] == ["encoder_2", "encoder_3", "encoder_4"]
    assert placed["decoder_2"] == shown["decoder_2"]
    default.save("plan.json")
    assert plan_column(["info", "model.safetensors", "--plan", "plan.json"], capsys) == shown
    for options in (["--plan", "absent.json"], ["--gpu-layers", "auto"], ["--gpu-layers", "encoder_9"]):
        assert main(["info", "model.safetensors", *options]) == 2
        assert capsys.readouterr().out == ""


def test_what_a_file_does_not_say_is_shown_with_its_correction(capsys):
    model = str(Path(__file__).parents[1] / "checkpoints" / "data" / "batch.pth")
    assert main(["info", model]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for line in ("eps 1e-05 --set eps=NUMBER", "slope 0.2 --set slope=NUMBER", "statistics image --statistics running"):
        assert line in printed
    assert "size 32 --set size=NUMBER" in printed
    corrections = ["--set", "eps=1e-3", "--set", "slope=0.3", "--set", "size=64", "--statistics", "running"]
    assert main(["convert", model, "new.safetensors", *corrections]) == 0
    assert "not in the file" not in capsys.readouterr().out
    generator, _ = checkpoints.read("new.safetensors")
    assert (generator.eps, generator.slope, generator.statistics) == (1e-3, 0.3, "running")


def test_what_was_found_in_a_model_is_told_before_the_run(capsys):
    model = Path(__file__).parents[1] / "checkpoints" / "data" / "keras_3_bare.weights.h5"
    assert main(["translate", "in/x0.png", "-o", "y.png", "--model", str(model), "--device", "cpu"]) == 0
    assert "model: the file holds weights and no graph of layers" in capsys.readouterr().err


def test_stored_statistics_that_are_not_there(capsys):
    model = str(Path(__file__).parents[1] / "checkpoints" / "data" / "instance.pth")
    assert main(["convert", model, "new.safetensors", "--statistics", "running"]) == 2
    assert "holds none: it needs 'image'" in capsys.readouterr().err and not Path("new.safetensors").exists()


def test_demo(capsys):
    assert main(["demo", "--output", "d"]) == 0
    page = Path("d/gallery.html")
    assert str(page.resolve()) in capsys.readouterr().out
    assert page.read_text().count("<article") == len([n for n in names("d") if n.endswith(".png")]) >= 2
    assert main(["demo", "--output", "d"]) == 0
