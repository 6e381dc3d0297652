"""Files that are written whole or not at all, and refused when a byte of them has changed."""

from __future__ import annotations

__all__ = ["load_json", "load_tensors", "read_whole", "save_json", "save_tensors", "write_atomic"]

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iiae_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash at any moment leaves the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def read_whole(path: Path, expected: str = "a file") -> bytes:
    """The bytes of a file; ``expected`` says in the message what a directory stands in the place of.

    Raises:
        CheckpointError: The file is missing, or a directory.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a directory, expected {expected}") from None


def save_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write ``values`` as readable JSON with a checksum of its own."""
    checked = {**values, "checksum": _json_checksum(values)}
    write_atomic(path, (json.dumps(checked, indent=2, ensure_ascii=False) + "\n").encode())


def load_json(path: str | Path) -> dict[str, Any]:
    """The inverse of ``save_json``.

    Raises:
        CheckpointError: The file is missing, not JSON, or altered.
    """
    path = Path(path)
    try:
        values = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict) or "checksum" not in values:
        raise CheckpointError(f"{path}: no checksum in it; not written by iiae_fast, or altered")
    checksum = values.pop("checksum")
    if checksum != _json_checksum(values):
        raise CheckpointError(f"{path}: altered since it was written (checksum differs)")
    return values


def _json_checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> None:
    """Write tensors (copied to the CPU) and JSON-able metadata as one safetensors file with a checksum of both."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata or {}, sort_keys=True)
    # One entry only: safetensors writes several in an order that changes from process to process.
    header = {"iiae": json.dumps([_tensor_checksum(contiguous, text), text])}
    write_atomic(path, save(contiguous, metadata=header))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that ``save_tensors`` wrote.

    Raises:
        CheckpointError: The file is missing, truncated, not safetensors, or altered.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    data = read_whole(path)
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        checksum, text = json.loads(header["iiae"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: truncated, altered, or not written by iiae_fast ({error})") from None
    if not isinstance(text, str) or checksum != _tensor_checksum(tensors, text):
        raise CheckpointError(f"{path}: altered since it was written (checksum differs)")
    metadata: dict[str, Any] = json.loads(text)
    return tensors, metadata


def _tensor_checksum(tensors: dict[str, Tensor], text: str) -> str:
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
