"""The Reading capability: parts of a run, older states, and listings."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from flujo.errors import ConfigurationError
from flujo.pipeline import step
from flujo.state.backends.base import State, StateBackend
from flujo.state.codec import Codec
from flujo.testing.suite.base import (
    NAME,
    T0,
    SuiteBase,
    expect_nothing,
    finish,
    load,
    normal,
    owned,
    owns,
    records_of,
    runner,
    save_as_owner,
    state_of,
)
from flujo.testing.suite.expect import expect, refused, same
from flujo.testing.suite.steps import NAMES, Save, abc, overriding

_RUN = "run"


class ReadingTests(SuiteBase):
    """`history`, `load_at`, `list_runs` and `count_runs`."""

    def test_history_comes_in_pages(self, tmp_path: Path) -> None:
        """The records come in the order of the steps; `after` leaves the first ones out, `limit` ends the page."""
        backend = self.open_reading(tmp_path)

        async def main() -> None:
            await _nine(backend)
            names = [f"s{n}" for n in range(1, 10)]
            for after, limit in ((0, None), (0, 4), (4, 4), (8, 4), (3, None), (9, None), (50, 2), (2, 0), (0, 100)):
                found = [record.name for record in await backend.history(_RUN, after=after, limit=limit)]
                end = None if limit is None else after + limit
                same(found, names[after:end], f"history(after={after}, limit={limit}) of nine steps")
            same(await backend.history("never"), [], "the history of an unknown run")

        finish(main())

    def test_records_are_whole(self, tmp_path: Path) -> None:
        """A record tells path, output, attempts, time and failure; a failed step stays on record when it is mended."""
        backend = self.open_reading(tmp_path)
        left = 2

        @step(name="b", retries=[0])
        async def shaky(items: list[Any]) -> tuple[Any, ...]:
            nonlocal left
            left -= 1
            if left >= 0:
                raise OSError("down")
            return (*items, "b")

        pipeline = abc([]).steps[0] >> shaky
        for _ in range(2):
            runner(pipeline, backend).run([], run_id=_RUN)
            backend = self.open_reading(tmp_path) if self.durable else backend
        records = finish(backend.history(_RUN))
        codec = Codec() if backend.codec is None else None  # without a codec its records hold plain JSON
        found = [
            (r.path, codec.lift(r.output) if codec else r.output, r.success, r.attempts, r.feedback) for r in records
        ]
        expected = [
            (("a",), ["a"], True, 1, None),
            (("b",), None, False, 2, "OSError: down"),
            (("b",), ("a", "b"), True, 3, None),
        ]
        same(found, expected, "the records (path, output, success, attempts, feedback)")
        expect(all(r.latency_s >= 0 for r in records), f"a step took less than no time: {records}.")

    def test_every_older_state_can_be_loaded(self, tmp_path: Path) -> None:
        """`load_at(rev)` is the state as it was after that save, with its context; a rev that is not there is None."""
        backend = self.open_reading(tmp_path)

        async def main() -> None:
            await _nine(backend)
            for rev in (1, 5, 9, None, 2):
                wanted = 9 if rev is None else rev
                for head in (True, False):
                    state = await backend.load_at(_RUN, rev, head=head) or {}
                    what = f"load_at({rev}, head={head})"
                    same(state.get("current_step_index"), wanted, f"current_step_index of {what}")
                    same(state.get("rev"), wanted, f"rev of {what}")
                    same(state["last_step_output"], wanted, f"last_step_output of {what}")
                    same(state["pipeline_context"], {"count": wanted}, f"pipeline_context of {what}")
                    same(state["status"], "completed" if wanted == 9 else "running", f"status of {what}")
                    names = [f"s{n}" for n in range(1, wanted + 1)]
                    same([r.name for r in records_of(state)], [] if head else names, f"step_history of {what}")
                    same(state["history_offset"], wanted if head else 0, f"history_offset of {what}")
            for rev in (0, 10, -1):
                same(await backend.load_at(_RUN, rev), None, f"load_at({rev}) of a run with nine saves")
            same(await backend.load_at("never"), None, "load_at of an unknown run")
            same(await backend.load_at("never", 1), None, "load_at(1) of an unknown run")

        finish(main())

    def test_the_newest_runs_are_listed_first(self, tmp_path: Path) -> None:
        """`list_runs` gives summaries by their last update, and those alone that are asked for."""
        backend = self.open_reading(tmp_path)

        async def main() -> None:
            same(await backend.list_runs(), [], "the runs of a new store")
            names = await _mixed(backend)
            same(await _names(backend), names, "list_runs(): the newest first")
            for where in (
                {"status": "failed"}, {"status": "paused"}, {"pipeline_id": "p1"}, {"pipeline_id": "none"},
                {"pipeline_id": "p0", "status": "completed"}, {"status": "unheard of"},
            ):  # fmt: skip
                wanted = [n for n in names if all(_facts(int(n))[name] == value for name, value in where.items())]
                same(await _names(backend, where), wanted, f"list_runs({where})")
            since = T0 + timedelta(minutes=12)
            same(await _names(backend, since=since), [n for n in names if int(n) >= 12], "list_runs(since=...)")
            same(await _names(backend, since=since.replace(tzinfo=None)), names[: 20 - 12], "list_runs(since=naive)")
            with refused(ConfigurationError, "list_runs by something other than status or pipeline_id"):
                await backend.list_runs({"pipeline_version": "1.0.0"})

        finish(main())

    def test_listings_come_in_pages(self, tmp_path: Path) -> None:
        """Pages by `after` or `offset` make up the whole listing, also where runs are updated at the same moment."""
        backend = self.open_reading(tmp_path)

        async def main() -> None:
            await _mixed(backend)
            for number in range(20, 30):
                await backend.save_state(str(number), state_of(str(number), 1, updated_at=T0, status="failed"))
            for where in ({}, {"status": "failed"}, {"pipeline_id": "p1"}):
                whole = await _names(backend, where)
                for limit in (1, 3, 7):
                    pages: list[str] = []
                    by_offset: list[str] = []
                    last: str | None = None
                    while page := await _names(backend, where, limit=limit, after=last):
                        pages += page
                        last = page[-1]
                        by_offset += await _names(backend, where, limit=limit, offset=len(by_offset))
                        if len(pages) > len(whole):
                            break
                    same(pages, whole, f"all pages of list_runs({where}, limit={limit}, after=...)")
                    same(by_offset, whole, f"all pages of list_runs({where}, limit={limit}, offset=...)")
            same(await _names(backend, offset=1000), [], "list_runs(offset=1000) of 30 runs")

        finish(main())

    def test_a_page_of_less_than_nothing_is_refused(self, tmp_path: Path) -> None:
        """A negative `limit`, `offset` or `after` (of the history) is an error: it is no page, and not all there is."""
        backend = self.open_reading(tmp_path)

        async def main() -> None:
            await _nine(backend)
            for limit, offset in ((-1, 0), (5, -5)):
                with refused(ConfigurationError, f"list_runs(limit={limit}, offset={offset})"):
                    await backend.list_runs(limit=limit, offset=offset)
            for limit, after in ((-1, 0), (5, -5)):
                with refused(ConfigurationError, f"history(limit={limit}, after={after})"):
                    await backend.history(_RUN, limit=limit, after=after)
            same(await _names(backend, limit=0), [], "list_runs(limit=0)")

        finish(main())

    def test_a_summary_tells_how_a_run_stands(self, tmp_path: Path) -> None:
        """Index, number of steps, failure and times are in the listing."""
        backend = self.open_reading(tmp_path)

        async def fail() -> None:
            raise OSError("the line is down")

        runner(abc([], at_b=fail), backend).run([], run_id="failed")
        runner(abc([]), backend).run([], run_id="completed")
        found = {run.run_id: run for run in finish(backend.list_runs())}
        same(sorted(found), ["completed", "failed"], "the runs that are listed")
        for run_id, index, error in (("failed", 1, "OSError: the line is down"), ("completed", 3, None)):
            run = found[run_id]
            facts = (run.status, run.current_step_index, run.total_steps, run.error_message)
            same(facts, (run_id, index, 3, error), "status, index, total_steps and error_message")
            names = (run.pipeline_id, run.pipeline_name, run.pipeline_version)
            same(names, (NAME, NAME, "1.0.0"), "pipeline_id, pipeline_name and pipeline_version")
            state = normal(run_id, finish(_loaded(backend, run_id)), "load_at")
            times = [state["created_at"], state["updated_at"]]
            same([run.created_at, run.updated_at], times, f"the times in the listing of the run that {run_id}")
            expect(run.execution_time_ms >= 0, f"execution_time_ms is {run.execution_time_ms}.")
        for where, wanted in (
            ({"error": "OSError: the line is down"}, ["failed"]), ({"error": "OSError"}, []),
            ({"pipeline_name": NAME}, ["completed", "failed"]), ({"pipeline_name": "none"}, []),
        ):  # fmt: skip
            same(sorted(finish(_names(backend, where))), wanted, f"list_runs({where})")

    def test_runs_are_counted(self, tmp_path: Path) -> None:
        """`count_runs` counts by status or pipeline, of all runs or of some."""
        backend = self.open_reading(tmp_path)

        async def main() -> None:
            same(await backend.count_runs(), {}, "count_runs() of a new store")
            await _mixed(backend)
            facts = [_facts(number) for number in range(20)]
            for by in ("status", "pipeline_id"):
                for where in ({}, {"status": "failed"}, {"pipeline_id": "p1"}, {"pipeline_id": "none"}):
                    wanted: dict[str, int] = {}
                    for fact in facts:
                        if all(fact[name] == value for name, value in where.items()):
                            wanted[fact[by]] = wanted.get(fact[by], 0) + 1
                    same(await backend.count_runs(where, by=by), wanted, f"count_runs({where}, by={by!r})")
            await backend.delete_state("0")
            same(sum((await backend.count_runs()).values()), 19, "how many runs are counted after one was deleted")
            with refused(ConfigurationError, "count_runs by something other than status or pipeline_id"):
                await backend.count_runs(by="pipeline_version")

        finish(main())

    def test_a_run_without_a_save_is_not_listed(self, tmp_path: Path) -> None:
        """A run that was claimed and has saved nothing yet is nowhere; a claim brings a run up in the listing."""
        backend = self.open_reading(tmp_path)

        async def main() -> None:
            names = await _mixed(backend)
            await owned(backend, _RUN)
            await expect_nothing(backend, _RUN, "the run was claimed, and nothing of it saved")
            same(await backend.load_at(_RUN), None, "load_at of a run that was claimed, and nothing saved")
            same(await _names(backend), names, "list_runs() while a run is claimed of which nothing is saved")
            same(sum((await backend.count_runs()).values()), 20, "count_runs() while such a run is claimed")
            if not owns(backend):
                return
            old = next(n for n in reversed(names) if _facts(int(n))["status"] in ("running", "failed"))
            await owned(backend, old, at=T0 + timedelta(days=1))
            same((await _names(backend))[0], old, "the first run of list_runs() after an old one was claimed")
            same((await backend.list_runs(limit=1))[0].status, "running", "the status of a run that is claimed")

        finish(main())

    def test_a_save_holds_only_what_is_new(self, tmp_path: Path) -> None:
        """`step_history` of a save has the steps since the save before, `history_offset` says how many those were."""
        backend = self.open_reading(tmp_path)
        seen: list[Any] = []
        down = True

        async def maybe() -> None:
            if down:
                raise OSError("down")

        async def watching(save: Save, run_id: str, state: State) -> None:
            seen.append((state["history_offset"], [record.name for record in records_of(state)]))
            await save(run_id, state)

        overriding(backend, watching)
        runner(abc([], at_b=maybe), backend).run([], run_id=_RUN)
        down = False
        result = runner(abc([], at_b=maybe), backend).run([], run_id=_RUN)
        same(seen, [(0, ["a"]), (1, ["b"]), (2, ["b"]), (3, ["c"])], "history_offset and step_history of four saves")
        same([r.name for r in result.step_history], list(NAMES), "the history that the result of the run shows")
        found = [record.name for record in records_of(finish(load(backend, _RUN)))]
        same(found, ["a", "b", "b", "c"], "step_history of load_state, which is always whole")


def _facts(number: int) -> dict[str, str]:
    status = ("running", "failed", "completed", "paused", "cancelled")[number % 5]
    return {"status": status, "pipeline_id": f"p{number % 3}"}


async def _mixed(backend: StateBackend) -> list[str]:
    """Save 20 runs in an order of their own and return their ids, the most recently updated first."""
    for number in sorted(range(20), key=lambda n: n * 7 % 20):
        facts: dict[str, Any] = {**_facts(number), "updated_at": T0 + timedelta(minutes=number)}
        await backend.save_state(str(number), state_of(str(number), 1, **facts))
    return [str(number) for number in reversed(range(20))]


async def _nine(backend: StateBackend) -> None:
    """Save a run of nine steps, as its owner."""
    fence = await owned(backend, _RUN)
    await save_as_owner(backend, _RUN, fence, *range(1, 9))
    await save_as_owner(backend, _RUN, fence, 9, status="completed")


async def _loaded(backend: Any, run_id: str) -> State:
    return await backend.load_at(run_id) or {}


async def _names(backend: Any, *args: Any, **options: Any) -> list[str]:
    return [run.run_id for run in await backend.list_runs(*args, **options)]
