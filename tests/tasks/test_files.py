"""Where commands may write, and where they would destroy something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsf.shell.errors import UserError
from dsf.shell.files import require_writable_parent


def test_ordinary_outputs(tmp_path: Path) -> None:
    """New files, old ones that are no input, and inputs that are not there."""
    old, source = tmp_path / "old", tmp_path / "source"
    old.write_text("old")
    source.write_text("source")
    require_writable_parent(tmp_path / "new")
    require_writable_parent(tmp_path / "new", source, tmp_path)
    require_writable_parent(old, source, tmp_path / "missing")


@pytest.mark.parametrize("link", [None, os.link, os.symlink], ids=["itself", "hard link", "symbolic link"])
def test_an_input_is_no_output(link: object, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_text("source")
    if callable(link):
        link(source, out)
    else:
        out = tmp_path / "." / "source"
    with pytest.raises(UserError, match=r"cannot write .*: it is the input .*source itself; choose another name"):
        require_writable_parent(out, tmp_path / "other", source)


def test_what_is_no_file_is_no_output(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="pipe: it is a device, pipe or socket, not a file; choose another name"):
        require_writable_parent(pipe)
    with pytest.raises(UserError, match="it is a directory; name a file"):
        require_writable_parent(tmp_path)
