"""The command line ``iiae``.

Each command is a frozen dataclass that tyro fills and whose ``run`` does the work. Heavy packages load inside ``run``, so that
help, and the commands that need no torch, start at once. What a user can cause ends in one line on stderr and exit code 2;
anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = ["main"]

import io
import os
import shlex
import sys
from collections.abc import Sequence

from iiae_fast.errors import InputError, MissingExtraError, NonFiniteLossError, OutOfMemoryError

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_CLOSED_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit code: 0, 2 for a user's error, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an arrow that a terminal cannot show is no reason to fail
    try:
        from iiae_fast.cli import runs
        from iiae_fast.cli.parsing import parse

        runs.command_line = shlex.join(["iiae", *arguments])
        command = parse(arguments)
        code = 0 if command is None else command.run()
        sys.stdout.flush()  # a reader that has gone shows here, not at exit
        return code
    except KeyboardInterrupt:
        print("iiae: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    except Exception as error:
        if not _is_users(error):
            raise
        print(f"iiae: {_message(error)}", file=sys.stderr)
        return 2


def _is_users(error: Exception) -> bool:
    """Whether a user can have caused the error, or must act on it."""
    if isinstance(error, (InputError, MissingExtraError, NonFiniteLossError, OutOfMemoryError, OSError)):
        return True
    parity = sys.modules.get("iiae_fast.export.parity")  # the error exists only where it was loaded
    return parity is not None and isinstance(error, parity.ParityError)


def _message(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
