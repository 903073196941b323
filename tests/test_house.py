"""The house: imports point down only and never in circles, private names stay in their module, faces are known."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import pix2pix

ROOT = Path(pix2pix.__file__).resolve().parents[1]
# From the ground up; what stands in one row must not know its neighbours.
LAYERS = (
    {"errors"},
    {"atomic", "cgroups", "devices", "model"},
    {"plans", "checkpoints"},
    {"engines"},
    {"cpu", "gpu"},
    {"factory"},
    {"loading"},
    {"files"},
    {"mpi"},
    {"demo"},
    {"server", "video"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MOST_PARAMETERS = 8
INTRINSICS = ("pix2pix.gpu.ptx", "pix2pix.gpu.simulator")  # take what the instruction takes


def modules(top: str) -> dict[str, Path]:
    """Dotted name -> file of every module below a folder of the repository."""
    found = {}
    for path in sorted((ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a module imports of ``known``, wherever in its text it does so.

    The name is empty where a whole module is imported. Lazy imports and those for type checkers count.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if f"{module}.{alias.name}" in known:
                    yield f"{module}.{alias.name}", ""
                elif module in known:
                    yield module, alias.name


def room(module: str) -> str | None:
    """The room of a module of the package; None for the package's own face and entry point."""
    name = module.split(".")[1] if "." in module else None
    return None if name == "__main__" else name


@pytest.mark.parametrize("module", modules("pix2pix"))
def test_imports_point_down(module):
    known = modules("pix2pix")
    here = room(module)
    if here is None:
        return
    for target, _ in imports(module, known[module], known):
        there = room(target)
        if there not in (None, here):
            assert LEVEL[there] < LEVEL[here], f"{module} imports {target}"


def test_every_room_has_its_place():
    assert {room(module) for module in modules("pix2pix")} - {None} <= set(LEVEL)


@pytest.mark.parametrize("top", ["pix2pix", "bench", "ci"])
def test_no_imports_in_circles(top):
    known = modules(top)
    graph = {name: {target for target, _ in imports(name, path, known)} - {name} for name, path in known.items()}
    for name in graph:  # a package's face imports its rooms; a room that asks it for its version alone is no circle
        graph[name] -= {top}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("top", ["pix2pix", "bench", "ci"])
def test_private_names_stay_in_their_module(top):
    known = modules("pix2pix") | modules(top)
    for name, path in modules(top).items():
        taken = [f"{m}.{n}" for m, n in imports(name, path, known) if n.startswith("_") and n != "__version__"]
        assert not taken, f"{name} imports {', '.join(taken)}"


def test_no_engine_is_asked_for_attributes_that_it_may_lack():
    for name, path in {**modules("pix2pix"), **modules("bench")}.items():
        assert "getattr(engine" not in path.read_text(encoding="utf-8"), name


@pytest.mark.parametrize("top", ["pix2pix", "bench", "ci"])
def test_functions_have_few_parameters(top):
    for name, path in modules(top).items():
        if name.startswith(INTRINSICS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                all_of = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(a.arg not in ("self", "cls") for a in all_of)
                is_public_load = (name, node.name) == ("pix2pix.loading", "load")
                assert count <= MOST_PARAMETERS or is_public_load, f"{name}.{node.name} has {count} parameters"


def test_public_names():
    assert sorted(pix2pix.__all__) == ["Engine", "Generator", "Layer", "Plan", "checkpoints", "load"]
    assert {"read", "write", "CheckpointError"} <= set(vars(pix2pix.checkpoints))
    parameters = list(inspect.signature(pix2pix.load).parameters)
    assert parameters == [
        "model",
        "device",
        "precision",
        "tune",
        "statistics",
        "plan",
        "threads",
        "workers",
        "gpu_layers",
        "key",
        "overrides",
    ]
    for name in ("run", "translate", "translate_until", "stream", "empty", "close", "info"):
        assert hasattr(pix2pix.Engine, name)
