"""Backends of somebody else's: each of them passes, with the tests of what it cannot do skipped."""

from __future__ import annotations

from pathlib import Path

from flujo import StateBackend
from flujo.testing import BackendSuite
from tests.support import reference_backends as reference


class InMemory(BackendSuite):
    durable = False


class TestText(InMemory):
    fenced = reads = False

    def make(self, place: Path) -> StateBackend:
        return reference.Text()


class TestFiles(BackendSuite):
    fenced = reads = False

    def make(self, place: Path) -> StateBackend:
        return reference.Files(place)


class TestLive(InMemory):
    fenced = reads = False

    def make(self, place: Path) -> StateBackend:
        return reference.Live()


class TestFenced(InMemory):
    fenced, reads = True, False

    def make(self, place: Path) -> StateBackend:
        return reference.Fenced()


class TestReadable(InMemory):
    fenced, reads = False, True

    def make(self, place: Path) -> StateBackend:
        return reference.Readable()


class TestLiveFenced(InMemory):
    fenced, reads = True, False

    def make(self, place: Path) -> StateBackend:
        return reference.LiveFenced()


class TestLiveReadable(InMemory):
    fenced, reads = False, True

    def make(self, place: Path) -> StateBackend:
        return reference.LiveReadable()


class TestFencedReadable(InMemory):
    fenced = reads = True

    def make(self, place: Path) -> StateBackend:
        return reference.FencedReadable()


class TestLiveFencedReadable(InMemory):
    fenced = reads = True

    def make(self, place: Path) -> StateBackend:
        return reference.LiveFencedReadable()
