"""The command line: what was asked for, and running it. Alone in this package, it prints and decides exit statuses.

Exit status: 0 all done, 1 some images failed or the run stopped early, 2 it could not start, 130 interrupted.
Imports are inside functions: what a command doesn't need, it doesn't wait for.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import mpi
from ..plans.plan import PRECISIONS, TUNES

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..model.generator import Generator, Weights
    from ..plans.plan import Plan

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG = "exit status: 0 all done; 1 some images failed, each is listed; 2 the run could not start; 130 interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit status."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd but harmless metadata in picture files
            return _run_on_ranks(argv)
    except KeyboardInterrupt:
        print("pix2pix: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        if mpi.launched()[0] == 0:  # of several processes that cannot start, one says why
            print(f"pix2pix: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2


def _run_on_ranks(argv: Sequence[str] | None) -> int:
    """Run a command line; under mpiexec rank 0 does, and the others do what it asks for."""
    comm = mpi.world()
    if comm is None:
        args = parser().parse_args(argv)
        return args.run(args)
    if comm.rank:
        return _serve(comm)
    with mpi.leading(comm) as ranks:
        args = parser().parse_args(argv)
        args.ranks = ranks
        return args.run(args)


def _serve(comm: MPI.Intracomm) -> int:
    """Do what rank 0 asks for. What goes wrong here ends all ranks: rank 0 would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, which goes to all, rank 0 makes something
    try:
        mpi.serve(comm)
    except Exception as error:
        print(f"pix2pix: rank {comm.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        comm.Abort(2)
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; a parsed command's ``run`` is the function that does it."""
    from .. import __version__

    top = argparse.ArgumentParser(
        "pix2pix", description="Run trained pix2pix generators fast, without the framework that trained them."
    )
    top.set_defaults(ranks=None)
    top.add_argument("--version", action="version", version=f"pix2pix {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_translate(commands)
    _add_convert(commands)
    _add_info(commands)
    demo = commands.add_parser("demo", help="translate the embedded pictures with the embedded model")
    demo.add_argument("--output", "-o", type=Path, default=Path("demo-output"), metavar="DIR", help="[demo-output]")
    demo.set_defaults(run=_demo)
    return top


def _add_translate(commands: Commands) -> None:
    p = commands.add_parser("translate", help="translate pictures", epilog=EPILOG, allow_abbrev=False)
    p.set_defaults(run=_translate)
    p.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image files, folders, or one raw .rgb file")
    p.add_argument("--output", "-o", required=True, metavar="DIR|FILE", help="where the results go; DIR/ is a folder")
    p.add_argument("--model", "-m", type=Path, required=True, metavar="FILE|DIR", help="a trained generator")
    engine = p.add_argument_group("engine")
    engine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0,1 or cpu,cuda:0 [auto]")
    engine.add_argument("--precision", default="float32", choices=PRECISIONS, help="[float32]")
    engine.add_argument("--threads", type=_count, metavar="N", help="CPU threads [the cores this process may use]")
    engine.add_argument(
        "--workers", type=_count, metavar="N", help="that share the work [4 per GPU if there are several]"
    )
    engine.add_argument(
        "--batch-size", type=_count, metavar="N", help="images per batch [8 on a CPU]; never changes a pixel"
    )
    engine.add_argument("--gpu-layers", metavar="LIST", help="layers on the GPU: a list, auto, all, seed-b or seed-c")
    engine.add_argument("--tune", default="throughput", choices=TUNES, help="[throughput]")
    engine.add_argument(
        "--plan",
        metavar="FILE|NAME",
        help="a plan file, or the name of an algorithm, e.g. winograd4: layers that cannot take it are direct",
    )
    model = p.add_argument_group("model")
    _add_model_options(model)
    pictures = p.add_argument_group("pictures")
    pictures.add_argument("--fit", choices=("resize", "pad"), help="scale to --size [default], or keep the size")
    pictures.add_argument("--size", type=_size, metavar="N|WxH", help="[what the model was trained at]")
    pictures.add_argument("--pair", choices=("AtoB", "BtoA"), help="pictures are A|B side by side; compare the result")
    pictures.add_argument("--format", "-f", choices=("png", "jpg", "same"), help="format of the results [png]")
    run = p.add_argument_group("run")
    run.add_argument(
        "--io",
        default="ranks",
        choices=("ranks", "root"),
        help="under mpiexec: each rank reads and writes files [ranks], or rank 0 alone, where they share no folder",
    )
    run.add_argument("--overwrite", action="store_true", help="make again what is there already")
    run.add_argument("--gallery", action="store_true", help="write gallery.html into the output folder")
    run.add_argument("--quiet", "-q", action="store_true", help="no progress, no summary")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the summary and all results as JSON; - is stdout")


def _add_convert(commands: Commands) -> None:
    p = commands.add_parser("convert", help="write a model as .safetensors", allow_abbrev=False)
    p.set_defaults(run=_convert)
    p.add_argument("source", type=Path, metavar="SOURCE", help="a trained generator")
    p.add_argument("target", type=Path, metavar="TARGET.safetensors")
    p.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="[float32]")
    _add_model_options(p)


def _add_info(commands: Commands) -> None:
    p = commands.add_parser("info", help="describe this build, or a model", allow_abbrev=False)
    p.set_defaults(run=_info)
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
    p.add_argument("--set", action="append", type=_setting, metavar="NAME=VALUE", help="correct the model: eps=1e-3")
    p.add_argument("--key", metavar="NAME", help="which model, of a file that has several")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


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


def _translate(args: argparse.Namespace) -> int:
    from ..files.run import run_translate

    args.to_folder = args.output.endswith(("/", os.sep))  # which a Path doesn't keep
    args.output = Path(args.output)
    return run_translate(args, sys.stdout, sys.stderr, args.ranks)


def _read(args: argparse.Namespace, path: Path) -> tuple[Generator, Weights]:
    """(generator, weights) of a model file, as --key, --set and --statistics say."""
    from ..loading import read_model

    return read_model(path, args.statistics, args.key, dict(args.set or ()))


def _convert(args: argparse.Namespace) -> int:
    from ..checkpoints import write
    from .info import provisos

    if args.target.suffix != ".safetensors":
        raise ValueError(f"got the target {str(args.target)!r}, expected a name ending in .safetensors")
    if args.target.exists() and args.target.samefile(args.source):
        raise ValueError(f"the target {str(args.target)!r} is the source: give another name")
    generator, weights = _read(args, args.source)
    write(args.target, generator, weights, dtype=args.dtype)
    if words := provisos(generator):
        print(words)
    print(f"{args.target}: {args.target.stat().st_size:,} bytes, {args.dtype}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from . import info

    if args.plan and not args.model:  # "info --plan MODEL": the option has taken the model's place
        args.model, args.plan = Path(args.plan), ""
    if args.model:
        generator, _ = _read(args, args.model)
        plan = _plan(args, generator)
        print(info.describe(generator))
        print()
        print(info.layer_table(generator, plan))
        if not args.measure:
            return 0
        print()
    elif args.plan is not None or args.gpu_layers:
        raise ValueError("--plan shows the plan of a model: name one")
    from .. import __version__
    from ..cpu.instruction_sets import build_info
    from ..cpu.peaks import measure

    facts = {"pix2pix": __version__, **build_info()}
    if args.measure:
        facts |= {name: f"{value:.4g}" for name, value in measure().items()}
    print(info.aligned(facts))
    return 0


def _plan(args: argparse.Namespace, generator: Generator) -> Plan | None:
    """The plan that --plan and --gpu-layers ask to be shown."""
    from ..plans import placements as placement
    from ..plans import plan

    if args.gpu_layers == "auto":
        raise ValueError("info measures no placement: translate with --gpu-layers auto writes a plan file to show here")
    if args.gpu_layers:
        return placement.decide(generator, args.gpu_layers, args.plan or None, "float32", args.tune)
    if args.plan is None:
        return None
    if args.plan == "" or args.plan in plan.ALGORITHMS["cpu"]:
        return plan.choose(generator, args.tune, args.plan or None)
    return plan.read(args.plan, generator)


def _demo(args: argparse.Namespace) -> int:
    from importlib import resources

    with resources.as_file(resources.files("pix2pix") / "demo") as folder:
        pictures = sorted(folder.glob("labels-*.png"))
        models = sorted(folder.glob("*.safetensors"))
        if not pictures or not models:
            raise RuntimeError(f"the demo's model or pictures are missing in {folder}: install the package again")
        argv = ["translate", *map(str, pictures), "--model", str(models[0]), "--output", str(args.output)]
        translate = parser().parse_args([*argv, "--gallery", "--overwrite"])
        translate.ranks = args.ranks
        status = translate.run(translate)
    if status == 0:
        print(f"open {(args.output / 'gallery.html').resolve()}")
    return status
