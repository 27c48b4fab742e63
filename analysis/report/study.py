"""Writes a study's report to a folder, and onto the launch in MLflow so that its page shows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import labels
from analysis.claims.verdicts import table, verdicts
from analysis.errors import ReportError
from analysis.figures import layout
from analysis.figures.cost import cost_figure
from analysis.figures.curves import curve_figure
from analysis.figures.loss_by_noise_level import noise_figure
from analysis.figures.samples import sample_figure
from analysis.figures.scores import score_figure
from analysis.figures.search import search_figures
from analysis.io.results import Results
from analysis.io.store import short_error
from analysis.io.study import Study
from analysis.report.footnotes import table_footnotes
from analysis.report.html import study_page
from analysis.report.html_sections import PAGE, answer, commands
from analysis.report.scratch import scratch_folder, sweep
from analysis.report.sentences import comparison_sentences
from analysis.report.tables import bullets, columns, grid, latex, markdown, runs_csv, summary, tested
from analysis.stats.paired import against_baseline

FIGURES = {"figure": score_figure, "curves": curve_figure, "cost": cost_figure, "noise": noise_figure}
KINDS: Mapping[str, Mapping[str, None]] = {"png": {}, "pdf": {"CreationDate": None}}  # same runs, same bytes
SEARCHES = ("search_history", "search_parallel", "search_importances", "search_front")
OPTIONAL = (
    *(f"{name}.{kind}" for name in (*FIGURES, *SEARCHES) for kind in KINDS),
    "samples.png",
    "samples.pdf",
    "verdicts.csv",
)
LARGE = 3_000_000  # bytes: above that the pictures are left out of a PDF
NOTE_LIMIT = 8000  # characters of a tag that every MLflow store takes


@dataclass(frozen=True)
class Store:
    """An open MLflow store and what it is called."""

    client: Any
    uri: str


def study_folder(out: Path, study: Study) -> Path:
    """`out`/STUDY/SCALE; raises ReportError for names that would lead elsewhere, which a store may hold."""
    for name in (study.name, study.scale):
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ReportError(f"'{name}' can't name a folder")
    return out / study.name / study.scale


def write(results: Results, folder: Path, store: str = "") -> list[Path]:
    """Writes table.md, .csv, .tex, runs, comparisons and verdicts (.csv), the figures (.png, .pdf) and report.html,
    which names `store` as its source.

    All are made before the first is put in place, and each is put there by a rename; a file of the user's own that lies
    in `folder` stays. A figure is left out, and an older one removed, where no run has what it shows.
    """
    sweep(folder)
    with scratch_folder(folder, "report") as own:
        scratch = own / "files"
        scratch.mkdir()
        _make(results, scratch)
        page_html = study_page(results, sorted(scratch.iterdir()), store)
        (scratch / PAGE).write_text(page_html, encoding="utf-8")
        made = sorted(path.name for path in scratch.iterdir())
        for name in made:
            os.replace(scratch / name, folder / name)
        for name in OPTIONAL:
            if name not in made:
                (folder / name).unlink(missing_ok=True)
    return [folder / name for name in made]


def _make(results: Results, folder: Path) -> None:
    (folder / "table.md").write_text(page(results), encoding="utf-8")
    (folder / "table.tex").write_text(latex(results), encoding="utf-8")
    summary(results).to_csv(folder / "table.csv", index=False)
    runs_csv(results).to_csv(folder / "runs.csv", index=False)
    study, frame = results.study, results.frame
    metrics = labels.scores(frame.columns, study.primary)
    against_baseline(frame, study.baseline, metrics).to_csv(folder / "comparisons.csv", index=False)
    found = verdicts(results)
    if found:
        table(found).to_csv(folder / "verdicts.csv", index=False)
    figures = {name: draw(results) for name, draw in FIGURES.items()}
    for name, figure in (figures | search_figures(results)).items():
        if figure is not None:
            for kind, metadata in KINDS.items():
                figure.savefig(folder / f"{name}.{kind}", dpi=layout.DPI, metadata=dict(metadata))
    samples = sample_figure(results)
    if samples is not None:
        samples.savefig(folder / "samples.png", dpi=layout.DPI)
        samples.savefig(folder / "samples.pdf", dpi=layout.DPI, metadata=dict(KINDS["pdf"]))
        if (folder / "samples.pdf").stat().st_size > LARGE:
            (folder / "samples.pdf").unlink()


def page(results: Results) -> str:
    """The question, what the paper claims, and the table with all that belongs under it."""
    parts = [f"**{results.study.question}**", _claim(results), markdown(results)]
    return "\n\n".join(part for part in parts if part)


def description(results: Results) -> str:
    """The same for the launch's page in MLflow: verdicts first, as the page shows only the beginning until it is asked
    for more, and tables that are narrow enough for it."""
    study, found = results.study, columns(results)
    tables = {
        kind: grid([column for column in found if column.kind in ("arm", kind)])
        for kind in ("score", "test", "cost")
        if any(column.kind == kind for column in found)
    }
    parts = [
        f"**{study.question}**",
        f"Here: {answer(results)}.",
        _claim(results),
        tested(results),
        tables.get("score", ""),
        tables.get("test", ""),
        bullets(comparison_sentences(results)),
        f"Held fixed over the arms: {study.holds}." if study.holds else "",
        tables.get("cost", ""),
        "Figures and the whole report, `report.html`, are under Artifacts, in `report`. Again:",
        "\n".join(f"    {command}" for command in commands(results, "")),
        bullets(table_footnotes(results)),
    ]
    text = "\n\n".join(part for part in parts if part)
    if len(text) <= NOTE_LIMIT:
        return text
    return text[: NOTE_LIMIT - 40].rsplit("\n", 1)[0] + "\n\nThe rest is in report/table.md."


def _claim(results: Results) -> str:
    study = results.study
    section = f" (section {study.section})" if study.section else ""
    return f"The paper{section} claims: {study.claim}." if study.claim else ""


def publish(results: Results, paths: list[Path]) -> str:
    """Describes the launch and logs the files under its `report/`; returns '' or why the store refused.

    The description goes first: a store that takes no tag gets no files either.
    """
    try:
        results.client.set_tag(results.study.parent, "mlflow.note.content", description(results))
        for path in paths:
            results.client.log_artifact(results.study.parent, str(path), "report")
    except Exception as error:  # a read-only file, a server that refuses: the report itself is written
        return short_error(error)
    return ""
