"""The command line: errors in one line, exit codes, sub-commands, terminals."""

from __future__ import annotations

import pwd
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsf.shell.command import Command, Commands, one_of, parse_arguments, run_command, run_commands
from dsf.shell.errors import CommandFailed, UserError


@dataclass(frozen=True)
class Nothing:
    """No options."""


def failed_import(code: int) -> ImportError:
    """What pybind11 makes of an exception that a signal handler raised while a module's C code imported others."""
    error = ImportError("initialization failed")
    error.__cause__ = SystemExit(code)
    return error


def interrupted_import() -> ImportError:
    error = failed_import(0)
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such task"), 2, "no such task"),
        (CommandFailed("unproven"), 1, "unproven"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, "ended by SIGTERM"),
        (failed_import(143), 143, "ended by SIGTERM"),
        (failed_import(129), 129, "ended by SIGHUP"),
        (interrupted_import(), 130, "interrupted"),
        (BrokenPipeError(), 141, "nobody reads the output any more (broken pipe)"),
        (FileNotFoundError(2, "No such file or directory", "gone"), 2, "No such file or directory: gone"),
        (ImportError("broken"), 1, "internal error, ImportError: broken; --debug shows where"),
    ],
)
def test_every_end_has_a_code_and_one_line(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["dsf-test"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def main(_: Nothing) -> int:
        raise error

    try:
        with pytest.raises(SystemExit) as stop:
            run_command(main, Nothing, "dsf-test", "Tests.")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stop.value.code == code
    assert capsys.readouterr().err == f"dsf-test: {line}\n"


def test_an_ordinary_exit_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["dsf-test", "--help"])
    with pytest.raises(SystemExit) as stop:
        run_command(lambda _: 0, Nothing, "dsf-test", "Tests.")
    assert stop.value.code == 0
    assert capsys.readouterr().err == ""


@dataclass(frozen=True)
class Few:
    """At most three."""

    count: int = 1
    """How many."""

    def __post_init__(self) -> None:
        if self.count > 3:
            raise UserError(f"--count is {self.count}: it must be at most 3")


@dataclass(frozen=True)
class Many:
    """Any number."""

    count: int = 100
    """How many."""


@pytest.fixture
def handlers_kept() -> Iterator[None]:
    """A command handles signals in its own way."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], *arguments: str
) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a program named dsf-test."""
    monkeypatch.setattr("sys.argv", ["dsf-test", *arguments])
    with pytest.raises(SystemExit) as stop:
        action()
    output, errors = capsys.readouterr()
    return stop.value.code or 0, output, errors


def test_a_config_that_refuses_itself_ends_in_its_own_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, handlers_kept: None
) -> None:
    """tyro builds the dataclass, and lets the error through, from a command line and from a function call alike."""
    few: Command[Few] = Command(lambda config: print(config.count), Few, "Few.")
    many: Command[Many] = Command(lambda config: print(config.count), Many, "Many.")
    commands: Commands = {"few": few, "many": many}
    line = "--count is 4: it must be at most 3"
    for action, arguments, program in (
        (lambda: run_commands("dsf-test", few, {}), ("--count", "4"), "dsf-test"),
        (lambda: run_commands("dsf-test", None, commands), ("few", "--count", "4"), "dsf-test few"),
        (lambda: run_commands("dsf-test", one_of(commands, "One."), {}), ("few", "--count", "4"), "dsf-test"),
    ):
        assert ended(capsys, monkeypatch, action, *arguments) == (2, "", f"{program}: {line}\n")
    with pytest.raises(UserError, match=line):
        parse_arguments(Few, "dsf-test", "Few.", ["--count", "4"])


@dataclass(frozen=True)
class Places:
    out: Path = Path("x")
    """Where."""


def test_a_home_directory_that_no_shell_has_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the ~ of --out=~/runs alone, and nobody means a directory called ~."""
    monkeypatch.setenv("HOME", "/home/somebody")
    for given, meant in (
        ("--out=~/runs", "/home/somebody/runs"),
        ("--out=~", "/home/somebody"),
        ("--out=a~/b", "a~/b"),
        ("--out=~other/b", "~other/b"),
    ):
        assert parse_arguments(Places, "dsf-test", "", [given]).out == Path(meant)


def test_without_a_home_directory_a_tilde_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HOME nor an entry of the user: --out=~/runs would make a directory called ~."""

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match=r"--out=~: this user has no home directory: write the path in full"):
        parse_arguments(Places, "dsf-test", "", ["--out=~/runs"])


def test_sub_commands_are_found_by_their_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, handlers_kept: None
) -> None:
    def say_many(config: Many) -> int:
        print("many", config.count)
        return 7

    few: Command[Few] = Command(lambda config: print("few", config.count), Few, "Few.")
    many: Command[Many] = Command(say_many, Many, "Many.")
    both: Commands = {"few": few, "many": many}

    def end(default: Command[Any] | None, commands: Commands, *arguments: str) -> tuple[object, str, str]:
        return ended(capsys, monkeypatch, lambda: run_commands("dsf-test", default, commands), *arguments)

    assert end(few, {"many": many}, "many") == (7, "many 100\n", "")
    assert end(few, {"many": many}, "--count", "2") == (0, "few 2\n", "")
    assert end(one_of(both, "One of two."), {}, "many", "--count", "5") == (7, "many 5\n", "")
    assert end(None, both, "few") == (0, "few 1\n", "")
    assert end(None, both, "--help") == (0, "dsf-test few: Few.\ndsf-test many: Many.\n", "")
    for arguments in ((), ("fewer",)):
        said = "dsf-test: name one of few, many; dsf-test COMMAND --help lists its options\n"
        assert end(None, both, *arguments) == (2, "", said)
    code, output, errors = end(one_of(both, "One of two."), {}, "--help")
    assert (code, errors) == (0, "") and "One of two. --debug shows tracebacks." in output and "Many." in output
