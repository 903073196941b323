"""The command line's arguments, and the options that they make."""

from __future__ import annotations

import argparse
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, get_args

from ..factory import EngineOptions
from ..files.options import FileAccess, Fit, OutputFormat, Pair, TranslateOptions
from ..mpi.launch import RANK_TIMEOUT
from ..plans.plan import TUNES
from ..plans.precisions import PRECISIONS
from ..video.options import PipeOptions, VideoOptions

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # which has no public name
EPILOG = "exit status: 0 all done; 1 some images failed, each is listed; 2 the run could not start; 130 interrupted"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; a parsed command's ``command`` is its name."""
    from .. import __version__

    top = argparse.ArgumentParser(
        "pix2pix", description="Run trained pix2pix generators fast, without the framework that trained them."
    )
    top.add_argument("--version", action="version", version=f"pix2pix {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_translate(commands)
    _add_watch(commands)
    _add_convert(commands)
    _add_info(commands)
    demo = commands.add_parser("demo", help="translate the embedded images with the embedded model")
    demo.add_argument("--output", "-o", type=Path, default=Path("demo-output"), metavar="DIR", help="[demo-output]")
    return top


def translate_options(args: argparse.Namespace) -> TranslateOptions:
    """The options of a parsed ``translate`` or ``watch`` command."""
    return TranslateOptions(
        inputs=tuple(args.inputs),
        output=Path(args.output),
        to_folder=args.output.endswith(("/", os.sep)),  # which a Path doesn't keep
        model=args.model,
        engine=EngineOptions(
            device=args.device,
            precision=args.precision,
            tune=args.tune or ("latency" if args.raw else "throughput"),
            plan=args.plan,
            threads=args.threads,
            workers=args.workers,
            gpu_layers=args.gpu_layers,
        ),
        statistics=args.statistics,
        overrides=dict(args.set),
        key=args.key,
        fit=args.fit,
        size=args.size,
        pair=args.pair,
        instances=args.instances,
        no_instance=args.no_instance,
        format=args.format,
        batch_size=args.batch_size,
        image_timeout=args.image_timeout,
        memory=args.memory,
        io=args.io,
        overwrite=args.overwrite,
        verify=args.verify,
        gallery=args.gallery,
    )


def pipe_options(args: argparse.Namespace) -> PipeOptions:
    """The options of a parsed ``translate --raw`` command."""
    return PipeOptions(translate_options(args), args.raw)


def video_options(args: argparse.Namespace) -> VideoOptions:
    """The options of a parsed ``translate`` command for a film or numbered images."""
    return VideoOptions(translate_options(args), args.codec, args.crf, args.fps)


def _add_translate(commands: Commands) -> None:
    p = commands.add_parser("translate", help="translate images", epilog=EPILOG, allow_abbrev=False)
    p.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="image files, folders, one film, one raw .rgb file"
    )
    p.add_argument("--output", "-o", required=True, metavar="DIR|FILE", help="where the results go; DIR/ is a folder")
    p.add_argument("--model", "-m", type=Path, required=True, metavar="FILE|DIR", help="a trained generator")
    _add_engine_options(p)
    images = p.add_argument_group("images")
    images.add_argument("--fit", choices=get_args(Fit), help="scale to --size [default], or keep the size [films]")
    images.add_argument("--size", type=_size, metavar="N|WxH", help="[what the model was trained at]")
    images.add_argument("--pair", choices=get_args(Pair), help="images are A|B side by side; compare the result")
    instances = images.add_mutually_exclusive_group()
    instances.add_argument(
        "--instances",
        type=Path,
        metavar="DIR|FILE",
        help="of label maps for pix2pixHD: images of the instances in them",
    )
    instances.add_argument(
        "--no-instance", action="store_true", help="the generator was trained on label maps without instances"
    )
    images.add_argument("--format", "-f", choices=get_args(OutputFormat), help="format of the results [png]")
    _add_video_options(p.add_argument_group("films, numbered images, pipes"))
    run = p.add_argument_group("run")
    run.add_argument(
        "--io",
        default="ranks",
        choices=get_args(FileAccess),
        help="under mpiexec: each rank reads and writes files [ranks], or rank 0 alone, where they share no folder",
    )
    run.add_argument(
        "--rank-timeout",
        type=_seconds,
        default=RANK_TIMEOUT,
        metavar="SECONDS",
        help=f"under mpiexec: end the job when a rank gives no sign of life for so long [{RANK_TIMEOUT:g}]",
    )
    run.add_argument("--overwrite", action="store_true", help="make again what is there already")
    run.add_argument("--verify", action="store_true", help="compare the content of what is there, not size and time")
    _add_limits(run)
    run.add_argument("--gallery", action="store_true", help="write gallery.html into the output folder")
    run.add_argument("--quiet", "-q", action="store_true", help="no progress, no summary")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the summary and all results as JSON; - is stdout")


def _add_engine_options(p: argparse.ArgumentParser) -> None:
    engine = p.add_argument_group("engine")
    engine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0,1 or cpu,cuda:0 [auto]")
    engine.add_argument("--precision", default="float32", choices=PRECISIONS, help="[float32]")
    engine.add_argument(
        "--threads", type=_count, metavar="N", help="CPU threads [OMP_NUM_THREADS, else the cores that may be used]"
    )
    engine.add_argument(
        "--workers", type=_count, metavar="N", help="that share the work [4 per GPU if there are several]"
    )
    engine.add_argument(
        "--batch-size", type=_count, metavar="N", help="images per batch [8 on a CPU]; never changes a pixel"
    )
    engine.add_argument("--gpu-layers", metavar="LIST", help="layers on the GPU: a list, auto, all, seed-b or seed-c")
    engine.add_argument("--tune", choices=TUNES, help="[throughput; latency with --raw]")
    engine.add_argument(
        "--plan",
        metavar="FILE|NAME",
        help="a plan file, or the name of an algorithm, e.g. winograd4: layers that cannot take it are direct",
    )
    _add_model_options(p.add_argument_group("model"))


def _add_limits(run: argparse._ActionsContainer) -> None:
    run.add_argument(
        "--image-timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="seconds of processor time after which decoding an image is given up [30]",
    )
    run.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="memory that the process, or each rank, may use, e.g. 4G [what the system leaves it]",
    )


def _add_watch(commands: Commands) -> None:
    p = commands.add_parser("watch", help="translate images that appear in a folder", allow_abbrev=False)
    p.add_argument("inputs", nargs=1, type=Path, metavar="FOLDER", help="files are taken when they are complete")
    p.add_argument("--output", "-o", required=True, metavar="DIR", help="where the results go")
    p.add_argument("--model", "-m", type=Path, required=True, metavar="FILE|DIR", help="a trained generator")
    _add_engine_options(p)
    images = p.add_argument_group("images")
    images.add_argument("--fit", choices=get_args(Fit), help="scale to --size [default], or keep the size")
    images.add_argument("--size", type=_size, metavar="N|WxH", help="[what the model was trained at]")
    images.add_argument("--format", "-f", choices=get_args(OutputFormat), help="format of the results [png]")
    run = p.add_argument_group("run")
    run.add_argument("--overwrite", action="store_true", help="make again what is there already")
    run.add_argument("--verify", action="store_true", help="compare the content of what is there, not size and time")
    _add_limits(run)
    run.add_argument("--quiet", "-q", action="store_true", help="no progress, no summary")
    p.set_defaults(pair=None, instances=None, no_instance=False, io="ranks", gallery=False, raw=None)


def _add_video_options(p: argparse._ActionsContainer) -> None:
    p.add_argument("--raw", type=_size, metavar="WxH", help="with INPUT - and --output -: raw frames, stdin to stdout")
    p.add_argument("--codec", metavar="NAME", help="FFmpeg's encoder, e.g. libx265 [libx264; libvpx-vp9 for .webm]")
    p.add_argument("--crf", type=_factor, metavar="N", help="constant rate factor: less is better and larger")
    p.add_argument("--fps", type=_rate, default=Fraction(25), metavar="N", help="numbered images per second [25]")


def _add_convert(commands: Commands) -> None:
    p = commands.add_parser("convert", help="write a model as .safetensors", allow_abbrev=False)
    p.add_argument("source", type=Path, metavar="SOURCE", help="a trained generator")
    p.add_argument("target", type=Path, metavar="TARGET.safetensors")
    p.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="[float32]")
    _add_model_options(p)


def _add_info(commands: Commands) -> None:
    p = commands.add_parser("info", help="describe this build, or a model", allow_abbrev=False)
    p.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="a trained generator")
    p.add_argument(
        "--plan", nargs="?", const="", metavar="FILE|NAME", help="show what a plan, or the default, has for each layer"
    )
    p.add_argument("--gpu-layers", metavar="LIST", help="show the plan for a GPU: a list, all, seed-b or seed-c")
    p.add_argument("--tune", default="throughput", choices=TUNES, help="whose plan to show [throughput]")
    p.add_argument("--measure", action="store_true", help="measure what this machine can do")
    _add_model_options(p)


def _add_model_options(p: argparse._ActionsContainer) -> None:
    p.add_argument("--statistics", choices=("image", "running"), help="[what the model's own program does]")
    p.add_argument(
        "--set", action="append", type=_setting, default=[], metavar="NAME=VALUE", help="correct the model: eps=1e-3"
    )
    p.add_argument("--key", metavar="NAME", help="which model, of a file that has several")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def _factor(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 63:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 0 to 63")
    return int(text)


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected images per second, e.g. 25 or 30000/1001")
    return rate


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds above 0")
    return seconds


def _bytes(text: str) -> int:
    """The bytes that "500M", "4G" or a number of bytes means."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.upper())
    if found is None or not (count := int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a size, e.g. 500M or 4G")
    return count


def _size(text: str) -> tuple[int, int]:
    """The (H, W) that "N" or "WxH" in pixels means."""
    try:
        sides = [_count(side) for side in text.lower().split("x")]
    except argparse.ArgumentTypeError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected N or WxH pixels, e.g. 256 or 512x256")
    return sides[-1], sides[0]


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=NUMBER, e.g. eps=1e-3") from None
