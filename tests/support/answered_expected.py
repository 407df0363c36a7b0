"""What is to be found of the run of tests/support/answered_child.py where nobody kills its processes.

It is written down here, and not taken from such a run.
"""

from __future__ import annotations

from tests.support.answered_check import Lines


def done(action: int, status: str, *waiting: tuple[str, str]) -> dict[str, object]:
    """Return the line of an action that came to its end."""
    return {
        "what": "done", "action": action, "status": status, "waiting": [list(found) for found in waiting],
        "error": "None",
    }  # fmt: skip


VOTE, PAID = ("human", "checks.vote.ask"), ("signal", "checks.money.paid")
ITEMS = ("human", "items[0].ask"), ("human", "items[1].ask")
GIVEN = {
    "draft": "7",
    "apply": "Approval(ok=True, note='fine')",
    "checks.vote.prepare": "'fine'",
    "checks.vote.count": "['yes', 'no']",
    "checks.money.quote": "'fine'",
    "checks.money.book": "420",
    "split": "{'vote': 'yes+no', 'money': 210}",
    "items[0].show": "'yes+no 0'",
    "items[0].keep": "(0, 'a')",
    "items[1].show": "'yes+no 1'",
    "items[1].keep": "(1, 'b')",
    "join": "[[0, 'a'], [1, 'b']]",
    "went": "'now'",
    "finish": "'later'",
}
OUTPUT = [f"{path}: {given}" for path, given in GIVEN.items()]
APPROVAL = '{"$type":"tests.support.answered_child:Approval","value":{"ok":true,"note":"fine"}}'
END = {
    "what": "end", "action": 10, "status": "completed", "output": OUTPUT, "context": OUTPUT,
    "mail": [
        ["signal", "go", None, '"now"'],
        ["answer", "ask", "ann", APPROVAL],
        ["answer", "checks.vote.ask", "bob", '"yes"'],
        ["signal", "paid", None, "420"],
        ["answer", "checks.vote.ask", "ann", '"no"'],
        ["answer", "items[1].ask", "bob", '{"$type":"tuple","value":[1,"b"]}'],
        ["answer", "items[0].ask", "ann", '{"$type":"tuple","value":[0,"a"]}'],
        ["signal", "go", None, '"later"'],
    ],
    "history": [
        ["draft", True, "'draft 7'", None],
        ["ask", True, "Approval(ok=True, note='fine')", "ann"],
        ["apply", True, "'fine'", None],
        ["checks.vote.prepare", True, "'fine'", None],
        ["checks.money.quote", True, "'fine'", None],
        ["checks.vote.ask", True, "['yes', 'no']", "bob, ann"],
        ["checks.money.paid", True, "420", None],
        ["checks.money.book", True, "210", None],
        ["checks.vote.count", True, "'yes+no'", None],
        ["checks", True, "{'vote': 'yes+no', 'money': 210}", None],
        ["split", True, "['yes+no 0', 'yes+no 1']", None],
        ["items[0].show", True, "'yes+no 0'", None],
        ["items[1].show", True, "'yes+no 1'", None],
        ["items[1].ask", True, "(1, 'b')", "bob"],
        ["items[1].keep", True, "[1, 'b']", None],
        ["items[0].ask", True, "(0, 'a')", "ann"],
        ["items[0].keep", True, "[0, 'a']", None],
        ["items", True, "[[0, 'a'], [1, 'b']]", None],
        ["join", True, "[[0, 'a'], [1, 'b']]", None],
        ["go", True, "'now'", None],
        ["went", True, "'now'", None],
        ["again", True, "'later'", None],
        ["finish", True, "'later'", None],
        ["report", True, repr(OUTPUT), None],
    ],
}  # fmt: skip
WITHOUT_KILLS: Lines = [
    *({"what": "effect", "action": 0, "path": path, "given": given} for path, given in GIVEN.items()),
    done(0, "paused", ("human", "ask")),
    {"what": "done", "action": 1},
    done(2, "paused", VOTE, PAID),
    done(3, "paused", VOTE, PAID),
    {"what": "done", "action": 4},
    done(5, "paused", *ITEMS),
    done(6, "paused", ITEMS[0]),
    done(7, "paused", ("signal", "again")),
    {"what": "done", "action": 8},
    done(9, "completed"),
    END,
]
