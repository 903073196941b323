"""The command line's arguments, and the options that they make."""

from __future__ import annotations

import argparse
import os
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, get_args

from ..files.options import FileAccess, Fit, OutputFormat, Pair, TranslateOptions
from ..mpi.launch import RANK_TIMEOUT
from ..plans.plan import TUNES
from ..plans.precisions import PRECISIONS
from ..video.options import PipeOptions, VideoOptions
from . import serve_parser
from .arguments import (
    add_engine_options,
    add_model_options,
    bytes_of,
    count_of,
    engine_options,
    factor_of,
    rate_of,
    seconds_of,
    size_of,
)

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
    serve_parser.add(
        commands.add_parser(
            "serve", help="serve a page and an HTTP API", epilog=serve_parser.EPILOG, allow_abbrev=False
        )
    )
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
        engine=engine_options(args, "latency" if args.raw else "throughput"),
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
    images = _add_images(p, kept=" [films]")
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
        type=seconds_of,
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
    add_engine_options(engine)
    engine.add_argument(
        "--batch-size", type=count_of, metavar="N", help="images per batch [8 on a CPU]; never changes a pixel"
    )
    add_model_options(p.add_argument_group("model"))


def _add_images(p: argparse.ArgumentParser, kept: str = "") -> argparse._ArgumentGroup:
    """``kept``: for what the size is kept by default, if for anything."""
    images = p.add_argument_group("images")
    images.add_argument("--fit", choices=get_args(Fit), help=f"scale to --size [default], or keep the size{kept}")
    images.add_argument("--size", type=size_of, metavar="N|WxH", help="[what the model was trained at]")
    images.add_argument("--format", "-f", choices=get_args(OutputFormat), help="format of the results [png]")
    return images


def _add_limits(run: argparse._ActionsContainer) -> None:
    run.add_argument(
        "--image-timeout",
        type=seconds_of,
        default=30.0,
        metavar="SECONDS",
        help="seconds of processor time after which decoding an image is given up [30]",
    )
    run.add_argument(
        "--memory",
        type=bytes_of,
        metavar="SIZE",
        help="memory that the process, or each rank, may use, e.g. 4G [what the system leaves it]",
    )


def _add_watch(commands: Commands) -> None:
    p = commands.add_parser("watch", help="translate images that appear in a folder", allow_abbrev=False)
    p.add_argument("inputs", nargs=1, type=Path, metavar="FOLDER", help="files are taken when they are complete")
    p.add_argument("--output", "-o", required=True, metavar="DIR", help="where the results go")
    p.add_argument("--model", "-m", type=Path, required=True, metavar="FILE|DIR", help="a trained generator")
    _add_engine_options(p)
    _add_images(p)
    run = p.add_argument_group("run")
    run.add_argument("--overwrite", action="store_true", help="make again what is there already")
    run.add_argument("--verify", action="store_true", help="compare the content of what is there, not size and time")
    _add_limits(run)
    run.add_argument("--quiet", "-q", action="store_true", help="no progress, no summary")
    p.set_defaults(pair=None, instances=None, no_instance=False, io="ranks", gallery=False, raw=None)


def _add_video_options(p: argparse._ActionsContainer) -> None:
    p.add_argument(
        "--raw", type=size_of, metavar="WxH", help="with INPUT - and --output -: raw frames, stdin to stdout"
    )
    p.add_argument("--codec", metavar="NAME", help="FFmpeg's encoder, e.g. libx265 [libx264; libvpx-vp9 for .webm]")
    p.add_argument("--crf", type=factor_of, metavar="N", help="constant rate factor: less is better and larger")
    p.add_argument("--fps", type=rate_of, default=Fraction(25), metavar="N", help="numbered images per second [25]")


def _add_convert(commands: Commands) -> None:
    p = commands.add_parser("convert", help="write a model as .safetensors", allow_abbrev=False)
    p.add_argument("source", type=Path, metavar="SOURCE", help="a trained generator")
    p.add_argument("target", type=Path, metavar="TARGET.safetensors")
    p.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="[float32]")
    p.add_argument(
        "--palette",
        type=Path,
        metavar="FILE",
        help='labels that the input is painted with, for the page of serve: JSON, {"sky": "#aadcff", ...}',
    )
    add_model_options(p)


def _add_info(commands: Commands) -> None:
    p = commands.add_parser("info", help="describe this build, or a model", allow_abbrev=False)
    p.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="a trained generator")
    p.add_argument(
        "--plan", nargs="?", const="", metavar="FILE|NAME", help="show what a plan, or the default, has for each layer"
    )
    p.add_argument("--gpu-layers", metavar="LIST", help="show the plan for a GPU: a list, all, seed-b or seed-c")
    p.add_argument("--tune", default="throughput", choices=TUNES, help="whose plan to show [throughput]")
    p.add_argument("--precision", default="float32", choices=PRECISIONS, help="whose plan to show [float32]")
    p.add_argument("--measure", action="store_true", help="measure what this machine can do")
    add_model_options(p)
