"""The command on a terminal, and through pipes that end early: processes of their own, as a user starts them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import BIG, SMALL, Outside

pytestmark = pytest.mark.slow

PATIENCE_S = 60
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][AB0]|\r")


class Terminal:
    """A command whose stdin, stdout and stderr are a terminal."""

    def __init__(self, outside: Outside, *args: str, columns: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        environment = {name: value for name, value in outside.environment.items() if name != "NO_COLOR"}
        environment |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
        self.process = subprocess.Popen(
            outside.command(*args), cwd=outside.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.raw = ""

    @property
    def text(self) -> str:
        """What was written so far, without escapes."""
        return ESCAPES.sub("", self.raw)

    def until(self, wanted: str) -> None:
        """Read until that is there."""
        deadline = time.monotonic() + PATIENCE_S
        while wanted not in self.text:
            assert time.monotonic() < deadline and self._read(), f"{wanted!r} never came: {self.text}"

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], PATIENCE_S)[0]:
            return False
        try:
            self.raw += os.read(self._ours, 65536).decode()
        except OSError:  # the other end is closed
            return False
        return True

    def end(self) -> int:
        """Read to the end; return the exit status."""
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait(timeout=PATIENCE_S)


def test_run_on_a_terminal_draws(outside: Outside) -> None:
    """There are colours and a bar that is gone at the end; the lines of the steps stay."""
    terminal = Terminal(outside, "run", "--run-id", "A1", "--input", SMALL)
    assert terminal.end() == 0
    assert "\x1b[32mok\x1b[0m" in terminal.raw and "\x1b[?25l" in terminal.raw  # green; the cursor is hidden meanwhile
    assert re.search(r"  prices +ok +\d+ ms  \[120, 300\]\n", terminal.text) and " 4/5 " in terminal.text
    assert terminal.text.endswith('run A1 completed: "small, shipped"\n')
    assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("\x1b[?25l")  # and shown again


def test_a_long_reading_shows_how_far_it_is(outside: Outside) -> None:
    """`verify` draws a bar on the terminal of stderr, also where stdout goes elsewhere; in a pipe there is none."""
    assert outside("run", "--input", SMALL, "--quiet").code == 0
    terminal = Terminal(outside, "verify")
    assert terminal.end() == 0
    assert "verifying" in terminal.text and terminal.text.endswith("1 run verified: all is well.\n")
    assert outside("verify").err == ""


NOISY = """
import os
from flujo import step
print("imported")
os.system("echo from a child")
@step
def noisy(value: int) -> int:
    print("in a step")
    os.system("echo from the child of a step")
    return value
"""


def test_stdout_is_for_the_document_alone(outside: Outside) -> None:
    """What the code prints when it is imported, its steps print and their child processes, goes to stderr."""
    (outside.folder / "loud.py").write_text(NOISY)
    code = ("--code", "loud:noisy")
    said = outside("run", *code, "--run-id", "N1", "--input", "1", "--json")
    assert said.json["output"] == 1
    assert said.err.splitlines() == ["imported", "from a child", "in a step", "from the child of a step"]
    assert outside("plan", "N1", *code, "--json").json["run_id"] == "N1"
    assert "in a step" in outside("run", *code, "--input", "1").out


def test_run_in_a_pipe_is_plain(outside: Outside) -> None:
    """Through a pipe there are lines and nothing else."""
    said = outside("run", "--run-id", "A1", "--input", SMALL)
    assert (said.code, said.err) == (0, "") and "\x1b" not in said.out and "\r" not in said.out
    assert len(said.out.splitlines()) == 10


def test_watch_on_a_terminal(outside: Outside, child: Callable[..., subprocess.Popen[str]]) -> None:
    """A run that another process executes is drawn with a bar; the view ends when the run has."""
    holder = child("plain", str(outside.folder / "runs.db"), "H1")
    terminal = Terminal(outside, "watch", "H1", "--interval", "0.05")
    terminal.until("1/2")
    assert "running" in terminal.text and holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert terminal.end() == 0
    assert "run H1 completed" in terminal.text


def test_watch_in_a_pipe(outside: Outside, child: Callable[..., subprocess.Popen[str]]) -> None:
    """Each new step is a line; with --json there is one document, at the end."""
    holder = child("plain", str(outside.folder / "runs.db"), "H1")
    watcher = outside.start("watch", "H1", "--interval", "0.05", stdout=subprocess.PIPE)
    document = outside.start("watch", "H1", "--interval", "0.05", "--json", stdout=subprocess.PIPE)
    assert watcher.stdout is not None and holder.stdin is not None
    assert watcher.stdout.readline().split()[:2] == ["first", "ok"]
    once = json.loads(outside("watch", "H1", "--once", "--json").out)
    assert once["status"] == "running" and once["progress"] == [{"what": "steps", "done": 1, "total": 2}]
    holder.stdin.write("\n")
    holder.stdin.flush()
    out = watcher.communicate(timeout=PATIENCE_S)[0].splitlines()
    assert out[0].split()[:2] == ["hold", "ok"] and out[-1].startswith("run H1 completed") and watcher.returncode == 0
    found = json.loads(document.communicate(timeout=PATIENCE_S)[0])
    assert found["status"] == "completed" and found["output"] == 3


def test_watching_a_run_that_failed(outside: Outside) -> None:
    """It ends at once, and with 1."""
    outside("run", "--run-id", "B1", "--input", '{"id": "x", "items": []}')
    said = outside("watch", "B1")
    assert said.code == 1 and "run B1 failed" in said.out and "an order has items" in said.out


HOLDS = """
from flujo import step
@step
async def first(value: int) -> int:
    return value
@step
def hold(value: int) -> int:
    print("holding", flush=True)
    import time, os
    while not os.path.exists("go"):
        time.sleep(0.01)
    return value + 1
pipeline = (first >> hold).named("holds")
"""


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_run(outside: Outside, which: signal.Signals) -> None:
    """Ctrl-C and SIGTERM leave the run as it was last saved, and it is said how to go on with it."""
    (outside.folder / "holds.py").write_text(HOLDS)
    command = ("run", "--code", "holds:pipeline", "--run-id", "I 1", "--input", "1")
    process = outside.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    while "holding" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(which)
    (outside.folder / "go").touch()  # a step in a thread is waited for up to its grace
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + which, err
    assert "Interrupted: run 'I 1' is as it was last saved" in err and "Traceback" not in err
    go_on = re.search(r"Go on with: flujo (.*)", err)
    assert go_on is not None and "--run-id 'I 1'" in go_on[1]
    assert json.loads(outside("show", "I 1", "--json").out)["steps_done"] == 1
    said = outside("run", "--run-id", "I 1", "--code", "holds:pipeline")
    assert said.code == 0 and "goes on after step 1" in said.out and "first" not in said.out


def test_ctrl_c_on_a_terminal(outside: Outside) -> None:
    """The same, as typed on a terminal while the bars are drawn: the cursor is there again."""
    (outside.folder / "holds.py").write_text(HOLDS)
    terminal = Terminal(outside, "run", "--code", "holds:pipeline", "--run-id", "I1", "--input", "1")
    terminal.until("holding")
    os.killpg(terminal.process.pid, signal.SIGINT)
    (outside.folder / "go").touch()
    assert terminal.end() == 130
    assert "Interrupted: run 'I1'" in terminal.text and "Traceback" not in terminal.text
    assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("\x1b[?25l")


def test_ctrl_c_in_watch(outside: Outside, child: Callable[..., subprocess.Popen[str]]) -> None:
    """Watching ends, 130, without a word of Python; the run knows nothing of it."""
    holder = child("plain", str(outside.folder / "runs.db"), "H1")
    watcher = outside.start("watch", "H1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watcher.stdout is not None
    watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=PATIENCE_S)
    assert watcher.returncode == 130 and err == "flujo: Interrupted.\n" and holder.poll() is None


@pytest.mark.parametrize("args", [["show", "many", "--limit", "10000"], ["show", "many", "--json"], ["list"]])
def test_a_pipe_that_nobody_reads(outside: Outside, args: list[str]) -> None:
    """`| head` ends the command without a word."""
    big = Path(outside.folder / "big.json")
    big.write_text(json.dumps({"id": "x", "items": [1] * 3000}))
    assert outside("run", "--run-id", "many", "--input", "@big.json", "--quiet").code == 0
    process = outside.start(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()
    assert process.wait(timeout=PATIENCE_S) in (0, 141)  # 0: it had written all before the pipe was closed
    assert err == ""


def test_an_encoding_that_cannot_say_it(outside: Outside) -> None:
    """On a terminal of ASCII what it cannot show is shown as numbers."""
    outside.environment["PYTHONIOENCODING"] = "ascii"
    assert outside("run", "--run-id", "Grüße", "--input", BIG).code == 0
    said = outside("show", "Grüße")
    assert said.code == 0 and said.out.startswith("Gr\\xfc\\xdfe  paused")
    assert json.loads(outside("show", "Grüße", "--json").out)["run_id"] == "Grüße"
