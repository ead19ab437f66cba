"""Kinds of arguments that commands take: text to value, or argparse's error."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A positive number."""
    if not text.isdecimal() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return int(text)


def lanes(text: str) -> tuple[int, int, int]:
    """Input, output and pixel lanes: "8x8x2"."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 5 for part in parts):
        raise argparse.ArgumentTypeError(f"must be INxOUTxPIXELS such as 8x8x2, not {text!r}")
    across, out, pixels = map(int, parts)
    return across, out, pixels
