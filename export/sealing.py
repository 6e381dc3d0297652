"""A checksum inside an ONNX file, which any protobuf reader sees as one more metadata entry.

Protobuf messages concatenate: the bytes after the model are a ``ModelProto`` with nothing but the entry
``metadata_props {key: "checksum" value: SHA-256 of all bytes before}``. Checking it takes no ONNX library.
"""

from __future__ import annotations

__all__ = ["seal", "sealed"]

import hashlib

# Field 14 of ModelProto, 76 bytes long: field 1 "checksum" (8 bytes), field 2 (64 bytes, the hexadecimal digits follow).
_ENTRY = b"\x72\x4c\x0a\x08checksum\x12\x40"
_TRAILER = len(_ENTRY) + 64


def seal(model: bytes) -> bytes:
    """A serialized model with its checksum behind it."""
    return model + _ENTRY + hashlib.sha256(model).hexdigest().encode()


def sealed(data: bytes) -> bool | None:
    """Whether the checksum holds; None when there is none, because the file is truncated or comes from elsewhere."""
    model, trailer = data[:-_TRAILER], data[-_TRAILER:]
    if not trailer.startswith(_ENTRY):
        return None
    return trailer == _ENTRY + hashlib.sha256(model).hexdigest().encode()
