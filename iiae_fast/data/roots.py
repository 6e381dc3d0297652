"""Where data lies."""

from __future__ import annotations

__all__ = ["data_root"]

import os
from pathlib import Path

from iiae_fast.errors import DataError

_BESIDE_REPOSITORY = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def data_root(explicit: str | None) -> Path:
    """The folder or file that ``DataConfig.root`` means; it exists.

    Args:
        explicit: A path; a relative one is looked for in the working directory, then in the data folder. None means the data
            folder itself: the environment variable ``IIAE_DATA``, or ``../shared/data`` beside the repository.

    Raises:
        DataError: It is not there; the message says where it was looked for.
    """
    variable = os.environ.get("IIAE_DATA")
    base = Path(variable) if variable else _BESIDE_REPOSITORY
    if explicit is None:
        if base.is_dir():
            return base
        if variable:
            raise DataError(f"IIAE_DATA={variable}: no such folder")
        raise DataError("no data folder: set the environment variable IIAE_DATA to it, or give a root")
    places = [Path(explicit).expanduser()]
    if not places[0].is_absolute():
        places.append(base / explicit)
    for place in places:
        if place.exists():
            return place
    raise DataError(f"root={explicit}: no such file or folder (looked for {' and '.join(map(str, places))})")
