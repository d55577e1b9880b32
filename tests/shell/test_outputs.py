"""Outputs: whole or not at all, through links, in UTF-8, and none at another one's cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsf.shell.errors import UserError
from dsf.shell.files import replacing, require_writable_parent, write_each, write_text


@pytest.mark.parametrize("there", [True, False])
def test_the_file_behind_a_link_is_written_and_the_link_stays(there: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "place" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to(Path("place") / "target")
    require_writable_parent(link)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and not target.is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "place", "target"]


def test_a_failure_leaves_the_file_behind_a_link_as_it_was(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with pytest.raises(ZeroDivisionError), replacing(link) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old" and link.is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_links_to_nowhere_are_refused(tmp_path: Path) -> None:
    circle, astray = tmp_path / "circle", tmp_path / "astray"
    circle.symlink_to(circle)
    astray.symlink_to(tmp_path / "gone" / "file")
    with pytest.raises(UserError, match="leads back to itself"):
        require_writable_parent(circle)
    with pytest.raises(UserError, match=r"a link into .*gone, which does not exist"):
        require_writable_parent(astray)
    with pytest.raises(OSError, match="circle"):
        write_text(circle, "text")
    assert circle.is_symlink()


def test_what_is_printed_is_not_replaced(tmp_path: Path) -> None:
    """``dsf-... --json out > out``, by any name."""
    code = "from pathlib import Path; from dsf.shell.files import require_writable_parent as r; r(Path({!r}))"
    for name in (str(tmp_path / "out"), "/dev/stdout"):
        with (tmp_path / "out").open("w") as out:
            done = subprocess.run([sys.executable, "-c", code.format(name)], stdout=out, stderr=subprocess.PIPE)
        assert b"what this command prints goes there" in done.stderr, name


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dsf.shell.files import write_text as w; w(Path(sys.argv[1]), {!a})"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code.format("\u00b5\udcff"), tmp_path / "x"], check=True, env=environment)
    assert (tmp_path / "x").read_bytes() == "\u00b5\\udcff".encode()


def test_one_output_that_fails_costs_no_other() -> None:
    written: list[str] = []

    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_each(lambda: written.append("first"), fail, fail, lambda: written.append("last"))
    assert written == ["first", "last"]
