"""The whole network beside other runtimes on the CPU. See :mod:`bench.peers.comparison`."""
