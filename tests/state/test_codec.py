"""Every supported value comes back with its exact type and value."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import math
import re
import struct
import sys
import typing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, field_validator

from flujo.state.codec import Codec, register_type

codec = Codec()
T = typing.TypeVar("T")
ZONES = [ZoneInfo(key) for key in ("Europe/Berlin", "America/New_York", "UTC")]


def same(a: typing.Any, b: typing.Any) -> bool:
    """Say whether two values have the same structure, types and values, to the bit."""
    if type(a) is not type(b):
        return False
    kind = type(a)
    if kind is float:
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if kind is complex:
        return same(a.real, b.real) and same(a.imag, b.imag)
    if kind in (set, frozenset):
        left, right = list(a), list(b)
        return len(left) == len(right) and all(any(same(x, y) for y in right) for x in left)
    if kind is dict:
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if kind in (datetime, time):
        return a.isoformat() == b.isoformat() and a.fold == b.fold and same_zone(a.tzinfo, b.tzinfo)
    if isinstance(a, Decimal | PurePath):
        return repr(a) == repr(b)
    if isinstance(a, enum.Enum) and a._name_ is not None:
        return a is b
    if isinstance(a, BaseModel):
        parts = ("__dict__", "__pydantic_extra__", "__pydantic_private__", "__pydantic_fields_set__")
        return all(same(getattr(a, part), getattr(b, part)) for part in parts)
    if dataclasses.is_dataclass(kind):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(kind))
    # Two ranges that give the same numbers are equal.
    return bool(a == b) and (kind is not range or a.__reduce__() == b.__reduce__())


def same_zone(a: typing.Any, b: typing.Any) -> bool:
    return type(a) is type(b) and (a is b or a.__reduce__() == b.__reduce__() or repr(a) == repr(b))


def back(value: typing.Any, **options: typing.Any) -> typing.Any:
    """Return a value after a trip through JSON that every JSON parser accepts."""
    data = codec.encode(value)

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(4300)
        json.loads(data, parse_constant=refuse)
    finally:
        sys.set_int_max_str_digits(limit)
    return codec.decode(data, **options)


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796  # an alias
    BLUE = (2, "b")


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    ALL = 7


class Mode(enum.IntFlag):
    X = 1


class Point(typing.NamedTuple):
    x: int
    y: float = 0.0


Bare = collections.namedtuple("Bare", "a b")


@dataclasses.dataclass
class Plain:
    a: int
    b: list[Plain] = dataclasses.field(default_factory=list)
    c: datetime | None = None
    seen: int = dataclasses.field(default=0, init=False, compare=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen(typing.Generic[T]):
    item: T
    when: date = date(2020, 1, 1)


@dataclasses.dataclass
class Holder(typing.Generic[T]):
    item: T


@dataclasses.dataclass(slots=True)
class Child(Plain):
    more: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.seen += 1


class Item(BaseModel):
    id: int
    name: str
    price: float = 0.0
    at: datetime | None = None
    tags: set[str] = Field(default_factory=set)


class Order(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    items: list[Item]
    by_name: dict[str, Item] = {}
    number: UUID = Field(default=UUID(int=1), alias="no")
    color: Color = Color.RED
    either: int | str | Decimal = 1
    any: typing.Any = None
    point: Point = Point(1)
    path: Path = Path()
    before: Order | None = None
    _secret: typing.Any = PrivateAttr(default=0)
    _unset: int

    @cached_property
    def total(self) -> float:
        return sum(item.price for item in self.items)


class Box(BaseModel, typing.Generic[T]):
    content: T


class Numbers(RootModel[list[int]]):
    pass


class Noted(RootModel[list[int]]):
    _note: str = PrivateAttr(default="n")


Tree = typing.Annotated[dict[str, list["Item"]], "doc"]
Code = typing.NewType("Code", UUID)


class Wide(BaseModel):
    f: float = 1.0
    i: int = 1
    b: bool = True
    s: str = ""
    t: tuple[int, ...] = ()
    p: tuple[int, str] = (1, "")
    st: set[date] = set()
    ls: list[float] = []
    ld: list[datetime] = []
    d: dict[str, datetime] = {}
    di: dict[int, str] = {}
    tree: Tree = {}
    code: Code = Code(UUID(int=5))
    td: timedelta = timedelta()
    dc: Plain | None = None
    fr: Frozen[int] | None = None
    color: Color = Color.BLUE
    access: Access = Access.READ
    raw: bytes = b""
    base: BaseModel | None = None
    lit: typing.Literal["a", Color.RED] = "a"
    bare: Bare | None = None


def values(children: st.SearchStrategy[typing.Any]) -> st.SearchStrategy[typing.Any]:
    keys = st.text(max_size=5) | st.sampled_from(["$type", "value", "$private", "$unset"])
    hashable = st.integers() | st.text(max_size=3) | st.tuples(st.booleans(), st.binary(max_size=2))
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
        st.dictionaries(hashable, children, max_size=3),
        st.builds(Bare, children, children),
        st.builds(Frozen, item=children),
        st.builds(Wide.model_construct, i=children, ld=st.lists(children, max_size=2), d=children, dc=children),
    )


offsets = st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
named = st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text(max_size=3))
zones = st.none() | st.just(UTC) | offsets | named | st.sampled_from(ZONES)
finite_text = st.text(max_size=10)
paths = st.text("ab./ -:\\c", max_size=12)
items = st.builds(
    Item,
    id=st.integers(),
    name=finite_text,
    price=st.floats(allow_nan=False),
    at=st.none() | st.datetimes(timezones=zones),
    tags=st.sets(finite_text, max_size=3),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    finite_text,
    st.complex_numbers(),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    st.binary(max_size=9),
    st.binary(max_size=9).map(bytearray),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.builds(lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=zones), st.sampled_from([0, 1])),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.fractions(),
    paths.map(PurePosixPath),
    paths.map(Path),
    st.sampled_from([Color.RED, Color.BLUE, Word.A, Number.ONE, Access.ALL, Access.READ | Access.WRITE, Mode(9)]),
    st.sets(st.integers() | st.tuples(st.dates(), finite_text), max_size=4),
    st.frozensets(st.floats(), max_size=4),
    items,
    st.builds(Order, items=st.lists(items, max_size=2), no=st.uuids(), extra=finite_text),
)


@given(st.recursive(scalars, values, max_leaves=12))
@settings(max_examples=150)
@pytest.mark.slow
def test_any_value_comes_back_exactly(value: typing.Any) -> None:
    """Whatever is made of supported types is the same after a round trip, types and bits included."""
    assert same(back(value), value)


@given(st.recursive(scalars, values, max_leaves=8), st.sampled_from(list(Wide.model_fields)))
@settings(max_examples=150)
@pytest.mark.slow
def test_a_value_in_a_field_of_another_type_comes_back_exactly(value: typing.Any, field: str) -> None:
    """A field may hold a value that its annotation does not allow; it is restored all the same."""
    model = Wide.model_construct(**{field: value})
    assert same(back(model), model)


@given(st.recursive(scalars, values, max_leaves=8))
@settings(max_examples=50)
@pytest.mark.slow
def test_lowered_data_are_json_and_lift_gives_the_value(value: typing.Any) -> None:
    """`lower` gives nothing but JSON's own types, and `lift` takes them without changing them."""
    plain = codec.lower(value)
    text = json.dumps(plain, allow_nan=False)
    assert same(codec.lift(plain), value)
    assert json.dumps(plain) == text


UTC_FOLD = datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
EXAMPLES = [
    *(-0.0, math.nan, math.inf, -math.inf, 5e-324, 1e16, 1.0, 2**63, -(2**64), 10**4299, -(10**4301), 7**20_000),
    *([math.nan, "NaN"], {"Infinity": math.inf}, "NaN", "Infinity", ["1" * 10_000], "\x00\u2028\U0001f600"),
    *({}, [], (), set(), frozenset(), b"", "", [[]], ((),), {"": {}}, {1: 2}, {None: 1, True: 2}),
    *({"$type": "int", "value": 1}, {"$type": 1}, {"$private": 1}, [{"$type": "x"}, {"a": 1}], {(1, 2): {3}}),
    *({math.nan: 1}, {Word.A: 1}, [Word.A, "a"], {"a": {Color.RED: Color.CRIMSON}}, [True, 1, 1.0]),
    *(complex(-0.0, math.nan), complex(0.0, -0.0), Decimal("sNaN123"), Decimal("-0E+5"), Fraction(10**5000, 3)),
    *(range(3), range(0), range(9, -9, -4), range(10**5000), {range(3): range(2, 2)}),
    *(UTC_FOLD, UTC_FOLD.timetz(), time(2, fold=1), datetime.min, datetime.max.replace(tzinfo=UTC)),
    *[datetime(2020, 1, 1, tzinfo=timezone(timedelta(0), name)) for name in ("UTC", "]", "")],
    *[time(1, tzinfo=timezone(timedelta(seconds=s, microseconds=us))) for s in (0, -1, 3661) for us in (1, -1)],
    *(timedelta.min, timedelta.max, PureWindowsPath("c:\\a"), PurePosixPath("//a"), PurePosixPath(), Path("/x y")),
    *(
        Point(1),
        Point(1.5, 2),
        Bare([1], (2,)),
        Numbers([1, 2]),
        Noted([1]),
        Box[int](content=1),
        Box[Item](content=Item(id=1, name="")),
    ),  # type: ignore[arg-type]
    *(
        Frozen(item=1),
        Holder[int](1),
        Child(1, [Plain(2)], None, (1,)),
        Plain(True, [Child(1)]),
        Access(0),
        Access.READ | Access.WRITE,
    ),
    *([Plain(1), Item(id=1, name="a"), {"a": Point(1)}], {"a": [{"b": ({"c": [1, {2}]},)}]}),
]


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_corners_come_back_exactly(value: typing.Any) -> None:
    """Each of the values that JSON, or a careless codec, would change is restored exactly."""
    assert same(back(value), value)
    assert same(back([value, (value,)]), [value, (value,)])


def test_plain_data_are_written_as_plain_json() -> None:
    """JSON's own types need no tag, so that the store can be read by other programs."""
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    assert codec.encode(value) == b'{"a":[1,2.5,null,true,"x"],"b":{"c":[]}}'
    assert codec.encode(None) == b"null"


def test_declared_fields_are_written_without_tags() -> None:
    """In a model each value of the declared type has its plain form, readable without this library."""
    order = Order(
        items=[Item(id=1, name="a", price=2.0, at=datetime(2020, 1, 2, tzinfo=ZONES[0]), tags={"t"})],
        no=UUID(int=7),
        by_name={"x": Item(id=2, name="b")},
        note="extra",
    )
    plain = codec.lower(order)
    assert plain["$type"] == f"{__name__}:Order"
    stored = plain["value"]
    assert stored["items"] == [
        {"id": 1, "name": "a", "price": 2.0, "at": "2020-01-02T00:00:00+01:00[Europe/Berlin]", "tags": ["t"]}
    ]
    assert stored["number"] == "00000000-0000-0000-0000-000000000007"
    assert (stored["color"], stored["point"], stored["note"]) == ("RED", {"x": 1, "y": 0.0}, "extra")
    assert "$type" not in json.dumps(stored)


def test_a_value_of_another_type_than_declared_is_tagged() -> None:
    """An int in a float field, or a bool in an int field, says what it is."""
    plain = codec.lower(Wide.model_construct(f=1, i=True, t=[1], s=None))["value"]
    assert plain["f"] == {"$type": "int", "value": 1}
    assert plain["i"] == {"$type": "bool", "value": True}
    assert plain["t"] == {"$type": "list", "value": [1]}
    assert plain["s"] is None


def test_a_model_keeps_its_extras_private_attributes_and_set_fields() -> None:
    """Everything that a model consists of survives: also names that look like the codec's own keys."""
    order = Order(items=[], **{"$type": 1, "$private": {"a": 1}, "$unset": (2,), "$$x": 3, "not a name": 4})
    order._secret = {1: "x"}
    again = back(order)
    assert same(again, order)
    assert again.model_extra == order.model_extra
    assert again.model_fields_set == order.model_fields_set
    assert again._secret == {1: "x"}
    assert not hasattr(again, "_unset")


def test_cached_properties_are_no_state() -> None:
    """A cached property is left out, and computed again when it is asked for."""
    order = Order(items=[Item(id=1, name="", price=2.5)])
    assert order.total == 2.5
    again = back(order)
    assert "total" not in again.__dict__
    assert again.total == 2.5


def test_no_code_of_a_class_runs_at_restore() -> None:
    """Neither validators nor constructors nor post-init hooks see a restored value."""
    ran: list[str] = []

    class Guarded(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def check(cls, x: int) -> int:
            ran.append("validator")
            return x

        def model_post_init(self, context: typing.Any) -> None:
            ran.append("post_init")

        def __setattr__(self, name: str, value: typing.Any) -> None:
            ran.append("setattr")

    @dataclasses.dataclass
    class Hooked:
        x: int

        def __new__(cls, *_: typing.Any) -> Hooked:
            ran.append("new")
            return object.__new__(cls)

        def __post_init__(self) -> None:
            ran.append("post_init")

    data = codec.encode([Guarded(x=1), Hooked(2)])
    ran.clear()
    guarded, hooked = codec.decode(data)
    assert ran == []
    assert (guarded.x, hooked.x) == (1, 2)


def test_shared_and_mutable_parts_are_separate_after_the_trip() -> None:
    """Neither `lower` nor `lift` shares a container with what it was given."""
    inner = [1, 2]
    lowered = codec.lower({"a": inner})
    assert lowered["a"] is not inner
    plain = {"a": [1], "b": {"c": 1}}
    lifted = codec.lift(plain)
    assert lifted == plain
    assert lifted["a"] is not plain["a"] and lifted["b"] is not plain["b"]


def test_lift_passes_values_that_are_no_json_through() -> None:
    """A state made by hand may hold tuples and times; they go through as they are."""
    moment = datetime(2020, 1, 1)
    assert codec.lift({"a": (1, 2), "b": [moment]}) == {"a": (1, 2), "b": [moment]}


def test_a_registered_type_goes_through_its_own_functions() -> None:
    """Any class can be stored once it is registered, also as a field, a key or an item."""

    class Money:
        def __init__(self, amount: Decimal) -> None:
            self.amount = amount

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Money) and other.amount == self.amount

        def __hash__(self) -> int:
            return hash(self.amount)

    register_type(Money, name="test-money", encode=lambda m: (m.amount,), decode=lambda t: Money(t[0]))

    @dataclasses.dataclass
    class Bill:
        total: Money
        parts: list[Money]

    money = Money(Decimal("1.50"))
    for value in (money, [money], {money: {money}}, Bill(money, [money])):
        assert back(value) == value
    assert b'"test-money"' in codec.encode(money)


def test_a_class_that_was_stored_may_be_registered_with_functions_later() -> None:
    """A registration takes effect at once, also for classes that were already in use."""

    @dataclasses.dataclass
    class Late:
        x: int

    assert codec.lower(Late(1))["value"] == {"x": 1}
    register_type(Late, encode=lambda late: late.x, decode=Late)
    assert codec.lower(Late(1))["value"] == 1
    assert back([Late(1)]) == [Late(1)]


def test_fields_are_encoded_one_by_one() -> None:
    """`encode_fields` gives each field by itself, as data without a type."""
    fields = {"a": 1, "b": (1,)}
    encoded = codec.encode_fields(fields)
    assert {name: codec.decode(data) for name, data in encoded.items()} == fields
    assert encoded["a"] == b"1"


def test_names_of_generic_models_tell_their_parameters() -> None:
    """Two parametrizations of one generic model are two types."""
    first, second = codec.decode(codec.encode([Box[int](content=1), Box[str](content="1")]))
    assert (type(first), type(second)) == (Box[int], Box[str])
    assert re.search(rb":Box\[int\]", codec.encode(first))
