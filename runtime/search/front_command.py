"""``dsf-bench front``: both fronts of a search, from its results alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dsf.runtime.search.file import read_search, search_path
from dsf.runtime.search.front import Fronts, markdown
from dsf.runtime.search.picture import write_front
from dsf.runtime.sweeps.command import DEFAULT_OUT, RESULTS_NAME
from dsf.runtime.sweeps.store import read_lines
from dsf.shell.errors import UserError
from dsf.shell.files import require_writable_parent, write_each
from dsf.shell.generated_section import replace_section, require_section
from dsf.shell.installed import require_installed


@dataclass(frozen=True)
class FrontConfig:
    """Both fronts of a search's report as Markdown and a picture, with the two points that are compared and the
    verdicts on the published bounds. Needs neither datasets nor torch.
    """

    spec: Annotated[str, tyro.conf.Positional]
    """YAML file, or the name of a shipped search."""
    results: Path = DEFAULT_OUT / RESULTS_NAME
    """Results store of dsf-bench search --report."""
    markdown: Path | None = None
    """Also write the report here, between the lines <!-- front:NAME:begin --> and <!-- front:NAME:end -->; a file that
    does not exist is created with them."""
    plot: Path | None = None
    """Also write a PNG here; needs the report extra."""


def draw_front(config: FrontConfig) -> None:
    """``dsf-bench front``."""
    path = search_path(config.spec)
    spec = read_search(path)
    for output in (config.markdown, config.plot):
        if output is not None:
            require_writable_parent(output, path, config.results)
    section = f"front:{spec.name}"
    if config.markdown is not None:
        require_section(config.markdown, section)
    if config.plot is not None:
        require_installed("report", "matplotlib")
    if not config.results.exists():
        raise UserError(f"there are no results at {config.results}: dsf-bench search {config.spec} --report makes them")
    found = Fronts.of(spec, read_lines(config.results))
    if not any(found.reported.values()):
        raise UserError(
            f"{config.results} has no point of {spec.name} with all of the report's seeds: run dsf-bench search "
            f"{config.spec} --report"
        )
    text = markdown(found)
    writing: list[Callable[[], None]] = [functools.partial(print, text, end="")]
    if config.markdown is not None:
        writing.append(functools.partial(replace_section, config.markdown, section, text))
    if config.plot is not None:
        writing.append(functools.partial(write_front, found, config.plot))
    write_each(*writing)
