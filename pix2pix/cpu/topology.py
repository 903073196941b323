"""How many processor cores this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..cgroups import own_cgroups
from .openmp import requested_threads, unbound_cpus


def default_threads(reserved: int = 0) -> int:
    """Threads of an engine for which none are asked: what OMP_NUM_THREADS says, else the cores but ``reserved``."""
    return requested_threads() or max(1, available_cores() - reserved)


def available_cores() -> int:
    """Physical cores that this process may use: its affinity and its cgroups' quotas honoured, at least 1."""
    cores = set()
    for cpu in allowed_cpus():
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(cpu)
        cores.add(siblings.strip())
    return max(1, min(len(cores), cgroup_quota()))


def allowed_cpus() -> frozenset[int]:
    """Numbers of the logical processors that this process may use, even if OpenMP has bound this thread to one."""
    if not hasattr(os, "sched_getaffinity"):  # not on Linux
        return frozenset(range(os.cpu_count() or 1))
    return frozenset(os.sched_getaffinity(0)) | unbound_cpus()


def use_allowed_cpus() -> None:
    """Let this thread, and those that it starts, run on all processors that the process may use."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # a cgroup may have fewer than OpenMP saw
            os.sched_setaffinity(0, allowed_cpus())


def cgroup_quota() -> int:
    """Processors that the process's cgroups grant, rounded up; a large number where there is no limit."""
    granted = [1 << 20]
    for folder in own_cgroups("cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):
                quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
                if quota > 0 and period > 0:
                    granted.append(-(-quota // period))
    return min(granted)
