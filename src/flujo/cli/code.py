"""The code that a command works with: what `module:attribute` names, as a runner."""

from __future__ import annotations

import copy
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flujo.errors import ConfigurationError
from flujo.execution.events import Announcer, Hook
from flujo.pipeline import Pipeline, PipelineRegistry, Step
from flujo.runner.flujo import Flujo
from flujo.runner.posting import Post
from flujo.state.backends.base import StateBackend
from flujo.state.backends.memory import InMemoryBackend

VARIABLE = "FLUJO_CODE"
Found = Flujo[Any, Any] | Pipeline[Any, Any] | Step[Any, Any] | PipelineRegistry
_KINDS = (Flujo, Pipeline, Step, PipelineRegistry)
_EXAMPLE = "Write module:attribute, as in shop:runner; the attribute is a Flujo, a Pipeline, a Step or a registry."


def load(spec: str | None) -> Found:
    """Import what `module:attribute` names, with the working directory as the first place to look.

    Raises ConfigurationError, whose cause is what the module raised.
    """
    given = spec if spec is not None else os.environ.get(VARIABLE, "")
    if not given:
        raise ConfigurationError(
            "This command needs your code.", hint=f"Give --code module:attribute, or set {VARIABLE}."
        )
    name, colon, attribute = given.partition(":")
    if not name or not colon or not attribute:
        raise ConfigurationError(f"{given!r} does not say where the code is.", hint=_EXAMPLE)
    found: Any = _module(name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"Module {name!r} has no {attribute!r}.", hint=_instead(name, found, part))
        found = getattr(found, part)
    if not isinstance(found, _KINDS):
        raise ConfigurationError(f"{given} is a {type(found).__name__}, and nothing that can be run.", hint=_EXAMPLE)
    return found


def _module(name: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # as `python -m` does
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigurationError(f"There is no module {name!r}.", hint=_modules(name)) from error
        raise _broken(name, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _broken(name: str, error: BaseException) -> ConfigurationError:
    lines = str(error).splitlines()
    return ConfigurationError(
        f"Module {name!r} could not be imported: {type(error).__name__}: {lines[0].rstrip('.') if lines else ''}.",
        hint="--traceback shows where.",
    )


def _modules(name: str) -> str:
    """Return which module of the working directory could have been meant."""
    path = Path(*name.split(".")[:-1])
    names: list[str] = []
    if path.is_dir():
        names = [found.stem for found in path.iterdir() if found.suffix == ".py" or (found / "__init__.py").exists()]
    close = difflib.get_close_matches(name.rsplit(".", maxsplit=1)[-1], names, n=1)
    if close:
        return f"Did you mean {'.'.join([*name.split('.')[:-1], close[0]])!r}?"
    return f"It is looked for in {Path.cwd()} first, as `python -m` does."


def _instead(name: str, module: Any, attribute: str) -> str:
    usable = (
        [key for key, value in vars(module).items() if isinstance(value, _KINDS)] if hasattr(module, "__dict__") else []
    )
    close = difflib.get_close_matches(attribute, usable, n=1)
    if close:
        return f"Did you mean {name}:{close[0]}?"
    return f"It has {', '.join(f'{name}:{key}' for key in usable[:5])}." if usable else _EXAMPLE


def runner_of(
    found: Found, backend: StateBackend, pipeline: str | None, *, stored: str | None = None, hooks: Sequence[Hook] = ()
) -> Flujo[Any, Any]:
    """Return a runner of that code on that backend.

    Arguments: `pipeline`, the name that was asked for; `stored`, the name of the pipeline that the run at hand belongs
    to, which counts where none was asked for.
    """
    if isinstance(found, Flujo):
        return _on(found, backend, hooks)
    if isinstance(found, PipelineRegistry):
        name = pipeline or stored or _only(found)
        found.get(name)
        return Flujo(registry=found, pipeline_name=name, state_backend=backend, hooks=hooks)
    return Flujo(found, pipeline_name=pipeline, state_backend=backend, hooks=hooks)


def _only(registry: PipelineRegistry) -> str:
    names = registry.names()
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names)
    raise ConfigurationError(
        f"The registry holds {len(names)} pipelines: {listed}." if names else "The registry is empty.",
        hint="Say which one with --pipeline NAME." if names else "Register a pipeline first.",
    )


def _on(runner: Flujo[Any, Any], backend: StateBackend, hooks: Sequence[Hook]) -> Flujo[Any, Any]:
    """Return the runner as it would be on another backend, with more hooks; the code's own object stays as it is."""
    found = copy.copy(runner)
    found.backend = backend
    known = runner._setup.announcer
    found._setup = replace(runner._setup, announcer=Announcer([*known._hooks[1:], *hooks]))
    found._post = Post(found._setup, backend)
    return found


def own_backend(found: Found | None) -> StateBackend | None:
    """Return the store that the code itself says, if it says one that outlives the process."""
    if isinstance(found, Flujo) and not isinstance(found.backend, InMemoryBackend):
        return found.backend
    return None


def registry_of(found: Found) -> PipelineRegistry:
    """Return every version of every pipeline that this code knows."""
    if isinstance(found, PipelineRegistry):
        return found
    code = (found if isinstance(found, Flujo) else Flujo(found))._setup.code
    if code._registry is not None:
        return code._registry
    registry = PipelineRegistry()
    for known in code.known():
        registry.register(known.pipeline, known.name, known.version, pipeline_id=known.pipeline_id)
    return registry


def named(spec: str | None) -> bool:
    """Return whether any code was named."""
    return bool(spec if spec is not None else os.environ.get(VARIABLE))


def context_model(found: Found) -> Any:
    """Return the context model that this code says, or None."""
    return found._setup.contexts.model if isinstance(found, Flujo) else None
