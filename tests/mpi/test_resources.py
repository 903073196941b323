"""How ranks of a node divide its processors and GPUs."""

from __future__ import annotations

import pytest

from pix2pix.mpi.resources import NodeShare


def share(rank: int, *node: tuple[set[int], str]) -> NodeShare:
    """The share of a rank, given the (processors, GPUs as letters) that each rank of the node sees."""
    everyone = [(frozenset(cpus), tuple(gpus)) for cpus, gpus in node]
    return NodeShare(everyone, rank)


def test_ranks_divide_the_processors_that_they_share():
    both = {0, 1}, ""
    assert share(2, both, both, both).threads(6) == 2
    assert share(2, both, both, both).threads(2) == 1
    bound = ({0}, ""), ({1}, "")
    assert share(0, *bound).threads(4) == 4
    assert share(0, *bound, both).threads(4) == 2


@pytest.mark.parametrize(
    ("device", "seen", "expected"),
    [
        ("cuda", ["abcd"] * 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("auto", ["abcd"] * 2, ["cuda:0,cuda:2", "cuda:1,cuda:3"]),
        ("cuda:1,3", ["abcd"] * 2, ["cuda:1", "cuda:3"]),
        ("cuda", ["ab"] * 3, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", ["a", "b", "c"], ["cuda:0"] * 3),
        ("cuda", ["ab", "cd"], ["cuda:0,cuda:1"] * 2),
        ("cpu,cuda", ["ab"] * 2, ["cpu,cuda:0", "cpu,cuda:1"]),
        ("cpu", ["ab"] * 2, ["cpu", "cpu"]),
        ("auto", ["", ""], ["auto", "auto"]),
    ],
)
def test_ranks_divide_the_gpus_that_they_share(device, seen, expected):
    node = [({0}, gpus) for gpus in seen]
    assert [share(rank, *node).device(device) for rank in range(len(node))] == expected
