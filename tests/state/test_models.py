from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from flujo import StepResult, WorkflowState
from flujo._clock import EPOCH, micros, moment
from flujo.errors import InvalidStateError
from flujo.state.models import FIELDS, as_moment, as_utc, checked_state, record_from
from tests.support.pipelines import T0, by_hand


def test_the_ten_fields() -> None:
    """They are those of the specification, in its order, and no others are accepted."""
    assert FIELDS == (
        "run_id",
        "pipeline_id",
        "pipeline_name",
        "pipeline_version",
        "current_step_index",
        "pipeline_context",
        "last_step_output",
        "status",
        "created_at",
        "updated_at",
    )
    state = WorkflowState(**by_hand())
    assert state.model_dump() == by_hand()
    with pytest.raises(ValidationError, match="extra"):
        WorkflowState(**by_hand(extra=1))


@pytest.mark.parametrize("status", ["running", "paused", "completed", "failed", "cancelled"])
def test_statuses(status: str) -> None:
    """There are five."""
    assert WorkflowState(**by_hand(status=status)).status == status
    with pytest.raises(ValidationError):
        WorkflowState(**by_hand(status=status.upper()))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (T0, T0),
        (T0.replace(tzinfo=None), T0),
        (T0.astimezone(timezone(timedelta(hours=5, minutes=30))), T0),
        (datetime(2026, 6, 1, 12, tzinfo=timezone(timedelta(hours=-7))), datetime(2026, 6, 1, 19, tzinfo=UTC)),
    ],
)
def test_times_are_aware_and_utc(given: datetime, expected: datetime) -> None:
    """A naive time is read as UTC, another zone's is converted."""
    state = WorkflowState(**by_hand(created_at=given))
    assert state.created_at == expected and state.created_at.tzinfo is UTC
    assert as_utc(given) == expected and as_utc(given).tzinfo is UTC
    assert as_moment(given.isoformat()) == expected
    assert checked_state("r", by_hand(updated_at=given.isoformat()))["updated_at"] == expected


def test_microseconds() -> None:
    """Every microsecond of the calendar can be stored, before 1970 too."""
    for given in (T0, EPOCH, EPOCH - timedelta(microseconds=1), datetime.max, datetime.min):
        assert moment(micros(given)) == as_utc(given)
    assert micros(EPOCH + timedelta(days=365_000, microseconds=7)) == 365_000 * 86_400_000_000 + 7


def test_what_is_wrong_with_a_state_is_named() -> None:
    """Every field at once, with what a state has."""
    with pytest.raises(InvalidStateError) as caught:
        checked_state("r", {"run_id": "r", "status": "done", "current_step_index": -1})
    text = str(caught.value)
    for name in ("pipeline_id", "status", "current_step_index", "created_at"):
        assert name in text
    assert caught.value.run_id == "r"


def test_a_checked_state_is_a_copy() -> None:
    """What else is in it stays."""
    state = by_hand(extra=[1])
    checked = checked_state("r", state)
    assert checked["extra"] is state["extra"]
    checked["run_id"] = "other"
    assert state["run_id"] == "r"


def test_records() -> None:
    """A record has a name and a text, is frozen, and is made of a mapping too; unknown entries are left out."""
    record = StepResult(path=("outer", "[3]", "fetch"), output=1, latency_s=0.25)
    assert (record.name, record.success, record.attempts, record.feedback) == ("fetch", True, 1, None)
    assert str(record) == "outer[3].fetch ok in 0.250 s"
    assert "failed" in str(StepResult(path=("a",), success=False))
    assert record_from(record) is record
    plain: dict[str, Any] = {"path": ["outer", "[3]", "fetch"], "output": 1, "latency_s": 0.25, "unknown": 7}
    assert record_from(plain) == record
    with pytest.raises(AttributeError):
        record.output = 2  # type: ignore[misc]


@pytest.mark.parametrize("given", [None, 7, "a", {}, {"name": "a"}, []])
def test_what_is_no_record(given: Any) -> None:
    """It is refused by name."""
    with pytest.raises(InvalidStateError, match="step_history"):
        record_from(given)
