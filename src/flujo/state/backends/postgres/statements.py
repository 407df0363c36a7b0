"""The statements of `tx.sql`, for a schema of any name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from flujo.state.backends.postgres.schema import named, script


@cache
def statements(schema: str) -> Mapping[str, bytes]:
    """Return every statement by its name."""
    blocks = re.split(r"^-- name: (\w+)\n", script("tx.sql"), flags=re.MULTILINE)[1:]
    plain = re.compile(r"^--.*\n", re.MULTILINE)
    return {
        name: named(plain.sub("", body).strip(), schema).encode()
        for name, body in zip(blocks[::2], blocks[1::2], strict=True)
    }
