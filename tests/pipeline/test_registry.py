from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flujo.errors import PipelineNotRegisteredError, RegistryError, VersionNotRegisteredError
from flujo.pipeline import Pipeline, PipelineRegistry, Registered, step


@step
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@step
async def shout(text: str) -> str:
    return text.upper()


@pytest.fixture
def registry() -> PipelineRegistry:
    return PipelineRegistry()


def test_a_single_step_is_a_pipeline(registry: PipelineRegistry) -> None:
    """`register` returns the pipeline that `get` finds."""
    made = registry.register(greet, "hello", "1.0.0")
    assert isinstance(made, Pipeline)
    assert made.steps == (greet,)
    assert registry.get("hello") == Registered(pipeline=made, name="hello", version="1.0.0", pipeline_id="hello")
    assert registry.get("hello", "1.0.0").pipeline is made


def test_latest_is_the_newest_release(registry: PipelineRegistry) -> None:
    """By PEP 440 and not by the alphabet; pre-releases count only where there is nothing else."""
    registry.register(greet, "hello", "2.0.0rc1")
    assert registry.latest("hello") == "2.0.0rc1"
    for version in ("1.10", "1.9", "1.11.dev3"):
        registry.register(greet, "hello", version)
    assert registry.latest("hello") == "1.10"
    assert registry.get("hello", "latest").version == "1.10"
    assert registry.versions("hello") == ["1.9", "1.10", "1.11.dev3", "2.0.0rc1"]


def test_equal_versions_are_one_version(registry: PipelineRegistry) -> None:
    """ "1.0" finds "1.0.0", and cannot be registered beside it."""
    registry.register(greet, "hello", "1.0")
    assert registry.get("hello", "1.0.0").version == "1.0"
    with pytest.raises(RegistryError, match=r"Version '1\.0' of pipeline 'hello' is registered already"):
        registry.register(shout, "hello", "1.0.0")


def test_registering_the_same_again_changes_nothing(registry: PipelineRegistry) -> None:
    """Steps and pipelines alike; something else under the same version is refused."""
    pipeline = greet >> shout
    assert registry.register(pipeline, "loud", "1") is registry.register(pipeline, "loud", "1")
    assert registry.register(greet, "hello", "1") is registry.register(greet, "hello", "1")
    for other in (greet, shout >> greet):
        with pytest.raises(RegistryError, match="Register the changed pipeline under a new version"):
            registry.register(other, "loud", "1")
    with pytest.raises(RegistryError):
        registry.register(greet, "hello", "1", pipeline_id="other")
    assert registry.get("loud").pipeline is pipeline


def test_a_pipeline_id_may_differ_from_the_name(registry: PipelineRegistry) -> None:
    """It is what the store calls the pipeline."""
    registry.register(greet, "hello", "1", pipeline_id="greetings-7")
    assert registry.get("hello").pipeline_id == "greetings-7"


@pytest.mark.parametrize("version", ["", "one", "latest", "1..0", None, 1])
def test_an_invalid_version_is_refused(registry: PipelineRegistry, version: Any) -> None:
    """And nothing is registered by it."""
    with pytest.raises(RegistryError, match="is no version"):
        registry.register(greet, "hello", version)
    assert registry.names() == []


@pytest.mark.parametrize("options", [{"name": ""}, {"name": "a\nb"}, {"name": None}, {"pipeline_id": ""}])
def test_an_invalid_name_is_refused(registry: PipelineRegistry, options: dict[str, Any]) -> None:
    """Empty, or not printable."""
    with pytest.raises(RegistryError, match="cannot name a pipeline"):
        registry.register(greet, **{"name": "hello", "version": "1", **options})


def test_a_missing_pipeline_is_named_with_what_there_is(registry: PipelineRegistry) -> None:
    """The error lists the names, suggests the nearest and says what to do."""
    with pytest.raises(PipelineNotRegisteredError, match="Nothing is registered"):
        registry.get("hello")
    registry.register(greet, "hello", "1")
    registry.register(shout, "shout", "1")
    with pytest.raises(PipelineNotRegisteredError) as caught:
        registry.get("helo")
    assert str(caught.value) == (
        "No pipeline is registered as 'helo'. Did you mean 'hello'? Registered: 'hello', 'shout'. "
        "Call `registry.register(pipeline, 'helo', version)` before the run."
    )
    assert caught.value.data == {"name": "helo", "registered": ["hello", "shout"]}
    with pytest.raises(PipelineNotRegisteredError):
        registry.versions("helo")
    assert registry.names() == ["hello", "shout"]


@pytest.mark.parametrize(("version", "suggested"), [("3.0", ""), ("1.2.4", "'1.2.3'"), ("lastest", "'latest'")])
def test_a_missing_version_is_named_with_what_there_is(
    registry: PipelineRegistry, version: str, suggested: str
) -> None:
    """A version that is none is simply not registered either."""
    registry.register(greet, "hello", "2.0.0")
    registry.register(greet, "hello", "1.2.3")
    with pytest.raises(VersionNotRegisteredError) as caught:
        registry.get("hello", version)
    assert caught.value.data == {"name": "hello", "version": version, "registered": ["1.2.3", "2.0.0"]}
    assert "Registered: '1.2.3', '2.0.0'." in str(caught.value)
    assert f"Did you mean {suggested}" in str(caught.value) if suggested else "Did you" not in str(caught.value)


def test_threads_that_register_at_once_agree(registry: PipelineRegistry) -> None:
    """All of them get the one pipeline that is registered, and no version is lost."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: registry.register(greet, "hello", f"1.{n % 20}"), range(200)))
    assert len({id(pipeline) for pipeline in made}) == 20
    assert registry.versions("hello") == [f"1.{n}" for n in range(20)]
