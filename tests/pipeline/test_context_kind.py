from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, PrivateAttr

from flujo.errors import ConfigurationError
from flujo.execution.context import ContextKind
from flujo.pipeline import Merge, Pipeline, Step, step
from tests.support.typed_steps import double, size


def highest(before: int, values: list[int]) -> int:
    return max(values)


class Shop(BaseModel):
    log: Annotated[list[str], Merge.APPEND] = Field(default_factory=list)
    sold: Annotated[int, Field(ge=0), Merge.ADD] = 0
    best: Annotated[int, Merge.of(highest)] = 0
    name: str = ""
    _mine: int = PrivateAttr(default=0)
    _yours: int = PrivateAttr(default=0)


class Other(BaseModel):
    n: int = 0


def taking(wanted: Any, name: str = "taker") -> Step[Any, Any]:
    def taker(given: Any, *, context: Any) -> Any: ...

    taker.__annotations__["context"] = wanted
    return step(name=name)(taker)


def around(found: Step[Any, Any], by: Any = size, undo: Any = None) -> list[Step[Any, Any]]:
    return [
        Step.parallel("made", a=double, b=found),
        Step.map_over("made", Step.branch_on("route", by=lambda given: "a", a=double, b=found)),
        Step.loop_until("made", double.named("x").fallback(found), until=lambda given: True),
        Pipeline.of(found).as_step("made"),
    ]


def deciding(given: Any, *, context: Shop) -> bool:
    return True


def naming(given: Any, *, context: Shop) -> str:
    return "a"


def undoing(given: Any, *, context: Shop) -> None: ...


@pytest.mark.parametrize("place", range(4))
def test_a_context_that_a_nested_step_takes_is_checked(place: int) -> None:
    """However deep it is; and runs of such a pipeline have a context."""
    pipeline = Pipeline.of(around(taking(Shop))[place])
    ContextKind(Shop).check(pipeline)
    for model, has in ((Other, "context_model is Other"), (None, "no context_model is given")):
        with pytest.raises(ConfigurationError) as caught:
            ContextKind(model).check(pipeline)
        assert str(caught.value).startswith(f"Step 'taker' takes a context of type Shop, but {has}. Create the runner")
    plain = Pipeline.of(around(taking(dict[str, Any]))[place])
    assert ContextKind(None).wanted_by(plain)
    assert not ContextKind(None).wanted_by(Pipeline.of(around(double.named("y"))[place]))


@pytest.mark.parametrize(
    ("made", "called"),
    [
        (Step.branch_on("route", by=naming, a=double), "`by` of step 'route'"),
        (Step.loop_until("refine", double, until=deciding), "`until` of step 'refine'"),
        (Step.map_over("each", step(undo=undoing)(size)), "The undo of step 'size'"),
    ],
)
def test_a_context_that_a_decision_or_an_undo_takes_is_checked(made: Step[Any, Any], called: str) -> None:
    """The message says whose it is."""
    ContextKind(Shop).check(Pipeline.of(made))
    with pytest.raises(ConfigurationError) as caught:
        ContextKind(None).check(Pipeline.of(made))
    assert str(caught.value).startswith(f"{called} takes a context of type Shop, but no context_model is given.")


def test_an_undo_alone_makes_a_run_have_a_context() -> None:
    """It is given the run's own."""

    def plain_undo(given: Any, *, context: dict[str, Any]) -> None: ...

    paid = step(undo=plain_undo)(size)
    assert ContextKind(None).wanted_by(Pipeline.of(Step.map_over("each", paid)))


def test_merges_are_declared_with_the_fields() -> None:
    """Among whatever else is said of a field."""
    merges = ContextKind(Shop).merges
    assert {name: merge for name, merge in merges.items() if name[0] != "$"} == {
        "log": Merge.APPEND,
        "sold": Merge.ADD,
        "best": Merge.of(highest),
    }


def test_merges_given_to_the_runner_count_for_more() -> None:
    """A merge or a function; of a dict, which has no declared fields, any name."""
    merges = ContextKind(Shop, {"log": Merge.LAST, "name": max}).merges
    assert (merges["log"], merges["sold"], merges["name"].function) == (Merge.LAST, Merge.ADD, max)
    assert ContextKind(None, {"anything": Merge.UNION}).merges == {"anything": Merge.UNION}
    assert ContextKind(None).merges == {}

    class Open(BaseModel, extra="allow"):
        n: int = 0

    assert ContextKind(Open, {"more": Merge.ADD}).merges["more"] is Merge.ADD


@pytest.mark.parametrize(
    ("model", "merges", "words"),
    [
        (Shop, {"lgo": Merge.APPEND}, "names 'lgo', which is no field of the context. Did you mean 'log'?"),
        (
            Shop,
            {"x": Merge.APPEND},
            "names 'x', which is no field of the context. Its fields are log, sold, best, name",
        ),
        (None, {3: Merge.APPEND}, "names 3, which is no field"),
        (Shop, {"log": "append"}, "'append' is no merge. Use Merge.APPEND"),
        (None, {"log": list}, "is no merge"),
        (None, ["log"], "which names no fields"),
    ],
)
def test_merges_that_cannot_work_are_refused(model: Any, merges: Any, words: str) -> None:
    """Before anything runs."""
    with pytest.raises(ConfigurationError) as caught:
        ContextKind(model, merges)
    assert words in str(caught.value)


def test_private_attributes_are_merged_one_by_one() -> None:
    """A model's are saved in one dict beside its fields: two branches may each change another of them."""
    kind = ContextKind(Shop)
    one, other = Shop(), Shop()
    one._mine, other._yours = 1, 2
    (place,) = {name for name, value in kind.values(one).items() if value != kind.values(Shop())[name]}
    values = [kind.values(changed)[place] for changed in (one, other)]
    restored = kind.restore({**kind.values(Shop()), place: kind.merges[place](kind.values(Shop())[place], values)})
    assert (restored._mine, restored._yours) == (1, 2)
    with pytest.raises(ValueError, match="two branches changed its key '_mine' differently"):
        kind.merges[place](values[1], [values[0], {**values[0], "_mine": 3}])
