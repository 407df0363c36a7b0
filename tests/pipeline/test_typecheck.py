# ruff: noqa: UP006, UP007, UP045  (the old spellings are other objects, and are what is tested)
from __future__ import annotations

import collections
import collections.abc as abc
import enum
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NewType, Optional, Protocol, TypedDict, TypeVar, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flujo.pipeline.typecheck import assignable, readable

T = TypeVar("T")
K_contra = TypeVar("K_contra", contravariant=True)


class Animal: ...


class Dog(Animal): ...


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Box(Generic[T]): ...


class IntBox(Box[int]): ...


class Pair(Box[T], Generic[T, K_contra]): ...


class Sink(Generic[K_contra]): ...


class Names(list[str]): ...


class Text(str): ...


class SmallBox(IntBox): ...


class AnyBox(Box): ...  # type: ignore[type-arg]


class Named(Protocol):
    name: str


class Page(BaseModel, Generic[T]):
    items: list[T]


class IntPage(Page[int]): ...


class Movie(TypedDict):
    title: str


class LongMovie(Movie):
    minutes: int


class OtherMovie(TypedDict):
    title: int


class Point(typing.NamedTuple):
    x: int
    y: str


UserId = NewType("UserId", int)
AdminId = NewType("AdminId", UserId)

FITS: list[tuple[Any, Any]] = [
    (int, int),
    (int, Any),
    (Any, int),
    (int, object),
    (None, None),
    (None, type(None)),
    (None, Optional[int]),
    (None, object),
    (None, Literal[None]),
    (Dog, Animal),
    (Dog, Animal | int),
    (Dog | int, int | Animal),
    (int | None, Optional[int]),
    (Union[int, bool], int),
    (bool, int),
    (bool, float),
    (int, float),
    (float, complex),
    (int, complex),
    (Annotated[int, "x"], int),
    (int, Annotated[int, ["unhashable"]]),
    (list[Annotated[int, ["unhashable"]]], list[int]),
    (UserId, int),
    (AdminId, UserId),
    (AdminId, float),
    (UserId, UserId | None),
    (Literal["a"], str),
    (Literal["a"], Literal["a", "b"]),
    (Literal["a"], Literal["b"] | str),
    (Literal["a", 1], int | str),
    (bool, Literal[True, False]),
    (bool, Literal[True] | Literal[False]),
    (Color, Literal[Color.RED, Color.BLUE]),
    (Literal[Color.RED], Color),
    (T, int),
    (int, T),
    ("Later", int),
    (list[int], list),
    (list, list[int]),
    (list[Any], list[int]),
    (list[int], Sequence[int]),
    (list[int], Iterable[float]),
    (list[bool], list[int]),
    (typing.List, list[int]),
    (typing.List[int], abc.Sequence),
    (set[int], abc.Collection[int]),
    (frozenset[int], abc.Set[int]),
    (str, Sequence[str]),
    (bytes, Iterable[int]),
    (range, Sequence[int]),
    (Names, list[str]),
    (Names, Sequence[str]),
    (dict[str, int], Mapping[str, int]),
    (dict[str, int], Iterable[str]),
    (collections.OrderedDict[str, int], dict[str, int]),
    (collections.Counter[str], Mapping[str, int]),
    (abc.ItemsView[str, int], Iterable[tuple[str, int]]),
    (abc.Generator[int, None, None], abc.Iterator[int]),
    (tuple[int, str], tuple[int, str]),
    (tuple[int, int], tuple[int, ...]),
    (tuple[()], tuple[int, ...]),
    (tuple[int, ...], tuple[int, int]),
    (tuple, tuple[int, str]),
    (tuple[int, str], tuple),
    (tuple[int, str], Sequence[int | str]),
    (tuple[None, None], Sequence[None]),
    (tuple[int, *tuple[str, ...]], tuple[int, str]),
    (Point, tuple[int, str]),
    (type[Dog], type[Animal]),
    (type, type[Animal]),
    (IntBox, Box[int]),
    (IntBox, Box),
    (SmallBox, Box[int]),
    (AnyBox, Box[int]),
    (Text, Iterable[str]),
    (Callable[..., str], Callable[[int], str] | None),
    (Pair[int, str], Box[int]),
    (Sink[Animal], Sink[Dog]),
    (Page[int], Page[int]),
    (Page[int], Page),
    (Page, Page[int]),
    (IntPage, Page[int]),
    (Animal, Named),
    (Named, Animal),
    (Movie, Movie),
    (LongMovie, Movie),
    (Movie, dict[str, Any]),
    (Movie, Mapping[str, object]),
    (dict[str, Any], Movie),
    (Callable[[int], str], Callable[[str], int]),
    (Callable[[int], str], Callable),
    (type[Dog], Callable[..., Animal]),
    (typing.NoReturn, int),
    (int, abc.Hashable),
    (typing.LiteralString, str),
]

FITS_NOT: list[tuple[Any, Any]] = [
    (int, str),
    (str, int),
    (float, int),
    (complex, float),
    (object, int),
    (Animal, Dog),
    (int, None),
    (None, int),
    (int | None, int),
    (int | str, int | bytes),
    (int, str | None),
    (Annotated[int, "x"], str),
    (int, UserId),
    (UserId, AdminId),
    (UserId, str),
    (Literal[1], UserId),
    (str, Literal["a"]),
    (Literal["a", "b"], Literal["a"]),
    (Literal[1], Literal[True]),
    (Literal["a"], int),
    (bool, Literal[True]),
    (Color, Literal[Color.RED]),
    (Color, int),
    (list[int], list[str]),
    (list[int | None], list[int]),
    (list[int], set[int]),
    (list[int], Sequence[str]),
    (list[list[int]], list[list[str]]),
    (str, Sequence[int]),
    (str, list[str]),
    (Text, Sequence[int]),
    (SmallBox, Box[str]),
    (Names, list[int]),
    (list, abc.Hashable),
    (dict[str, int], dict[str, str]),
    (dict[str, int], dict[int, int]),
    (dict[str, int], Iterable[int]),
    (tuple[int, str], tuple[str, int]),
    (tuple[int, str], tuple[int]),
    (tuple[int, str], tuple[int, ...]),
    (tuple[int, ...], tuple[str, str]),
    (tuple[int, str], Sequence[int]),
    (type[Dog], type[int]),
    (IntBox, Box[str]),
    (Pair[int, str], Box[str]),
    (Sink[Dog], Sink[int]),
    (Page[int], Page[str]),
    (IntPage, Page[str]),
    (Page[int], dict[str, Any]),
    (Movie, LongMovie),
    (Movie, OtherMovie),
    (Movie, list[str]),
    (int, Movie),
    (int, Callable[[int], int]),
]


@pytest.mark.parametrize(("source", "target"), FITS, ids=repr)
def test_what_may_fit_is_accepted(source: Any, target: Any) -> None:
    """Everything that a type checker accepts, and everything that cannot be decided."""
    assert assignable(source, target)


@pytest.mark.parametrize(("source", "target"), FITS_NOT, ids=repr)
def test_what_is_certainly_wrong_is_refused(source: Any, target: Any) -> None:
    """No value of the one, or not every one, is of the other."""
    assert not assignable(source, target)


@pytest.mark.skipif(not hasattr(typing, "TypeAliasType"), reason="`type X = ...` came with Python 3.12")
def test_aliases_are_seen_through_also_recursive_ones() -> None:
    """Declared with `type`, with and without parameters."""
    scope: dict[str, Any] = {}
    exec(
        "type Number = int\n"
        "type Many[T] = list[T]\n"
        "type Json = int | list[Json]\n"
        "type Deep = int | list[Deep]\n"
        "type Lost = nowhere\n"
        "type Loop = Loop\n"
        "type Grows[T] = T | list[Grows[list[T]]]\n"
        "type Swells[T] = T | list[Swells[list[T]]]\n",
        scope,
    )
    assert assignable(scope["Number"], int) and not assignable(scope["Number"], str)
    assert assignable(scope["Many"][int], list[int]) and not assignable(scope["Many"][int], list[str])
    assert assignable(scope["Json"], scope["Deep"]) and not assignable(scope["Json"], int)
    assert assignable(scope["Lost"], int) and assignable(scope["Loop"], int)
    assert assignable(scope["Grows"][int], scope["Swells"][int])
    assert (readable(scope["Json"]), readable(scope["Many"][int])) == ("Json", "Many[int]")


def test_a_class_that_answers_no_question_is_accepted() -> None:
    """What cannot be decided is not refused."""

    class Odd(type):
        def __subclasscheck__(cls, other: type) -> bool:
            raise TypeError("no")

    class Strange(metaclass=Odd): ...

    assert assignable(int, Strange)


READABLE: list[tuple[Any, str]] = [
    (int, "int"),
    (None, "None"),
    (Any, "Any"),
    (Animal, "Animal"),
    (Optional[int], "int | None"),
    (int | str, "int | str"),
    (list[int], "list[int]"),
    (typing.List, "list"),
    (dict[str, list[Animal]], "dict[str, list[Animal]]"),
    (tuple[int, ...], "tuple[int, ...]"),
    (tuple[()], "tuple[()]"),
    (Literal["a", 1], "Literal['a', 1]"),
    (Literal[Color.RED], "Literal[Color.RED]"),
    (Callable[[int, str], bool], "Callable[[int, str], bool]"),
    (Callable[..., bool], "Callable[..., bool]"),
    (Annotated[int, "x"], "int"),
    (UserId, "UserId"),
    (T, "T"),
    (Page[int], "Page[int]"),
    (Box[int], "Box[int]"),
    ("Later", "Later"),
    (list["Later"], "list[Later]"),  # type: ignore[name-defined]  # noqa: F821
    (typing.LiteralString, "LiteralString"),
]


@pytest.mark.parametrize(("tp", "text"), READABLE, ids=repr)
def test_types_are_printed_as_people_write_them(tp: Any, text: str) -> None:
    """Without modules, `typing.` and `<class ...>`."""
    assert readable(tp) == text


def test_the_module_can_be_asked_for() -> None:
    """To tell two classes of one name apart."""
    assert readable(list[Animal], qualified=True) == f"list[{__name__}.Animal]"


leaves = st.sampled_from(
    [
        int,
        str,
        float,
        bool,
        None,
        object,
        Animal,
        Dog,
        Color,
        UserId,
        Movie,
        Page[int],
        Literal["a", 1],
        Named,
        T,
        Any,
    ]
)
types = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda tp: list[tp]),  # type: ignore[valid-type]
        inner.map(lambda tp: Optional[tp]),
        inner.map(lambda tp: tuple[tp, ...]),  # type: ignore[valid-type]
        st.tuples(inner, inner).map(lambda pair: dict[pair]),  # type: ignore[misc, valid-type]
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),  # type: ignore[valid-type]
        st.tuples(inner, inner).map(lambda pair: Union[pair]),
    ),
    max_leaves=6,
)


@given(types, types)
def test_what_holds_for_every_two_types(one: Any, other: Any) -> None:
    """Every type fits itself, Any, object and each union with it; and all have a short text."""
    assert assignable(one, one) and assignable(one, Any) and assignable(one, object)
    assert assignable(one, Union[one, other]) and assignable(one, Union[other, one])
    assert assignable(Union[one, other], other) <= assignable(one, other)
    assert assignable(list[one], list[other]) == assignable(one, other)
    assert "typing." not in readable(one)
