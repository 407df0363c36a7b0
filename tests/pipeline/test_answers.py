"""`check_answer_value`: what is one of a type, and what is not."""

from __future__ import annotations

import enum
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from flujo.pipeline import check_answer_value

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = uuid.UUID(int=7)


class Approval(BaseModel):
    approved: bool
    at: datetime | None = None


class SignedApproval(Approval):
    by: str = "ann"


class Refusal(BaseModel):
    approved: bool


class Cat(BaseModel):
    name: str


class Dog(BaseModel):
    name: str


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Order:
    total: int
    due: datetime


@pytest.mark.parametrize(
    ("tp", "value"),
    [
        (Approval, Approval(approved=True)),
        (Approval, SignedApproval(approved=True)),
        (Order, Order(1, NOW)),
        (Colour, Colour.RED),
        (datetime, NOW),
        (bool, False),
        (int | None, None),
        (None, None),
        (str, "yes"),
        (Any, Refusal(approved=True)),
        (object, uuid),
    ],
)
def test_a_value_of_the_type_is_taken_as_it_is(tp: Any, value: Any) -> None:
    """One of a subclass too, and nothing is made anew."""
    assert check_answer_value(tp, value) is value


@pytest.mark.parametrize(
    ("tp", "value", "found"),
    [
        (Approval, {"approved": True}, Approval(approved=True)),
        (Approval, {"approved": True, "at": "2026-01-01T00:00:00Z"}, Approval(approved=True, at=NOW)),
        (Approval, {"approved": True, "at": NOW}, Approval(approved=True, at=NOW)),
        (list[Approval], [{"approved": True}, Approval(approved=False)], [Approval(approved=a) for a in (True, False)]),
        (Order, {"total": 1, "due": "2026-01-01T00:00:00Z"}, Order(1, NOW)),
        (Colour, "red", Colour.RED),
        (datetime, "2026-01-01T00:00:00Z", NOW),
        (timedelta, "PT1H", timedelta(hours=1)),
        (Decimal, "1.10", Decimal("1.10")),
        (uuid.UUID, str(ID), ID),
        (tuple[int, str], [1, "a"], (1, "a")),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (float, 1, 1.0),
    ],
)
def test_what_json_cannot_say_is_read_from_what_it_can(tp: Any, value: Any, found: Any) -> None:
    """A dict of a web form becomes a model, a text a time."""
    answer = check_answer_value(tp, value)
    assert answer == found
    assert type(answer) is type(found)


@pytest.mark.parametrize(
    ("tp", "value", "wrong"),
    [
        (bool, "yes", "Input should be a valid boolean"),
        (bool, 1, "Input should be a valid boolean"),
        (str, 1, "Input should be a valid string"),
        (int, True, "Input should be a valid integer"),
        (int, "3", "Input should be a valid integer"),
        (str, ID, "Input should be a valid string"),
        (str, NOW, "Input should be a valid string"),
        (list[str], [ID], "0: Input should be a valid string"),
        (str, object(), "Input should be a valid string"),
        (str, Approval, "Input should be a valid string"),
        (Approval, {"approved": "yes"}, "approved: Input should be a valid boolean"),
        (Approval, {}, "approved: Field required"),
        (Approval, 3, "Input should be an object"),
        (Approval, Refusal(approved=True), "Input should be a valid dictionary or instance of Approval"),
        (Colour, "blue", "Input should be 'red'"),
        (Literal["yes", "no"], "maybe", "Input should be 'yes' or 'no'"),
        (Annotated[int, Field(gt=3)], 2, "Input should be greater than 3"),
    ],
)
def test_nothing_is_guessed(tp: Any, value: Any, wrong: str) -> None:
    """What is wrong is said in one line, with its place."""
    with pytest.raises(ValueError, match=f"^{re.escape(wrong)}$") as caught:
        check_answer_value(tp, value)
    assert type(caught.value) is ValueError


def test_few_of_many_mistakes_are_told() -> None:
    """The line stays readable."""
    with pytest.raises(ValueError, match=r"^0: Input should be a valid integer; 1: .*; 4: [^;]*; and 3 more$"):
        check_answer_value(list[int], ["x"] * 8)


def test_data_that_fit_both_parts_of_a_union_are_the_first() -> None:
    """Although for Python the two unions are equal."""
    assert type(check_answer_value(Cat | Dog, {"name": "Rex"})) is Cat
    assert type(check_answer_value(Dog | Cat, {"name": "Rex"})) is Dog


def test_a_type_without_a_hash() -> None:
    """It is just not remembered."""
    tp = Annotated[int, Field(gt=3), ["unhashable"]]
    assert check_answer_value(tp, 4) == 4
