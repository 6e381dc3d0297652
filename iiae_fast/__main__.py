"""``python -m iiae_fast`` is ``iiae``."""

from __future__ import annotations

import sys

from iiae_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
