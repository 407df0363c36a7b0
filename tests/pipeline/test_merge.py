from __future__ import annotations

import copy
from collections import OrderedDict
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo.errors import ConfigurationError
from flujo.pipeline import MISSING, Merge
from flujo.pipeline.merge import same

items = st.integers(0, 5)
NAN, OTHER_NAN = float("nan"), float("nan")


@pytest.mark.slow
@given(st.lists(items), st.lists(st.lists(items), min_size=1, max_size=4), st.sampled_from([list, tuple]))
def test_append_puts_what_each_branch_appended_behind_what_was_there(before: Any, added: Any, kind: Any) -> None:
    """In the order of the branches; nothing that was given is changed."""
    before = kind(before)
    values = [before + kind(new) for new in added]
    kept = copy.deepcopy((before, values))
    merged = Merge.APPEND(before, values)
    assert (merged, type(merged)) == (before + kind(item for new in added for item in new), kind)
    assert (before, values) == kept


@pytest.mark.slow
@given(st.sets(items), st.lists(st.sets(items), min_size=2, max_size=4), st.sampled_from([set, frozenset]))
def test_union_of_sets_has_what_was_added_and_not_what_was_taken_out(before: Any, values: Any, kind: Any) -> None:
    """An element of before stays if every branch kept it; a new one is in if any branch has it."""
    merged = Merge.UNION(kind(before), [kind(value) for value in values])
    assert type(merged) is kind
    for item in range(6):
        every, some = all(item in value for value in values), any(item in value for value in values)
        assert (item in merged) == (every if item in before else some)


@pytest.mark.slow
@given(st.dictionaries(items, items), st.lists(st.dictionaries(items, items), min_size=2, max_size=4))
def test_union_of_dicts_has_every_branch_s_changes_or_is_refused(before: Any, values: Any) -> None:
    """A key of before stays as it was unless a branch changed it; two that changed it differently cannot be merged."""
    kept = copy.deepcopy((before, values))

    def changes(key: int) -> list[Any]:
        return [value.get(key) for value in values if value.get(key) != before.get(key)]

    if any(len(set(changes(key))) > 1 for key in range(6)):
        with pytest.raises(ValueError, match=r"two branches changed its key \d differently"):
            Merge.UNION(before, values)
    else:
        merged = Merge.UNION(before, values)
        for key in range(6):
            assert merged.get(key) == (changes(key) or [before.get(key)])[0]
    assert (before, values) == kept


def test_union_of_dicts_keeps_their_order_and_their_kind() -> None:
    """What was there first, then what is new, in the order of the branches."""
    before = OrderedDict(a=1, b=2)
    merged = Merge.UNION(before, [OrderedDict(z=1, a=1, b=2), OrderedDict(b=3, y=1, a=1)])
    assert type(merged) is OrderedDict
    assert list(merged.items()) == [("a", 1), ("b", 3), ("z", 1), ("y", 1)]
    assert list(before.items()) == [("a", 1), ("b", 2)]


@given(st.integers(), st.lists(st.integers(), min_size=1, max_size=5))
def test_add_adds_what_each_branch_added(before: int, added: list[int]) -> None:
    """Whatever it was, also less than nothing."""
    assert Merge.ADD(before, [before + number for number in added]) == before + sum(added)


def test_add_is_for_everything_that_can_be_added_and_taken_away() -> None:
    """Numbers of all kinds, and spans of time."""
    assert Merge.ADD(Decimal("0.1"), [Decimal("0.2"), Decimal("0.3")]) == Decimal("0.4")
    assert Merge.ADD(1.5, [2.5, 1]) == 2.0
    assert Merge.ADD(timedelta(1), [timedelta(2), timedelta(3)]) == timedelta(4)


@given(st.lists(items, min_size=1))
def test_last_is_the_value_of_the_last_branch(values: list[int]) -> None:
    """In the order in which the branches are declared, not that in which they came to an end."""
    assert Merge.LAST(object(), values) == values[-1]


def test_a_function_gets_the_value_from_before_and_those_of_the_branches() -> None:
    """What it returns is the merged value, what it raises comes out as it is."""
    merge = Merge.of(lambda before, values: (before, values))
    assert merge(1, [2, 3]) == (1, [2, 3])
    assert merge(MISSING, (2, 3)) == (None, [2, 3])
    with pytest.raises(ZeroDivisionError):
        Merge.of(lambda before, values: 1 // 0)(1, [2, 3])
    assert Merge.of(Merge.ADD) is Merge.ADD
    assert repr(Merge.of(max)) == "Merge.of(max)"
    assert repr(Merge.UNION) == "Merge.UNION"


ALL = [Merge.APPEND, Merge.UNION, Merge.LAST, Merge.ADD, Merge.of(lambda before, values: 1 // 0)]


@pytest.mark.parametrize("merge", ALL, ids=repr)
def test_what_one_branch_alone_changed_is_taken_as_it_is(merge: Merge) -> None:
    """Nothing has to be brought together, so nothing can go wrong; and nothing changed is nothing changed."""
    changed = [3]
    assert merge(True, [changed]) is changed
    assert merge(True, [MISSING]) is MISSING
    assert merge(True, []) is True
    assert merge([1], [MISSING, MISSING]) is MISSING


@pytest.mark.parametrize(
    ("merge", "values", "merged"),
    [
        (Merge.APPEND, [[1], [2, 3]], [1, 2, 3]),
        (Merge.APPEND, [(1,), (2,)], (1, 2)),
        (Merge.APPEND, ["a", "b"], "ab"),
        (Merge.UNION, [{1}, {2}], {1, 2}),
        (Merge.UNION, [{1: 2}, {3: 4}], {1: 2, 3: 4}),
        (Merge.LAST, [1, 2], 2),
        (Merge.ADD, [1, 2], 3),
        (Merge.ADD, [timedelta(1), timedelta(2)], timedelta(3)),
    ],
)
def test_a_field_that_was_not_there_is_made_of_what_the_branches_made(merge: Merge, values: Any, merged: Any) -> None:
    """As if it had been empty."""
    assert merge(MISSING, values) == merged


@pytest.mark.parametrize("merge", [*ALL[:2], *ALL[3:]], ids=repr)
def test_a_field_that_one_removed_and_another_changed_cannot_be_merged(merge: Merge) -> None:
    """But it can be said which one counts."""
    with pytest.raises(ValueError, match="one branch removed it, and another changed it"):
        merge([], [[1], MISSING])
    assert Merge.LAST([], [[1], MISSING]) is MISSING
    assert Merge.LAST([], [MISSING, [1]]) == [1]


@pytest.mark.parametrize(
    ("merge", "before", "values", "words"),
    [
        (Merge.APPEND, [1], [[1, 2], [2]], "the value of branch 2 of 2 does not begin with what was there before"),
        (Merge.APPEND, [1], [[], [1, 2]], "the value of branch 1 of 2 does not begin"),
        (Merge.APPEND, [1], [[1, 2], (1, 2)], "the value of branch 2 of 2 does not begin"),
        (Merge.APPEND, [0], [[False, 1], [0, 2]], ""),
        (Merge.APPEND, {1}, [{1, 2}, {3}], "Merge.APPEND cannot append to set"),
        (Merge.UNION, [1], [[1], [2]], "Merge.UNION is for sets and dicts, not for list"),
        (Merge.UNION, {1}, [{1}, {1: 2}], "not for set and dict"),
        (Merge.UNION, {1: 0}, [{1: 0}, {1: False}], ""),
        (Merge.UNION, {1: 2}, [{}, {1: 3}], "two branches changed its key 1 differently"),
        (Merge.ADD, True, [False, False], "Merge.ADD is for numbers, not for bool"),
        (Merge.ADD, "a", ["b", "c"], "not for str"),
        (Merge.ADD, None, [1, 2], "not for NoneType and int"),
    ],
)
def test_values_that_cannot_be_merged_are_refused_with_a_sentence(
    merge: Merge, before: Any, values: Any, words: str
) -> None:
    """It says which branch's value is to blame, where it is one; a change is never lost."""
    if words:
        with pytest.raises(ValueError, match=words):
            merge(before, values)
    else:
        merged = merge(before, values)
        assert [type(item) for item in (merged.values() if isinstance(merged, dict) else merged)][-1] in (int, bool)


def test_a_nan_is_what_it_was() -> None:
    """Branches work on copies, in which a NaN is another object, and unequal."""
    assert len(Merge.APPEND([NAN], [[OTHER_NAN, 1.0], [OTHER_NAN, 2.0]])) == 3
    merged = Merge.UNION({"a": NAN, "b": [NAN]}, [{"a": OTHER_NAN, "b": 1}, {"a": 2, "b": [OTHER_NAN]}])
    assert merged == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        (NAN, OTHER_NAN, True),
        ([NAN], [OTHER_NAN], True),
        ([NAN], [1.0], False),
        (object(), object(), False),
    ],
)
def test_same_is_of_the_same_type_and_value(one: object, other: object, answer: bool) -> None:
    """What cannot be compared is not the same."""
    assert same(one, other) is answer


class Grudging:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


def test_what_refuses_to_be_compared_is_not_the_same() -> None:
    """So that a change is told rather than lost."""
    assert not same(Grudging(), Grudging())


@pytest.mark.parametrize("wrong", [3, None, "append", list, Merge])
def test_what_is_no_merge_is_refused(wrong: Any) -> None:
    """A class too: `Merge.of(list)` would be a slip."""
    with pytest.raises(ConfigurationError, match="is no merge"):
        Merge.of(wrong)
