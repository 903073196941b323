"""The cases of the fuzzer: small real model files, damaged or turned hostile at random. See fuzz.py."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pix2pix import checkpoints
from pix2pix.checkpoints import course
from tests.checkpoints.seeded import state_dict

DATA = Path(__file__).parent / "data"
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 127, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)

Files = dict[str, bytes]  # what a case consists of, by its path in the case's folder
Case = tuple[Files, str, dict[str, str]]  # the files, which of them to read ("" for the folder), and links to make


# -- bytes ----------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a few bits flipped, parts cut out, doubled, moved or overwritten by hostile numbers."""
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not b:
            break
        # half of the damage goes to the ends, where headers and directories are
        span = len(b) if rng.random() < 0.5 else min(len(b), 2000)
        at = rng.randrange(span) if rng.random() < 0.6 else len(b) - 1 - rng.randrange(span)
        kind = rng.randrange(7)
        if kind == 0:
            b[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            b[at] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice(NUMBERS)
            b[at : at + 8] = struct.pack("<Q", number)[: rng.choice((1, 2, 4, 8))]
        elif kind == 3:
            del b[at : at + rng.choice((1, 2, 4, 100))]
        elif kind == 4:
            b[at:at] = b[at : at + rng.choice((1, 4, 60))]
        elif kind == 5:
            other = rng.randrange(len(b))
            b[at : at + 40] = b[other : other + 40]
        else:
            del b[at:]
    return bytes(b)


# -- PyTorch --------------------------------------------------------------------------------------------------

REFERENCES = (
    b"os\nsystem",
    b"builtins\neval",
    b"builtins\nexec",
    b"posix\nsystem",
    b"subprocess\nPopen",
    b"os\nremove",
)
HOSTILE = [
    # calls of what a reader must never call, in every way that pickles know
    *(b"c%s\n(X\x06\x00\x00\x00touch xtR" % name for name in REFERENCES),
    *(b"(X\x01\x00\x00\x00xi%s\n" % name for name in REFERENCES),
    *(b"(c%s\nX\x01\x00\x00\x00xo" % name for name in REFERENCES),
    *(b"\x8c\x02os\x8c\x06system\x93(X\x01\x00\x00\x00xtR", b"ctorch\nFloatStorage\n)\x81"),
    *(b"ccollections\nOrderedDict\n)\x81}b", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"),
    # lengths and numbers far beyond the file
    *(b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8e" + b"\x7f" * 8),
    *(b"\x8b\xff\xff\xff\x7f", b"\x8a\xff", b"T\xff\xff\xff\xff", b"T\xff\xff\xff\x7f", b"\x96" + b"\x7f" * 8),
    *(b"\x95" + b"\xff" * 8, b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"I" + b"9" * 5000 + b"\n"),
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x01\x8a\x06\xff\xff\xff\xff\xff\x7ftQ",
    # nesting, growth through the memo, and operands that are missing or of another kind
    *(b"(" * 5000, b"]" * 5000, b"}" * 5000, b"(" * 3000 + b"t" * 3000, b"]" + b"(" * 500 + b"e" * 500),
    *(b")" + b"\x85" * 100_000 + b"Ns", b")q\x00" + b"h\x00h\x00\x86q\x00" * 3000, b"]q\x00" + b"h\x00" * 2000 + b"e"),
    b"](" + b"K\x01K\x02\x86" * 9000 + b"eq\x00" + b"ccollections\nOrderedDict\n(h\x00tR0" * 9000,
    *(b"}q\x00h\x00h\x00s", b"]q\x00h\x00a", b"0" * 50, b"1" * 50, b"\x80\xff", b"N.", b"K\x01Q", b")Q"),
    *(b"ccollections\nOrderedDict\n(](K\x01K\x02\x86K\x01etR", b"ctorch\nSize\n)R", b"(2" + b"2" * 2000 + b"l" * 5),
]


def pickle_tokens(data: bytes) -> list[int]:
    """Where the instructions of a pickle begin."""
    return [position for _, _, position in pickletools.genops(data)]


def hostile_pickle(data: bytes, tokens: list[int], rng: random.Random) -> bytes:
    """A pickle of random instructions, or ``data`` with instructions inserted, dropped, doubled or changed."""
    if rng.random() < 0.15:
        parts = [rng.choice(HOSTILE) if rng.random() < 0.3 else rng.randbytes(rng.randrange(4)) for _ in range(30)]
        return b"\x80\x02" + b"".join(parts) + b"."
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.choice(tokens)
        other = rng.randrange(len(tokens) - 1)
        piece = data[tokens[other] : tokens[other + 1]]
        choice = rng.randrange(4)
        insert = (
            rng.choice(HOSTILE) if choice == 0 else piece if choice == 1 else rng.randbytes(1) if choice == 2 else b""
        )
        data = data[:at] + insert + data[at + rng.choice((0, 0, 1, 2, 5)) :]
    return data


def zip_of(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive; names may occur twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def pytorch_cases(folder: Path) -> Callable[[random.Random], Case]:
    names = ("no_norm", "legacy", "instance_stale", "discriminator", "optimizer", "module_inside", "resnet_half")
    wholes = [(DATA / f"{name}.pth").read_bytes() for name in names]
    wholes += [(DATA / f"script_{name}.pt").read_bytes() for name in ("resnet", "frozen")]
    bases = []
    for name in ("no_norm.pth", "training.pth", "objects.pth", "resnet_two.pth", "script_local.pt", "script_style.pt"):
        with zipfile.ZipFile(DATA / name) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        at = next(i for i, (member, _) in enumerate(members) if member.endswith("data.pkl"))
        bases.append((members, at, pickle_tokens(members[at][1])))
    bomb = bytes(8 << 20)

    def make(rng: random.Random) -> Case:
        members, at, tokens = rng.choice(bases)
        kind, changed = rng.random(), list(members)
        if kind < 0.45:
            data = damaged(rng.choice(wholes), rng)
        elif kind < 0.9:
            changed[at] = (changed[at][0], hostile_pickle(changed[at][1], tokens, rng))
            data = zip_of(changed)
        elif kind < 0.93:
            data = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
            data += hostile_pickle(members[at][1], tokens, rng) + pickle.dumps(["0", "1"], 2) + rng.randbytes(50)
        elif kind < 0.995:
            changed.insert(rng.randrange(len(changed)), rng.choice(changed))
            data = zip_of(changed)
        else:
            changed[rng.randrange(len(changed))] = (rng.choice(changed)[0], bomb)
            data = zip_of(changed, zipfile.ZIP_DEFLATED)
        return {"model.pth": data}, "model.pth", {}

    return make


# -- JSON, for TensorFlow.js, Keras and safetensors -------------------------------------------------------------

STRINGS = (
    "",
    "/etc/passwd",
    "../outside",
    "a/../../outside",
    "link",
    "model.json",
    "\0",
    "x" * 5000,
    "Lambda",
    "uint8",
)
STRINGS += (
    "Sequential",
    "Conv2D",
    "BatchNormalization",
    "Concatenate",
    "InputLayer",
    "F16",
    "I64",
    "relu",
    "tanh",
    "..",
    "Add",
    "ZeroPadding2D",
    "ReflectionPadding2D",
    "InstanceNormalization",
    "UpSampling2D",
    "bilinear",
    "valid",
)


def hostile_value(rng: random.Random, seen: list[Any]) -> Any:
    """Something that should not be where it is put."""
    kind = rng.randrange(9)
    if kind < 2:
        return rng.choice(NUMBERS) * rng.choice((1, -1))
    if kind == 2:
        return rng.choice((None, True, False, 0.5, -1.5, 1e308, float("nan"), float("inf"), 10**400))
    if kind == 3:
        return rng.choice(STRINGS)
    if kind == 4:
        return rng.choice(
            ([], {}, [[]], [4, 4], [2**31, 2**31, 2**31], [None] * 20, {"a": {}}, [["input_1", 0, 0, {}]])
        )
    if kind == 5:
        value: Any = []
        for _ in range(rng.choice((10, 300, 900))):
            value = [value]
        return value
    return rng.choice(seen)


def hostile_tree(tree: Any, rng: random.Random) -> Any:
    """A JSON value with a few of its parts replaced, dropped or doubled."""
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        for name in node if isinstance(node, dict) else range(len(node)):
            places.append((node, name))
            if isinstance(node[name], dict | list):
                waiting.append(node[name])
    seen = [node[name] for node, name in rng.sample(places, 5)]
    for node, name in rng.sample(places, rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(4)
        if isinstance(node, list) and kind == 0:
            node.append(hostile_value(rng, seen))
        elif isinstance(node, dict) and kind == 0:
            node.pop(name, None)
        elif isinstance(node, dict) or name < len(node):
            node[name] = hostile_value(rng, seen)
    return tree


def dumped(tree: Any) -> bytes:
    try:
        return json.dumps(tree).encode()
    except (RecursionError, ValueError):  # a part was put inside itself
        return b'{"a":' * 50_000


def family(folder: Path, keras: str) -> Path:
    """A folder with what this Keras wrote of the ResNet generators and upsampling U-Nets."""
    place = folder / f"family_{keras}"
    if not place.is_dir():
        shutil.unpack_archive(DATA / f"family_{keras}.tar.xz", place, filter="data")
    return place


def tfjs_cases(folder: Path) -> Callable[[random.Random], Case]:
    quantised = {path.name: path.read_bytes() for path in (DATA / "tfjs_uint8").iterdir()}
    functions = {path.name: path.read_bytes() for path in (family(folder, "keras2") / "functions_js").iterdir()}
    shards = sorted(name for name in quantised if name != "model.json")
    (folder / "outside").write_bytes(quantised[shards[0]])

    def make(rng: random.Random) -> Case:
        kind, links = rng.random(), {}
        files = functions if kind < 0.3 else quantised
        changed = dict(files)
        if kind < 0.65:
            changed["model.json"] = dumped(hostile_tree(json.loads(files["model.json"]), rng))
        elif kind < 0.8:
            changed["model.json"] = damaged(files["model.json"], rng)
        elif kind < 0.9:
            shard = rng.choice(shards)
            changed[shard] = damaged(files[shard], rng)
        else:
            # a file outside the folder has the right bytes, so that only the check of paths stands before it
            links = {"link": "../outside"} | ({shards[0]: "../outside"} if rng.random() < 0.5 else {})
            model = json.loads(files["model.json"])
            if rng.random() < 0.7:
                model["weightsManifest"][0]["paths"][0] = rng.choice(("link", "../outside", rng.choice(STRINGS)))
            changed["model.json"] = json.dumps(model).encode()
        return changed, rng.choice(("", "model.json")), links

    return make


# -- Keras ----------------------------------------------------------------------------------------------------


def hostile_hdf5(data: bytes, rng: random.Random) -> bytes:
    """An HDF5 file with a few of its addresses and lengths exchanged for others, or for hostile ones."""
    b = bytearray(data)
    words = [at for at in range(0, len(b) - 8, 8) if any(b[at : at + 8])]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.choice(words), rng.choice(words)
        if rng.random() < 0.6:
            b[at : at + 8] = b[other : other + 8]
        else:
            b[at : at + rng.choice((1, 2, 4, 8))] = struct.pack("<Q", rng.choice((*NUMBERS, other)))[:8]
    return bytes(b[: len(data)])


def keras_cases(folder: Path) -> Callable[[random.Random], Case]:
    names = ("2_tutorial.h5", "2_tutorial_weights.h5", "3_bare.weights.h5", "3_instance.keras", "2_tutorial.keras")
    wholes = [(DATA / f"keras_{name}").read_bytes() for name in names]
    wholes += [(family(folder, "keras2") / name).read_bytes() for name in ("functions.h5", "resnet.keras")]
    bases = []
    for path in (DATA / "keras_3_instance.keras", *family(folder, "keras3").glob("*.keras")):
        with zipfile.ZipFile(path) as archive:
            bases.append([(info.filename, archive.read(info)) for info in archive.infolist()])
    refused = [path.read_bytes() for path in sorted(DATA.glob("hdf5_*.h5"))]

    def make(rng: random.Random) -> Case:
        kind, members = rng.random(), rng.choice(bases)
        changed = list(members)
        if kind < 0.3:
            data = damaged(rng.choice(wholes), rng)
        elif kind < 0.65:
            data = hostile_hdf5(rng.choice(wholes + refused), rng)
        elif kind < 0.98:
            config = hostile_tree(json.loads(members[1][1]), rng)
            changed[1] = (members[1][0], dumped(config))
            if rng.random() < 0.2:
                changed.insert(rng.randrange(len(changed)), rng.choice(changed))
            data = zip_of(changed)
        else:
            data = zip_of([*members[:2], (members[2][0], bytes(8 << 20))], zipfile.ZIP_DEFLATED)
        return {"model": data}, "model", {}

    return make


# -- safetensors ----------------------------------------------------------------------------------------------


def safetensors_cases(folder: Path) -> Callable[[random.Random], Case]:
    wholes = [(DATA / "converted.safetensors").read_bytes(), small_model(folder)]
    with np.load(DATA / "resnets.npz") as stored:
        for case in ("cut", "resize", "hd_local", "gan_unet", "transformer_stale"):
            wholes.append(save(state_dict(json.loads(str(stored[f"shapes/{case}"])))))

    def make(rng: random.Random) -> Case:
        data = rng.choice(wholes)
        if rng.random() < 0.5:
            return {"model": damaged(data, rng)}, "model", {}
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        if "__metadata__" in header and rng.random() < 0.7:
            content = json.loads(header["__metadata__"]["pix2pix"])
            header["__metadata__"]["pix2pix"] = dumped(hostile_tree(content, rng)).decode()
        elif rng.random() < 0.4:
            header = renumbered(header, rng)
        else:
            header = hostile_tree(header, rng)
        text = dumped(header)
        length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS)
        return {"model": struct.pack("<Q", length) + text + data[8 + struct.unpack_from("<Q", data)[0] :]}, "model", {}

    return make


def renumbered(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The tensors of a header under names with other numbers, which tell readers what a network consists of."""
    names = set(rng.sample(sorted(header), min(len(header), rng.choice((1, 2, 10, 1000)))))
    old, new = str(rng.randrange(30)), str(rng.choice((0, 1, 3, 7, 99, 999, 10**20)))

    def changed(name: str) -> str:
        parts = name.split(".")
        if rng.random() < 0.5:
            return ".".join(new if part == old else part for part in parts)
        at = rng.choice([i for i, part in enumerate(parts) if re.search(r"\d", part)] or [0])
        return ".".join([*parts[:at], re.sub(r"\d+", new, parts[at]), *parts[at + 1 :]])

    return {changed(name) if name in names else name: entry for name, entry in header.items()}


def small_model(folder: Path) -> bytes:
    """A model in this project's format."""
    path = folder / "small"
    checkpoints.write(path, *checkpoints.read(DATA / "tfjs_running"), "float16")
    return path.read_bytes()


def course_cases(folder: Path) -> Callable[[random.Random], Case]:
    whole = (DATA / "course.bin").read_bytes()
    sizes = [4 * course.count_of(ngf) for ngf in (1, 2, 3)]

    def make(rng: random.Random) -> Case:
        kind = rng.random()
        if kind < 0.4:
            data = damaged(whole, rng)
        elif kind < 0.9:  # of the right length, so that the content has to tell
            data = bytearray(whole)
            for _ in range(rng.choice((1, 10, 1000))):
                at = 4 * rng.randrange(len(data) // 4)
                data[at : at + 4] = struct.pack("<f", rng.choice((0, -1, 3e38, float("nan"), float("inf"), 1e-45)))
        else:
            data = rng.randbytes(rng.choice(sizes) + rng.choice((0, 0, 0, 4, -4, 1)))
        return {"model.bin": bytes(data)}, "model.bin", {}

    return make


FORMATS = {
    "pytorch": pytorch_cases,
    "keras": keras_cases,
    "tfjs": tfjs_cases,
    "safetensors": safetensors_cases,
    "course": course_cases,
}
