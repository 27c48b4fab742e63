"""Report every study of a store: one folder per study, and one page for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analysis.claims.paper_values import facts
from analysis.errors import ReportError
from analysis.io.comparable_runs import SetSelection
from analysis.io.results import Results, load
from analysis.io.study import scale_of, study_names
from analysis.report.html import Missing, render
from analysis.report.html_sections import PAGE, Section, section
from analysis.report.study import Store, publish, study_folder, write
from microdit.common.errors import nearest
from microdit.common.files.atomic import sweep, write_text
from microdit.common.stores.run_search import launches, our_experiments
from microdit.common.stores.secrets import masked


@dataclass
class ReportOutcome:
    """Sections of reported studies, and studies without a report.

    Attributes:
        broken: a study's report failed with an unexpected error.
        rejection: reason the store rejected the upload, or "".
    """

    sections: list[Section] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    broken: bool = False
    rejection: str = ""

    @property
    def whole(self) -> bool:
        """Return whether at least one study was reported and none is broken."""
        return bool(self.sections) and not self.broken


def studies(client: Any) -> list[str]:
    """Return the studies in a store: the paper's in its order, then others by name."""
    known = list(facts()["studies"])
    return sorted(study_names(client), key=lambda name: (known.index(name) if name in known else len(known), name))


def report_all(
    store: Store, out: Path, scale: str | None, choice: SetSelection, published: bool, progress: Callable[[str], None]
) -> ReportOutcome:
    """Write each study's folder and `out`/report.html.

    Args:
        store: the store to report.
        out: folder of the results.
        scale: report launches of this scale; any if None.
        choice: the set of comparable runs to show.
        published: upload the reports to the store.
        progress: called with one line per finished study.

    Returns:
        What was reported, and what is missing.

    Raises:
        ReportError: if the store has no study or none at `scale`.
        OSError: if `out` can't be written.
    """
    listed = studies(store.client)
    if not listed:
        raise ReportError("the store has no study at all")
    if scale:
        _check_scale(store.client, scale)
    out.mkdir(parents=True, exist_ok=True)
    made = ReportOutcome()
    for name in listed:
        _report_study(store, name, out, scale, choice, published and not made.rejection, made, progress)
    scales = list(dict.fromkeys(found.results.study.scale for found in made.sections))
    title = f"{len(made.sections)} stud{'y' if len(made.sections) == 1 else 'ies'}"
    page = render(title, store.uri, ", ".join(scales) or scale or "any", made.sections, made.missing)
    sweep(out)
    write_text(out / PAGE, page)
    return made


def _report_study(
    store: Store,
    name: str,
    out: Path,
    scale: str | None,
    choice: SetSelection,
    published: bool,
    made: ReportOutcome,
    progress: Callable[[str], None],
) -> None:
    """Report one study into `made`; an error is recorded there, too."""
    try:
        results = load(store.client, name, scale, choice)
        paths = write(results, study_folder(out, results.study), store.uri)
        number = len(made.sections) + 1
        made.sections.append(section(results, paths, store.uri, _base(results), number))
        progress(f"{name}, scale {results.study.scale}: {_line(made.sections[-1])}")
        if published:
            made.rejection = publish(results, paths)
    except ReportError as error:
        made.missing.append(Missing(name, masked(str(error))))
        progress(f"{name}: missing: {masked(str(error))}")
    except Exception as error:  # any error: the other studies are still reported
        words = f"its report failed ({type(error).__name__}: {masked(' '.join(str(error).split()))[:200]})"
        made.missing.append(Missing(name, words))
        made.broken = True
        progress(f"{name}: missing: {words}")


def _base(results: Results) -> str:
    """Return the link from a page in `out` to the study's folder."""
    return f"./{quote(results.study.name, safe='')}/{quote(results.study.scale, safe='')}/"


def _line(found: Section) -> str:
    return "; ".join(f"{answer.word}: {answer.text}" for answer in found.answers)


def _check_scale(client: Any, scale: str) -> None:
    """Raise ReportError if no study was launched at `scale`.

    A misspelled scale would give an empty page.
    """
    found = [launch for experiment in our_experiments(client) for launch in launches(client, experiment.experiment_id)]
    scales = dict.fromkeys(map(scale_of, found))
    if scale not in scales:
        hint = nearest(scale, scales) if scales else "the store has no launch"
        raise ReportError(f"no study was ever launched at scale '{scale}'; {hint}")
