"""Generated sections of documents: what lies around them stays, and what has none is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dsf.runtime import bench_cli
from dsf.runtime.robustness.command import RobustnessConfig, require_possible
from dsf.shell.errors import UserError
from dsf.shell.generated_section import markers, replace_section, require_section
from dsf.testing.command_line import assert_refused
from dsf.testing.full_disk import small_files
from dsf.testing.training_runs import run_here

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = markers("table")


def test_the_markers_are_those_of_the_documents() -> None:
    assert (BEGIN, END) == ("<!-- table:begin -->", "<!-- table:end -->")
    assert all(marker in (ROOT / "docs" / "energy.md").read_text() for marker in markers("energy"))


@pytest.mark.parametrize("text", ["| one |\n", "| one |"])
def test_what_lies_around_a_section_stays(text: str, tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    around = (
        f"# Title\r\n\nof {BEGIN} and {END}\n{BEGIN}\n%s  {END}\n\n<!-- other:begin -->\nThe end, without a line end"
    )
    document.write_bytes((around % "| old |\n| older |\n").encode())
    for _ in range(2):
        replace_section(document, "table", text)
        assert document.read_bytes().decode() == around % "| one |\n"


def test_a_document_that_is_not_there_is_made(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    require_section(document, "table")
    for text in ("| one |\n", "| two |\n"):
        replace_section(document, "table", text)
        assert document.read_text() == f"{BEGIN}\n{text}{END}\n"
    document.write_text("")
    replace_section(document, "table", "| one |\n")
    assert document.read_text() == f"{BEGIN}\n| one |\n{END}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A README\n", f"has no part between {BEGIN} and {END}: add these two lines"),
        (f"{BEGIN}\n", "has no part between"),
        (f"{END}\n", "has no part between"),
        (f"the section is between {BEGIN} and {END}\n", "has no part between"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", f"has {BEGIN} more than once"),
        (f"{BEGIN}\n{END}\n{END}\n", f"has {END} more than once"),
        (f"{END}\n{BEGIN}\n", f"has {END} above {BEGIN}"),
    ],
)
def test_a_document_without_one_section_is_refused_and_stays(text: str, words: str, tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(text)
    for refuse in (lambda: require_section(document, "table"), lambda: replace_section(document, "table", "new\n")):
        with pytest.raises(UserError) as caught:
            refuse()
        assert words in str(caught.value) and str(document) in str(caught.value) and "\n" not in str(caught.value)
    assert document.read_text() == text


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it is no text"):
        replace_section(document, "table", "new\n")


def test_a_full_disk_leaves_the_document_as_it_was(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(f"{BEGIN}\nold\n{END}\n")
    with small_files(1_000), pytest.raises(OSError, match=r"x\.md"):
        replace_section(document, "table", "new\n" * 1_000)
    assert document.read_text() == f"{BEGIN}\nold\n{END}\n" and list(tmp_path.iterdir()) == [document]


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_here(bench_cli.main, "dsf-bench", *map(str, arguments))


@pytest.mark.slow
def test_no_command_replaces_a_readme(tmp_path: Path) -> None:
    """``dsf-bench table --markdown`` once wrote the table over the whole file."""
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n")
    store = ROOT / "docs" / "rivals.jsonl"
    table = ("table", "hopper_rivals", "--results", store)
    assert_refused(
        bench(*table, "--markdown", readme), str(readme), "has no part between <!-- sweep:hopper_rivals:begin"
    )
    assert_refused(bench("energy-table", "--markdown", readme), "has no part between <!-- energy-table:begin -->")
    with pytest.raises(UserError, match="has no part between <!-- robustness:begin -->"):
        require_possible(RobustnessConfig(markdown=readme))
    assert readme.read_text() == "# Mine\n"
    made = tmp_path / "made.md"
    printed = bench(*table, "--markdown", made)
    begin, end = markers("sweep:hopper_rivals")
    assert printed.returncode == 0 and made.read_text() == f"{begin}\n{printed.stdout}{end}\n"
    document = tmp_path / "results.md"
    document.write_text((ROOT / "docs" / "results.md").read_text())
    assert bench(*table, "--markdown", document).returncode == 0
    assert document.read_text() == (ROOT / "docs" / "results.md").read_text()
