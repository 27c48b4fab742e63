"""Reports every study of a store: a folder each, and one page of them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis.claims.paper_values import facts
from analysis.errors import ReportError, nearest
from analysis.io.comparable_runs import SetSelection
from analysis.io.results import Results, load
from analysis.io.study import PREFIX
from analysis.report.html import Missing, render
from analysis.report.html_sections import PAGE, Section, section
from analysis.report.scratch import scratch_folder, sweep
from analysis.report.study import Store, publish, study_folder, write
from microdit.common.stores.run_search import experiments, search_runs
from microdit.common.stores.secrets import masked


@dataclass
class ReportOutcome:
    """What became of a store's studies. `broken`: a study's report failed in a way that no state of its runs explains.
    `refusal`: why the store took no report, once it has said so."""

    sections: list[Section] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    broken: bool = False
    refusal: str = ""

    @property
    def whole(self) -> bool:
        """At least one study was reported and none is broken."""
        return bool(self.sections) and not self.broken


def studies(client: Any) -> list[str]:
    """Names of the studies in a store: the paper's in its order, then others by name."""
    found = [e.name.removeprefix(PREFIX) for e in experiments(client) if e.name.startswith(PREFIX)]
    known = list(facts()["studies"])
    return sorted(found, key=lambda name: (known.index(name) if name in known else len(known), name))


def report_all(
    store: Store, out: Path, scale: str | None, choice: SetSelection, published: bool, tell: Callable[[str], None]
) -> ReportOutcome:
    """Writes each study's folder and `out`/report.html, telling of each as it is done.

    Raises ReportError where the store has no study, none at `scale`, or `out` can't be written.
    """
    listed = studies(store.client)
    if not listed:
        raise ReportError("the store has no study at all")
    if scale:
        _check_scale(store.client, scale)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{out} can't be written: {error.strerror or error}") from None
    made = ReportOutcome()
    for name in listed:
        _report_study(store, name, out, scale, choice, published and not made.refusal, made, tell)
    scales = list(dict.fromkeys(found.results.study.scale for found in made.sections))
    title = f"{len(made.sections)} stud{'y' if len(made.sections) == 1 else 'ies'}"
    page = render(title, store.uri, ", ".join(scales) or scale or "any", made.sections, made.missing)
    _put(out / PAGE, page)
    return made


def _report_study(
    store: Store,
    name: str,
    out: Path,
    scale: str | None,
    choice: SetSelection,
    published: bool,
    made: ReportOutcome,
    tell: Callable[[str], None],
) -> None:
    """Reports one study into `made`; whatever goes wrong with it is told there and stops no other."""
    try:
        results = load(store.client, name, scale, choice)
        paths = write(results, study_folder(out, results.study), store.uri)
        number = len(made.sections) + 1
        made.sections.append(section(results, paths, store.uri, _base(results), number))
        tell(f"{name}, scale {results.study.scale}: {_line(made.sections[-1])}")
        if published:
            made.refusal = publish(results, paths)
    except ReportError as error:
        made.missing.append(Missing(name, masked(str(error))))
        tell(f"{name}: missing: {masked(str(error))}")
    except Exception as error:  # of any kind: the other studies' reports are worth having
        words = f"its report failed ({type(error).__name__}: {masked(' '.join(str(error).split()))[:200]})"
        made.missing.append(Missing(name, words))
        made.broken = True
        tell(f"{name}: missing: {words}")


def _base(results: Results) -> str:
    """The study's folder as a page in `out` links to it."""
    return f"./{quote(results.study.name, safe='')}/{quote(results.study.scale, safe='')}/"


def _line(found: Section) -> str:
    return "; ".join(f"{answer.word}: {answer.text}" for answer in found.answers)


def _check_scale(client: Any, scale: str) -> None:
    """Raises ReportError where no study was ever launched at `scale`: a misspelt one would make an empty page."""
    ours = [e.experiment_id for e in experiments(client) if e.name.startswith(PREFIX)]
    launches: Sequence[Any] = [
        run for experiment in ours for run in search_runs(client, [experiment], {"microdit.role": "study"})
    ]
    scales = dict.fromkeys(run.data.tags.get("microdit.scale", "?") for run in launches)
    if scale not in scales:
        hint = nearest(scale, scales) if scales else "the store has no launch"
        raise ReportError(f"no study was ever launched at scale '{scale}'; {hint}")


def _put(path: Path, text: str) -> None:
    """By a rename, so that a reader never meets half a page."""
    sweep(path.parent)
    try:
        with scratch_folder(path.parent, path.name) as scratch:
            (scratch / path.name).write_text(text, encoding="utf-8")
            os.replace(scratch / path.name, path)
    except OSError as error:
        raise ReportError(f"{path} can't be written: {error.strerror or error}") from None
