"""The frames of steps that have pipelines inside: one class a kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flujo.engine.frames import CHOICE, EXIT, ITEMS, JOIN, Composite, Failure, Frame, Function, Host, Path, Scope
from flujo.errors import ItemsFailedError, LoopLimitError, NoCaseError
from flujo.pipeline import NO_RETRY, Step, shares_context
from flujo.pipeline.control import BranchOn, ItemError, LoopUntil, MapOver


class InParallel(Composite):
    """All branches at once, each with a copy of the input and of the context."""

    __slots__ = ("_left", "_outputs")

    def begin(self) -> None:
        """Start every branch."""
        self._outputs = dict.fromkeys(key for key, _ in self._step.bodies)
        self._left = len(self._outputs)
        for key, body in self._step.bodies:
            path = (*self.path, key)
            self.run(body, key, path, self.tree.copy(self.given), Scope(path, self.scope))
        self.given = None

    def ended(self, child: Frame, output: Any) -> None:
        """Wait for the others, then join."""
        if child.slot != JOIN:
            self.tree.closed(child.scope)
            self._outputs[child.slot] = output
            self._left -= 1
            if self._left:
                return
            if shares_context(self._step):
                self.join(tuple((*self.path, key) for key in self._outputs))
                return
        self.finish(self._outputs)


class OverItems(Composite):
    """The body once an item, a few at a time."""

    __slots__ = ("_causes", "_control", "_failed", "_items", "_left", "_next", "_outputs")

    def begin(self) -> None:
        """Find out what the items are: lists, tuples and ranges as they are, other things put in order."""
        control = self._step.control
        assert isinstance(control, MapOver)
        self._control = control
        if type(self.given) in (list, tuple, range):
            self._start(self.given)
        else:
            self.ask(_LISTED, ITEMS, self.path, self.given, list)

    def _start(self, items: Sequence[Any]) -> None:
        self._items, self.given = items, None
        self._outputs: list[Any] = [None] * len(items)
        self._left, self._next = len(items), 0
        self._failed: list[int] = []
        self._causes: list[Path] = []
        if not self._enough(None):
            return
        if not items:
            self.finish([])
        for _ in range(min(self._control.max_concurrency, len(items))):
            self._begin_one()

    def _begin_one(self) -> None:
        index = self._next
        if index < len(self._items):
            self._next += 1
            path = (*self.path, f"[{index}]")
            self.run(self._step.bodies[0][1], index, path, self._items[index], Scope(path, self.scope))

    def ended(self, child: Frame, output: Any) -> None:
        """Begin the next item, or join where there is none left."""
        if child.slot == ITEMS:
            self._start(output)
        elif child.slot == JOIN:
            self.finish(self._outputs)
        else:
            self._settle_one(child, output)

    def broke(self, child: Frame, failure: Failure) -> None:
        """Keep the failure in place of the item's output, if that many may fail."""
        if child.slot in (ITEMS, JOIN) or not self._control.collect:
            self.fail(failure)
            return
        self._failed.append(child.slot)
        self._causes += failure.causes
        if self._enough(failure.error):
            self._settle_one(child, ItemError(index=child.slot, error=failure.text))

    def absorbs(self, child: Frame) -> bool:
        """Return whether one more item may fail."""
        return child.slot not in (ITEMS, JOIN) and self._control.collect and self._tolerates(len(self._failed) + 1)

    def _settle_one(self, child: Frame, output: Any) -> None:
        self.tree.closed(child.scope)
        self._outputs[child.slot] = output
        self._left -= 1
        if self._left:
            self._begin_one()
        elif shares_context(self._step):
            failed = set(self._failed)
            self.join(tuple((*self.path, f"[{i}]") for i in range(len(self._items)) if i not in failed))
        else:
            self.finish(self._outputs)

    def _tolerates(self, failed: int) -> bool:
        most, least = self._control.tolerated_failures, self._control.min_successful
        return (most is None or failed <= most) and (least is None or len(self._items) - failed >= least)

    def _enough(self, error: BaseException | None) -> bool:
        """Fail the whole step where too many items have failed, or there are too few to begin with."""
        failed, count = len(self._failed), len(self._items)
        if self._tolerates(failed):
            return True
        most, least = self._control.tolerated_failures, self._control.min_successful
        limit = f"at most {most} may" if most is not None and failed > most else f"at least {least} have to succeed"
        raised = ItemsFailedError(
            f"{failed} of {count} items of step {self._step.name!r} failed; {limit}.",
            hint="Run it again with the same run_id to try the failed items again.",
            step=self._step.name, failed=failed, items=count,
        )  # fmt: skip
        raised.__cause__ = error
        self.fail(Failure(raised, _text(raised), self.path, self._causes))
        return False


class OneOf(Composite):
    """The body that the decision names."""

    __slots__ = ()

    def begin(self) -> None:
        """Have it decided."""
        assert self._step.decision is not None
        self.ask(self._step.decision, CHOICE, self.path, self.given, self._case)

    def _case(self, answer: Any) -> str:
        control, cases = self._step.control, [key for key, _ in self._step.bodies]
        assert isinstance(control, BranchOn)
        if isinstance(answer, str) and answer in cases:
            return cases[cases.index(answer)]  # str() of an Enum is its name
        if control.default is not None:
            return control.default
        raise NoCaseError(
            f"Step {self._step.name!r} was told to take case {answer!r}; it has {', '.join(cases)} and no default.",
            hint="Add the case, or a default.",
            step=self._step.name, answer=answer, cases=cases,
        )  # fmt: skip

    def ended(self, child: Frame, output: Any) -> None:
        """Take the case that was chosen, or end with its output."""
        if child.slot == CHOICE:
            given, self.given = self.given, None
            self.run(dict(self._step.bodies)[output], output, (*self.path, output), given)
        else:
            self.finish(output)


class Repeated(Composite):
    """The body again and again, until the decision says that its output will do."""

    __slots__ = ("_carried", "_times")

    def begin(self) -> None:
        """Begin the first iteration."""
        self._times = 0
        self._again(self.given)

    def _again(self, given: Any) -> None:
        self.given = self._carried = None
        self._times += 1
        self.run(self._step.bodies[0][1], self._times, (*self.path, f"#{self._times}"), given)

    def ended(self, child: Frame, output: Any) -> None:
        """Have it decided whether that was the last iteration, or do what was decided."""
        if child.slot != EXIT:
            assert self._step.decision is not None
            self._carried = output
            self.ask(self._step.decision, EXIT, (*self.path, f"#{self._times}"), output, bool)
        elif output:
            self.finish(self._carried)
        else:
            control = self._step.control
            assert isinstance(control, LoopUntil)
            if self._times < control.max_iterations:
                self._again(self._carried)
            else:
                self._exhausted(control.max_iterations)

    def _exhausted(self, limit: int) -> None:
        error = LoopLimitError(
            f"Loop {self._step.name!r} was not done after {limit} iterations.",
            hint="Raise max_iterations, or see why `until` never says True.",
            step=self._step.name, max_iterations=limit,
        )  # fmt: skip
        self.fail(Failure(error, _text(error), self.path, []))


class Inner(Composite):
    """A pipeline as a step."""

    __slots__ = ()

    def begin(self) -> None:
        """Begin it."""
        given, self.given = self.given, None
        self.run(self._step.bodies[0][1], None, self.path, given)


class EitherOr(Composite):
    """The first body, and where that failed the second, with the same input."""

    __slots__ = ()

    def begin(self) -> None:
        """Begin the first."""
        self._body("primary", self.tree.copy(self.given))

    def _body(self, key: str, given: Any) -> None:
        self.run(dict(self._step.bodies)[key], key, (*self.path, key), given)

    def absorbs(self, child: Frame) -> bool:
        """Return whether it is the first body."""
        return bool(child.slot == "primary")

    def broke(self, child: Frame, failure: Failure) -> None:
        """Fall back, or fail where that was done already."""
        if child.slot != "primary":
            self.fail(failure)
            return
        given, self.given = self.given, None
        self._body("fallback", given)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


async def _listed(items: Any) -> list[Any]:
    return list(items)


_LISTED: Step[Any, Any] = Step(
    name="items", kind="decision", fn=_listed, is_async=True, takes_input=True, takes_context=False,
    input_type=Any, output_type=Any, context_type=Any, retry=NO_RETRY, timeout=None,
)  # fmt: skip
_KINDS: dict[str, type[Composite]] = {
    "parallel": InParallel, "map": OverItems, "branch": OneOf,
    "loop": Repeated, "pipeline": Inner, "fallback": EitherOr,
}  # fmt: skip


def frame_of(tree: Host, step: Step[Any, Any], *place: Any) -> Frame:
    """Return the frame of a step of that kind."""
    return _KINDS.get(step.kind, Function)(step, tree, *place)
