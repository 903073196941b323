"""TorchScript programs as state dicts: the tensors among the attributes of their modules. Their code is never read.

torch.jit.save pickles the tree of modules; what a module holds are its attributes: parameters and buffers, other
modules, and settings. The names of a state dict are the paths to its tensors in that tree.
"""

from __future__ import annotations

from collections import deque

from ...errors import NoGeneratorError
from ..budget import Budget
from ..containers.pickles import Attributes
from ..tensors import StoredTensor

_MAX_DEPTH = 64  # of modules; a U-Net of 12 levels has 26


def state_dict(program: Attributes, budget: Budget) -> dict[str, StoredTensor]:
    """The tensors of a program by their names in a state dict.

    Raises CheckpointError if there are none, or if modules contain each other without end.
    """
    state: dict[str, StoredTensor] = {}
    waiting: deque[tuple[str, int, Attributes]] = deque([("", 0, program)])
    while waiting:
        prefix, depth, module = waiting.popleft()
        for name, value in module.items():
            path = f"{prefix}{name}"
            if isinstance(value, StoredTensor):
                budget.spend_text(len(path))
                state[path] = value
            elif isinstance(value, Attributes) and depth < _MAX_DEPTH:
                budget.spend_text(len(path))
                waiting.append((f"{path}.", depth + 1, value))
    if not state:
        raise NoGeneratorError(
            "the TorchScript program has no tensors among its modules' attributes: torch.jit.freeze or an optimisation "
            "made nameless constants of them. Save the program before that, or its state dict: "
            "torch.save(net.state_dict(), 'latest_net_G.pth')"
        )
    return state
