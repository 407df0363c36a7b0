"""The command `flujo`: see what runs do, and set them right, from a shell.

`import flujo` does not load it, nor typer and rich, which nothing else uses.
"""

from __future__ import annotations

from flujo.cli.app import main

__all__ = ["main"]
