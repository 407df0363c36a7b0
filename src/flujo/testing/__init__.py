"""What tests need: time that passes only when somebody waits, and the tests that every backend has to pass."""

from __future__ import annotations

from flujo.testing.backend_suite import BackendSuite
from flujo.testing.clock import VirtualClock

__all__ = ["BackendSuite", "VirtualClock"]
