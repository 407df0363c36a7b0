"""The three methods, called by hand: what every backend must be able to do."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from flujo.state.backends.base import Reading
from flujo.state.models import STATUSES
from flujo.testing.suite import values
from flujo.testing.suite.base import (
    T0,
    SuiteBase,
    expect_nothing,
    expect_saved,
    finish,
    lacks_of_owning,
    load,
    owns,
    records_of,
    state_of,
)
from flujo.testing.suite.expect import expect, same, shown

_RUN = "run"


class BasicTests(SuiteBase):
    """`save_state`, `load_state` and `delete_state`."""

    def test_capabilities_are_whole(self, tmp_path: Path) -> None:
        """What the backend overrides of a capability is all of it, and is what the suite says that it has."""
        backend = self.open(tmp_path)
        missing = lacks_of_owning(backend)
        expect(
            not owns(backend) or not missing,
            f"the backend overrides claim, but not {', '.join(missing)}: a capability is whole or absent.",
        )
        found = (owns(backend), isinstance(backend, Reading))
        for name, declared, has in zip(("fenced", "reads"), (self.fenced, self.reads), found, strict=True):
            expect(declared in (None, has), f"the suite says {name} = {declared}, but the backend shows {has}.")

    def test_an_unknown_run_is_none(self, tmp_path: Path) -> None:
        """Of a run that nobody saved there is no state."""
        backend = self.open(tmp_path)
        finish(expect_nothing(backend, _RUN, "nothing was saved"))

    def test_the_ten_fields_come_back(self, tmp_path: Path) -> None:
        """What was saved is loaded: all ten fields, each as it was, however often they are looked at."""
        backend = self.open(tmp_path)
        state = state_of(_RUN, 3, pipeline_id="id", pipeline_name="name", pipeline_version="2.1.0rc1")

        async def main() -> None:
            await backend.save_state(_RUN, dict(state))
            for _ in range(3):
                await expect_saved(backend, state, "a saved and loaded state")

        finish(main())

    def test_json_comes_back_exactly(self, tmp_path: Path) -> None:
        """Every value that JSON has comes back with its type and value, as the output and in the context."""
        backend = self.open(tmp_path)

        async def main() -> None:
            for name, value in values.plain().items():
                context = {"it": value, "list": [value, {"again": value}], name: 1}
                state = state_of(_RUN, 1, pipeline_context=context, last_step_output=value)
                await backend.save_state(_RUN, state)
                found = await load(backend, _RUN)
                same(found["last_step_output"], values.plain()[name], f"last_step_output ({name})")
                same(found["pipeline_context"], context, f"pipeline_context ({name})")

        finish(main())

    def test_every_status_comes_back(self, tmp_path: Path) -> None:
        """A run may be saved with each of the five statuses, and from each with any other."""
        backend = self.open(tmp_path)

        async def main() -> None:
            for first in STATUSES:
                for second in STATUSES:
                    for status in (first, second):
                        await backend.save_state(_RUN, state_of(_RUN, status=status))
                    same((await load(backend, _RUN))["status"], second, f"the status saved after {first!r}")

        finish(main())

    def test_times_are_utc(self, tmp_path: Path) -> None:
        """Times come back to the microsecond as the same moments; a naive one is a time in UTC."""
        backend = self.open(tmp_path)
        elsewhere = T0.astimezone(timezone(timedelta(hours=-7)))

        async def main() -> None:
            for time in (T0, elsewhere, T0.replace(tzinfo=None)):
                await backend.save_state(_RUN, state_of(_RUN, created_at=time, updated_at=time + timedelta(days=1)))
                state = await load(backend, _RUN)
                same(state["created_at"], T0, f"created_at, saved as {time.isoformat()}")
                same(state["updated_at"], T0 + timedelta(days=1), f"updated_at of the run created {time.isoformat()}")
                if backend.codec is not None:
                    raw = await backend.load_state(_RUN) or {}
                    for name in ("created_at", "updated_at"):
                        _expect_aware(name, raw[name])

        finish(main())

    def test_the_newest_save_counts(self, tmp_path: Path) -> None:
        """After each save the state is that one, also where it has less in it, or goes back."""
        backend = self.open(tmp_path)
        states = [state_of(_RUN, index) for index in (1, 2, 3, 2, 5)]
        states += [state_of(_RUN, 5, pipeline_context={}, last_step_output=None), state_of(_RUN, 6, status="completed")]

        async def main() -> None:
            for number, state in enumerate(states, start=1):
                await backend.save_state(_RUN, dict(state))
                await expect_saved(backend, state, f"the state after save {number}")

        finish(main())

    def test_a_deleted_run_is_gone(self, tmp_path: Path) -> None:
        """A deleted run is like one that never was, deleting it again is nothing, and it may begin anew."""
        backend = self.open(tmp_path)

        async def main() -> None:
            await backend.delete_state("never")
            await backend.save_state("other", state_of("other", 2))
            for index in (4, 1):
                await backend.save_state(_RUN, state_of(_RUN, index, created_at=T0 + timedelta(days=index)))
                await expect_saved(
                    backend, state_of(_RUN, index, created_at=T0 + timedelta(days=index)), "a run begun anew"
                )
                for _ in range(2):
                    await backend.delete_state(_RUN)
                    await expect_nothing(backend, _RUN, "the run was deleted")
            await expect_saved(backend, state_of("other", 2), "another run, after one was deleted")

        finish(main())

    def test_runs_are_kept_apart(self, tmp_path: Path) -> None:
        """Each of many runs has its own state, whatever is saved and deleted of the others in between."""
        backend = self.open(tmp_path)
        names = [f"run-{number}" for number in range(60)]

        async def main() -> None:
            for index in (1, 2):
                for number, name in enumerate(names):
                    await backend.save_state(name, state_of(name, index, last_step_output=[number]))
            for name in names[::3]:
                await backend.delete_state(name)
            for number, name in enumerate(names):
                if number % 3 == 0:
                    await expect_nothing(backend, name, "the run was deleted")
                else:
                    await expect_saved(backend, state_of(name, 2, last_step_output=[number]), f"run {name!r} of many")

        finish(main())

    def test_run_ids_that_look_alike(self, tmp_path: Path) -> None:
        """Every run_id that flujo admits is a run of its own: case, slashes, dots, long names, other alphabets."""
        backend = self.open(tmp_path)

        async def main() -> None:
            for number, run_id in enumerate(values.ALIKE):
                await backend.save_state(run_id, state_of(run_id, last_step_output=number))
            for number, run_id in enumerate(values.ALIKE):
                state = state_of(run_id, last_step_output=number)
                await expect_saved(backend, state, f"run {run_id!r}, saved together with others of similar names")
            await backend.delete_state(values.ALIKE[0])
            for run_id in values.ALIKE[1:]:
                await load(backend, run_id)

        finish(main())
        outside = [path.name for path in tmp_path.parent.iterdir() if path.name in ("run", "run.json", "etc", "passwd")]
        same(outside, [], "what lies beside the store after a run called '../run' was saved")

    def test_run_ids_that_no_run_may_have(self, tmp_path: Path) -> None:
        """A run_id that is empty, too long or not printable is refused, or else kept like any other."""
        backend = self.open(tmp_path)

        async def main() -> None:
            kept = []
            await backend.save_state(_RUN, state_of(_RUN, 7))
            for run_id in values.HARDLY:
                try:
                    await backend.save_state(run_id, state_of(run_id, len(run_id)))
                    kept.append(run_id)
                except Exception as error:
                    expect(str(error), f"{shown(run_id)} was refused by a {type(error).__name__} without a word.")
            for run_id in kept:
                await expect_saved(
                    backend, state_of(run_id, len(run_id)), f"run {shown(run_id)}, which was not refused"
                )
            await expect_saved(backend, state_of(_RUN, 7), "a run with a good name, after those with bad ones")

        finish(main())

    def test_what_is_saved_is_a_copy(self, tmp_path: Path) -> None:
        """Changing a state after it was saved, or one that was loaded, changes nothing in the store."""
        backend = self.open(tmp_path)

        def payloads() -> dict[str, Any]:
            return {"pipeline_context": {"list": [1]}, "last_step_output": {"deep": [{}]}}

        async def main() -> None:
            state = state_of(_RUN, **payloads())
            await backend.save_state(_RUN, state)
            _spoil(state)
            await expect_saved(backend, state_of(_RUN, **payloads()), "a state that was changed after it was saved")
            _spoil(await backend.load_state(_RUN) or {})
            await expect_saved(backend, state_of(_RUN, **payloads()), "a state whose loaded copy was changed")

        finish(main())

    def test_the_other_fields_come_back(self, tmp_path: Path) -> None:
        """What a state holds beside the ten fields (history, input, fingerprint, ...) comes back too."""
        backend = self.open(tmp_path)
        record = {"path": ["a"], "output": 5, "success": True, "attempts": 2, "latency_s": 0.25, "feedback": None}
        more = {
            "position": {"attempts": 3}, "fingerprint": '["step:a"]', "input": [1, {"x": None}], "total_steps": 4,
            "error": {"type": "OSError", "text": "down", "traceback": ""}, "phase": "undoing",
            "waiting": {"message": "ok?"}, "mail_seen": 7,
        }  # fmt: skip

        async def main() -> None:
            await backend.save_state(_RUN, state_of(_RUN) | more | {"step_history": [dict(record)]})
            found = await load(backend, _RUN)
            lost = [name for name in more if name not in found]
            expect(not lost, f"load_state lost {', '.join(lost)}: a backend keeps all of a state, not only ten fields.")
            for name, value in more.items():
                same(found[name], value, f"{name}, which a state may hold beside the ten fields")
            (back,) = records_of(found)
            same([getattr(back, name) for name in record], [("a",), *list(record.values())[1:]], "a step record")

        finish(main())

    def test_a_save_that_returns_is_made(self, tmp_path: Path) -> None:
        """A state that cannot be stored is refused with an error and leaves the one before: nothing is swallowed."""
        backend = self.open(tmp_path)

        class Foreign:
            def __reduce__(self) -> Any:
                raise TypeError("this is not to be stored")

        async def main() -> None:
            await backend.save_state(_RUN, state_of(_RUN, 1))
            for name in ("last_step_output", "pipeline_context"):
                value = Foreign() if name == "last_step_output" else {"it": Foreign()}
                try:
                    await backend.save_state(_RUN, state_of(_RUN, 2, **{name: value}))
                except Exception:
                    await expect_saved(backend, state_of(_RUN, 1), f"the state before a save that refused its {name}")
                    continue
                index = (await load(backend, _RUN))["current_step_index"]
                expect(
                    index == 2 and backend.codec is None,
                    f"save_state returned, though its {name} cannot be stored, and the newest state is at index {index}"
                    ": an error was swallowed.",
                )
                await backend.save_state(_RUN, state_of(_RUN, 1))

        finish(main())


def _expect_aware(name: str, time: object) -> None:
    expect(
        isinstance(time, datetime) and time.utcoffset() == timedelta(0),
        f"{name} is {shown(time)}, not an aware datetime in UTC.",
    )


def _spoil(state: dict[str, Any]) -> None:
    state["pipeline_context"]["list"].append("spoilt")
    state["pipeline_context"]["more"] = "spoilt"
    state["last_step_output"]["deep"][0]["more"] = "spoilt"
    state["status"] = "failed"
    state["current_step_index"] = 99
