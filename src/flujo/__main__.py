"""`python -m flujo` is the command `flujo`."""

from __future__ import annotations

import sys

from flujo.cli import main

if __name__ == "__main__":
    sys.exit(main())
