"""Values to self-describing JSON and back: lossless, or refused with the path to what is not."""

from __future__ import annotations

from .codec import Codec
from .faults import Lenient
from .models import fields_of, restore_model
from .types import declare, register_type

__all__ = ["Codec", "Lenient", "declare", "fields_of", "register_type", "restore_model"]
