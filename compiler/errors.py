"""The one family of errors a user of Signum can meet, and their exit codes.

Grammar of a message: subject, rule, actual value; where; then a hint on its own line when the
mistake is guessable::

    error: layer 7 (stage2.block1.conv1): activations need 196,608 bytes, but board 'icebreaker'
           has 131,072 (SPRAM)
    hint: --board ulx3s-25f
"""

from __future__ import annotations

from collections.abc import Mapping


class SignumError(Exception):
    """Base of every error that is the user's to mend; commands print it without a traceback.

    Parameters
    ----------
    message : str
        Subject, rule, actual value and place, in one sentence without a trailing full stop.
    hint : str
        What would work, or empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def report(self) -> str:
        """The text a command prints on standard error."""
        lines = f"error: {self}"
        return f"{lines}\nhint: {self.hint}" if self.hint else lines


class CheckpointError(SignumError):
    """A file is no checkpoint, or contradicts its own description."""


class LoweringError(SignumError):
    """A network cannot be expressed in the integer arithmetic."""


class ProgramError(SignumError):
    """An integer Program breaks one of its own rules (see `Program.verify`)."""


class CapacityError(SignumError):
    """A Program does not fit a geometry; names the layer, the need, and the budget.

    Parameters
    ----------
    needs : mapping of str to int
        Fields of a `compiler.geometry.Geometry` which would do with these values; the hint says so.
    """

    def __init__(
        self, message: str, hint: str = "", needs: Mapping[str, int] | None = None
    ) -> None:
        self.needs = dict(needs or {})
        shown = " and ".join(f"{name} {value}" for name, value in self.needs.items())
        hints = [f"an engine with {shown}"] if shown else []
        super().__init__(message, ", or ".join(hints + [hint] * bool(hint)))


class ImageError(SignumError):
    """Bytes are not a whole, undamaged Image."""


class DataError(SignumError):
    """A data set is missing, truncated or of the wrong kind."""


class UsageError(SignumError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class ToolchainError(SignumError):
    """A tool is missing or too old; the hint is the command that installs it."""

    exit_code = 3


class BuildError(SignumError):
    """Synthesis, placement, routing or timing failed."""

    exit_code = 4


class MismatchError(SignumError):
    """Simulation and golden model differ."""

    exit_code = 5
