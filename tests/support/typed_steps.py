"""Small steps of several types, and functions that decide."""

from __future__ import annotations

from typing import Any

from flujo import Step, step


@step
def words(text: str) -> list[str]:
    return text.split()


@step
async def length(text: str) -> int:
    return len(text)


@step
def double(number: int) -> int:
    return number * 2


@step
def show(number: float) -> str:
    return str(number)


@step(retries=3)
async def noted(number: int, *, context: dict[str, int]) -> int:
    return number


def untyped(name: str) -> Step[Any, Any]:
    return step(name=name)(lambda given: given)


def size(number: int) -> str:
    return "big" if number > 10 else "small"


async def enough(number: int, *, context: dict[str, int]) -> bool:
    return number > 10
