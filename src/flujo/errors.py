"""Every error that flujo raises, as one tree.

FlujoError
├── ConfigurationError              what was declared is wrong; raised before anything runs
│   ├── StepDefinitionError         a step's function, or one of its options
│   ├── PipelineDefinitionError     an empty pipeline, a duplicate name
│   │   └── StepTypeError           two neighbours whose types do not fit
│   ├── RegistryError               a name and version registered twice, an invalid version
│   ├── InvalidRunIdError           a run_id that no store could keep apart
│   └── RunInsideLoopError          `run` called where `run_async` is needed
├── StepError                       what a step raises, or what its failure is reported as
│   ├── NonRetryableError           raise it in a step to end the retrying
│   ├── StepTimeoutError            an attempt ran longer than the step's `timeout`
│   ├── WaitTimeoutError            nobody answered, or no signal came, in time
│   ├── NoCaseError                 a branch was told a case that it has not got
│   ├── LoopLimitError              a loop was not done after `max_iterations`
│   ├── ItemsFailedError            more items of a map failed than it tolerates
│   ├── ContextConflictError        two branches changed the same field of the context
│   ├── NotPicklableError           what an executor's process is to be sent, or sends back
│   ├── WorkerDiedError             the executor's process died while the step ran in it
│   └── RecordedError               an error that another process recorded, as text
├── RunError                        one run cannot be started, resumed or read
│   ├── RunFailedError              `.output` was read of a run that did not complete
│   ├── RunInProgressError          a live owner executes the run
│   ├── RunNotFoundError            there is no such run
│   ├── RunExistsError              there is a run of that run_id, and another was to be made
│   ├── UnknownStepError            the pipeline has no such step
│   ├── StepNotReachedError         the run has not come that far
│   ├── InvalidChangeError          a change of a run that does not fit it; nothing was changed
│   ├── RunEndedError               the run has ended, and nothing about it can be changed
│   ├── CrashLoopError              the same step killed its process again and again
│   ├── DeadlineExceededError       the run's deadline has passed
│   ├── UndoFailedError             the run failed, and an undo failed too; run it again to go on undoing
│   ├── MessageRefusedError         an answer, a signal or an order that the run cannot take; it is as it was
│   │   ├── RunNotWaitingError      the run waits for no answer
│   │   ├── RunNotFailedError       the run was to be retried, and has not failed
│   │   ├── InvalidAnswerError      an answer or a signal of the wrong type
│   │   ├── AlreadyAnsweredError    somebody has answered before
│   │   ├── AnswerTooLateError      the time for an answer had run out
│   │   ├── NoVoteError             somebody who may not answer, or has answered already
│   │   ├── UnknownSignalError      the pipeline waits for no signal of that name
│   │   └── MailboxFullError        too many signals that nobody has waited for yet
│   └── ResumeError                 the saved run and the code at hand do not fit
│       ├── PipelineNotRegisteredError
│       ├── VersionNotRegisteredError
│       ├── PipelineMismatchError   the run_id belongs to another pipeline
│       ├── PipelineChangedError    same name and version, another structure
│       ├── InvalidStateError       a state that no run of this pipeline can be in
│       ├── ContextMismatchError    the context model lost or gained a field
│       └── MigrationError          the run cannot be carried to the newer version
└── StateError                      the store, or what lies in it
    ├── SaveError                   a save failed, or its outcome cannot be found out
    ├── FencedError                 somebody else owns the run now; nothing was written
    ├── UnreadMailError             a message came that the owner has not read; nothing was written
    ├── NotSerializableError        a value that could not be restored exactly
    ├── UnknownTypeError            a stored type that this process has not been told of
    ├── StateCorruptedError         what was read is not what was written
    ├── BackendClosedError
    └── StoreUnavailableError       the store cannot be opened or reached
        ├── StoreBusyError          another program holds the store locked
        └── StoreFormatError        no flujo store, a newer schema, or a foreign one

Each error has a stable `code`, carries its data as attributes (`error.data` is all of them), and ends with what to do.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

_UPPER = re.compile(r"(?<!^)(?=[A-Z])")


class FlujoError(Exception):
    """Base of everything that flujo raises: `message` says what is wrong, `hint` what to do.

    Each further keyword becomes an attribute and an entry of `data`.
    """

    code: ClassVar[str] = "flujo"

    def __init_subclass__(cls) -> None:
        cls.code = _UPPER.sub("-", cls.__name__.removesuffix("Error")).lower()

    def __init__(self, message: str, *, hint: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message, self.hint, self.data = message, hint, data

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.message, self.hint, self.data)


def _rebuild(cls: type[FlujoError], message: str, hint: str, data: dict[str, Any]) -> FlujoError:
    return cls(message, hint=hint, **data)


class ConfigurationError(FlujoError):
    """What was declared is wrong; nothing has run."""


class StepDefinitionError(ConfigurationError):
    """A step's function or one of its options cannot work."""


class PipelineDefinitionError(ConfigurationError):
    """A pipeline cannot be built from these steps."""


class StepTypeError(PipelineDefinitionError):
    """A step's output type does not fit the next step's input type."""


class RegistryError(ConfigurationError):
    """A registration that contradicts an earlier one, or is no registration."""


class InvalidRunIdError(ConfigurationError):
    """A run_id that is empty, too long, or holds control characters."""


class RunInsideLoopError(ConfigurationError):
    """`run` was called while an event loop runs in this thread."""


class StepError(FlujoError):
    """Something that a step raised."""


class NonRetryableError(StepError):
    """Raise it in a step to fail at once, whatever `retries` says."""


class StepTimeoutError(StepError):
    """An attempt took longer than the step's `timeout`."""


class WaitTimeoutError(StepError):
    """Nobody answered, or no signal came, within the step's `timeout`."""


class NoCaseError(StepError):
    """`branch_on` was told a case that it has not got, and has no default."""


class LoopLimitError(StepError):
    """A loop was not done after `max_iterations`."""


class ItemsFailedError(StepError):
    """More items of a map failed than it tolerates. Data: `failed` and `items`, both counts."""


class ContextConflictError(StepError):
    """Two branches changed the same field of the context, and no merge is declared for it."""


class NotPicklableError(StepError):
    """A step, its input or its output cannot be sent to, or back from, an executor's process."""


class WorkerDiedError(StepError):
    """The process in which an executor ran the step died: a failed attempt like any other."""


class RecordedError(StepError):
    """An error that an earlier process recorded. Data: `type_name`, `text`, `traceback`, all str."""


class RunError(FlujoError):
    """One run cannot be started, resumed or read."""


class RunFailedError(RunError):
    """The output was read of a run that has none; `__cause__` is the failure itself."""


class RunInProgressError(RunError):
    """A live owner executes the run."""


class RunNotFoundError(RunError):
    """There is no run of that run_id."""


class RunExistsError(RunError):
    """There is a run of that run_id, and another one was to be made. Nothing was written."""


class UnknownStepError(RunError):
    """The pipeline has no such step. Data: `step`, `known`."""


class StepNotReachedError(RunError):
    """The run has not come to that step. Data: `step`, `reached`: how many steps are done."""


class InvalidChangeError(RunError):
    """A change of a run's context or output that does not fit it. Nothing was changed."""


class RunEndedError(RunError):
    """The run has ended, and nothing about it can be changed. Data: `status`."""


class CrashLoopError(RunError):
    """The process died again and again at the same step."""


class DeadlineExceededError(RunError):
    """The run's deadline has passed. Data: `deadline`, a datetime."""


class UndoFailedError(RunError):
    """An undo failed for good; `__cause__` is its failure. The run can be retried, and goes on undoing."""


class MessageRefusedError(RunError):
    """A message that the run cannot take. Nothing was stored, and the run is as it was."""


class RunNotWaitingError(MessageRefusedError):
    """The run waits for no answer, or not for this one."""


class RunNotFailedError(MessageRefusedError):
    """The run was to be retried, and has not failed. Data: `status`."""


class InvalidAnswerError(MessageRefusedError):
    """An answer, or the payload of a signal, is not of the type that is waited for."""


class AlreadyAnsweredError(MessageRefusedError):
    """The answer has been given before. Data: `by`, who gave it."""


class AnswerTooLateError(MessageRefusedError):
    """The time for an answer had run out."""


class NoVoteError(MessageRefusedError):
    """Who answers is not among the voters, has voted already, or has not said who they are. Data: `by`."""


class UnknownSignalError(MessageRefusedError):
    """No step of the pipeline waits for a signal of that name. Data: `name`, `known`."""


class MailboxFullError(MessageRefusedError):
    """The run holds too many messages that nothing has waited for yet."""


class ResumeError(RunError):
    """The saved run and the code at hand do not fit."""


class PipelineNotRegisteredError(ResumeError):
    """No pipeline of that name is registered."""


class VersionNotRegisteredError(ResumeError):
    """The pipeline is registered, but not in that version."""


class PipelineMismatchError(ResumeError):
    """The run_id belongs to a run of another pipeline."""


class PipelineChangedError(ResumeError):
    """The same name and version has another structure than when the run started."""


class InvalidStateError(ResumeError):
    """A state that no run of this pipeline can be in."""


class ContextMismatchError(ResumeError):
    """The saved context and the context model have different fields."""


class MigrationError(ResumeError):
    """The run cannot be carried to the newer version; it is as it was. Data: `name`, `source`, `target`."""


class StateError(FlujoError):
    """The store, or what lies in it."""


class SaveError(StateError):
    """A save failed, or its outcome could not be found out; the run has stopped."""


class FencedError(StateError):
    """Somebody else owns the run now; nothing was written."""


class UnreadMailError(StateError):
    """The save was to be made only if nobody has written to the run meanwhile, and somebody has."""


class NotSerializableError(StateError):
    """A value that could not be restored with its exact type and value; `path` leads to it."""


class UnknownTypeError(StateError):
    """A stored value has a type that this process has not been told of."""


class StateCorruptedError(StateError):
    """What was read is not what was written."""


class BackendClosedError(StateError):
    """The backend was closed."""


class StoreUnavailableError(StateError):
    """The store cannot be opened or reached."""


class StoreBusyError(StoreUnavailableError):
    """Another program holds the store locked for longer than flujo waits."""


class StoreFormatError(StoreUnavailableError):
    """The file is no flujo store, or one that this version cannot read."""
