"""What the type checkers infer, and what they refuse; run by mypy and basedpyright, not by pytest.

A comment that ignores an error is needed, or the checker reports it: so it proves that the error is found.
"""

# mypy: warn-unused-ignores
# pyright: strict

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from flujo.pipeline import Pipeline, PipelineRegistry, Registered, Retry, Step, step


@dataclass
class Order:
    total: int


@dataclass
class BigOrder(Order):
    discount: int


@dataclass
class Shop:
    seen: int


def tried(value: object) -> None:
    """Take a value, so that no checker has anything to say of it but what is wrong inside."""


# --- what a decorated function is ---


@step
async def parse(text: str) -> int:
    return int(text)


@step
def double(number: int) -> int:
    return number * 2


@step
async def count(number: int, *, context: Shop) -> Order:
    return Order(number + context.seen)


@step
def show(order: Order, *, context: Shop) -> str:
    return f"{order} {context}"


@step
def show_positional(order: Order, context: Shop) -> str:
    return f"{order} {context}"


@step
def show_default(order: Order, *, width: int = 3) -> str:
    return f"{order:{width}}"


@step
async def start() -> int:
    return 1


@step
def start_plain() -> int:
    return 1


@step
async def start_context(*, context: Shop) -> int:
    return context.seen


@step
def start_context_plain(context: Shop) -> int:
    return context.seen


@step
async def nothing(number: int) -> None:
    print(number)


@step
async def many(number: int) -> list[int]:
    return [number]


assert_type(parse, Step[str, int])
assert_type(double, Step[int, int])
assert_type(count, Step[int, Order])
assert_type(show, Step[Order, str])
assert_type(show_positional, Step[Order, str])
assert_type(show_default, Step[Order, str])
assert_type(start, Step[object, int])
assert_type(start_plain, Step[object, int])
assert_type(start_context, Step[object, int])
assert_type(start_context_plain, Step[object, int])
assert_type(nothing, Step[int, None])
assert_type(many, Step[int, list[int]])


# --- with options ---


@step(retries=3, timeout=30)
async def charge(order: Order) -> str:
    return str(order)


@step(retries=[1, 10, 60], timeout=timedelta(seconds=3), name="charge again")
def charge_plain(order: Order) -> str:
    return str(order)


@step(retries=Retry(max_retries=2, jitter=0.5))
async def charge_context(order: Order, *, context: Shop) -> int:
    return order.total + context.seen


@step(name="s")
async def start_options(*, context: Shop) -> int:
    return context.seen


@step(name="s")
def start_options_plain() -> int:
    return 1


@step()
async def no_options(order: BigOrder) -> BigOrder:
    return order


assert_type(charge, Step[Order, str])
assert_type(charge_plain, Step[Order, str])
assert_type(charge_context, Step[Order, int])
assert_type(start_options, Step[object, int])
assert_type(start_options_plain, Step[object, int])
assert_type(no_options, Step[BigOrder, BigOrder])

# --- other callables ---


class Scorer:
    async def score(self, order: Order) -> float:
        return order.total / 2

    def __call__(self, order: Order) -> float:
        return order.total / 2


def bound(order: Order, rate: int) -> int:
    return order.total * rate


assert_type(step(Scorer().score), Step[Order, float])
assert_type(step(Scorer()), Step[Order, float])
rated: Step[Order, int] = step(functools.partial(bound, rate=2))
assert_type(parse.named("parse again"), Step[str, int])

# --- joining ---

assert_type(parse >> double, Pipeline[str, int])
assert_type(parse >> double >> count, Pipeline[str, Order])
assert_type(parse >> (double >> count), Pipeline[str, Order])
assert_type((parse >> double) >> (count >> show), Pipeline[str, str])
assert_type((parse >> double).named("numbers"), Pipeline[str, int])
assert_type(no_options >> charge, Pipeline[BigOrder, str])  # an output may be a subclass of the next input
assert_type(nothing >> start, Pipeline[int, int])  # a step without an input follows anything
assert_type(Pipeline.of(parse), Pipeline[str, int])
assert_type(Pipeline.of(parse, double, name="numbers"), Pipeline[str, int])
assert_type(Pipeline.of(parse >> double, count, show), Pipeline[str, str])
assert_type(Pipeline.of(parse, double, count, show, name="all"), Pipeline[str, Any])

for_orders: Step[BigOrder, object] = charge  # the input is contravariant, the output covariant
pipeline_for_orders: Pipeline[BigOrder, object] = no_options >> charge

registry = PipelineRegistry()
assert_type(registry.register(parse, "parse", "1.0.0"), Pipeline[Any, Any])
assert_type(registry.register(parse >> double, "both", "1.0.0", pipeline_id="b"), Pipeline[Any, Any])
assert_type(registry.get("parse"), Registered)

# --- what is refused ---

tried(count >> double)  # type: ignore[operator]
tried(parse >> double >> charge)  # type: ignore[operator]
tried(parse >> (count >> charge >> nothing))  # type: ignore[operator]
tried(charge >> no_options)  # type: ignore[operator]
tried(parse >> bound)  # type: ignore[operator]
tried(Pipeline.of())  # type: ignore[call-overload]
tried(Pipeline.of(count, double))  # type: ignore[misc]
wrong: Step[str, str] = parse  # type: ignore[assignment]
narrowed: Step[object, int] = parse  # type: ignore[assignment]
tried(step(retrys=3))  # type: ignore[call-overload]
tried(step(retries="3"))  # type: ignore[arg-type]
tried(step(timeout="30"))  # type: ignore[call-overload]
tried(step(bound))  # type: ignore[arg-type]
parse.name = "other"  # type: ignore[misc]
