"""Codes on their way into a ``.npy`` file: written as they come, kept through a crash, gone on with by the next attempt."""

from __future__ import annotations

__all__ = ["CodesFile"]

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from iiae_fast.errors import InputError

_DIGEST_BYTES = 16


class CodesFile:
    """A float32 array ``(N, D)`` that grows in the folder ``PATH.partial`` and moves to its place when it is complete.

    The folder holds ``codes.npy`` and ``samples``: for every row a digest of the encoder and the sample that it comes from. So
    a later attempt knows which of the leading rows it would compute again, whatever was added, removed or changed meanwhile.

    Args:
        path: Where the array goes.
        encoder: What identifies the encoder.

    Raises:
        InputError: Another process is writing it.
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path, encoder: str) -> None:
        self.path, self.folder = path, path.with_name(f"{path.name}.partial")
        self._encoder = encoder
        self._rows, self._dim, self._header_bytes = 0, 0, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._codes, self._samples = (self._open(name) for name in ("codes.npy", "samples"))
        try:
            fcntl.flock(self._codes, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise InputError(f"{path}: another process is writing it") from None

    def __enter__(self) -> CodesFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._rows == 0:
            self._remove_folder()
        self._close()

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._rows

    @property
    def dim(self) -> int:
        """Values of a row; 0 before the first."""
        return self._dim

    def resume(self, total: int, identity: Callable[[int], str]) -> int:
        """Keep the leading rows that this encoder computed from these samples, at most ``total``; drop the others.

        Args:
            total: How many samples there are.
            identity: What identifies a sample; it changes when the sample does.

        Returns:
            ``rows``.
        """
        self._read_header()
        digests = self._samples.read()
        kept = min(len(digests) // _DIGEST_BYTES, total)
        if self._dim:
            kept = min(kept, (os.fstat(self._codes.fileno()).st_size - self._header_bytes) // (4 * self._dim))
        else:
            kept = 0
        while self._rows < kept:
            start = self._rows * _DIGEST_BYTES
            if digests[start : start + _DIGEST_BYTES] != self._digest(identity(self._rows)):
                break
            self._rows += 1
        self._samples.truncate(self._rows * _DIGEST_BYTES)
        self._codes.truncate(self._header_bytes + 4 * self._dim * self._rows)
        for file in (self._codes, self._samples):
            file.seek(0, os.SEEK_END)
        return self._rows

    def append(self, codes: np.ndarray, identities: list[str]) -> None:
        """Add rows ``(B, D)`` float32 of the samples with these identities."""
        if self._rows == 0:
            self._dim = codes.shape[1]
            self._write_header(0)
        self._codes.write(np.ascontiguousarray(codes, np.float32).tobytes())
        _to_disk(self._codes)  # before the digests that vouch for it
        self._samples.write(b"".join(map(self._digest, identities)))
        _to_disk(self._samples)
        self._rows += len(codes)

    def finish(self) -> None:
        """Move the array to its place."""
        self._write_header(self._rows)
        _to_disk(self._codes)
        os.replace(self.folder / "codes.npy", self.path)
        self._remove_folder()

    def _open(self, name: str) -> BinaryIO:
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        return os.fdopen(descriptor, "r+b")

    def _close(self) -> None:
        self._codes.close()
        self._samples.close()

    def _remove_folder(self) -> None:
        for name in ("codes.npy", "samples"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()

    def _digest(self, identity: str) -> bytes:
        return hashlib.blake2b(f"{self._encoder}\0{identity}".encode(), digest_size=_DIGEST_BYTES).digest()

    def _read_header(self) -> None:
        try:
            np.lib.format.read_magic(self._codes)
            shape, _, _ = np.lib.format.read_array_header_1_0(self._codes)
        except ValueError:  # empty, or cut off within it
            return
        self._dim, self._header_bytes = shape[1], self._codes.tell()

    def _write_header(self, rows: int) -> None:
        """numpy pads the header, so that one with another number of rows fits in its place."""
        self._codes.seek(0)
        facts = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": (rows, self._dim),
        }
        np.lib.format.write_array_header_1_0(self._codes, facts)
        assert rows == 0 or self._codes.tell() == self._header_bytes
        self._header_bytes = self._codes.tell()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
