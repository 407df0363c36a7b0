"""What became of a step whose process died while it ran."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, model_validator


class Reconciled(BaseModel):
    """Say what became of a step in doubt; what the function in `@step(on_crash=...)` returns.

    happened  whether the step had its effect; None: it cannot be found out
    output    what the step would have returned; only where it happened

    Raises pydantic's ValidationError for an output of what did not happen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    happened: StrictBool | None
    output: Any = None

    @model_validator(mode="after")
    def _has_output_only_of_what_happened(self) -> Reconciled:
        if self.output is not None and not self.happened:
            raise ValueError("there is an output only of what happened: leave it out, or say happened=True")
        return self
