"""What the type checkers infer of steps with pipelines inside, and what they refuse; see check_typing.

A comment that ignores an error is needed, or the checker reports it: so it proves that the error is found.
"""

# mypy: warn-unused-ignores
# pyright: strict

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal, assert_type

from pydantic import BaseModel

from flujo.pipeline import ItemError, Merge, Pipeline, Step, step


@dataclass
class Order:
    total: int


@dataclass
class BigOrder(Order):
    discount: int


@dataclass
class Draft:
    text: str
    good: bool


class Shop(BaseModel):
    log: Annotated[list[str], Merge.APPEND] = []
    sold: Annotated[int, Merge.ADD] = 0
    seen: Annotated[set[str], Merge.UNION] = set()
    best: Annotated[int, Merge.of(lambda before, values: max(before, *values))] = 0


def tried(value: object) -> None:
    """Take a value, so that no checker has anything to say of it but what is wrong inside."""


@step
async def split(text: str) -> list[str]:
    return text.split()


@step
def parse(text: str) -> Order:
    return Order(len(text))


@step
async def enlarge(order: Order) -> BigOrder:
    return BigOrder(order.total, 1)


@step
def discounted(order: BigOrder) -> int:
    return order.total - order.discount


@step
def charge(order: Order) -> int:
    return order.total


@step
async def describe(order: Order, *, context: Shop) -> str:
    return f"{order} {context}"


@step
def write(draft: Draft) -> Draft:
    return draft


@step
async def now() -> int:
    return 1


# --- parallel ---

assert_type(Step.parallel("fan", left=charge, right=charge.named("again")), Step[Order, dict[str, int]])
assert_type(Step.parallel("fan", left=parse >> charge, right=parse >> enlarge >> charge), Step[str, dict[str, int]])
assert_type(Step.parallel("fan", one=discounted, other=charge), Step[BigOrder, dict[str, int]])
both: Step[Order, dict[str, int | str]] = Step.parallel("fan", sum=charge, text=describe)
assert_type(parse >> Step.parallel("fan", sum=charge, more=charge), Pipeline[str, dict[str, int]])
fan = Step.parallel("fan", sum=charge)
tried(split >> fan)  # type: ignore[operator]
tried(split >> Step.parallel("fan", sum=charge))  # type: ignore[arg-type]
tried(Step.parallel("fan", sum=len))  # type: ignore[arg-type]

# --- map ---

assert_type(Step.map_over("each", charge), Step[Iterable[Order], list[int]])
assert_type(Step.map_over("each", parse >> charge, max_concurrency=8), Step[Iterable[str], list[int]])
assert_type(Step.map_over("each", charge, on_error="fail"), Step[Iterable[Order], list[int]])
assert_type(
    Step.map_over("each", charge, on_error="collect", min_successful=3, tolerated_failures=2),
    Step[Iterable[Order], list[int | ItemError]],
)
assert_type(split >> Step.map_over("each", parse), Pipeline[str, list[Order]])
assert_type(
    split >> Step.map_over("each", parse) >> Step.map_over("all", charge, on_error="collect"),
    Pipeline[str, list[int | ItemError]],
)
each = Step.map_over("each", charge)
tried(split >> each)  # type: ignore[operator]
tried(split >> Step.map_over("each", charge))  # type: ignore[arg-type]
tried(charge >> Step.map_over("each", charge))  # type: ignore[operator]
tried(Step.map_over("each", charge, on_error="ignore"))  # type: ignore[call-overload]
tried(Step.map_over("each", charge, min_successful=3))  # type: ignore[call-overload]

# --- branch ---


def size(order: Order) -> str:
    return "big" if order.total > 1000 else "small"


async def size_later(order: Order) -> Literal["big", "small"]:
    return "big" if order.total > 1000 else "small"


async def size_seen(order: Order, *, context: Shop) -> str:
    return "big" if order.total > context.sold else "small"


@step(retries=3)
async def size_step(order: Order) -> str:
    return "big" if order.total > 1000 else "small"


assert_type(
    Step.branch_on("route", by=lambda order: "big" if order.total > 1000 else "small", big=charge, small=charge),
    Step[Order, int],
)
assert_type(Step.branch_on("route", by=size, big=enlarge >> discounted, default=charge), Step[Order, int])
assert_type(Step.branch_on("route", by=size_later, big=charge, small=charge, default="small"), Step[Order, int])
assert_type(Step.branch_on("route", by=size_seen, big=charge, small=now), Step[Order, int])
assert_type(Step.branch_on("route", by=size_step, big=charge, small=now), Step[Order, int])
assert_type(Step.branch_on("route", by=size, big=discounted, small=charge), Step[BigOrder, int])
either: Step[Order, int | str] = Step.branch_on("route", by=size, big=charge, small=describe)
route = Step.branch_on("route", by=size, big=charge)
tried(split >> route)  # type: ignore[operator]
tried(Step.branch_on("route", by=charge, big=charge))  # type: ignore[arg-type]
tried(Step.branch_on("route", big=charge))  # type: ignore[call-arg]

# --- loop ---


def good(draft: Draft) -> bool:
    return draft.good


async def good_later(draft: Draft, *, context: Shop) -> bool:
    return draft.good or not context.log


assert_type(Step.loop_until("refine", write, until=lambda draft: draft.good), Step[Draft, Draft])
assert_type(Step.loop_until("refine", write >> write.named("w"), until=good, max_iterations=3), Step[Draft, Draft])
assert_type(Step.loop_until("refine", write, until=good_later), Step[Draft, Draft])
tried(Step.loop_until("refine", charge, until=lambda total: True))  # type: ignore[misc]
tried(Step.loop_until("refine", write, until=size))  # type: ignore[arg-type]

# --- nested pipelines, fallbacks, time limits ---

assert_type((parse >> charge).as_step("sale"), Step[str, int])
assert_type(parse >> (enlarge >> discounted).as_step("sale"), Pipeline[str, int])
assert_type(charge.fallback(enlarge >> discounted), Step[Order, int])
assert_type(charge.fallback(now), Step[Order, int])
assert_type(discounted.fallback(charge), Step[BigOrder, int])
assert_type(parse.with_timeout(3), Step[str, Order])
assert_type(Step.map_over("each", charge).with_timeout(timedelta(minutes=3)), Step[Iterable[Order], list[int]])
tried(charge.fallback(split))  # type: ignore[arg-type]
tried(charge.with_timeout("3"))  # type: ignore[arg-type]
