"""A shop whose orders are checked, charged, approved by a person where they are big, and shipped.

What the guide to the command line works on, and its tests. The shop's bank is a file: while `bank.down` lies in the
working directory, charging fails.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from flujo import Flujo, PipelineRegistry, Step, current_step, step


class Order(BaseModel):
    """What a customer sends."""

    id: str
    items: list[int]  # prices in cents


class Receipt(BaseModel):
    """A paid order."""

    order: str
    cents: int
    payment: str


class Approval(BaseModel):
    """What a person says to a big order."""

    ok: bool
    note: str = ""


class Shop(BaseModel):
    """What the steps of a run share."""

    notes: list[str] = []


@step
async def validate(order: Order) -> list[int]:
    """Refuse an order without items."""
    if not order.items:
        raise ValueError("an order has items")
    return order.items


@step
async def price(cents: int) -> int:
    """Add the tax to one item."""
    return cents + cents // 5


@step
def charge(prices: list[int], *, context: Shop) -> Receipt:
    """Ask the bank for the money."""
    if Path("bank.down").exists():
        raise ConnectionError(f"the bank does not answer (request {current_step().run_id})")
    context.notes.append(f"charged {sum(prices)}")
    return Receipt(order=current_step().run_id, cents=sum(prices), payment="p-1")


@step
async def note(approval: Approval, *, context: Shop) -> str:
    """Write down what was said."""
    context.notes.append(f"approved: {approval.ok}")
    return "approved" if approval.ok else "refused"


@step
async def small(receipt: Receipt) -> str:
    """Let a small order pass."""
    return "small"


@step
async def ship(decision: str, *, context: Shop) -> str:
    """Send the parcel, or do not."""
    context.notes.append("shipped" if decision != "refused" else "kept")
    return f"{decision}, {'shipped' if decision != 'refused' else 'kept'}"


approve = Step.human_in_the_loop("approve", "A big order: ship it?", Approval)
orders = (
    validate
    >> Step.map_over("prices", price)
    >> charge
    >> Step.branch_on(
        "size", by=lambda receipt: "big" if receipt.cents > 10_000 else "small", big=approve >> note, small=small
    )
    >> ship
)
registry = PipelineRegistry()
registry.register(orders, "orders", "1.0.0")
next_registry = PipelineRegistry()  # what the next deploy would bring, which has forgotten 1.0.0
next_registry.register(orders, "orders", "2.0.0")
runner = Flujo(registry=registry, pipeline_name="orders", context_model=Shop)
