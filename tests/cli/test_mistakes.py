"""A user's mistake is answered by one sentence with a suggestion, and an exit status that says which kind it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Cli

pytestmark = pytest.mark.slow


def wrong(cli: Cli, code: int, *args: str) -> str:
    """Return the one line on stderr of a call that ends with that status and prints nothing else."""
    said = cli(*args)
    assert (said.code, said.out) == (code, ""), said
    assert said.err.count("\n") == 1 and said.err.startswith("flujo: ") and "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("args", "suggestion"),
    [
        (["lst"], "Did you mean 'list'?"),
        (["show"], "Missing argument 'RUN_ID'. See `flujo show --help`."),
        (["list", "--limt", "3"], "--limit"),
        (["list", "--limit", "many"], "Invalid value for '--limit'"),
        (["list", "--limit", "0"], "See `flujo list --help`"),
        (["list", "--status", "done"], "'completed'"),
        (["show", "A1", "A2"], "unexpected extra argument"),
        (["nonsense"], "No such command 'nonsense'"),
        (["gc", "--status", "running"], "Only runs that have ended"),
        (["fork", "A1"], "--step"),
        (["edit", "A1"], "There is nothing to change"),
        (["edit", "A1", "--context", "5"], "no JSON object"),
    ],
)  # fmt: skip
def test_a_wrong_command(shop: Cli, args: list[str], suggestion: str) -> None:
    """It is a usage error, 2, and the sentence says what was meant, or where to look."""
    assert suggestion in wrong(shop, 2, *args)


@pytest.mark.parametrize(
    ("run_id", "suggestion"), [("A", "Did you mean 'A3'?"), ("a1", "Did you mean 'A1'?"), ("zzz", "`flujo list`")]
)
def test_a_wrong_run_id(shop: Cli, run_id: str, suggestion: str) -> None:
    """It is not found, 3, and one that is like it is suggested."""
    for command in (["show"], ["watch"], ["messages"], ["why"], ["du"], ["diff", "A1"]):
        assert suggestion in wrong(shop, 3, *command, run_id)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("examples.shop", "Write module:attribute"),
        ("examples.shop:", "Write module:attribute"),
        ("examples.shop:runer", "Did you mean examples.shop:runner?"),
        ("examples.shop:zzz", "It has examples.shop:"),
        ("examples.shop:Order", "nothing that can be run"),
        ("shopp:runner", "Did you mean 'shop'?"),
        ("nowhere.at.all:runner", "There is no module 'nowhere.at.all'"),
        ("broken:runner", "ZeroDivisionError: division by zero"),
        ("leaves:runner", "SystemExit: 3"),
        ("wants:runner", "No module named 'not_there'"),
        ("bad syntax:runner", "There is no module 'bad syntax'"),
        ("torn:runner", "SyntaxError"),
    ],
)  # fmt: skip
def test_wrong_code(cli: Cli, monkeypatch: pytest.MonkeyPatch, spec: str, sentence: str) -> None:
    """What is wrong with the module, or with its name, is said, and another is suggested."""
    for name, text in {
        "shop": "",
        "broken": "1 / 0",
        "leaves": "raise SystemExit(3)",
        "wants": "import not_there",
        "torn": "def",
    }.items():
        Path(f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(cli.folder))
    assert sentence in wrong(cli, 2, "run", "--code", spec, "--input", SMALL)


def test_no_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that needs code says how to name it."""
    monkeypatch.delenv("FLUJO_CODE")
    assert "Give --code module:attribute, or set FLUJO_CODE" in wrong(cli, 2, "run")


def test_a_registry_with_several_pipelines(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked which; a name that is not registered is answered with one that is."""
    Path("several.py").write_text(
        "from examples.shop import orders, registry as known\nfrom flujo import PipelineRegistry, step\n"
        "registry = PipelineRegistry()\n"
        "@step\nasync def one(value: int) -> int:\n    return value\n"
        "registry.register(one, 'one', '1.0.0')\nregistry.register(one.named('two'), 'two', '1.0.0')\n"
    )
    monkeypatch.syspath_prepend(str(cli.folder))
    code = ("--code", "several:registry", "--input", "1")
    assert "Say which one with --pipeline NAME." in wrong(cli, 2, "run", *code)
    assert "Did you mean 'two'?" in wrong(cli, 4, "run", *code, "--pipeline", "tow")
    assert cli("run", *code, "--pipeline", "two").code == 0


def test_code_that_a_run_does_not_fit(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of other code is refused, 4, and why is said."""
    Path("other.py").write_text("from flujo import step\n@step\nasync def one(v: int) -> int:\n    return v\n")
    monkeypatch.syspath_prepend(str(shop.folder))
    assert "belongs to pipeline 'orders', not to 'one'" in wrong(
        shop, 4, "run", "--run-id", "A3", "--code", "other:one"
    )


def test_a_damaged_store(shop: Cli) -> None:
    """It is the store that is bad, 5; and what cannot be read is not taken for absent."""
    content = bytearray(shop.store.read_bytes())
    place = content.find(b"the bank does not answer")
    assert place > 0
    found = shop.json("verify")
    assert found == {"ok": True, "runs": 3, "problems": []}
    for place in _places(content, b"request A3"):
        content[place : place + 10] = b"request A4"
    shop.store.write_bytes(content)
    assert "is damaged" in wrong(shop, 5, "show", "A3")
    said = shop("verify")
    assert said.code == 1 and "'A3' is damaged" in said.out and "1 problem." in said.out
    assert shop("verify", "--json").json["ok"] is False


def _places(content: bytes | bytearray, text: bytes) -> list[int]:
    found, place = [], content.find(text)
    while place >= 0:
        found.append(place)
        place = content.find(text, place + 1)
    return found


def test_a_traceback_is_there_for_who_wants_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """--traceback or FLUJO_TRACEBACK=1 shows it before the sentence, and the status is the same."""
    said = cli("show", "A1", "--traceback")
    assert said.code == 5 and "Traceback (most recent call last)" in said.err
    assert said.err.splitlines()[-1].startswith("flujo: There is no store")
    monkeypatch.setenv("FLUJO_TRACEBACK", "1")
    assert "Traceback" in cli("show", "A1").err
    monkeypatch.setenv("FLUJO_TRACEBACK", "0")
    assert "Traceback" not in cli("show", "A1").err


def test_a_mistake_as_json(cli: Cli) -> None:
    """With --json the document says it, and the sentence stands on stderr all the same."""
    said = cli("show", "A1", "--json")
    assert (
        said.json["error"].keys() == {"code", "message", "hint"} and said.json["error"]["code"] == "store-unavailable"
    )
    assert said.err.startswith("flujo: There is no store")
    said = cli("show", "--json")
    assert said.code == 2 and said.json["error"]["code"] == "usage"
