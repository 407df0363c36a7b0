from __future__ import annotations

import html
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flujo.pipeline import Pipeline, Step
from flujo.pipeline.mermaid import escaped
from flujo.state.models import StepRecord
from tests.support.pipeline_strategy import HOSTILE, leaf, pipelines


def of(*names: str) -> Pipeline[Any, Any]:
    return Pipeline.of(*(leaf(name) for name in names))  # type: ignore[call-overload,no-any-return]


def drawn(*lines: str) -> str:
    return "\n".join(["flowchart TD", *lines]) + "\n"


def test_steps_are_joined_in_order() -> None:
    """One node each, and the links after all nodes."""
    assert of("fetch", "load data", "ship").to_mermaid() == drawn(
        '    n1["fetch"]',
        '    n2["load data"]',
        '    n3["ship"]',
        "    n1 --> n2",
        "    n2 --> n3",
    )


def test_a_parallel_forks_and_joins() -> None:
    """Its branches are named where they begin."""
    made = leaf("a") >> Step.parallel("fan", left=leaf("l"), right=of("r1", "r2")) >> leaf("z")
    assert made.to_mermaid() == drawn(
        '    n1["a"]',
        '    subgraph n2["fan"]',
        '        n3(["fork"])',
        '        n4["l"]',
        '        n5["r1"]',
        '        n6["r2"]',
        '        n7(["join"])',
        "    end",
        '    n8["z"]',
        "    n5 --> n6",
        '    n3 -->|"left"| n4',
        "    n4 --> n7",
        '    n3 -->|"right"| n5',
        "    n6 --> n7",
        "    n1 --> n3",
        "    n7 --> n8",
    )


def test_a_map_says_how_many_items_are_done_at_a_time() -> None:
    """It is a frame around its body."""
    made = leaf("a") >> Step.map_over("enrich", of("fetch", "score"), max_concurrency=8)
    assert made.to_mermaid() == drawn(
        '    n1["a"]',
        '    subgraph n2["enrich: for each item, 8 at a time"]',
        '        n3["fetch"]',
        '        n4["score"]',
        "    end",
        "    n3 --> n4",
        "    n1 --> n3",
    )


def test_a_branch_names_its_cases_and_its_default() -> None:
    """All cases lead on to what comes next."""
    made = Step.branch_on("route", by=str, big=of("ask", "charge"), small=leaf("charge"), default="small") >> leaf("z")
    assert made.to_mermaid() == drawn(
        '    n1{"route"}',
        '    n2["ask"]',
        '    n3["charge"]',
        '    n4["charge"]',
        '    n5["z"]',
        "    n2 --> n3",
        '    n1 -->|"big"| n2',
        '    n1 -->|"small (default)"| n4',
        "    n3 --> n5",
        "    n4 --> n5",
    )
    assert '-->|"default"|' in Pipeline.of(Step.branch_on("r", by=str, default=leaf("x"))).to_mermaid()


def test_a_loop_goes_back_from_its_test() -> None:
    """The frame says how often at most."""
    made = Step.loop_until("refine", of("draft", "critic"), until=bool, max_iterations=5) >> leaf("z")
    assert made.to_mermaid() == drawn(
        '    subgraph n1["refine: at most 5 times"]',
        '        n2["draft"]',
        '        n3["critic"]',
        '        n4{"until"}',
        "    end",
        '    n5["z"]',
        "    n2 --> n3",
        "    n3 --> n4",
        '    n4 -->|"again"| n2',
        "    n4 --> n5",
    )


def test_a_fallback_is_reached_on_failure() -> None:
    """From the whole of what failed, however large; both lead on."""
    made = of("x", "y").as_step("pay").fallback(leaf("wire")) >> leaf("z")
    assert made.to_mermaid() == drawn(
        '    subgraph n1["pay"]',
        '        subgraph n2["pay"]',
        '            n3["x"]',
        '            n4["y"]',
        "        end",
        '        n5["wire"]',
        "    end",
        '    n6["z"]',
        "    n3 --> n4",
        '    n2 -.->|"on failure"| n5',
        "    n4 --> n6",
        "    n5 --> n6",
    )


def test_with_a_state_it_is_coloured() -> None:
    """Every class is defined, and those that are there list their nodes; a map counts its items."""
    made = (
        leaf("a") >> Step.map_over("enrich", of("fetch", "score"), max_concurrency=1, on_error="collect") >> leaf("z")
    )
    records = [
        StepRecord(path=("a",), output=[1, 2, 3]),
        StepRecord(path=("enrich", "[0]", "fetch")),
        StepRecord(path=("enrich", "[0]", "score")),
        StepRecord(path=("enrich", "[1]", "fetch"), success=False),
    ]
    state = {"status": "running", "current_step_index": 1, "last_step_output": [1, 2, 3], "step_history": records}
    text = made.to_mermaid(state)
    assert '    subgraph n2["enrich: for each item, 1 at a time, 1/3 done, 1 failed"]' in text.splitlines()
    *_, done, running, failed, waiting, first, second, third = text.splitlines()
    assert [line.split()[:2] for line in (done, running, failed, waiting)] == [
        ["classDef", name] for name in ("done", "running", "failed", "waiting")
    ]
    assert [first, second, third] == ["    class n1 done", "    class n2,n4 running", "    class n3 failed"]
    assert made.to_mermaid(records).splitlines()[0] == "flowchart TD"


TEXT = r'"[\w ,:#;/()-]*"'
NODE = re.compile(rf'\s+(n\d+)(\[{TEXT}\]|\{{{TEXT}\}}|\(\["fork"\]\)|\(\["join"\]\))')
FRAME = re.compile(rf"\s+subgraph (n\d+)\[{TEXT}\]")
LINK = re.compile(rf"    (n\d+) (?:-->|-\.->)(?:\|{TEXT}\|)? (n\d+)")
STYLE = re.compile(r"    class(?:Def \w+ [\w:#,-]+| n\d+(?:,n\d+)* \w+)")


def check(text: str, pipeline: Pipeline[Any, Any]) -> None:
    """Every line is one of the few forms that the diagram has, and they fit together."""
    first, *lines = text.splitlines()
    assert first == "flowchart TD"
    ids: list[str] = []
    links: list[tuple[str, str]] = []
    inside: list[set[str]] = []
    for line in lines:
        assert line.isascii() or all(char.isalnum() for char in line if not char.isascii()), line
        if found := NODE.fullmatch(line):
            ids.append(found[1])
            assert not links
        elif found := FRAME.fullmatch(line):
            ids.append(found[1])
            inside.append(set())
        elif found := LINK.fullmatch(line):
            links.append((found[1], found[2]))
        elif line.strip() == "end":
            inside.pop()
        else:
            assert STYLE.fullmatch(line), line
    assert not inside
    assert ids == [f"n{number}" for number in range(1, len(ids) + 1)]
    assert {end for link in links for end in link} <= set(ids)
    assert len(ids) == sum(map(drawings, every_step(pipeline)))
    nodes = [found[1] for line in lines if (found := NODE.fullmatch(line))]
    frames = {found[1] for line in lines if (found := FRAME.fullmatch(line))}
    reached, new = {nodes[0]}, {nodes[0]}
    while new:  # a failure leaves from a whole frame, which is reached where something in it is
        new = {target for source, target in links if source in reached | frames} - reached
        reached |= new
    assert reached >= set(nodes)


def every_step(pipeline: Pipeline[Any, Any]) -> list[Step[Any, Any]]:
    inner = [found for step in pipeline.steps for _, body in step.bodies for found in every_step(body)]
    return [*pipeline.steps, *inner]


def drawings(found: Step[Any, Any]) -> int:
    return {"parallel": 3, "loop": 2}.get(found.kind, 1)


@pytest.mark.slow
@given(pipelines(HOSTILE))
def test_no_name_breaks_a_diagram(pipeline: Pipeline[Any, Any]) -> None:
    """Every id is defined once, in order, every link joins two of them, and all nodes can be reached."""
    check(pipeline.to_mermaid(), pipeline)
    check(pipeline.to_mermaid([]), pipeline)


@given(st.text(max_size=20))
def test_escaped_text_reads_as_what_it_was(text: str) -> None:
    """Mermaid's entities are HTML's with another mark; nothing but letters, digits and five marks stays as it is."""
    shown = escaped(text)
    assert html.unescape(re.sub(r"#(\w+);", r"&#\1;", shown)) == "".join(map(_known, text))
    assert re.fullmatch(r"(?:[^\W]|[ _,/-]|#\d+;)*", shown)
    assert not shown.startswith("-")


def _known(char: str) -> str:
    """Return the character as HTML reads its number: it has ideas of its own about control characters."""
    return char if char.isalnum() or char in " _,/-" else html.unescape(f"&#{ord(char)};")
