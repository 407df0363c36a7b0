"""What could not be restored exactly is refused when it is saved, with the path to it."""

from __future__ import annotations

import collections
import dataclasses
import enum
import socket
import typing
from datetime import datetime, timedelta, tzinfo

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from flujo.errors import ConfigurationError, NotSerializableError, RegistryError
from flujo.state.codec import Codec, declare, register_type

codec = Codec()


class Handle:
    def __repr__(self) -> str:
        raise AssertionError("the error must not print values")


class Line(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    conn: typing.Any = None
    _lock: typing.Any = PrivateAttr(default=None)


class Basket(BaseModel):
    items: list[Line] = []
    users: dict[str, typing.Any] = {}
    names: list[str] = []


@dataclasses.dataclass
class Job:
    x: typing.Any = None


class Pair(typing.NamedTuple):
    left: typing.Any
    right: typing.Any = 0


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)


class Text(str):
    pass


class Whole(int):
    pass


def loop() -> list[typing.Any]:
    value: list[typing.Any] = [1]
    value.append({"me": value})
    return value


def with_private() -> Line:
    line = Line()
    line._lock = Handle()
    return line


CASES: list[tuple[typing.Any, str, str]] = [
    (Handle(), "output", "Handle"),
    (Basket(items=[Line(), Line(conn=Handle())]), "output.items[1].conn", "Handle"),
    (Basket(users={"a b": Job(Handle())}), 'output.users["a b"].x', "Handle"),
    (Basket(users={"ann": [0, (1, Handle())]}), "output.users.ann[1][1]", "Handle"),
    (Line(**{"an extra": Handle()}), 'output["an extra"]', "Handle"),
    (with_private(), "output._lock", "Handle"),
    (Pair(1, {2: Handle()}), "output.right[2]", "Handle"),
    ({(1, Handle()): 1}, "output[<key 0>][1]", "Handle"),
    ({1: 2, Handle(): 1}, "output[<key 1>]", "Handle"),
    ([1, lambda: 1], "output[1]", "function"),
    ([Handle], "output[0]", "type"),
    ({"a": ValueError("x")}, "output.a", "ValueError"),
    ([(n for n in ())], "output[0]", "generator"),
    ([[1], [Text("a")]], "output[1][0]", "Text"),
    ({Text("a"): 1}, "output[<key 0>]", "Text"),
    ({"n": Whole(1)}, "output.n", "Whole"),
    (collections.OrderedDict(a=1), "output", "OrderedDict"),
    ([collections.defaultdict(list)], "output[0]", "defaultdict"),
    ([datetime(2020, 1, 1, tzinfo=Zone())], "output[0]", "datetime"),
    (["ok", "\ud800"], "output[1]", "str"),
    ({"\udfff": 1}, "output[<key 0>]", "str"),
    (Basket(names=["a", "b\ud83d"]), "output.names[1]", "str"),
    (loop(), "output[1].me", "list"),
    (Line.model_construct(conn=loop()), "output.conn[1].me", "list"),
]


@pytest.mark.parametrize(("value", "path", "kind"), CASES, ids=[case[1] + "-" + case[2] for case in CASES])
def test_the_path_leads_to_what_is_refused(value: typing.Any, path: str, kind: str) -> None:
    """The error names the part, its type, and what to do; it never prints the value."""
    with pytest.raises(NotSerializableError) as caught:
        codec.encode(value)
    error = caught.value
    assert error.path == path
    assert error.type_name.rpartition(".")[2] == kind
    assert str(error).startswith(f"{path} ")
    assert error.hint


def test_a_socket_in_a_context_is_refused_with_the_name_of_the_field() -> None:
    """`encode_fields` puts the field's name between the root and the path."""
    with socket.socket() as conn, pytest.raises(NotSerializableError) as caught:
        codec.encode_fields({"a": 1, "users": {"a b": Job(conn)}})
    assert caught.value.path == 'context.users["a b"].x'


def test_attributes_outside_the_fields_are_refused() -> None:
    """What no field declares would be lost: it is named instead."""
    job = Job(1)
    job.y = 1  # type: ignore[attr-defined]
    with pytest.raises(NotSerializableError, match=r"^output\[0\] has an attribute 'y'"):
        codec.encode([job])

    class Marked(Pair):
        pass

    marked = Marked(1)
    marked.note = "x"  # type: ignore[attr-defined]
    with pytest.raises(NotSerializableError, match="attributes that are no fields"):
        codec.encode(marked)


def test_a_field_without_a_value_is_refused() -> None:
    """A half-built object cannot be told from an older one when it is read."""
    shop = Basket()
    del shop.names
    with pytest.raises(NotSerializableError, match=r"\[0\] has no value for the field 'names'"):
        codec.encode([shop])
    line = Line()
    del line.__pydantic_private__["_lock"]  # type: ignore[index]
    with pytest.raises(NotSerializableError, match="private attribute '_lock'"):
        codec.encode(line)


def test_a_dataclass_on_top_of_a_builtin_is_refused() -> None:
    """Its fields are not the whole of its state."""

    @dataclasses.dataclass
    class Failure(Exception):
        x: int

    with pytest.raises(NotSerializableError, match="builds on another kind"):
        codec.encode(Failure(1))


def test_a_slot_that_is_no_field_of_a_model_is_refused() -> None:
    """A model can carry values where pydantic does not look."""

    class Slotted(BaseModel):
        __slots__ = ("hidden",)
        x: int = 1

    model = Slotted()
    assert codec.decode(codec.encode(model)) == model
    object.__setattr__(model, "hidden", 1)
    with pytest.raises(NotSerializableError, match="slot 'hidden'"):
        codec.encode(model)


def test_an_undeclared_enum_member_is_refused() -> None:
    """Only members that the class declares can be found again by name."""

    class Open(enum.Enum):
        A = 1

        @classmethod
        def _missing_(cls, value: object) -> Open:
            made = object.__new__(cls)
            made._name_, made._value_ = "made", value
            return made

    with pytest.raises(NotSerializableError, match="no declared member"):
        codec.encode(Open(5))


def nested(levels: int) -> list[typing.Any]:
    value: list[typing.Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_nesting_is_limited_exactly() -> None:
    """128 levels are stored and read; 129 are refused, and thousands are no RecursionError."""
    assert codec.decode(codec.encode(nested(128))) == nested(128)
    for levels in (129, 5_000):
        with pytest.raises(NotSerializableError, match="nested more than 128 levels"):
            codec.encode(nested(levels))


def test_what_fits_the_limit_of_nesting_can_be_read() -> None:
    """Tags count as levels, also those of numbers that JSON cannot hold."""
    for limit in range(1, 9):
        small = Codec(max_depth=limit)
        for value in ([[(1,)]], {1: {2: 3}}, [[float("nan")]], [Job([Pair(1)])], Line(a={"b": ()}), [{"a": 1}]):
            try:
                data = small.encode(value)
            except NotSerializableError:
                continue
            small.decode(data)


def test_a_limit_that_python_reaches_first_is_a_refusal_too() -> None:
    """A caller that is itself deep in the stack gets the same error, not a RecursionError."""

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            codec.encode(nested(120))

    with pytest.raises((NotSerializableError, RecursionError)):
        deep(930)


def test_payloads_are_limited() -> None:
    """A value that takes more than `max_bytes` is refused, with its size."""
    small = Codec(max_bytes=10)
    assert small.encode("12345678") == b'"12345678"'
    with pytest.raises(NotSerializableError, match=r"^context\.x takes 11 bytes, more than the 10"):
        small.encode_fields({"x": "123456789"})


@pytest.mark.parametrize("limits", [{"max_depth": 0}, {"max_depth": 201}, {"max_bytes": 0}])
def test_limits_out_of_range_are_an_error(limits: dict[str, int]) -> None:
    """A codec could not read what it wrote beyond the parser's own limit."""
    with pytest.raises(ConfigurationError, match="out of range"):
        Codec(**limits)


def test_an_encode_that_fails_is_named_with_its_error() -> None:
    """The path leads to the value whose encode raised, and the error is the cause."""

    class Odd:
        pass

    def fail(_: Odd) -> str:
        raise ZeroDivisionError("no")

    register_type(Odd, encode=fail, decode=lambda _: Odd())
    with pytest.raises(
        NotSerializableError, match=r"output\.a\[0\] could not be encoded \(ZeroDivisionError: no\)"
    ) as it:
        codec.encode({"a": [Odd()]})
    assert isinstance(it.value.__cause__, ZeroDivisionError)


def test_an_encode_that_gives_its_own_type_is_too_deep() -> None:
    """An encode that gets no nearer to JSON ends at the limit of nesting."""

    class Same:
        pass

    register_type(Same, encode=lambda _: Same(), decode=lambda _: Same())
    with pytest.raises(NotSerializableError, match="levels deep"):
        codec.encode(Same())


def test_registrations_that_contradict_are_errors() -> None:
    """A name belongs to one class; a class that cannot be taken apart needs both functions."""

    @dataclasses.dataclass
    class One:
        x: int = 0

    @dataclasses.dataclass
    class Two:
        x: int = 0

    register_type(One, name="test-one")
    register_type(One, name="test-one")
    with pytest.raises(RegistryError, match=r"'test-one' is taken by .*One"):
        register_type(Two, name="test-one")
    with pytest.raises(RegistryError, match="taken by the library"):
        register_type(Two, name="tuple")
    with pytest.raises(RegistryError, match="only one of encode and decode"):
        register_type(Two, encode=lambda two: two.x)
    with pytest.raises(RegistryError, match="no model, dataclass"):
        register_type(Handle)
    with pytest.raises(RegistryError, match="stores itself"):
        register_type(datetime)
    with pytest.raises(RegistryError, match="not a class"):
        register_type("x")  # type: ignore[call-overload]


def test_a_class_whose_name_is_registered_for_another_is_refused() -> None:
    """It would come back as the other class."""

    def make() -> type[typing.Any]:
        @dataclasses.dataclass
        class Twin:
            x: int = 0

        return Twin

    first, second = make(), make()
    register_type(first)
    with pytest.raises(NotSerializableError, match="name belongs to another class"):
        codec.encode(second())
    with pytest.raises(RegistryError, match="registered for another class"):
        declare(second)
    register_type(second, name="test-twin")
    assert type(codec.decode(codec.encode(second()))) is second
