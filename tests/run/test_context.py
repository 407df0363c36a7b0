"""The context over a run's life: its model, a dict, what is gained and lost between save and resume."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from flujo import Flujo, step
from flujo.errors import ConfigurationError, ContextMismatchError, NotSerializableError
from tests.support.backends import Place
from tests.support.pipelines import by_hand


class Shop(BaseModel):
    total: int = 0
    log: list[str] = []


@step
async def count(n: int, *, context: Shop) -> int:
    context.total += n
    context.log.append(f"count {n}")
    return n + 1


@step
async def count_more(n: int, *, context: Shop) -> int:
    context.total += n
    context.log.append(f"more {n}")
    if context.total < 0:
        raise OSError("down")
    return n


@step
async def ignore(n: int) -> int:
    return n


def test_a_model(place: Place) -> None:
    """Steps share it, the result has it, and it is restored with its type in another process."""
    runner = Flujo(count >> ignore >> count_more, context_model=Shop, state_backend=place.open())
    result = runner.run(1, run_id="r")
    assert result.final_pipeline_context == Shop(total=3, log=["count 1", "more 2"])
    assert type(result.final_pipeline_context) is Shop
    again = Flujo(count >> ignore >> count_more, context_model=Shop, state_backend=place.open()).run(1, run_id="r")
    assert again.final_pipeline_context == result.final_pipeline_context
    assert place.load()["pipeline_context"] == {"total": 3, "log": ["count 1", "more 2"]}


def test_initial_data_of_runner_and_run(place: Place) -> None:
    """A run's own data replace the runner's; both may be fields or an instance; a resumed run has its own already."""
    runner = Flujo(count, context_model=Shop, initial_context_data={"total": 10}, state_backend=place.open())
    assert runner.run(1, run_id="a").final_pipeline_context.total == 11
    assert runner.run(1, run_id="b", initial_context_data=Shop(total=20)).final_pipeline_context.total == 21
    assert runner.run(1, run_id="c", initial_context_data={}).final_pipeline_context.total == 1
    assert runner.run(1, run_id="a", initial_context_data={"total": 99}).final_pipeline_context.total == 11


@pytest.mark.parametrize("data", [{"total": "many"}, {"total": []}, Shop])
def test_initial_data_that_make_no_context(place: Place, data: Any) -> None:
    """The error comes before anything is written."""
    runner = Flujo(count, context_model=Shop, state_backend=place.open())
    with pytest.raises(ConfigurationError):
        runner.run(1, run_id="r", initial_context_data=data)
    assert asyncio.run(place.open().load_state("r")) is None
    assert runner.run(1, run_id="r").status == "completed"


def test_an_instance_of_a_subclass(place: Place) -> None:
    """Its own fields would be lost, so it is refused before anything is written."""

    class Bigger(Shop):
        extra: int = 1

    runner = Flujo(count, context_model=Shop, state_backend=place.open())
    with pytest.raises(ConfigurationError, match="Bigger"):
        runner.run(1, run_id="r", initial_context_data=Bigger())
    assert asyncio.run(place.open().load_state("r")) is None


def test_a_model_without_a_context_model() -> None:
    """Initial data that are a model need the model."""
    with pytest.raises(ConfigurationError, match="context_model=Shop"):
        Flujo(ignore, initial_context_data=Shop()).run(1)


def test_a_step_that_wants_another_model() -> None:
    """It is refused when the runner is made, naming the step and both models; a base class will do."""

    class Other(BaseModel):
        pass

    class Special(Shop):
        pass

    with pytest.raises(ConfigurationError, match=r"'count'.*Shop.*Other"):
        Flujo(count, context_model=Other)
    with pytest.raises(ConfigurationError, match=r"'count'.*Shop.*no context_model"):
        Flujo(count)
    assert Flujo(count, context_model=Special).run(1).final_pipeline_context == Special(total=1, log=["count 1"])


class Entries(TypedDict, total=False):
    n: int


class HasTotal(Protocol):
    total: int


@dataclass
class Plain:
    n: int = 0


@pytest.mark.parametrize(
    ("annotation", "with_model", "without"),
    [
        (Shop, True, False),
        (BaseModel, True, False),
        (dict, False, True),
        (dict[str, Any], False, True),
        (MutableMapping[str, Any], False, True),
        (Entries, False, True),
        (Plain, False, False),
        (int, False, False),
        (Any, True, True),
        (object, True, True),
        (Shop | None, True, False),
        (Shop | dict[str, Any], True, True),
        (HasTotal, True, None),
        ("NowhereToBeFound", True, True),
    ],
)
def test_what_a_step_may_call_its_context(annotation: Any, with_model: bool, without: bool | None) -> None:
    """An annotation that a model, or a dict, can certainly not be is refused when the runner is made."""

    async def work(n: int, *, context: Any) -> int:
        return n

    work.__annotations__["context"] = annotation
    made = step(work)
    for model, fits in ((Shop, with_model), (None, without)):
        if fits:
            assert Flujo(made, context_model=model).run(1).output == 1
        elif fits is False:
            with pytest.raises(ConfigurationError, match="context"):
                Flujo(made, context_model=model)


@pytest.mark.parametrize("model", [dict, "Shop", Shop()])
def test_a_context_model_that_is_none(model: Any) -> None:
    """Only a pydantic model can be one."""
    with pytest.raises(ConfigurationError, match="context_model"):
        Flujo(ignore, context_model=model)


def test_a_context_that_no_step_takes(place: Place) -> None:
    """It is kept with the run all the same."""
    runner = Flujo(ignore, context_model=Shop, initial_context_data={"total": 7}, state_backend=place.open())
    assert runner.run(1, run_id="r").final_pipeline_context == Shop(total=7)
    again = Flujo(ignore, context_model=Shop, state_backend=place.open()).run(1, run_id="r")
    assert again.final_pipeline_context == Shop(total=7)
    assert Flujo(ignore, initial_context_data={"a": {1}}).run(1).final_pipeline_context == {"a": {1}}


def run_until_failure(place: Place, model: type[BaseModel], total: int = -100) -> Any:
    @step(name="one")
    async def one(n: int) -> int:
        return n

    @step(name="two")
    async def two(n: int, *, context: Any) -> Any:
        if n < 0:
            raise OSError("down")
        return context.model_dump()

    pipeline = (one >> two).named("p")
    runner = Flujo(pipeline, context_model=model, state_backend=place.open())
    return runner.run(total, run_id="r")


def test_a_field_gained(place: Place) -> None:
    """With a default it has that; without one the run is not resumed, and the error names field and run."""
    assert run_until_failure(place, Shop).status == "failed"

    class WithDefault(BaseModel):
        __qualname__ = "Shop"
        total: int = 0
        log: list[str] = []
        colour: str = "red"

    class Without(BaseModel):
        total: int = 0
        log: list[str] = []
        colour: str

    before = place.load()
    with pytest.raises(ContextMismatchError, match="colour") as caught:
        run_until_failure(place, Without)
    assert caught.value.run_id == "r"
    after = place.load()
    assert {k: after[k] for k in ("current_step_index", "pipeline_context", "last_step_output", "status")} == {
        k: before[k] for k in ("current_step_index", "pipeline_context", "last_step_output", "status")
    }
    result = run_until_failure(place, WithDefault)
    assert result.final_pipeline_context.colour == "red"


def test_a_field_lost(place: Place) -> None:
    """The run is not resumed, and the error names field and run."""
    assert run_until_failure(place, Shop).status == "failed"

    class Less(BaseModel):
        total: int = 0

    with pytest.raises(ContextMismatchError, match="log") as caught:
        run_until_failure(place, Less)
    assert caught.value.run_id == "r"
    assert run_until_failure(place, Shop).status == "failed"  # and it was given back


def test_private_and_extra_attributes(place: Place) -> None:
    """What a model holds beside its fields is part of the context."""

    class Rich(BaseModel):
        model_config = ConfigDict(extra="allow")
        n: int = 0
        _token: str = PrivateAttr(default="none")

    fail = True

    @step
    async def fill(n: int, *, context: Rich) -> int:
        context.n = n
        context._token = "secret"
        context.more = {n}  # type: ignore[attr-defined]
        return n

    @step
    async def read(n: int, *, context: Rich) -> Any:
        if fail:
            raise OSError("down")
        return context.n, context._token, context.more  # type: ignore[attr-defined]

    def run() -> Any:
        return Flujo(fill >> read, context_model=Rich, state_backend=place.open()).run(3, run_id="r")

    assert run().status == "failed"
    fail = False
    assert run().output == (3, "secret", {3})


def test_a_dict_gains_and_loses_entries(place: Place) -> None:
    """Entries come and go, in any order and with any text as their key."""
    keys = ["b", "a", "", "ä€😀", 'q"uote', "back\\slash", "line\nfeed", "$type", "$private", "x" * 300]
    turns = 6

    def turn(number: int) -> Any:
        @step(name=f"turn {number}")
        async def change(n: Any, *, context: dict[str, Any]) -> dict[str, Any]:
            if number % 3 == 2:
                context.clear()
            else:
                for key in keys[number % 2 :: 2]:
                    context[key] = {"n": number, "text": "😀" * number}
                context.pop(keys[number], None)
            return dict(context)

        return change

    steps = [turn(number) for number in range(turns)]
    pipeline = steps[0]
    for following in steps[1:]:
        pipeline = pipeline >> following
    result = Flujo(pipeline, state_backend=place.open()).run(1, run_id="r")
    again = Flujo(pipeline, state_backend=place.open()).run(1, run_id="r")
    assert [s.output for s in again.step_history] == [s.output for s in result.step_history]
    assert again.final_pipeline_context == result.final_pipeline_context == result.output
    assert list(again.final_pipeline_context) == list(result.final_pipeline_context)


@pytest.mark.parametrize("key", [1, None, ("a",), 1.5, True, "\ud800"])
def test_a_key_that_json_does_not_have(place: Place, key: Any) -> None:
    """The step that puts it into the context fails; what was saved before stays readable, and the run goes on."""
    mended = False

    @step
    async def first(n: int, *, context: dict[Any, Any]) -> int:
        context["n"] = n
        return n

    @step
    async def second(n: int, *, context: dict[Any, Any]) -> int:
        if not mended:
            context[key] = n
        return n

    def run() -> Any:
        return Flujo(first >> second, state_backend=place.open()).run(1, run_id="r")

    result = run()
    assert result.status == "failed"
    assert isinstance(result.error, NotSerializableError)
    assert "context" in str(result.error)
    mended = True
    assert run().final_pipeline_context == {"n": 1}


def test_a_key_of_the_initial_data_that_json_does_not_have(place: Place) -> None:
    """It is refused before anything is written."""

    @step
    async def first(n: int, *, context: dict[Any, Any]) -> int:
        return n

    with pytest.raises(NotSerializableError, match="context"):
        Flujo(first, state_backend=place.open(), initial_context_data={1: 2}).run(1, run_id="r")  # type: ignore[dict-item]
    assert asyncio.run(place.open().load_state("r")) is None


def test_an_empty_context_that_is_filled_after_a_resume(place: Place) -> None:
    """A dict that was empty when the run was interrupted takes what later steps put into it."""
    fail = True

    @step
    async def first(n: int, *, context: dict[str, Any]) -> int:
        return n

    @step
    async def second(n: int, *, context: dict[str, Any]) -> int:
        if fail:
            raise OSError("down")
        context["n"] = n
        return n

    @step
    async def third(n: int, *, context: dict[str, Any]) -> int:
        context["m"] = n
        return n

    def run() -> Any:
        return Flujo(first >> second >> third, state_backend=place.open()).run(1, run_id="r")

    run()
    fail = False
    assert run().final_pipeline_context == {"n": 1, "m": 1}
    assert run().final_pipeline_context == {"n": 1, "m": 1}


def test_a_context_put_there_by_hand(place: Place) -> None:
    """The fields of a model as plain JSON are enough; its defaults fill the rest."""
    place.put(by_hand(pipeline_id="p", pipeline_name="p", last_step_output=5, pipeline_context={"total": 4}))
    result = run_until_failure(place, Shop)
    assert result.output == {"total": 4, "log": []}
    assert result.final_pipeline_context == Shop(total=4)


def test_one_object_in_two_places(place: Place) -> None:
    """An object that is both output and in the context is two after its save: a change to one leaves the other."""
    fail = True

    @step
    async def share(n: int, *, context: dict[str, Any]) -> list[int]:
        context["list"] = [n]
        return context["list"]

    @step
    async def change(items: list[int]) -> list[int]:
        items.append(2)
        return items

    @step
    async def look(items: list[int], *, context: dict[str, Any]) -> Any:
        if fail:
            raise OSError("down")
        return items, context["list"]

    def run() -> Any:
        return Flujo(share >> change >> look, state_backend=place.open()).run(1, run_id="r")

    run()
    fail = False
    assert run().output == ([1, 2], [1])


def test_a_step_that_takes_any_model() -> None:
    """An annotation with `BaseModel` itself says nothing of fields, and is fine."""

    @step
    async def fields(given: BaseModel, *, context: BaseModel) -> BaseModel:
        return context

    result = Flujo(fields, context_model=Shop).run(Shop(total=1), run_id="r")
    assert result.output == Shop()
