"""Control groups: where Linux keeps the limits of this process, in versions 1 and 2."""

from __future__ import annotations

from pathlib import Path

HIERARCHIES = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def own_cgroups(controller: str) -> list[Path]:
    """The folders of the cgroups that limit this process for a controller, e.g. "cpu", the innermost one first.

    The limits of all of them hold. In a container, the path of the process's cgroup may be the host's, which is not
    there: the outermost folder is the container's own then. Source: cgroups(7).
    """
    try:
        memberships = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not on Linux
        return []
    found = []
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = HIERARCHIES / controller if controllers else HIERARCHIES  # version 2 has no controllers here
        innermost = root / path.lstrip("/")
        found += [folder for folder in (innermost, *innermost.parents) if folder.is_relative_to(root)]
    return found
