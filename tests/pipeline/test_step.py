from __future__ import annotations

import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Annotated, Any

import pytest

from flujo.errors import StepDefinitionError
from flujo.pipeline import NO_RETRY, Retry, Step, step


class Order:
    pass


class Shop:
    pass


def test_a_decorated_async_function_is_a_step_that_knows_its_types() -> None:
    """Name, types, docstring and the kind of function are read from the declaration."""

    @step
    async def charge(order: Order, *, context: Shop) -> int:
        """Take the money."""
        return 1

    assert isinstance(charge, Step)
    assert (charge.name, charge.kind, charge.doc) == ("charge", "step", "Take the money.")
    assert (charge.is_async, charge.takes_input, charge.takes_context) == (True, True, True)
    assert (charge.input_type, charge.output_type, charge.context_type) == (Order, int, Shop)
    assert (charge.retry, charge.timeout, charge.bodies) == (NO_RETRY, None, ())
    assert repr(charge) == "<Step charge: Order -> int>"


def test_a_plain_function_without_annotations_has_types_any() -> None:
    """What is not annotated is Any, and a function that is not async is called as it is."""

    @step  # type: ignore[no-untyped-call, arg-type, unused-ignore]
    def load(source):  # type: ignore[no-untyped-def]
        return source

    assert (load.is_async, load.takes_input, load.takes_context) == (False, True, False)
    assert (load.input_type, load.output_type, load.context_type) == (Any, Any, Any)
    assert load.fn("x") == "x"


def test_a_step_may_take_nothing_or_the_context_alone() -> None:
    """A parameter called `context` is never the input, wherever it stands."""

    @step
    def nothing() -> int:
        return 1

    @step
    def keyword(*, context: Shop) -> int:
        return 1

    @step
    def positional(context: Shop) -> None:
        return None

    assert [(s.takes_input, s.takes_context) for s in (nothing, keyword, positional)] == [
        (False, False),
        (False, True),
        (False, True),
    ]
    assert positional.output_type is type(None)
    assert positional.context_type is Shop


def test_what_has_a_default_needs_nobody_to_supply_it() -> None:
    """Parameters with defaults, `**options` and a bound argument do not make a function unfit."""

    @step
    def optional(order: Order = Order(), rate: int = 2, *rest: int, deep: bool = False, **more: int) -> int:  # noqa: B008
        return rate

    def rated(order: Order, rate: int) -> int:
        return rate

    bound = step(functools.partial(rated, rate=3))
    assert optional.takes_input
    assert (bound.name, bound.input_type, bound.output_type) == ("rated", Order, int)
    assert bound.fn(Order()) == 3


class Scorer:
    """Scores."""

    async def score(self, order: Order) -> float:
        return 1.0

    async def __call__(self, order: Order) -> float:
        return 1.0


def test_methods_callable_objects_and_classes_are_functions_too() -> None:
    """Each is read where its declaration stands: the method, `__call__`, `__init__`."""

    class Parsed:
        """Parsed text."""

        def __init__(self, text: str) -> None:
            self.text = text

    method, called, made = step(Scorer().score), step(Scorer()), step(Parsed)
    assert (method.name, method.is_async, method.input_type, method.output_type) == (
        "score",
        True,
        Order,
        float,
    )
    assert (called.name, called.is_async, called.input_type) == ("Scorer", True, Order)
    assert (made.name, made.is_async, made.input_type, made.output_type) == ("Parsed", False, str, Parsed)
    assert made.doc == "Parsed text."
    assert step(len).takes_input


def test_names_local_to_the_decorating_function_are_resolved() -> None:
    """Those of this function, of the one around it, and of a class body; annotations are text here."""

    class Local:
        pass

    def inner() -> tuple[Step[Any, Any], Step[Any, Any]]:
        class Inner:
            pass

        class Steps:
            class Own:
                pass

            @step
            @staticmethod
            def own(given: Own) -> Inner:
                return Inner()

        @step
        def convert(given: Local) -> list[Inner]:
            return []

        return convert, Steps.own

    convert, own = inner()
    assert convert.input_type is Local
    assert convert.output_type.__args__[0].__name__ == "Inner"
    assert own.input_type.__qualname__.endswith("Steps.Own")


def test_a_local_name_of_a_caller_is_not_taken_for_the_global_one() -> None:
    """Only functions around the step lend it their names, not those that happen to be its callers."""

    def helper() -> Step[Any, Any]:
        @step
        def take(given: Order) -> None:
            return None

        return take

    def caller() -> Step[Any, Any]:
        Order = int  # noqa: F841
        return helper()

    assert caller().input_type is Order


def test_an_annotation_that_cannot_be_resolved_costs_only_itself() -> None:
    """A name that is nowhere to be found reads as Any; the other annotations stand."""

    @step
    def convert(given: Nowhere, *, context: Annotated[Shop, "x"]) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    assert (convert.input_type, convert.output_type) == (Any, int)
    assert convert.context_type == Annotated[Shop, "x"]


def test_a_wrapped_function_keeps_its_declaration() -> None:
    """A decorator that uses functools.wraps hides neither name nor types."""

    def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await fn(*args, **kwargs)

        return call

    @step
    @logged
    async def charge(order: Order, *, context: Shop) -> int:
        return 1

    assert (charge.name, charge.takes_input, charge.takes_context) == ("charge", True, True)
    assert (charge.input_type, charge.output_type, charge.context_type) == (Order, int, Shop)


def test_options_are_kept_in_their_normal_form() -> None:
    """Retries become a Retry and time-outs become seconds."""

    @step(name="charge card", retries=[1, 10], timeout=timedelta(minutes=2))
    def charge(order: Order) -> int:
        return 1

    assert charge.name == "charge card"
    assert charge.retry == Retry(max_retries=2, delays=(1.0, 10.0))
    assert charge.timeout == 120.0
    assert step(retries=3, timeout=1)(len).retry.max_retries == 3


def test_a_step_never_changes() -> None:
    """Its attributes cannot be set; `named` makes another step of the same function."""
    first = step(len)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.name = "other"  # type: ignore[misc]
    assert not hasattr(first, "__dict__")
    second = first.named("length")
    assert (first.name, second.name, second.fn) == ("len", "length", len)
    with pytest.raises(StepDefinitionError):
        first.named("a.b")


def needs_more(order: Order, db: object) -> None: ...
def needs_keyword(order: Order, *, db: object) -> None: ...
def keyword_input(*, order: Order) -> None: ...
def starred(*orders: Order) -> None: ...
def context_first(context: Shop, order: Order) -> None: ...
def context_positional(order: Order, context: Shop, /) -> None: ...
def generates(order: Order) -> Iterator[int]:
    yield 1


async def generates_async(order: Order) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("fn", "says", "parameter"),
    [
        (needs_more, "Parameter 'db' of step 'needs_more' has nothing that supplies it.", "db"),
        (needs_keyword, "Parameter 'db' of step 'needs_keyword' has nothing that supplies it.", "db"),
        (keyword_input, "Parameter 'order' of step 'keyword_input' has nothing that supplies it.", "order"),
        (starred, "Step 'starred' takes its input as '*orders', but a step has one input.", "orders"),
        (context_first, "Parameter 'context' of step 'context_first' stands before 'order', ", "context"),
        (context_positional, "Parameter 'context' of step 'context_positional' cannot be passed", "context"),
        (generates, "Step 'generates' is a generator; ", None),
        (functools.partial(generates_async), "Step 'generates_async' is a generator; ", None),
        (3, "Step 'int' is made of 3, which cannot be called.", None),
        (dict, "The parameters of step 'dict' cannot be read: ", None),
        (lambda order: order, "A step cannot be called '<lambda>'.", None),
    ],
)
def test_a_function_that_no_step_could_call_is_refused(fn: Any, says: str, parameter: str | None) -> None:
    """The error comes at the decoration, and names the step and the parameter."""
    with pytest.raises(StepDefinitionError) as caught:
        step(fn)
    assert str(caught.value).startswith(says)
    assert caught.value.hint
    assert caught.value.data.get("parameter") == parameter
    assert "step" in caught.value.data


@pytest.mark.parametrize("name", ["", "a.b", "a[1]", "a]", "a#1", "a>b", "a\nb", "a\x00", "\ud800", "x" * 201, 3])
def test_a_name_that_a_path_could_not_hold_is_refused(name: Any) -> None:
    """The marks of a path, what cannot be printed, and more than 200 characters."""
    with pytest.raises(StepDefinitionError, match="A step cannot be called"):
        step(name=name)(len)


@pytest.mark.parametrize("name", ["x" * 200, "größe", "charge card", "a-b_c/d:e"])
def test_other_names_are_fine(name: str) -> None:
    """Spaces, other alphabets and other marks are allowed."""
    assert step(name=name)(len).name == name


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"retries": True},
        {"retries": "3"},
        {"retries": 1.5},
        {"retries": [1, -1]},
        {"retries": [float("nan")]},
        {"retries": None},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": True},
        {"timeout": "30"},
        {"timeout": float("inf")},
        {"timeout": timedelta(0)},
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    """The error names the step, the option and the value."""
    option = next(iter(options))
    with pytest.raises(StepDefinitionError) as caught:
        step(**options)(len)
    assert str(caught.value).startswith(f"Step 'len': `{option}` cannot be ")
    assert caught.value.data["step"] == "len"
    assert caught.value.data["option"] == option


def test_a_misspelt_option_is_a_type_error() -> None:
    """As with every Python function."""
    with pytest.raises(TypeError, match="retrys"):
        step(retrys=3)  # type: ignore[call-overload]
