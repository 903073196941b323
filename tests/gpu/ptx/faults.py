"""What goes wrong on the machine: text that it does not understand, and illegal operations of the program."""

from __future__ import annotations


class PtxError(Exception):
    """PTX that the machine does not know: it must be taught, from the documentation."""


class Fault(Exception):
    """An illegal operation of the program that is run."""
