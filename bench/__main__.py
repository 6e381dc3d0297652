"""``python -m iiae_fast.bench``: the same as ``iiae bench``, with fewer dependencies."""

from __future__ import annotations

import sys

from iiae_fast.bench.command import main
from iiae_fast.errors import InputError

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:], "python -m iiae_fast.bench"))
    except InputError as error:
        print(f"iiae_fast.bench: {error}", file=sys.stderr)
        sys.exit(2)
