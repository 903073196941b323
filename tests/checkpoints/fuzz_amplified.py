"""The fuzzer's small, well-formed files that ask for much more work than their size: repeated, colliding, nested,
joined and mistyped values. Readers must refuse them, or read them within the fuzzer's limits."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from bundles import field, masked, table, table_of, varint

from pix2pix.checkpoints.tensorflow.objects import GRAPH
from tests.checkpoints.fuzz_cases import DATA, Case, zip_of


def single(data: bytes) -> Case:
    return {"model": data}, "model", {}


# -- pickles --------------------------------------------------------------------------------------------------


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def storage(count: bytes = integer(64), more: bytes = b"") -> bytes:
    """A persistent identity."""
    return b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + count + more + b"tQ"


def tensor(place: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"K\x00K\x01\x85K\x01\x85\x89}tR"


def torch_file(content: bytes) -> Case:
    members = [("archive/data.pkl", b"\x80\x02" + content + b"."), ("archive/data/0", bytes(256))]
    return single(zip_of(members))


def colliding_keys(rng: random.Random) -> Case:
    """A dict whose integer keys have one hash, or few."""
    step = rng.choice((2**61 - 1, 2**61, 2**32, 2**50, 2**59))
    keys = b"".join(integer(step * number) + b"N" for number in range(1, rng.choice((5_000, 50_000))))
    return torch_file(b"}(" + keys + b"u")


def many_generators(rng: random.Random) -> Case:
    """Tensors with as many prefixes, or with prefixes that begin each other, or of blocks with as many numbers."""
    count = rng.choice((3_000, 20_000))
    inner = rng.choice(
        (
            b"1.model.%d.weight",
            b"10.conv_block.%d.weight",
            b"model1_2.%d.conv_block.1.weight",
            b"down%d.model.0.weight",
            b"res%d.conv1.conv2d.weight",
        )
    )
    form = rng.randrange(3)
    if form == 0:
        names = [b"%d." % number + inner % (number % 10) for number in range(count)]
    elif form == 1:
        names = [b"a." * (number % 140) + inner % (number % 100) for number in range(count)]
    else:
        names = [b"%d.conv_block.%d.weight" % (number // 10, number % 10) for number in range(count)]
        names += [b"%d.weight" % number for number in range(1_000)]
    items = b"".join(text(name) + b"h\x00" for name in names)
    return torch_file(tensor(storage()) + b"q\x000}(" + items + b"u")


def shared_modules(rng: random.Random) -> Case:
    """TorchScript modules that contain each other, so that there are many paths to one tensor."""
    count = rng.choice((10, 40, 60))
    module = b"c__torch__.net\nNet\n)\x81"
    layers = tensor(storage()) + b"q\x00"
    for number in range(1, count):
        layers += module + b"q%c}(" % number + text(b"a") + b"h%c" % (number - 1)
        layers += text(rng.choice((b"b", b"b" * 5_000))) + b"h%c" % rng.randrange(number + rng.randrange(2)) + b"ub"
    return torch_file(layers)


def long_global_names(rng: random.Random) -> Case:
    """Globals whose names are one long string, used again and again."""
    size, count = rng.choice(((1_000_000, 2_000), (3_000_000, 50_000), (150, 60_000)))
    return torch_file(text(b"a" * size) + b"q\x000(" + b"h\x00h\x00\x93" * count + b"t")


def mistyped_identities(rng: random.Random) -> Case:
    """Persistent identities and views of storages with values of wrong types."""
    wrong = rng.choice((b"]", b"}", b")", text(b""), b"G" + bytes(8), b"\x89", b"N", integer(-1), integer(2**70)))
    place = rng.choice(
        (
            storage(count=wrong),
            storage(more=b"(NK\x00" + wrong + b"t"),
            storage(more=b"(N" + wrong + b"K\x01t"),
            storage(more=wrong),
            b"(" + text(b"module") + b"tQ",
            b"(" + text(b"storage") + wrong * 4 + b"tQ",
            wrong + b"Q",
        )
    )
    return torch_file(b"}" + text(b"model.1.model.1.weight") + tensor(place) + b"s")


def nested_values(rng: random.Random) -> Case:
    """Containers in containers, or one container that holds itself many times."""
    depth = rng.choice((1_000, 60_000))
    return torch_file(
        rng.choice(
            (
                b"]" * depth + b"N" + b"a" * depth,
                (b"}" + text(b"a")) * depth + b"N" + b"s" * depth,
                b")" + b"\x85" * depth,
                b"]q\x00" + b"h\x00" * depth + b"0" * depth,
                b"}q\x00(" + b"".join(text(b"%d" % n) + b"h\x00" for n in range(depth)) + b"u",
            )
        )
    )


def long_member_names(rng: random.Random) -> Case:
    """An archive whose directory has long names that take four bytes for each of theirs in memory."""
    names = [f"{n}\U0001f600".ljust(rng.choice((200, 16_000)), "a") for n in range(rng.choice((100, 1_000)))]
    return single(zip_of([("archive/data.pkl", b"\x80\x02}."), *((name, b"") for name in names)]))


# -- descriptions ---------------------------------------------------------------------------------------------


def safetensors_prefixes(rng: random.Random) -> Case:
    """As many generators as tensors."""
    count = rng.choice((500, 9_000))
    header = {
        f"{n}.1.model.1.weight": {"dtype": "F32", "shape": [], "data_offsets": [4 * n, 4 * n + 4]} for n in range(count)
    }
    described = json.dumps(header).encode()
    return single(struct.pack("<Q", len(described)) + described + bytes(4 * count))


def keras_names(rng: random.Random) -> Case:
    """A Sequential with a long name, or a layer with a long class, which names of layers and groups are made of."""
    with zipfile.ZipFile(DATA / "keras_3_instance.keras") as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    config = json.loads(members[1][1])
    many, size = [{"class_name": "A", "config": {}}] * rng.choice((900, 20_000)), rng.choice((200, 900_000))
    layer = {"class_name": "Sequential", "name": "n" * size, "config": {"layers": many}, "inbound_nodes": []}
    if rng.random() < 0.3:
        layer = {"class_name": "aA" * (size // 2), "config": {}, "inbound_nodes": []}
    config["config"]["layers"].append(layer)
    members[1] = (members[1][0], json.dumps(config).encode())
    return single(zip_of(members))


def hdf5_continuations(rng: random.Random) -> Case:
    """An object header that continues in one large block, again and again."""
    count, filler = rng.choice((100, 10_000)), rng.choice((b"\xff", b"a"))
    header, pointers = 96, 4096
    block = pointers + 24 * count
    message = struct.pack("<2B3H", 1, 0, 60_000, 8, 8) + filler * 60_000
    attribute = struct.pack("<2HB3x", 12, len(message), 0) + message
    where = struct.pack("<2HB3x2Q", 16, 16, 0, block, len(attribute)) * count
    data = bytearray(block + len(attribute))
    start = (DATA / "keras_2_tutorial.h5").read_bytes()[:header]
    first = struct.pack("<2BH2L4x", 1, 0, 1, 1, 24) + struct.pack("<2HB3x2Q", 16, 16, 0, pointers, len(where))
    for at, part in ((0, start), (header, first), (pointers, where), (block, attribute)):
        data[at : at + len(part)] = part
    struct.pack_into("<6Q", data, 24, 0, 2**64 - 1, len(data), 2**64 - 1, 0, header)
    return single(bytes(data))


def checkpoint_record(rng: random.Random) -> Case:
    """A folder's record with a great many lines, or blanks."""
    line = rng.choice((b"\n", b" \n", b"model_checkpoint_path", b" ", b'model_checkpoint_path: "a\n'))
    return {"checkpoint": line * (rng.choice((10_000, 1_000_000)) // len(line)), "notes.txt": b"x"}, "", {}


def tfjs_manifest(rng: random.Random) -> Case:
    """A manifest with a surplus weight that is large once it is widened, or with a great many shards."""
    files = {path.name: path.read_bytes() for path in (DATA / "tfjs_uint8").iterdir()}
    model = json.loads(files["model.json"])
    if rng.random() < 0.5:
        size = rng.choice((1_000_000, 60_000_000))
        quantised = {"dtype": "uint8", "scale": 1.0, "min": 0.0}
        weight = {"name": "surplus/kernel", "shape": [size], "dtype": "float32", "quantization": quantised}
        model["weightsManifest"].append({"weights": [weight], "paths": ["large"]})
        files["large"] = bytes(size)
    else:
        names = [f"{number}" for number in range(rng.choice((100, 3_000)))]
        groups = [names] if rng.random() < 0.5 else [[name] for name in names]
        model["weightsManifest"] += [{"weights": [], "paths": group} for group in groups]
        files |= dict.fromkeys(names, b"")
    files["model.json"] = json.dumps(model).encode()
    return files, "", {}


# -- graphs of objects ----------------------------------------------------------------------------------------


def object_graphs(folder: Path) -> Callable[[random.Random], Case]:
    """Checkpoints of objects with long names and many children, or with many models that share their objects."""
    shutil.unpack_archive(DATA / "tf2_keras3.tar.xz", folder / "amplified", filter="data")
    place = folder / "amplified" / "training"
    index, shard = "ckpt-2.index", "ckpt-2.data-00000-of-00001"
    entries, numbers = table(place / index), (place / shard).read_bytes()

    def child(name: bytes, number: int) -> bytes:
        return field(1, (field(1, number) if number else b"") + field(2, name))

    def node(*children: bytes) -> bytes:
        return field(1, b"".join(children))

    def make(rng: random.Random) -> Case:
        count = rng.choice((500, 18_000))
        if rng.random() < 0.5:
            long = child(b"A" * rng.choice((1_000, 200_000)), 1)
            graph = node(long) + node(*(child(b"%d:" % number, 2) for number in range(count))) + node()
        else:
            models = node(*(child(b"m%d" % number, 1) for number in range(100)))
            graph = models + node(*(child(b"%d:" % number, 2 + number % 4000) for number in range(count)))
            graph += node() * 4000
        length = masked(struct.pack("<I", len(graph)))
        data = varint(len(graph)) + length + graph
        checksum = masked(struct.pack("<I", len(graph)) + length + graph)
        where = field(1, 7) + field(2, b"") + field(4, len(numbers)) + field(5, len(data)) + b"\x35" + checksum
        changed = table_of(sorted((entries | {GRAPH.encode(): where}).items()))
        return {index: changed, shard: numbers + data}, "", {}

    return make


def small_blocks(rng: random.Random) -> Case:
    """An index of a great many blocks, each of which costs a checksum."""
    entries = [(b"%08d" % number, b"") for number in range(rng.choice((200, 5_000)))]
    return {"model-1.index": table_of(entries, per_block=1)}, "", {}


SHAPES: list[Callable[[random.Random], Case]] = [
    colliding_keys,
    many_generators,
    shared_modules,
    long_global_names,
    mistyped_identities,
    nested_values,
    long_member_names,
    safetensors_prefixes,
    keras_names,
    hdf5_continuations,
    checkpoint_record,
    tfjs_manifest,
    small_blocks,
]


def amplified_cases(folder: Path) -> Callable[[random.Random], Case]:
    """One of the shapes, of a random size."""
    shapes = [*SHAPES, object_graphs(folder)]
    return lambda rng: rng.choice(shapes)(rng)
