"""Hypothesis builds pipelines of every kind of step, nested in each other."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from flujo import Pipeline, Step, step

PLAIN = st.sampled_from(["fetch", "score", "ship", "pay", "end"])
HOSTILE = st.one_of(
    st.sampled_from(
        ['"', '"]', "end", "a;b", "<script>alert(1)</script", "%%{init: {}}%%", "`x`", "#quot;", "- x", "1) x", "\\n",
         "|x|", "class n1 done", "a & b", "{{x}}", "--", "$$x$$", "n1", "subgraph", "style x:#"]
    ),
    st.text(min_size=1, max_size=8),
).map(lambda text: "".join(char for char in text if char.isprintable() and char not in ".[]#>") or "x")  # fmt: skip


def leaf(name: str, fails: bool = False) -> Step[Any, Any]:
    """Return a step that gives two items, or fails."""

    @step(name=name)
    async def give(given: Any) -> Any:
        if fails:
            raise ValueError(name)
        return [1, 2]

    return give


@st.composite
def pipelines(draw: st.DrawFn, names: st.SearchStrategy[str] = PLAIN, depth: int = 3, fails: bool = False) -> Any:
    """Draw a pipeline; with `fails` some of its steps fail, and some of its loops do not end."""

    def body(level: int) -> Pipeline[Any, Any]:
        made: list[Step[Any, Any]] = []
        for index in range(draw(st.integers(1, 3 if level else 2))):
            name = f"{draw(names)}{index}"
            kinds = ["leaf", "parallel", "map", "branch", "loop", "pipeline", "fallback"]
            kind = draw(st.sampled_from(kinds)) if level else "leaf"
            if kind == "map":  # what it is given has to have items
                made.append(leaf(f"{name}+"))
            made.append(composite(kind, name, level - 1))
        return Pipeline.of(*made)  # type: ignore[call-overload,no-any-return]

    def composite(kind: str, name: str, level: int) -> Step[Any, Any]:
        if kind == "leaf":
            return leaf(name, fails and draw(st.integers(0, 7)) == 7)
        if kind == "pipeline":
            return body(level).as_step(name)
        if kind == "fallback":
            return leaf(name, fails and draw(st.booleans())).fallback(body(level))
        if kind == "map":
            policy: Any = draw(st.sampled_from(["fail", "collect"]))
            return Step.map_over(name, body(level), max_concurrency=draw(st.integers(1, 3)), on_error=policy)
        if kind == "loop":
            ends = not fails or draw(st.integers(0, 5)) < 5
            return Step.loop_until(name, body(level), until=lambda given: ends, max_iterations=2)
        keys = draw(st.lists(names, min_size=1, max_size=3, unique=True))
        bodies: dict[str, Any] = {key: body(level) for key in keys if key not in ("by", "default")} or {
            "x": body(level)
        }
        if kind == "parallel":
            return Step.parallel(name, **bodies)
        chosen = draw(st.sampled_from([*bodies, "other"]))
        default: Any = draw(st.sampled_from([*bodies])) if draw(st.booleans()) else body(level)
        return Step.branch_on(name, by=lambda given: chosen, default=default, **bodies)

    return body(depth)
