"""The last step of every export: metadata, checks, and a checksum inside the file.

The checksum is one more metadata entry to any protobuf reader.

Protobuf messages concatenate, and the bytes after the model are a ``ModelProto`` with nothing but the entry
``metadata_props {key: "checksum" value: SHA-256 of all bytes before}``. Checking it takes no ONNX library.
"""

from __future__ import annotations

__all__ = ["finish", "seal", "sealed"]

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from iiae_fast.errors import require
from iiae_fast.version import __version__

if TYPE_CHECKING:
    import onnx

# Field 14 of ModelProto, 76 bytes long: field 1 "checksum" (8 bytes), field 2 (64 bytes, the hexadecimal digits follow).
_ENTRY = b"\x72\x4c\x0a\x08checksum\x12\x40"
_TRAILER = len(_ENTRY) + 64


def finish(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The file's bytes: the model checked, with its metadata and checksum."""
    onnx = require("onnx", "onnx")
    model.producer_name, model.producer_version = "iiae_fast", __version__
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return seal(model.SerializeToString(deterministic=True))


def seal(model: bytes) -> bytes:
    """A serialized model with its checksum behind it."""
    return model + _ENTRY + hashlib.sha256(model).hexdigest().encode()


def sealed(data: bytes) -> bool | None:
    """Whether the checksum holds; None when there is none, because the file is truncated or comes from elsewhere."""
    model, trailer = data[:-_TRAILER], data[-_TRAILER:]
    if not trailer.startswith(_ENTRY):
        return None
    return trailer == _ENTRY + hashlib.sha256(model).hexdigest().encode()
