"""What is sent to runs: answers, signals and orders, each checked against the code before it is stored."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from flujo import _ids
from flujo.engine import check_resumable, step_at
from flujo.errors import (
    ConfigurationError,
    InvalidAnswerError,
    InvalidChangeError,
    MessageRefusedError,
    RunNotWaitingError,
    UnknownSignalError,
)  # fmt: skip
from flujo.execution.context import ContextKind
from flujo.pipeline import AskPerson, AwaitSignal, Pipeline, Reconciled, Registered, Step, check_answer_value
from flujo.runner.opening import Setup, not_found
from flujo.runner.result import PipelineResult
from flujo.state.backends.base import Reading, State, StateBackend
from flujo.state.codec import Codec
from flujo.state.mail import Message, Wait, already_answered, answer_id, not_waiting, token, too_late, waits_of
from flujo.state.models import checked_state


class Post:
    """Sends messages to the runs of one runner."""

    def __init__(self, setup: Setup, backend: StateBackend) -> None:
        self._setup, self._backend = setup, backend
        self._codec = backend.codec or Codec()

    async def order(self, run_id: str, kind: str, by: str | None, reason: str | None) -> None:
        """Send "cancel", "pause" or "resume", or the record of a "retry". A run that is cancelled once is cancelled."""
        state = await self.state(run_id)
        if state is not None:
            self._code_of(state)
        await self._send(run_id, self.record(kind, by, reason))

    def record(self, kind: str, by: str | None, reason: str | None, payload: bytes | None = None) -> Message:
        """Return the message that says who did that, and why."""
        message_id = kind if kind in ("cancel", "fork") else f"{kind}/{uuid.uuid4().hex}"
        return Message(
            id=message_id, kind=kind, payload=payload, by=_name(by, "by"), reason=_name(reason, "reason"),
            at=self._setup.clock.now(),
        )  # fmt: skip

    async def signal(self, run_id: str, name: str, payload: Any, message_id: str | None, by: str | None) -> None:
        """Send a signal."""
        state = await self.state(run_id)
        code = self._setup.code.for_new() if state is None else self._code_of(state)
        found = [control for control in _signals(code.pipeline) if control.signal == name]
        if not found:
            known = sorted({control.signal for control in _signals(code.pipeline)})
            raise UnknownSignalError(
                f"Pipeline {code.name!r} {code.version} waits for no signal {name!r}.",
                hint=f"It waits for {', '.join(map(repr, known))}." if known else "It waits for no signal at all.",
                run_id=run_id, name=name, known=known,
            )  # fmt: skip
        for control in found:  # several steps may wait for it, and any of them may get it
            payload = _checked(run_id, f"Signal {name!r}", control.type, payload)
        await self._send(run_id, Message(
            id="signal/" + (uuid.uuid4().hex if message_id is None else str(_name(message_id, "id"))),
            kind="signal", name=name, payload=self._codec.encode(payload, "payload"), by=_name(by, "by"),
            at=self._setup.clock.now(),
        ))  # fmt: skip

    async def answer(
        self, run_id: str, answer: Any, by: str | None, at: str | None, seen: PipelineResult[Any] | None
    ) -> None:
        """Send an answer to what the run waits for: at that step, or what the paused result says."""
        state = await self.state(run_id)
        if state is None:
            raise not_found(run_id)
        self._setup.code.declare_types()
        code = self._code_of(state)
        wait = _question(run_id, state, at, seen, await self._backend.mail(run_id))
        step = step_at(code.pipeline, tuple(wait["path"]))
        if step is None:
            raise not_waiting(run_id, state["status"], f" at {_ids.path_text(tuple(wait['path']))!r}, which is no step")
        checked = _checked_answer(run_id, wait, step, answer)
        await self._send(run_id, Message(
            id=answer_id(wait, by), kind="answer", name=token(wait), payload=self._codec.encode(checked, "answer"),
            by=_name(by, "by"), at=self._setup.clock.now(),
        ))  # fmt: skip

    def _code_of(self, state: State) -> Registered:
        """Return the run's code: what could not go on here is not to be told anything either; raises ResumeError."""
        route = self._setup.code.route(state)
        if not route.migrations:  # else it is not that code's yet, and is found out about when it is taken up
            check_resumable(state, route.code)
        return route.code

    async def _send(self, run_id: str, message: Message) -> None:
        await self._backend.post(run_id, message)

    async def state(self, run_id: str) -> State | None:
        """Return the run's newest state, or None."""
        backend = self._backend
        state = await (backend.load_at(run_id) if isinstance(backend, Reading) else backend.load_state(run_id))
        if state is None or backend.codec is not None:
            return state
        return checked_state(run_id, state)


def checked_output(run_id: str, step: Step[Any, Any], value: Any) -> Any:
    """Return the value as an output of that step; raises InvalidChangeError."""
    try:
        return check_answer_value(step.output_type, value)
    except ValueError as error:
        raise InvalidChangeError(
            f"The output of step {step.name!r} cannot be that: {error}.", hint="Nothing was changed.",
            run_id=run_id, step=step.name,
        ) from None  # fmt: skip


def changed_context(contexts: ContextKind, state: State, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the state's context with these changes; raises InvalidChangeError."""
    values: dict[str, Any] = state["pipeline_context"]
    if contexts.model is None:
        return {**values, **changes}
    context = contexts.restore(values).model_copy()
    for name, value in changes.items():
        field = contexts.model.model_fields.get(name)
        if field is None and contexts.model.model_config.get("extra") != "allow":
            known = list(contexts.model.model_fields)
            near = difflib.get_close_matches(str(name), known, n=1)
            raise InvalidChangeError(
                f"The context of run {state['run_id']!r} has no field {name!r}.",
                hint=f"Did you mean {near[0]!r}?" if near else f"Its fields are {', '.join(known)}.",
                run_id=state["run_id"], field=name,
            )  # fmt: skip
        try:
            if field is not None:
                wanted: Any = field.annotation
                value = check_answer_value(Annotated[(wanted, *field.metadata)] if field.metadata else wanted, value)
            if contexts.model.model_config.get("frozen") or (field is not None and field.frozen):
                context = context.model_copy(update={name: value})
            else:
                contexts.model.__pydantic_validator__.validate_assignment(context, name, value)
        except ValueError as error:
            raise InvalidChangeError(
                f"Field {name!r} of the context of run {state['run_id']!r} cannot be that: {error}.",
                hint="Nothing was changed.", run_id=state["run_id"], field=name,
            ) from None  # fmt: skip
    return contexts.values(context)


def _question(run_id: str, state: State, at: str | None, seen: PipelineResult[Any] | None, mail: list[Message]) -> Wait:
    """Return the wait that an answer is for: the one that a result speaks of, that at a step, or the only one."""
    asked = [wait for wait in waits_of(state.get("waiting")) if wait["kind"] in ("human", "crash")]
    known = [found.token for found in seen.waiting if found.kind in ("human", "crash")] if seen is not None else []
    meant = known[0] if len(known) == 1 and at is None else ""
    found = [
        wait for wait in asked
        if (token(wait) == meant if meant else at is None or _ids.path_text(tuple(wait["path"])) == at)
    ]  # fmt: skip
    if len(found) > 1:
        where = ", ".join(repr(_ids.path_text(tuple(wait["path"]))) for wait in found)
        raise RunNotWaitingError(
            f"Run {run_id!r} waits for several answers: at {where}.", hint="Say which one with `at=`.", run_id=run_id
        )
    if not found:
        raise _over(run_id, state, meant, at, mail)
    return found[0]


def _over(run_id: str, state: State, meant: str, at: str | None, mail: list[Message]) -> MessageRefusedError:
    """Return why there is no such question any more."""

    def fits(name: str) -> bool:
        return name == meant if meant else at is None or name.rpartition("@")[0] == at

    last = (state.get("waiting") or {}).get("last") or {}
    if last and last["how"] == "expired" and fits(last["wait"]):
        return too_late(run_id)
    given = [message for message in mail if message.kind == "answer" and fits(message.name)]
    if given:
        return already_answered(run_id, given[-1].by)
    return not_waiting(run_id, state["status"], f" at {at!r}" if at else "")


def _checked_answer(run_id: str, wait: Wait, step: Step[Any, Any], answer: Any) -> Any:
    where = f"The answer to {_ids.path_text(tuple(wait['path']))!r}"
    if wait["kind"] == "crash":
        verdict = _checked(run_id, where, Reconciled, answer)
        if verdict.happened is None:
            raise InvalidAnswerError(
                f"{where} has to say whether the step happened.", hint="Give Reconciled(happened=True or False).",
                run_id=run_id,
            )  # fmt: skip
        if not verdict.happened:
            return verdict
        return verdict.model_copy(update={"output": _checked(run_id, where, step.output_type, verdict.output)})
    assert isinstance(step.control, AskPerson)
    return _checked(run_id, where, step.control.type, answer)


def _checked(run_id: str, what: str, wanted: Any, value: Any) -> Any:
    try:
        return check_answer_value(wanted, value)
    except ValueError as error:
        raise InvalidAnswerError(
            f"{what} is not of the type that is waited for: {error}.",
            hint="The run is as it was, and waits on; send another one.", run_id=run_id,
        ) from None  # fmt: skip


def _signals(pipeline: Pipeline[Any, Any]) -> Iterator[AwaitSignal]:
    for step in pipeline.steps:
        if isinstance(step.control, AwaitSignal):
            yield step.control
        for _, body in step.bodies:
            yield from _signals(body)


def _name(text: object, what: str) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str) or not text or len(text) > 1000:
        raise ConfigurationError(f"`{what}` is {text!r}.", hint="Give a text of 1 to 1000 characters.")
    return text
