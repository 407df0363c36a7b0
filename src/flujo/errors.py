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
│   ├── RunEndedError               the run has ended, and nothing about it can be changed
│   ├── CrashLoopError              the same step killed its process again and again
│   ├── UndoFailedError             the run failed, and an undo failed too; run it again to go on undoing
│   └── ResumeError                 the saved run and the code at hand do not fit
│       ├── PipelineNotRegisteredError
│       ├── VersionNotRegisteredError
│       ├── PipelineMismatchError   the run_id belongs to another pipeline
│       ├── PipelineChangedError    same name and version, another structure
│       ├── InvalidStateError       a state that no run of this pipeline can be in
│       └── ContextMismatchError    the context model lost or gained a field
└── StateError                      the store, or what lies in it
    ├── SaveError                   a save failed, or its outcome cannot be found out
    ├── FencedError                 somebody else owns the run now; nothing was written
    ├── NotSerializableError        a value that could not be restored exactly
    ├── UnknownTypeError            a stored type that this process has not been told of
    ├── StateCorruptedError         what was read is not what was written
    ├── BackendClosedError
    └── StoreUnavailableError       the store cannot be opened or reached
        ├── StoreBusyError          another program holds the store locked
        └── StoreFormatError        no flujo store, a newer schema, or a foreign one

Each error has a stable `code`, carries its data as attributes (`error.data` is all of them), and ends
with what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FlujoError(Exception):
    """Base of everything that flujo raises.

    Arguments: `message` is one sentence that says what is wrong; `hint` is one that says what to do;
    each keyword becomes an attribute and an entry of `data`.
    """

    code: ClassVar[str] = "flujo"

    def __init__(self, message: str, *, hint: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data

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

    code = "configuration"


class StepDefinitionError(ConfigurationError):
    """A step's function or one of its options cannot work."""

    code = "step-definition"


class PipelineDefinitionError(ConfigurationError):
    """A pipeline cannot be built from these steps."""

    code = "pipeline-definition"


class StepTypeError(PipelineDefinitionError):
    """A step's output type does not fit the next step's input type."""

    code = "step-type"


class RegistryError(ConfigurationError):
    """A registration that contradicts an earlier one, or is no registration."""

    code = "registry"


class InvalidRunIdError(ConfigurationError):
    """A run_id that is empty, too long, or holds control characters."""

    code = "invalid-run-id"


class RunInsideLoopError(ConfigurationError):
    """`run` was called while an event loop runs in this thread."""

    code = "run-inside-loop"


class StepError(FlujoError):
    """Something that a step raised."""

    code = "step"


class NonRetryableError(StepError):
    """Raise it in a step to fail at once, whatever `retries` says."""

    code = "non-retryable"


class StepTimeoutError(StepError):
    """An attempt took longer than the step's `timeout`."""

    code = "step-timeout"


class NoCaseError(StepError):
    """`branch_on` was told a case that it has not got, and has no default."""

    code = "no-case"


class LoopLimitError(StepError):
    """A loop was not done after `max_iterations`."""

    code = "loop-limit"


class ItemsFailedError(StepError):
    """More items of a map failed than it tolerates. Data: `failed` and `items`, both counts."""

    code = "items-failed"


class ContextConflictError(StepError):
    """Two branches changed the same field of the context, and no merge is declared for it."""

    code = "context-conflict"


class NotPicklableError(StepError):
    """A step, its input or its output cannot be sent to, or back from, an executor's process."""

    code = "not-picklable"


class WorkerDiedError(StepError):
    """The process in which an executor ran the step died: a failed attempt like any other."""

    code = "worker-died"


class RecordedError(StepError):
    """An error that an earlier process recorded: its type and text, not the object.

    Data: `type_name`, `text`, `traceback` (str).
    """

    code = "recorded"


class RunError(FlujoError):
    """One run cannot be started, resumed or read."""

    code = "run"


class RunFailedError(RunError):
    """The output was read of a run that has none; `__cause__` is the failure itself."""

    code = "run-failed"


class RunInProgressError(RunError):
    """A live owner executes the run."""

    code = "run-in-progress"


class RunNotFoundError(RunError):
    """There is no run of that run_id."""

    code = "run-not-found"


class RunEndedError(RunError):
    """The run has ended, and nothing about it can be changed. Data: `status`."""

    code = "run-ended"


class CrashLoopError(RunError):
    """The process died again and again at the same step."""

    code = "crash-loop"


class UndoFailedError(RunError):
    """An undo failed for good; `__cause__` is its failure. The run can be retried, and goes on undoing."""

    code = "undo-failed"


class ResumeError(RunError):
    """The saved run and the code at hand do not fit."""

    code = "resume"


class PipelineNotRegisteredError(ResumeError):
    """No pipeline of that name is registered."""

    code = "pipeline-not-registered"


class VersionNotRegisteredError(ResumeError):
    """The pipeline is registered, but not in that version."""

    code = "version-not-registered"


class PipelineMismatchError(ResumeError):
    """The run_id belongs to a run of another pipeline."""

    code = "pipeline-mismatch"


class PipelineChangedError(ResumeError):
    """The same name and version has another structure than when the run started."""

    code = "pipeline-changed"


class InvalidStateError(ResumeError):
    """A state that no run of this pipeline can be in."""

    code = "invalid-state"


class ContextMismatchError(ResumeError):
    """The saved context and the context model have different fields."""

    code = "context-mismatch"


class StateError(FlujoError):
    """The store, or what lies in it."""

    code = "state"


class SaveError(StateError):
    """A save failed, or its outcome could not be found out; the run has stopped."""

    code = "save"


class FencedError(StateError):
    """Somebody else owns the run now; nothing was written."""

    code = "fenced"


class NotSerializableError(StateError):
    """A value that could not be restored with its exact type and value; `path` leads to it."""

    code = "not-serializable"


class UnknownTypeError(StateError):
    """A stored value has a type that this process has not been told of."""

    code = "unknown-type"


class StateCorruptedError(StateError):
    """What was read is not what was written."""

    code = "state-corrupted"


class BackendClosedError(StateError):
    """The backend was closed."""

    code = "backend-closed"


class StoreUnavailableError(StateError):
    """The store cannot be opened or reached."""

    code = "store-unavailable"


class StoreBusyError(StoreUnavailableError):
    """Another program holds the store locked for longer than flujo waits."""

    code = "store-busy"


class StoreFormatError(StoreUnavailableError):
    """The file is no flujo store, or one that this version cannot read."""

    code = "store-format"
