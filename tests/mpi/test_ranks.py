"""Jobs of a few ranks: the same bytes as one process, files and bytes on the wire, what cannot start, several hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pix2pix
from pix2pix import checkpoints
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.gpu.gpus import needs_gpu
from tests.mpi.jobs import IMAGES, MPIEXEC, ROOT, argv, command, files, needs_mpi, settings


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_writes_the_same_bytes(folder, ranks):
    done = command(folder, "-o", f"out{ranks}", "--json", f"{ranks}.json", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert files(folder / f"out{ranks}") == files(folder / "expected")
    summary = json.loads((folder / f"{ranks}.json").read_text())
    assert summary["done"] == len(summary["images"]) == IMAGES
    assert done.stdout.count("60 done, 0 skipped, 0 failed") == 1 and done.stderr.count("device: ") == 1
    if ranks > 1:
        pictures = [rank["pictures"] for rank in summary["ranks"]]
        assert sum(pictures) == IMAGES and len(pictures) == ranks and sum(pictures[1:]) > 0


@needs_mpi
def test_a_run_goes_on_with_another_number_of_ranks(folder):
    assert command(folder, "-o", "again", ranks=3).returncode == 0
    for i in range(20):
        (folder / "again" / ("deep" if i % 3 else "") / f"x{i}.png").unlink()
    done = command(folder, "-o", "again", "--gallery", ranks=2)
    assert done.returncode == 0 and "20 done, 40 skipped, 0 failed" in done.stdout
    assert (folder / "again" / "gallery.html").read_text().count("<article") == IMAGES
    (folder / "again" / "gallery.html").unlink()
    assert files(folder / "again") == files(folder / "expected")
    assert "0 done, 60 skipped" in command(folder, "-o", "again", ranks=3).stdout


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_rank_0_reads_and_writes_where_there_is_no_common_folder(folder, ranks):
    elsewhere = '[ "${PMI_RANK}" = 0 ] || cd /'
    done = command(folder, "-o", f"root{ranks}", "--io", "root", "--json", "r.json", ranks=ranks, shell=elsewhere)
    assert done.returncode == 0, done.stderr
    assert files(folder / f"root{ranks}") == files(folder / "expected")
    pictures = [rank["pictures"] for rank in json.loads((folder / "r.json").read_text())["ranks"]]
    assert sum(pictures) == IMAGES and len(pictures) == ranks and sum(pictures[1:]) > 0


@needs_mpi
def test_raw_frames_go_over_the_wire(folder):
    frames = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)
    (folder / "in.rgb").write_bytes(frames.tobytes())
    raw = [option if option != "in" else "in.rgb" for option in argv("-o", "out.rgb", ranks=3)]
    done = subprocess.run(raw, **settings(folder), timeout=100)
    assert done.returncode == 0 and "100 done" in done.stdout, done.stderr
    with pix2pix.load(folder / "model.safetensors", threads=1) as engine:
        assert (folder / "out.rgb").read_bytes() == engine.translate(frames).tobytes()


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_programs_share_an_engine(folder, ranks):
    program = [MPIEXEC, "-n", str(ranks), sys.executable, str(Path(__file__).parent / "mpi_program.py")]
    done = subprocess.run([*program, "model.safetensors"], **settings(folder), timeout=100)
    assert (done.returncode, done.stdout) == (0, "all is well\n"), done.stderr


@needs_mpi
def test_a_failed_image_is_a_line(folder):
    (folder / "in" / "broken.png").write_bytes(b"no image")
    try:
        done = command(folder, "-o", "failing", ranks=3)
    finally:
        (folder / "in" / "broken.png").unlink()
    assert done.returncode == 1 and "60 done, 0 skipped, 1 failed" in done.stdout
    assert done.stderr.count("failed: in/broken.png: damaged") == 1
    assert files(folder / "failing") == files(folder / "expected")


@needs_mpi
@pytest.mark.parametrize("io", ["ranks", "root"])
def test_an_image_that_takes_too_much_is_a_line(folder, io):
    large = folder / "in" / "large.png"
    Image.new("L", (6000, 6000)).save(large)
    try:
        done = command(folder, "-o", f"limited-{io}", "--io", io, "--memory", "50M", ranks=3)
    finally:
        large.unlink()
    assert done.returncode == 1 and "60 done, 0 skipped, 1 failed" in done.stdout, done.stderr
    assert done.stderr.count("failed: in/large.png: 6000x6000 pixels need some") == 1
    assert files(folder / f"limited-{io}") == files(folder / "expected")


@needs_mpi
@pytest.mark.parametrize(
    ("options", "shell", "status", "said"),
    [
        (["--size", "50"], "", 2, "takes multiples of 32"),
        (["--fit", "nonsense"], "", 2, "invalid choice"),
        ([], '[ "$PMI_RANK" != 1 ] || export PIX2PIX_ISA=nonsense', 2, "rank 1 on .*got instruction set 'nonsense'"),
        ([], '[ "$PMI_RANK" != 2 ] || cd /', 1, "stopped: rank 2 on .*doesn't see.*give --io root"),
    ],
)
def test_what_cannot_start_is_told_once(folder, options, shell, status, said):
    done = command(folder, "-o", "never", *options, ranks=3, shell=shell)
    assert done.returncode == status
    (line,) = [line for line in done.stderr.splitlines() if re.search(said, line)]
    assert line.startswith("pix2pix") or line.startswith("stopped")


@needs_mpi
@pytest.mark.parametrize("words", [("serve", "--demo"), ("watch", "in", "-o", "never", "-m", "model.safetensors")])
def test_commands_of_one_process_say_so(folder, words):
    program = [MPIEXEC, "-n", "2", sys.executable, "-m", "pix2pix", *words]
    done = subprocess.run(program, **settings(folder), timeout=100)
    assert done.returncode == 2 and f"{words[0]} runs in one process: start it without mpiexec" in done.stderr


@needs_mpi
def test_threads_are_divided_not_multiplied(folder):
    cores = pix2pix.cpu.topology.available_cores()
    options = [option for option in argv("-o", "threads", ranks=2 * cores) if option not in ("--threads", "1")]
    done = subprocess.run(options, **settings(folder), timeout=100)
    assert "device: cpu, 1 thread," in done.stderr


def test_processes_that_cannot_share_do_not_all_work(folder):
    (folder / "hidden" / "mpi4py").mkdir(parents=True, exist_ok=True)
    (folder / "hidden" / "mpi4py" / "__init__.py").write_text("raise ImportError('hidden')")
    for rank, said in (("0", "started as 4 processes, which need mpi4py"), ("1", "")):
        variables = {"PMI_RANK": rank, "PMI_SIZE": "4", "PYTHONPATH": f"{folder / 'hidden'}{os.pathsep}{ROOT}"}
        done = subprocess.run(argv("-o", "never"), **settings(folder, **variables), timeout=100)
        assert done.returncode == 2 and said in done.stderr and bool(done.stderr) == bool(said)


@needs_mpi
@needs_gpu
def test_ranks_on_gpus_write_the_same_bytes(tmp_path):
    generator = unet(ngf=2, depth=4)
    checkpoints.write(tmp_path / "model.safetensors", generator, random_weights(generator))
    (tmp_path / "in").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"x{i}.png")
    options = ["--device", "cuda", "--size", "16"]
    for ranks in (0, 2):
        done = command(tmp_path, "-o", str(ranks), *options, ranks=ranks)
        assert done.returncode == 0 and done.stderr.startswith("device: cuda:0"), done.stderr
    assert files(tmp_path / "0") == files(tmp_path / "2") and len(files(tmp_path / "0")) == 5


# -- several hosts --------------------------------------------------------------------------------------------

ENTER = """#!/bin/bash
# What ssh would do: run a command on a host, which is a network namespace here, with a name of its own.
while [[ $1 == -* ]]; do shift; done
host=$1; shift
exec ip netns exec "pix2pix-${host##*.}" unshare --uts bash -c "hostname host-${host##*.}; $*"
"""
HOSTS = ("10.77.0.1", "10.77.0.2")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two hosts with an address each, and a wire between them."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, ip and unshare to make network namespaces")
    names = [f"pix2pix-{host.split('.')[-1]}" for host in HOSTS]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, host in zip(names, HOSTS, strict=True):
            ip("-n", name, "address", "add", f"{host}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "addrgenmode", "none")  # no IPv6, which takes a second to settle
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        deadline = time.monotonic() + 10
        while not all("state UP" in ip("-n", name, "link", "show", "eth0") for name in names):
            assert time.monotonic() < deadline, "the wire between the namespaces doesn't come up"
            time.sleep(0.1)
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("io", ["ranks", "root"])
def test_two_hosts_with_addresses_of_their_own(folder, hosts, io):
    enter = folder / "enter"
    enter.write_text(ENTER)
    enter.chmod(0o755)
    launch = ["ip", "netns", "exec", "pix2pix-1", MPIEXEC, "-launcher", "ssh", "-launcher-exec", str(enter)]
    program = [
        *launch,
        "-hosts",
        ",".join(HOSTS),
        "-n",
        "2",
        *argv("-o", f"hosts-{io}", "--io", io, "--json", "h.json"),
    ]
    over_the_wire = {"MPIR_CVAR_CH4_NETMOD": "ofi"}  # UCX sees that the namespaces share a memory, and uses that
    done = subprocess.run(program, **settings(folder, **over_the_wire), timeout=100)
    assert done.returncode == 0, done.stderr
    assert files(folder / f"hosts-{io}") == files(folder / "expected")
    ranks = json.loads((folder / "h.json").read_text())["ranks"]
    assert ranks[1]["host"] == "host-2" != ranks[0]["host"] and ranks[1]["pictures"] > 0
    sent = int(ip("-n", "pix2pix-1", "-s", "link", "show", "eth0").split("TX:")[1].splitlines()[1].split()[0])
    assert sent > sum(array.nbytes for array in checkpoints.read(folder / "model.safetensors")[1].values())
