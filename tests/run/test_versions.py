"""Which code a run gets: always that of the version it started with, or an error that says what to do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flujo import Flujo, Pipeline, PipelineRegistry, step
from flujo.errors import (
    ConfigurationError,
    PipelineChangedError,
    PipelineMismatchError,
    PipelineNotRegisteredError,
    StepTypeError,
    VersionNotRegisteredError,
)
from tests.support.backends import Place
from tests.support.pipelines import adding, by_hand


class Switch:
    """Says whether the second step fails."""

    def __init__(self) -> None:
        self.fail = True

    def pipeline(self, version: str, *names: str) -> Pipeline[Any, Any]:
        """Return steps that add the version's name to a list."""

        def make(name: str, last: bool) -> Any:
            @step(name=name)
            async def add(items: list[str]) -> list[str]:
                if last and self.fail:
                    raise OSError("down")
                return [*items, f"{name} {version}"]

            return add

        names = names or ("a", "b")
        return Pipeline.of(*(make(name, name == names[-1]) for name in names))


@pytest.fixture
def switch() -> Switch:
    return Switch()


def registry(**pipelines: Pipeline[Any, Any]) -> PipelineRegistry:
    made = PipelineRegistry()
    for version, pipeline in pipelines.items():
        made.register(pipeline, "shop", version.removeprefix("v").replace("_", "."))
    return made


def runner(made: PipelineRegistry, place: Place, **options: Any) -> Flujo[Any, Any]:
    return Flujo(registry=made, pipeline_name="shop", state_backend=place.open(), **options)


@pytest.mark.parametrize("asked", ["latest", "2.0.0", "1.0.0", "9.9.9"])
def test_a_run_goes_on_with_its_version(place: Place, switch: Switch, asked: str) -> None:
    """Whatever version the runner says, and whatever newer ones are registered."""
    one, two = switch.pipeline("one"), switch.pipeline("two", "a", "x", "b")
    assert runner(registry(v1_0_0=one), place).run([], run_id="r").status == "failed"
    switch.fail = False
    result = runner(registry(v1_0_0=one, v2_0_0=two), place, pipeline_version=asked).run([], run_id="r")
    assert result.output == ["a one", "b one"]
    assert result.pipeline_version == "1.0.0"
    if asked in ("latest", "2.0.0"):
        new = runner(registry(v1_0_0=one, v2_0_0=two), place, pipeline_version=asked).run([], run_id="new")
        assert (new.output, new.pipeline_version) == (["a two", "x two", "b two"], "2.0.0")


def test_latest_is_not_a_prerelease(place: Place, switch: Switch) -> None:
    """A new run gets the newest release, compared as versions and not as text."""
    switch.fail = False
    pipelines = {f"v{n}": switch.pipeline(n) for n in ("1_9", "1_10", "2_0rc1")}
    assert runner(registry(**pipelines), place).run([], run_id="r").pipeline_version == "1.10"


def test_a_version_that_is_not_registered(place: Place, switch: Switch) -> None:
    """The error names run's version and the registered ones; the state stays as it is and can go on later."""
    one, two = switch.pipeline("one"), switch.pipeline("two")
    runner(registry(v1_0_0=one), place).run([], run_id="r")
    switch.fail = False
    for options in ({}, {"pipeline_version": "2.0.0"}, {"pipeline_version": "1.0.0"}):
        with pytest.raises(VersionNotRegisteredError, match=r"'1\.0\.0'.*'2\.0\.0'"):
            runner(registry(v2_0_0=two), place, **options).run([], run_id="r")
    assert (place.load()["status"], place.load()["current_step_index"]) == ("failed", 1)
    assert runner(registry(v1_0_0=one, v2_0_0=two), place).run([], run_id="r").output == ["a one", "b one"]


def test_a_new_run_of_a_version_that_is_not_registered(place: Place, switch: Switch) -> None:
    """It is not begun."""
    made = registry(v1_0_0=switch.pipeline("one"))
    with pytest.raises(VersionNotRegisteredError, match=r"'3\.0'.*'1\.0\.0'"):
        runner(made, place, pipeline_version="3.0").run([], run_id="r")
    with pytest.raises(PipelineNotRegisteredError, match="Did you mean 'shop'"):
        Flujo(registry=made, pipeline_name="shopp", state_backend=place.open()).run([], run_id="r")
    assert asyncio.run(place.open().load_state("r")) is None


def test_versions_that_are_equal(place: Place, switch: Switch) -> None:
    """A run of 1.0 goes on where the same pipeline is registered as 1.0.0, and keeps saying 1.0."""
    one = switch.pipeline("one")
    runner(registry(v1_0=one), place).run([], run_id="r")
    switch.fail = False
    result = runner(registry(v1_0_0=one), place).run([], run_id="r")
    assert (result.output, result.pipeline_version) == (["a one", "b one"], "1.0")
    assert place.load()["pipeline_version"] == "1.0"


def test_another_pipeline_under_the_same_run_id(place: Place, switch: Switch) -> None:
    """The error names both pipelines, and the state stays as it is."""
    made = registry(v1_0_0=switch.pipeline("one"))
    made.register(adding("other", []), "other", "1.0.0")
    runner(made, place).run([], run_id="r")
    for other in (
        Flujo(registry=made, pipeline_name="other", state_backend=place.open()),
        Flujo(adding("other", []), state_backend=place.open()),
    ):
        with pytest.raises(PipelineMismatchError, match=r"'r'.*'shop'.*'other'") as caught:
            other.run([], run_id="r")
        assert (caught.value.run_id, caught.value.found, caught.value.expected) == ("r", "shop", "other")
    assert (place.load()["status"], place.load()["current_step_index"]) == ("failed", 1)


def test_another_pipeline_id(place: Place, switch: Switch) -> None:
    """The name is not enough: a pipeline of another identity is another pipeline."""
    runner(registry(v1_0_0=switch.pipeline("one")), place).run([], run_id="r")
    made = PipelineRegistry()
    made.register(switch.pipeline("one"), "shop", "1.0.0", pipeline_id="a-stable-id")
    with pytest.raises(PipelineMismatchError, match=r"'shop'.*'a-stable-id'"):
        runner(made, place).run([], run_id="r")
    result = runner(made, place).run([], run_id="s")
    assert place.load("s")["pipeline_id"] == "a-stable-id"
    assert result.pipeline_name == "shop"


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("a", "x"), "step 2 was 'b', is now 'x'"),
        (("a", "b", "c"), "step 3 'c' is new"),
        (("a",), "step 2 'b' is gone"),
        (("b", "a"), "is now step"),
    ],
)
def test_a_changed_structure(place: Place, switch: Switch, names: tuple[str, ...], difference: str) -> None:
    """Under the same name and version it is refused, the difference spelled out; the state stays as it is."""
    runner(registry(v1_0_0=switch.pipeline("one")), place).run([], run_id="r")
    with pytest.raises(PipelineChangedError, match=difference) as caught:
        runner(registry(v1_0_0=switch.pipeline("one", *names)), place).run([], run_id="r")
    assert (caught.value.run_id, caught.value.pipeline_version) == ("r", "1.0.0")
    assert (place.load()["status"], place.load()["current_step_index"]) == ("failed", 1)
    switch.fail = False
    assert runner(registry(v1_0_0=switch.pipeline("mended")), place).run([], run_id="r").output == ["a one", "b mended"]


def test_a_completed_run_of_a_changed_pipeline(place: Place, switch: Switch) -> None:
    """Also where nothing would be executed: its result may not be what this pipeline gives."""
    switch.fail = False
    runner(registry(v1_0_0=switch.pipeline("one")), place).run([], run_id="r")
    before = place.contents()
    with pytest.raises(PipelineChangedError):
        runner(registry(v1_0_0=switch.pipeline("one", "a", "c")), place).run([], run_id="r")
    assert place.contents() == before


def test_a_state_without_a_fingerprint(place: Place, switch: Switch) -> None:
    """It goes on at its index, whatever the steps are called."""
    switch.fail = False
    place.put(by_hand(pipeline_id="shop", pipeline_name="shop", last_step_output=["by hand"]))
    assert runner(registry(v1_0_0=switch.pipeline("one")), place).run(run_id="r").output == ["by hand", "b one"]


def test_a_pipeline_or_a_step_directly(place: Place) -> None:
    """Without a registry the pipeline's or the step's name is used, the version is 1.0.0, unless they are given."""
    Flujo(adding("greet", []), state_backend=place.open()).run([], run_id="1")
    Flujo(adding("a", []) >> adding("b", []), state_backend=place.open()).run([], run_id="2")
    Flujo((adding("a", []) >> adding("b", [])).named("both"), state_backend=place.open()).run([], run_id="3")
    Flujo(
        adding("a", []),
        pipeline_name="mine",
        pipeline_version="2.1",
        pipeline_id="id",
        state_backend=place.open(),
    ).run([], run_id="4")
    found = [
        (state["pipeline_name"], state["pipeline_id"], state["pipeline_version"])
        for state in (place.load(run_id) for run_id in "1234")
    ]
    assert found == [
        ("greet", "greet", "1.0.0"),
        ("pipeline", "pipeline", "1.0.0"),
        ("both", "both", "1.0.0"),
        ("mine", "id", "2.1"),
    ]


def test_a_direct_pipeline_of_another_version(place: Place, switch: Switch) -> None:
    """A run does not go on with a pipeline that says that it is of another version."""
    Flujo(switch.pipeline("one"), pipeline_version="1.0", state_backend=place.open()).run([], run_id="r")
    switch.fail = False
    with pytest.raises(VersionNotRegisteredError, match=r"'1\.0'"):
        Flujo(switch.pipeline("two"), pipeline_version="2.0", state_backend=place.open()).run([], run_id="r")
    result = Flujo(switch.pipeline("one"), pipeline_version="1.0.0", state_backend=place.open()).run([], run_id="r")
    assert result.output == ["a one", "b one"]


def test_a_pipeline_registered_after_the_runner_was_made(place: Place, switch: Switch) -> None:
    """It is found when a run begins, with its types."""
    made = PipelineRegistry()
    late = runner(made, place)
    with pytest.raises(PipelineNotRegisteredError):
        late.run([], run_id="r")
    switch.fail = False
    made.register(switch.pipeline("one"), "shop", "1.0.0")
    assert late.run([], run_id="r").status == "completed"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "pipeline or a registry"),
        ({"registry": PipelineRegistry()}, "name"),
        ({"registry": PipelineRegistry(), "pipeline_name": ""}, "name"),
        ({"pipeline": adding("a", []), "registry": PipelineRegistry(), "pipeline_name": "a"}, "not both"),
        ({"pipeline": lambda x: x}, "not function"),
        ({"pipeline": adding("a", []), "state_backend": "sqlite:///x.db"}, "StateBackend"),
        ({"pipeline": adding("a", []), "state_backend": dict}, "StateBackend"),
        ({"pipeline": adding("a", []), "max_crashes": 0}, "max_crashes"),
        ({"registry": PipelineRegistry(), "pipeline_name": "a", "pipeline_id": "x"}, "pipeline_id"),
        ({"pipeline": adding("a", []), "pipeline_version": "not a version"}, "version"),
        ({"registry": {"a": 1}, "pipeline_name": "a"}, "registry"),
    ],
)
def test_options_that_do_not_go_together(arguments: dict[str, Any], match: str) -> None:
    """Each is refused when the runner is made."""
    with pytest.raises(ConfigurationError, match=match):
        Flujo(**arguments)


def test_a_misspelt_option() -> None:
    """It is an error of Python's, and not ignored."""
    with pytest.raises(TypeError, match="sate_backend"):
        Flujo(adding("a", []), sate_backend=None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="runid"):
        Flujo(adding("a", [])).run([], runid="r")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="retry"):
        step(retry=3)  # type: ignore[call-overload]


def test_steps_whose_types_do_not_fit() -> None:
    """It is an error when the pipeline is built, which names both steps and both types."""

    @step
    async def length(text: str) -> int:
        return len(text)

    @step
    async def shout(text: str) -> str:
        return text.upper()

    with pytest.raises(StepTypeError, match=r"'length'.*int.*'shout'.*str"):
        Pipeline.of(length, shout)  # type: ignore[arg-type]
