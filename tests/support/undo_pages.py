"""Pages that a step fetches with `once`."""

from __future__ import annotations

import asyncio
from typing import Any

from flujo import Flujo, PipelineResult, Step, once, step
from tests.support.backends import Place


class Pages:
    """Something that is fetched page by page; `down` are the pages that cannot be had now."""

    def __init__(self, *down: int) -> None:
        self.fetched: list[int] = []
        self.down = set(down)

    async def fetch(self, page: int) -> list[str]:
        self.fetched.append(page)
        await asyncio.sleep(0)
        if page in self.down:
            raise OSError(f"page {page} is not there")
        return [f"row {page}"]

    def crawl(self, count: int = 4, **options: Any) -> Step[Any, list[str]]:
        """Return a step that fetches so many pages."""

        @step(name="crawl", **options)
        async def crawl(_: Any) -> list[str]:
            rows: list[str] = []
            for page in range(count):
                rows += await once(f"page-{page}", self.fetch, page)
            return rows

        return crawl


def run(place: Place, pipeline: Any, *given: Any, **options: Any) -> PipelineResult[Any]:
    """Run the pipeline as run "r", as another process would."""
    return Flujo(pipeline, state_backend=place.open(), **options).run(*given, run_id="r")
