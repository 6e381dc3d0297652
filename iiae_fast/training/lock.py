"""One trainer at a time in a run directory."""

from __future__ import annotations

__all__ = ["RunLock"]

import os
from pathlib import Path

from iiae_fast.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    _SUPPORTED = False
else:
    _SUPPORTED = True


class RunLock:
    """Context that holds a directory for this process; it is let go when the process ends, however it ends.

    The lock is on the directory itself, so that it leaves no file behind.

    Args:
        run_dir: Locked on entering where it exists; ``make`` makes and locks it otherwise.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        if self._run_dir.is_dir():
            self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def make(self) -> None:
        """Make the directory where it is missing, and hold it.

        Raises:
            ConfigError: Another process has it by now.
        """
        self._run_dir.mkdir(parents=True, exist_ok=True)
        if self._descriptor is None:
            self._lock()

    def _lock(self) -> None:
        if not _SUPPORTED:
            return
        self._descriptor = os.open(self._run_dir, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.__exit__()
            raise ConfigError(
                f"run_dir={self._run_dir}: another process trains in it; wait for that one, or give another directory"
            ) from None
        except OSError:
            self.__exit__()  # a file system without locks
