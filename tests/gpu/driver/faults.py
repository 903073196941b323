"""What is wrong with a call, and what goes wrong with one."""

from __future__ import annotations


class Fault(Exception):
    """A call breaks a rule of the driver's documentation."""


class DriverError(Exception):
    """A result other than CUDA_SUCCESS."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error {code}")
        self.code = code
