"""Stored data are data: read in other processes, changed classes and hostile hands."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import subprocess
import sys
import threading
import typing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from flujo.errors import ContextMismatchError, FlujoError, StateCorruptedError, UnknownTypeError
from flujo.state.codec import Codec, declare, register_type

codec = Codec()
SOURCE = Path(__file__).parents[2] / "src"


@dataclasses.dataclass
class Leaf:
    x: int
    when: datetime | None = None


class Node(BaseModel):
    leaf: Leaf
    leaves: list[Leaf] = []
    names: dict[str, Decimal] = {}


class Kind(enum.Enum):
    A = 1


class Bits(enum.Flag, boundary=enum.STRICT):
    A = 1


class Spot(typing.NamedTuple):
    x: int


SHOP = """
from __future__ import annotations
import dataclasses, enum, sys, typing
from datetime import datetime
from pydantic import BaseModel, TypeAdapter
from flujo.state.codec import Codec, declare, register_type

class Kind(enum.Enum):
    BIG = 1

@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    name: str
    kind: Kind
    at: datetime

class Spot(typing.NamedTuple):
    x: int

class Order(BaseModel):
    lines: list[Line]
    spot: typing.Annotated[Spot | None, "doc"] = None
    before: Order | None = None
    anything: typing.Any = None
    _note: typing.Any = "n"

T = typing.TypeVar("T")
class Page(BaseModel, typing.Generic[T]):
    items: list[T]

class Money:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return type(other) is Money and other.n == self.n

def make():
    line = Line("a", Kind.BIG, datetime(2020, 1, 2))
    order = Order(lines=[line], spot=Spot(1), anything=(1, {2: line}))
    order._note = {"x": (1,)}
    return [Page[Order](items=[order, Order(lines=[], before=order)]), Kind.BIG, {Spot(2): line}]
"""
WRITE = "import shop; shop.register_type(shop.Money, encode=lambda m: m.n, decode=shop.Money)\n"
WRITE += "sys.stdout.buffer.write(shop.Codec().encode([shop.make(), shop.Money(5)]))"
READ_MONEY = WRITE.splitlines()[0] + "\n"
CHECK = """
value = shop.Codec().decode(sys.stdin.buffer.read())
assert value == [shop.make(), shop.Money(5)], value
assert value[0][0].items[0]._note == {"x": (1,)}
assert value[0][0].items[0].model_fields_set == {"lines", "spot", "anything"}
"""
WAYS = {
    "declared": READ_MONEY + "shop.declare(shop.Page[shop.Order] | None)\n" + CHECK,
    "declared-deep": READ_MONEY + "shop.declare('x'); shop.declare(dict[str, list[shop.Page[shop.Order]]])\n" + CHECK,
    "registered": READ_MONEY
    + "for c in (shop.Page[shop.Order], shop.Order, shop.Line, shop.Kind, shop.Spot): shop.register_type(c)\n"
    + CHECK,
}


def python(folder: Path, code: str, data: bytes = b"") -> bytes:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{SOURCE}"}
    command = [sys.executable, "-c", "import sys\n" + code]
    done = subprocess.run(command, input=data, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_another_process_reads_what_one_wrote(way: str, tmp_path: Path) -> None:
    """A new process needs the types registered or declared, and nothing else from the writer."""
    (tmp_path / "shop.py").write_text(SHOP)
    python(tmp_path, WAYS[way], python(tmp_path, WRITE))


@pytest.mark.slow
def test_another_process_without_the_types_says_what_to_do(tmp_path: Path) -> None:
    """Strictly an unknown type is an error that names it; otherwise it is plain data. Nothing is imported."""
    (tmp_path / "shop.py").write_text(SHOP)
    code = """
from flujo.errors import UnknownTypeError
from flujo.state.codec import Codec
data = sys.stdin.buffer.read()
try:
    Codec().decode(data)
except UnknownTypeError as error:
    assert "'shop:" in str(error) and "register_type" in str(error), error
else:
    raise AssertionError
pages, kind, spots = Codec().decode(data, strict=False)[0]
assert pages["items"][0]["lines"] == [{"name": "a", "kind": "BIG", "at": "2020-01-02T00:00:00"}], pages
assert kind == "BIG" and "shop" not in sys.modules
"""
    python(tmp_path, code, python(tmp_path, WRITE.replace("[shop.make(), shop.Money(5)]", "[shop.make()[:2] + [1]]")))


def test_declaring_the_same_thing_again_changes_nothing() -> None:
    """A second declaration of anything costs a look-up; names that cannot be resolved are passed over."""

    @dataclasses.dataclass
    class Loose:
        x: NoSuchName  # type: ignore[name-defined]  # noqa: F821
        y: Leaf

    for annotation in (Loose, list["NoSuchName"], typing.Callable[[Loose], Leaf], None, "NoSuchName", typing.Any):  # type: ignore[name-defined]  # noqa: F821
        declare(annotation)
        declare(annotation)
    value = Loose((1,), Leaf(1))
    assert codec.decode(codec.encode(value)) == value


def test_strict_false_gives_plain_data_for_what_is_unknown_or_changed() -> None:
    """An admin query shows a run whatever has become of its types."""
    data = b'[{"$type":"gone:Type","value":{"a":{"$type":"tuple","value":[1]}}},{"$type":"tuple","value":[2]}]'
    assert codec.decode(data, strict=False) == [{"a": (1,)}, (2,)]
    codec.encode(Leaf(1))
    name = f"{__name__}:Leaf"
    changed = {"$type": name, "value": {"old": 1}}
    assert codec.lift(changed, strict=False) == {"old": 1}
    with pytest.raises(ContextMismatchError):
        codec.lift(changed)


def test_an_unknown_type_is_named() -> None:
    """The error says which type, and the two ways to make it known."""
    with pytest.raises(UnknownTypeError, match=r"'gone:Type'.*register_type.*annotation of a step") as caught:
        codec.decode(b'[{"$type":"gone:Type","value":1}]')
    assert caught.value.type_name == "gone:Type"


def test_a_name_of_the_standard_library_is_no_type() -> None:
    """Nothing is looked up by import, however well known it is."""
    for name in ("os:system", "builtins:eval", "subprocess:Popen", "builtins:int", "type", "object", "function"):
        with pytest.raises(UnknownTypeError):
            codec.lift({"$type": name, "value": "true"})


def test_a_class_that_changed_gets_its_defaults_or_an_error_that_names_the_fields() -> None:
    """A new field with a default is filled in; one without, and one that is gone, are named."""

    @dataclasses.dataclass
    class Now:
        kept: int
        added: list[int] = dataclasses.field(default_factory=lambda: [7])

    class Model(BaseModel):
        kept: int
        added: list[int] = [7]
        also: int

    register_type(Now, name="test-now")
    register_type(Model, name="test-model")
    register_type(Spot, name="test-spot")
    register_type(Kind, name="test-kind")
    register_type(Bits, name="test-bits")
    assert codec.lift({"$type": "test-now", "value": {"kept": 1}}) == Now(1, [7])
    model = codec.lift({"$type": "test-model", "value": {"kept": 1, "also": 2}})
    assert model.added == [7]
    assert model.model_fields_set == {"kept", "also"}
    for name, value, said in [
        ("test-now", {"added": []}, "no 'kept', which has no default"),
        ("test-now", {"kept": 1, "gone": 2}, "no longer has 'gone'"),
        ("test-model", {"kept": 1, "gone": 1}, "no 'also'.*no longer has 'gone'"),
        ("test-model", {"kept": 1, "also": 1, "$private": {"_p": 1}}, "no longer has '_p'"),
        ("test-spot", {}, "no 'x'"),
        ("test-kind", "B", "no longer has 'B'"),
        ("test-bits", 2, "no longer has '2'"),
    ]:
        with pytest.raises(ContextMismatchError, match=said):
            codec.lift({"$type": name, "value": value})


def test_an_old_name_can_be_registered_beside_the_new_one() -> None:
    """A class that moved is registered under its old name first: old data are read, new data get the new name."""

    @dataclasses.dataclass
    class Moved:
        x: int

    register_type(Moved, name="old.place:Moved")
    register_type(Moved, name="new.place:Moved")
    assert codec.lift({"$type": "old.place:Moved", "value": {"x": 1}}) == Moved(1)
    assert codec.lower(Moved(1))["$type"] == "new.place:Moved"


def test_register_type_is_a_decorator() -> None:
    """With and without options it returns the class."""

    @register_type
    @dataclasses.dataclass
    class First:
        x: int

    @register_type(name="test-second")
    class Second(BaseModel):
        x: int

    assert codec.lift({"$type": "test-second", "value": {"x": 1}}) == Second(x=1)
    assert codec.decode(codec.encode(First(1))) == First(1)


def tag(name: object, value: object) -> dict[str, object]:
    return {"$type": name, "value": value}


NODE, LEAF = f"{__name__}:Node", f"{__name__}:Leaf"
HOSTILE: list[object] = [
    {"$type": "int"},
    {"$type": 5, "value": 1},
    {"$type": None, "value": 1},
    {"$type": ["int"], "value": 1},
    {"$type": {"a": 1}, "value": 1},
    {"$type": "int", "value": 1, "more": 2},
    *(tag("int", bad) for bad in ("1", "0x", "0xg", "__import__('os')", 1.5, True, None, [], {})),
    *(tag("float", bad) for bad in ("nan ", "1e5", 1, None, [], {})),
    *(tag(name, bad) for name in ("bool", "str", "NoneType") for bad in (1.5, [], {})),
    *(tag("complex", bad) for bad in ([1, 2], [1.0], "1j", None, [1.0, tag("int", "0x1")], [1.0, tag("x", 1)])),
    *(tag("complex", bad) for bad in ([1.0, {"$type": [], "value": 1}], [[], {}])),
    *(tag("range", bad) for bad in ([1, 2], [1, 2, 0], [1, 2, 1.0], [1, 2, True], [1, 2, "3"], "range(3)", None)),
    *(tag(name, bad) for name in ("bytes", "bytearray") for bad in ("a", "====", "ä", 1, [1])),
    *(
        tag(name, bad)
        for name in ("datetime", "time", "date")
        for bad in ("x", "", "[", "]", 1, None, {}, {"iso": 1}, {"iso": "2020-01-01", "x": 1}, "2020-01-01T00:00[../x]")
    ),
    tag("datetime", {"iso": {"iso": "2020-01-01T00:00:00"}}),
    tag("datetime", {"iso": "2020-01-01T00:00:00", "fold": 2}),
    *(
        tag("datetime", {"iso": "2020-01-01T00:00:00+01:00", "zone": bad})
        for bad in ("x", [], ["x"], [[0, 3600, 0], 5], [[0, 3600, 0], "x", "y"], [[5, 0, 0]])
    ),
    *(tag("timedelta", bad) for bad in ([1, 2], [1, 2, "3"], [10**12, 0, 0], [1.0, 0, 0], "x")),
    *(tag("UUID", bad) for bad in ("x", 1, None, [])),
    *(tag("Decimal", bad) for bad in ("x", 1, [], None)),
    *(tag("Fraction", bad) for bad in ([1, 0], [1], "1/3", [1.0, 2.0])),
    *(tag("PurePosixPath", bad) for bad in (1, None, [])),
    *(tag(name, bad) for name in ("tuple", "set", "frozenset", "list") for bad in (1, "ab", {"a": 1}, None)),
    *(tag("set", bad) for bad in ([[1]], [{}], [1, 1], [1, True])),
    *(tag("dict", bad) for bad in (1, [1], [[1]], [[1, 2, 3]], [[[], 1]], {"ab": 1}, [["a", 1], ["a", 2]], ["abc"])),
    *(tag(NODE, bad) for bad in (1, "x", [], None, {"leaf": 5}, {"leaf": {"x": 1}, "leaves": 5})),
    *(tag(NODE, {"leaf": {"x": 1}, **bad}) for bad in ({"leaves": [5]}, {"names": 1}, {"names": {"a": "x"}})),
    *(tag(NODE, {"leaf": {"x": 1}, **bad}) for bad in ({"$unset": 1}, {"$unset": [[]]}, {"$unset": ["zz"]})),
    *(tag(NODE, {"leaf": {"x": 1}, **bad}) for bad in ({"$private": 1}, {"$private": [1]})),
    *(tag(LEAF, bad) for bad in (1, "x", [], None, {"x": 1, "when": "never"}, {"x": [1]}, {"x": {}})),
    *(tag(f"{__name__}:Kind", bad) for bad in (1, None, [], {})),
    *(tag(f"{__name__}:Bits", bad) for bad in ("A", None, [], 1.0)),
    *(tag(f"{__name__}:Spot", bad) for bad in (1, None, [1])),
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: str(data)[:60])
@pytest.mark.parametrize("strict", [True, False])
def test_data_that_no_value_is_written_as_are_damage(data: object, strict: bool) -> None:
    """A tag with the wrong shape is StateCorruptedError, never an error of whatever parsed it."""
    for annotation in (Node, Kind, Bits, Spot):
        declare(annotation)
    with pytest.raises(StateCorruptedError):
        codec.lift([data], strict=strict)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"nul", b"NaN", b"[1,]", b"1 2", b"\xff", b'"\xff"', b'{"a":NaN}', b"'x'", b'"\\ud800"']
)
def test_what_is_no_json_is_damage(data: bytes) -> None:
    """Torn or foreign bytes are StateCorruptedError."""
    with pytest.raises(StateCorruptedError, match="no JSON"):
        codec.decode(data)


@pytest.mark.parametrize("levels", [129, 190, 201, 500, 100_000])
@pytest.mark.parametrize("shape", [(b"[", b"]"), (b'{"a":', b"}"), (b'{"$type":"tuple","value":[', b"]}")])
def test_deep_data_are_damage(levels: int, shape: tuple[bytes, bytes]) -> None:
    """Data nested beyond the limit are refused before anything walks into them."""
    opening, closing = shape
    with pytest.raises(StateCorruptedError):
        codec.decode(opening * levels + b"1" * (shape[0] != b"[") + closing * levels)


def test_brackets_in_strings_are_no_nesting() -> None:
    """Text may hold any number of brackets."""
    value = ["[" * 500, "]{" * 500, {"}": ["{" * 300]}]
    assert codec.decode(codec.encode(value)) == value


def test_data_given_to_lift_by_hand_may_not_be_endless() -> None:
    """Even a cycle is damage, not a RecursionError."""
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(StateCorruptedError):
        codec.lift(loop)


def test_too_many_bytes_are_damage() -> None:
    """A payload over `max_bytes` is not even parsed."""
    with pytest.raises(StateCorruptedError, match="11 bytes, more than 10"):
        Codec(max_bytes=10).decode(b'"123456789"')


names = st.sampled_from(["int", "dict", "tuple", "set", "datetime", "Fraction", NODE, LEAF, "gone:X", "$type"])
json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | names,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$type", "value", "x", "leaf", "$unset", "$private", "iso"]), inner, max_size=3
        )
        | st.builds(tag, names, inner)
    ),
    max_leaves=10,
)


@given(json_data, st.booleans())
@settings(max_examples=200)
@pytest.mark.slow
def test_no_data_make_the_codec_fail_in_another_way(data: object, strict: bool) -> None:
    """Whatever the JSON is, the outcome is a value or an error of the library."""
    declare(Node)
    with contextlib.suppress(FlujoError):
        codec.lift(data, strict=strict)


def test_a_decode_that_fails_is_damage_with_its_cause() -> None:
    """An error of a registered decode is kept as the cause."""

    class Odd:
        pass

    def fail(_: object) -> Odd:
        raise ZeroDivisionError("no")

    register_type(Odd, name="test-odd-decode", encode=lambda _: 1, decode=fail)
    with pytest.raises(StateCorruptedError, match="ZeroDivisionError: no") as caught:
        codec.decode(codec.encode(Odd()))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_time_zone_that_this_machine_lacks_is_named() -> None:
    """The zone may exist elsewhere; the error says what to install."""
    with pytest.raises(UnknownTypeError, match=r"'Mars/Phobos'.*tzdata"):
        codec.lift(tag("datetime", "2020-01-01T00:00:00+00:00[Mars/Phobos]"))


_watched: list[str] | None = None


def _watch(event: str, _: object) -> None:
    if _watched is not None and event.partition(".")[0] in ("import", "exec", "compile", "pickle", "open", "os"):
        _watched.append(event)


def test_decoding_executes_imports_and_opens_nothing() -> None:
    """The interpreter's own audit sees no import, exec, compile, unpickling or file while data are read."""
    global _watched  # an audit hook can never be removed, so that it must be told to stop
    sys.addaudithook(_watch)
    moment = datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    value = [Node(leaf=Leaf(1, moment), names={"a": Decimal(1)}), Kind.A, Spot(1), {1: {(2, b"x")}}, moment]
    data = codec.encode(value)
    fresh = Codec()
    hostile = [b'{"$type":"os:system","value":"true"}', b'{"$type":"__import__(\'os\')","value":1}']
    _watched = []
    try:
        assert fresh.decode(data) == value
        for item in hostile:
            with pytest.raises(UnknownTypeError):
                fresh.decode(item)
            fresh.decode(item, strict=False)
        events = list(_watched)
    finally:
        _watched = None
    assert events == []


def test_threads_may_meet_a_class_for_the_first_time_together() -> None:
    """Coders are made once or twice, never half."""
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    @dataclasses.dataclass
    class Shared:
        x: Leaf
        more: list[Shared] = dataclasses.field(default_factory=list)

    value = Shared(Leaf(1, datetime(2020, 1, 1, tzinfo=UTC)), [Shared(Leaf(2))])

    def work() -> None:
        try:
            start.wait()
            for _ in range(20):
                assert codec.decode(codec.encode(value)) == value
                declare(Shared)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00Z", "2026-06-01T12:30:00.25+02:00", "2026-06-01T12:30:00-05:30"])
def test_times_as_pydantic_reads_them(text: str) -> None:
    """An aware time that came from JSON has a zone of pydantic's own class, and comes back with just that."""
    given = TypeAdapter(datetime).validate_json(f'"{text}"')
    codec = Codec()
    back = codec.decode(codec.encode(given, "output"))
    assert (back, back.utcoffset(), type(back.tzinfo)) == (given, given.utcoffset(), type(given.tzinfo))
