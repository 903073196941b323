"""Which files a run takes, and the names of their outputs."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from pix2pix.errors import InputError
from pix2pix.files import jobs
from pix2pix.files.codecs import WRITABLE
from pix2pix.files.jobs import Job, find_inputs, find_jobs, natural, output_name, single_job
from tests.files.samples import save


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("x.png", "png", "x.png"),
        ("x.jpg", "png", "x.jpg.png"),
        ("x.PNG", "png", "x.PNG.png"),
        ("x.jpg.png", "png", "x.jpg.png.png"),
        ("x.v2.png", "png", "x.v2.png"),
        ("x", "png", "x.png"),
        ("x.jpg", "jpg", "x.jpg"),
        ("x.jpeg", "jpg", "x.jpeg.jpg"),
        ("x.png", "jpg", "x.png.jpg"),
        ("x.webp", "same", "x.webp"),
        ("x.TIF", "same", "x.TIF"),
        ("x.gif", "same", "x.gif.png"),
        ("x.gif.png", "same", "x.gif.png.png"),
    ],
)
def test_output_names(name, format, expected):
    assert output_name(name, format) == expected


@pytest.mark.parametrize("format", ["png", "jpg", "same"])
def test_no_two_names_in_a_folder_give_the_same_output(format):
    suffixes = (".png", ".PNG", ".jpg", ".jpeg", ".gif", ".tif")
    names = {"x" + "".join(s) for n in (1, 2, 3) for s in itertools.product(suffixes, repeat=n)}
    outputs = {output_name(name, format) for name in names}
    assert len(outputs) == len(names)
    assert all(Path(name).suffix.lower() in WRITABLE for name in outputs)


def test_folders_are_taken_whole_in_natural_order_without_what_is_hidden(tmp_path):
    for name in ("a/x10.png", "a/x2.png", "a/deep/er/y.jpg", "a/.hidden.png", "a/.cache/z.png"):
        save(tmp_path, name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    found = find_jobs([tmp_path / "a"], tmp_path / "out")
    assert [job.name for job in found] == ["deep/er/y.jpg.png", "x2.png", "x10.png"]
    assert found[0] == Job(tmp_path / "a/deep/er/y.jpg", tmp_path / "out/deep/er/y.jpg.png", "deep/er/y.jpg.png")


def test_an_output_folder_inside_the_input_is_not_an_input(tmp_path):
    save(tmp_path, "x.png")
    save(tmp_path, "out/x.png")
    assert [job.name for job in find_jobs([tmp_path], tmp_path / "out")] == ["x.png"]


def test_linked_folders_are_followed_once_and_never_in_circles(tmp_path):
    for name in ("in/b/x.png", "elsewhere/deep/y.png", "elsewhere/.hidden/z.png", "out/w/w.png"):
        save(tmp_path, name)
    links = {"in/a": "in/b", "in/c": "elsewhere", "elsewhere/deep/up": "elsewhere", "in/b/top": "in", "in/o": "out/w"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    assert [job.name for job in find_jobs([tmp_path / "in"], tmp_path / "out")] == ["b/x.png", "c/deep/y.png"]
    (tmp_path / "linked").symlink_to(tmp_path / "in", target_is_directory=True)
    assert len(find_jobs([tmp_path / "linked"], tmp_path / "out")) == 2


def test_what_a_killed_run_left_is_no_input(tmp_path):
    save(tmp_path, "x.png")
    (tmp_path / ".x.png.123.partial").write_bytes(b"half")
    assert [job.name for job in find_jobs([tmp_path], tmp_path / "out")] == ["x.png"]


def test_several_folders_keep_their_names_and_files_given_twice_count_once(tmp_path):
    for name in ("a/x.png", "b/x.png", "y.png"):
        save(tmp_path, name)
    given = [tmp_path / "a", tmp_path / "b", tmp_path / "y.png", tmp_path / "a" / ".." / "y.png"]
    assert [job.name for job in find_jobs(given, tmp_path / "out")] == ["a/x.png", "b/x.png", "y.png"]


def test_inputs_with_the_same_output_are_refused(tmp_path):
    paths = [save(tmp_path, "a/x.png"), save(tmp_path, "b/x.png")]
    with pytest.raises(InputError, match=r"a/x\.png.*b/x\.png.*would both be written to"):
        find_jobs(paths, tmp_path / "out")
    with pytest.raises(InputError, match="would both be written to"):
        save(tmp_path, "c/a/x.png")
        find_jobs([tmp_path / "a", tmp_path / "c" / "a"], tmp_path / "out")


def test_outputs_never_replace_inputs(tmp_path):
    path = save(tmp_path, "x.png")
    for refused in (
        lambda: find_jobs([tmp_path], tmp_path),
        lambda: find_jobs([path], tmp_path),
        lambda: single_job(path, tmp_path / "sub" / ".." / "x.png"),
    ):
        with pytest.raises(InputError, match="is the input folder|would replace an input"):
            refused()


def test_inputs_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file or folder .*nothing"):
        find_jobs([tmp_path / "nothing"], tmp_path / "out")
    with pytest.raises(InputError, match="found no images"):
        find_jobs([tmp_path], tmp_path / "out")


def test_natural_order():
    names = ["x10.png", "x2.png", "x2b.png", "b/1.png", "X1.png", "x02.png"]
    ordered = sorted(map(Path, names), key=natural)
    assert [str(p) for p in ordered] == ["X1.png", "b/1.png", "x02.png", "x2.png", "x2b.png", "x10.png"]


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    for name in ("a.jpg", "b.jfif", "c.jpe", "deep/d.JPG"):
        save(tmp_path, f"in/{name}")
    for name in ("notes.txt", "more.TXT", "README", ".DS_Store", ".git/x.png", "deep/e.tga", "f.unheard"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert [job.name for job in found.jobs] == ["a.jpg.png", "b.jfif.png", "c.jpe.png", "deep/d.JPG.png"]
    reasons = {"ending in .txt": 2, "without a suffix": 1, "hidden": 2, "ending in .tga": 1, "ending in .unheard": 1}
    assert found.left_out == reasons and not found.unreadable
    with pytest.raises(InputError, match="found no images in .*left out: 1 ending in .tga"):
        (tmp_path / "in/deep/d.JPG").unlink()
        find_inputs([tmp_path / "in/deep"], tmp_path / "out")


def test_formats_that_this_installation_lacks_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "READABLE", (".png",))
    for name in ("a.heic", "b.avif", "c.png"):
        (tmp_path / name).write_bytes(b"")
    reasons = find_inputs([tmp_path], tmp_path / "out").left_out
    assert set(reasons) == {
        "ending in .heic (to read these, pip install 'pix2pix[heif]')",
        "ending in .avif (to read these, install a Pillow with AVIF)",
    }


def test_names_do_not_depend_on_the_installation(monkeypatch):
    monkeypatch.setattr(jobs, "READABLE", (".png",))
    assert output_name("x.heic.png") == "x.heic.png.png" and output_name("x.heic") == "x.heic.png"


def test_folders_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    save(tmp_path, "in/x.png")
    closed = save(tmp_path, "in/closed/y.png").parent
    scandir = os.scandir

    def refuse(path):  # root may read everything
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert [job.name for job in found.jobs] == ["x.png"] and found.unreadable == {closed: "Permission denied"}
    with pytest.raises(InputError, match="found no images .*cannot read .*closed': Permission denied"):
        find_inputs([closed], tmp_path / "out")
