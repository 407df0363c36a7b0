"""Random pipelines of steps that wait, among all others; what they come to; and a driver that brings them there."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

from flujo import Flujo, Pipeline, PipelineResult, StateBackend, Step, current_step, step
from flujo._ids import path_text
from flujo.errors import AlreadyAnsweredError, NoVoteError, SaveError
from tests.support.backends import Place
from tests.support.waiting_runs import Clock

LEAVES = ("work", "work", "ask", "vote", "go", "sleep", "flaky", "late")
COMPOSITES = ("par", "map", "loop", "branch", "either")
VOTERS = ("ann", "bob")
MOST = 400  # turns that a run needs at most


@dataclass
class Spec:
    """One step: its kind, its name, its bodies (each a list of steps), and a number that says how often or how long."""

    kind: str
    name: str
    number: int = 0
    bodies: list[list[Spec]] = field(default_factory=list)


def drawn(rng: Random, depth: int, names: list[int]) -> list[Spec]:
    """Draw a few steps, one after the other."""
    return [one(rng, depth, names) for _ in range(rng.randint(1, 3))]


def one(rng: Random, depth: int, names: list[int]) -> Spec:
    """Draw a step."""
    names.append(len(names))
    kind = rng.choice(COMPOSITES if depth and rng.random() < 0.5 else LEAVES)
    spec = Spec(kind, f"{kind}{len(names)}", rng.randint(1, 3))
    if kind in COMPOSITES:
        count = {"par": rng.randint(2, 3), "branch": 2}.get(kind, 1)
        spec.bodies = [drawn(rng, depth - 1, names) for _ in range(count)]
    return spec


def answer(path: str, by: str = "") -> int:
    """Return what is answered at that path."""
    return zlib.crc32(f"{path}{by}".encode()) % 10


def expected(steps: list[Spec], n: int, path: tuple[str, ...] = ()) -> int:
    """Return what the steps make of n."""
    for spec in steps:
        n = _expected(spec, n, (*path, spec.name))
    return n


def _expected(spec: Spec, n: int, path: tuple[str, ...]) -> int:
    where = path_text(path)
    inner = (*path, spec.name)
    match spec.kind:
        case "work" | "flaky":
            return n + 1
        case "sleep":
            return n
        case "late":
            return -1
        case "ask":
            return answer(where)
        case "go":
            return answer(spec.name)  # several may wait for one name, and any of them gets it
        case "vote":
            return sum(answer(path_text((*path, "votes")), by) for by in VOTERS)
        case "par":
            return sum(expected(body, n, (*inner, f"b{i}")) for i, body in enumerate(spec.bodies))
        case "map":
            return sum(expected(spec.bodies[0], n + i, (*inner, f"[{i}]")) for i in range(spec.number))
        case "loop":
            for i in range(spec.number):
                n = expected(spec.bodies[0], n, (*path, f"#{i + 1}"))
            return n
        case "branch":
            return expected(spec.bodies[n % 2], n, (*path, f"b{n % 2}"))
    return expected(spec.bodies[0], n, (*path, "fallback"))


class Built:
    """A pipeline made of specs. `calls` are the paths of the steps that were called."""

    def __init__(self, steps: list[Spec]) -> None:
        self.calls: list[str] = []
        self._failed: dict[str, int] = {}
        self.pipeline: Pipeline[Any, Any] = Pipeline.of(*[self._made(spec) for spec in steps])

    def _body(self, steps: list[Spec]) -> Pipeline[Any, Any]:
        return Pipeline.of(*[self._made(spec) for spec in steps])

    def _work(self, name: str, failures: int = 0) -> Step[Any, Any]:
        @step(name=name, retries=[60] * failures)
        async def work(n: int) -> int:
            path = path_text(current_step().path)
            self.calls.append(path)
            if self._failed.setdefault(path, failures):
                self._failed[path] -= 1
                raise OSError("down")
            return n + 1

        return work

    def _made(self, spec: Spec) -> Step[Any, Any]:
        name, number = spec.name, spec.number
        add: Step[Any, Any] = step(name="add")(lambda found: sum(found.values() if isinstance(found, dict) else found))
        match spec.kind:
            case "work":
                return self._work(name)
            case "flaky":
                return self._work(name, number)
            case "sleep":
                return Step.sleep(name, 60 * number)
            case "late":
                return Step.human_in_the_loop(name, "?", int, timeout=60 * number, on_timeout=-1)
            case "ask":
                return Step.human_in_the_loop(name, "?", int)
            case "go":
                return Step.wait_for(name, int)
            case "vote":
                votes = Step.human_in_the_loop("votes", "?", int, quorum=2, voters=VOTERS)
                return (votes >> add).as_step(name)
        return self._composite(spec, add)

    def _composite(self, spec: Spec, add: Step[Any, Any]) -> Step[Any, Any]:
        name, number = spec.name, spec.number
        bodies = [self._body(body) for body in spec.bodies]
        match spec.kind:
            case "par":
                fan = Step.parallel(name, **{f"b{i}": body for i, body in enumerate(bodies)})
                return (fan >> add).as_step(name)
            case "map":
                items: Step[Any, Any] = step(name="items")(lambda n: [n + i for i in range(number)])
                return (items >> Step.map_over(name, bodies[0], max_concurrency=2) >> add).as_step(name)
            case "loop":
                return Step.loop_until(
                    name, bodies[0], until=lambda n: int(current_step().path[-2].removeprefix("#")) >= number
                )
            case "branch":
                return Step.branch_on(name, by=lambda n: f"b{n % 2}", b0=bodies[0], b1=bodies[1])
        nobody = Step.human_in_the_loop("nobody", "?", int, timeout=60 * number)
        return nobody.fallback(bodies[0]).named(name)


class Driver:
    """Brings a run to its end by random turns; a process each. Some of their stores fail after a few saves."""

    def __init__(self, place: Place, built: Built, rng: Random, run_id: str, *, stops: float) -> None:
        self._place, self._built, self._rng, self._stops = place, built, rng, stops
        self._run_id, self._clock = run_id, Clock()
        self._sent = 0
        self.stopped = 0

    def flow(self) -> Flujo[Any, Any]:
        """Return a runner, as the next process has it."""
        backend = self._place.open()
        backend.__dict__.pop("save_state", None)
        if self._rng.random() < self._stops:
            self._failing(backend, self._rng.randint(1, 6))
        return Flujo(self._built.pipeline, state_backend=backend, clock=self._clock, pipeline_name="random")

    def _failing(self, backend: StateBackend, after: int) -> None:
        save, left = backend.save_state, [after]

        async def save_state(run_id: str, state: dict[str, Any]) -> None:
            left[0] -= 1
            if left[0] >= 0:
                await save(run_id, state)
            if left[0] <= 0:
                self.stopped += left[0] == 0
                raise SaveError("The disk is gone.")

        backend.save_state = save_state  # type: ignore[method-assign]

    def run(self, given: int) -> PipelineResult[Any]:
        """Bring it to its end."""
        for _ in range(MOST):
            with contextlib.suppress(SaveError, AlreadyAnsweredError, NoVoteError):
                result = self.flow().run(given, run_id=self._run_id)
                if result.status != "paused":
                    return result
                self._turn(result)
        raise AssertionError(f"after {MOST} turns the run has not ended")

    def _turn(self, result: PipelineResult[Any]) -> None:
        """Do something about one of the things that the run waits for, or have it stand still for a while."""
        if result.waiting[0].kind == "pause" and self._rng.random() < 0.5:
            self.flow().resume(self._run_id)
            return
        if self._rng.random() < 0.1:
            self.flow().pause(self._run_id)
        waiting = self._rng.choice(result.waiting)
        name = waiting.step.rpartition(".")[2]
        if waiting.kind == "signal":
            assert waiting.signal is not None
            self.flow().signal(self._run_id, waiting.signal, answer(waiting.signal), id=f"{self._sent}")
            self._sent += 1  # else it is sent again
        elif waiting.kind == "human" and not name.startswith(("late", "nobody")):
            by = self._rng.choice(VOTERS) if name == "votes" else ""
            self.flow().resume(self._run_id, answer(waiting.step, by), at=waiting.step, by=by or None)
        elif waiting.until is not None:
            times = [found.until for found in result.waiting if found.until is not None]
            self._clock.set(max(self._clock.now(), self._rng.choice(times)))
