"""The fuzzer's cases of TensorFlow's files, among them tables that are hostile but whose checksums are right."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bundles import bundle, field, masked, table, table_of, varint

from pix2pix.checkpoints import CheckpointError
from pix2pix.checkpoints.containers.protobuf import varint as read_varint
from pix2pix.checkpoints.tensorflow.objects import GRAPH
from tests.checkpoints.fuzz_cases import DATA, NUMBERS, Case, damaged, dumped, family, hostile_tree

INDEX, SHARD = "model-200.index", "model-200.data-00000-of-00001"


def bundle_cases(folder: Path) -> Callable[[random.Random], Case]:
    """Folders of a training: index, shard, record and options, all of them damaged in turn."""
    files = {path.name: path.read_bytes() for path in (DATA / "tf1_trained").iterdir()}
    entries = list(table(DATA / "tf1_trained" / INDEX).items())
    (folder / "outside").write_bytes(files[SHARD])

    def hostile_index(rng: random.Random) -> bytes:
        changed = list(entries)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at, kind = rng.randrange(len(changed)), rng.randrange(6)
            key, value = changed[at]
            if kind < 2:
                changed[at] = key, damaged(value, rng)
            elif kind == 2:
                changed[at] = key, value + field(rng.randrange(9), rng.choice(NUMBERS))
            elif kind == 3:
                changed[at] = key, rng.choice(changed)[1]
            elif kind == 4:
                changed[at] = (
                    rng.choice((damaged(key, rng), rng.choice(changed)[0], b"x" * 3000, key + b"/x")),
                    value,
                )
            else:
                del changed[at]
        if rng.random() < 0.7:
            changed.sort()
        return table_of(changed, rng)

    def make(rng: random.Random) -> Case:
        changed, links, kind = dict(files), {}, rng.random()
        if kind < 0.5:
            changed[INDEX] = hostile_index(rng)
        elif kind < 0.7:
            name = rng.choice((INDEX, SHARD))
            changed[name] = damaged(files[name], rng)
        elif kind < 0.8:
            changed["options.json"] = dumped(hostile_tree({"options": json.loads(files["options.json"])}, rng))
        elif kind < 0.9:
            path = rng.choice(("/etc/passwd", "../outside", "..", "", ".", "\\x00", "a" * 5000, "model-200", "other"))
            changed["checkpoint"] = f'model_checkpoint_path: "{path}"\n'.encode() * rng.choice((1, 5000))
        else:
            # what the links lead to has the right bytes, so that only the check of paths stands before it
            links = {rng.choice((SHARD, "checkpoint", "options.json")): "../outside"}
            if rng.random() < 0.3:
                return changed, "", {INDEX: "../outside"}  # a link that a person names is followed
        return changed, rng.choice(("", "model-200", INDEX)), links

    return make


def pict_cases(folder: Path) -> Callable[[random.Random], Case]:
    """A .pict file, its bytes or its description changed."""
    tensors = bundle(DATA / "tf1_levels" / INDEX).entries
    names = sorted(name for name in tensors if name.startswith("generator/") and "moving" not in name)
    described = [{"name": name, "shape": list(tensors[name].shape)} for name in names]
    codebook = np.linspace(-1, 1, 256, dtype="<f4").tobytes()
    codes = random.Random(7).randbytes(sum(tensors[name].size // 4 for name in names))

    def sections(*parts: bytes) -> bytes:
        return b"".join(struct.pack(">I", len(part)) + part for part in parts)

    whole = sections(json.dumps(described).encode(), codebook, codes)

    def make(rng: random.Random) -> Case:
        if rng.random() < 0.5:
            return {"model.pict": damaged(whole, rng)}, "model.pict", {}
        text = dumped(hostile_tree(json.loads(json.dumps(described)), rng))
        return {"model.pict": sections(text, codebook, codes)}, "model.pict", {}

    return make


def unpacked(folder: Path, case: str) -> dict[str, bytes]:
    """The files of a folder that Keras wrote, by their paths in it."""
    shutil.unpack_archive(DATA / "tf2_keras3.tar.xz", folder / "keras3", filter="data")
    place = folder / "keras3" / case
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def hostile_message(data: bytes, rng: random.Random) -> bytes:
    """A protocol buffer with fields changed, doubled, dropped or added somewhere in it, whose lengths stay true."""
    fields, position = [], 0
    while position < len(data):
        tag, start = read_varint(data, position, "")
        value, position = read_varint(data, start, "") if tag & 7 in (0, 2) else (0, start + {1: 8, 5: 4}[tag & 7])
        if tag & 7 == 2:
            start, position = position, position + value
        fields.append((tag, data[start:position]))
    at = rng.randrange(len(fields))
    tag, content = fields[at]
    kind = rng.randrange(8)
    if kind < 4 and tag & 7 == 2 and len(content) > 1:
        try:
            fields[at] = tag, hostile_message(content, rng)
        except (CheckpointError, KeyError):  # a string and no message
            fields[at] = tag, damaged(content, rng)
    elif kind == 4:
        fields[at] = tag, damaged(content, rng) if tag & 7 == 2 else varint(rng.choice(NUMBERS))
    elif kind == 5:
        fields[at:at] = [rng.choice(fields)] * rng.choice((1, 1, 100))
    elif kind == 6:
        del fields[at]
    else:
        fields[at] = rng.choice(fields)
    return b"".join(varint(tag) + (varint(len(value)) if tag & 7 == 2 else b"") + value for tag, value in fields)


def node(name: bytes, kind: bytes, *fields: bytes) -> bytes:
    """An operation of a graph."""
    return field(1, name) + field(2, kind) + b"".join(fields)


def endless_graphs() -> list[bytes]:
    """SavedModels of nearly as many bytes as are read, all in the parts that take longest."""
    name, image = field(1, b"serving_default"), field(1, field(1, b"x") + field(2, b""))
    result = field(2, field(1, b"y") + field(2, field(1, b"result:0")))
    function = field(5, field(1, b"f") + field(2, field(10, field(1, b"missing"))))
    called = field(1, node(b"result", b"PartitionedCall", function))
    empty, own = field(1, field(1, b"g")), field(5, b"\x0a\x00\x12\x00")
    deep = [node(b"%d" % n, b"Relu", field(3, b"%d" % (n + 1))) for n in range(10_000)]
    graphs = [
        called + field(2, field(1, empty) * 200_000),
        called + field(2, field(1, empty + b"\x32\x00" * 400) * 1_800),
        called + field(2, field(1, empty + b"\x30\x01" * 9_000) * 80),
        called + field(1, field(1, b"n") + field(5, b"") * 20) * 19_000,
        called + field(1, own * 10_000) * 25,
        field(1, node(b"result", b"Tanh", field(3, b"0"))) + b"".join(field(1, each) for each in deep),
    ]
    signature = field(5, name + field(2, image + result))
    return [field(1, 1) + field(2, field(2, graph) + signature) for graph in graphs]


def saved_model_cases(folder: Path) -> Callable[[random.Random], Case]:
    """SavedModel folders whose graph of operations is hostile."""
    models = [unpacked(folder, "saved_with_dropout")]
    for place in (family(folder, "keras3") / "functions", family(folder, "keras3") / "odd_kernels"):
        models.append({str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()})
    (folder / "outside").write_bytes(models[0]["saved_model.pb"])
    endless = endless_graphs()

    def make(rng: random.Random) -> Case:
        files, kind = rng.choice(models), rng.random()
        changed = dict(files)
        if kind < 0.7:
            changed["saved_model.pb"] = hostile_message(files["saved_model.pb"], rng)
        elif kind < 0.9:
            changed["saved_model.pb"] = damaged(files["saved_model.pb"], rng)
        elif kind < 0.92:
            changed["saved_model.pb"] = rng.choice(endless)
        else:
            link = rng.choice(("saved_model.pb", "variables/variables.index"))
            return changed, "", {link: "../outside" if link == "saved_model.pb" else "../../outside"}
        return changed, "", {}

    return make


def objects_cases(folder: Path) -> Callable[[random.Random], Case]:
    """Checkpoints whose graph of objects is hostile, with true checksums."""
    files = unpacked(folder, "training")
    index, shard = "ckpt-2.index", "ckpt-2.data-00000-of-00001"
    entries = table(folder / "keras3" / "training" / index)
    graph = bundle(folder / "keras3" / "training" / index).string(GRAPH)

    def make(rng: random.Random) -> Case:
        changed = hostile_message(graph, rng)
        for _ in range(rng.choice((0, 0, 1, 4))):
            changed = hostile_message(changed, rng)
        length = masked(struct.pack("<I", len(changed)))
        data = varint(len(changed)) + length + changed
        checksum = masked(struct.pack("<I", len(changed)) + length + changed)
        place = field(1, 7) + field(2, b"") + field(4, len(files[shard])) + field(5, len(data)) + b"\x35" + checksum
        changed_index = table_of(sorted((entries | {GRAPH.encode(): place}).items()))
        return files | {index: changed_index, shard: files[shard] + data}, "", {}

    return make


TENSORFLOW = {
    "bundle": bundle_cases,
    "objects": objects_cases,
    "saved_model": saved_model_cases,
    "pict": pict_cases,
}
