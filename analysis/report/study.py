"""Write a study's report to a folder and upload it to the launch in MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.claims.verdicts import table, verdicts
from analysis.errors import ReportError
from analysis.figures import layout
from analysis.figures.cost import cost_figure
from analysis.figures.curves import curve_figure
from analysis.figures.loss_by_noise_level import noise_level_figure
from analysis.figures.samples import sample_figure
from analysis.figures.scores import score_figure
from analysis.figures.search import search_figures
from analysis.io.results import Results
from analysis.io.store import short_error
from analysis.io.study import Study
from analysis.report.footnotes import table_footnotes
from analysis.report.html import study_page
from analysis.report.html_sections import PAGE, answer, commands
from analysis.report.sentences import comparison_sentences
from analysis.report.tables import bullets, columns, grid, latex, markdown, summary, tested
from analysis.stats.paired import against_baseline
from microdit.common.contract import MlflowTag
from microdit.common.files.atomic import scratch_folder, sweep

FIGURES = {
    "figure": score_figure,
    "curves": curve_figure,
    "cost": cost_figure,
    "loss_by_noise_level": noise_level_figure,
}
FORMATS: Mapping[str, Mapping[str, None]] = {"png": {}, "pdf": {"CreationDate": None}}  # same runs, same bytes
SEARCHES = ("search_history", "search_parallel", "search_importances", "search_front")
OPTIONAL_FILES = (  # removed if the new report has none
    *(f"{name}.{kind}" for name in (*FIGURES, *SEARCHES) for kind in FORMATS),
    "samples.png",
    "samples.pdf",
    "verdicts.csv",
)
MAX_SAMPLES_PDF_BYTES = 3_000_000  # a larger PDF of samples is removed
MAX_NOTE_CHARACTERS = 8000  # of a tag in every kind of MLflow store


@dataclass(frozen=True)
class Store:
    """An open MLflow store and its URI."""

    client: Any
    uri: str


def study_folder(out: Path, study: Study) -> Path:
    """Return the folder of a study's report, `out`/STUDY/SCALE.

    Args:
        out: folder of the results.
        study: the launch.

    Raises:
        ReportError: if a name from the store can't name a folder or would lead out of `out`.
    """
    for name in (study.name, study.scale):
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ReportError(f"'{name}' can't name a folder")
    return out / study.name / study.scale


def write(results: Results, folder: Path, store: str = "") -> list[Path]:
    """Write all files of a study's report.

    The files: table.md, .csv, .tex; runs.csv, comparisons.csv, verdicts.csv; figures as .png and .pdf; report.html. All
    are made before the first is renamed into place. Other files in `folder` stay. A figure without data is left out,
    and an older one is removed.

    Args:
        results: the study's runs.
        folder: created if missing.
        store: URI of the store, named in report.html.

    Returns:
        Paths of the written files.
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
        for name in OPTIONAL_FILES:
            if name not in made:
                (folder / name).unlink(missing_ok=True)
    return [folder / name for name in made]


def _make(results: Results, folder: Path) -> None:
    (folder / "table.md").write_text(page(results), encoding="utf-8")
    (folder / "table.tex").write_text(latex(results), encoding="utf-8")
    summary(results).to_csv(folder / "table.csv", index=False)
    results.frame.to_csv(folder / "runs.csv", index=False)
    compared = against_baseline(results.frame, results.study.baseline, results.scores)
    compared.to_csv(folder / "comparisons.csv", index=False)
    found = verdicts(results)
    if found:
        table(found).to_csv(folder / "verdicts.csv", index=False)
    figures = {name: draw(results) for name, draw in FIGURES.items()}
    for name, figure in (figures | search_figures(results)).items():
        if figure is not None:
            for kind, metadata in FORMATS.items():
                figure.savefig(folder / f"{name}.{kind}", dpi=layout.DPI, metadata=dict(metadata))
    samples = sample_figure(results)
    if samples is not None:
        samples.savefig(folder / "samples.png", dpi=layout.DPI)
        samples.savefig(folder / "samples.pdf", dpi=layout.DPI, metadata=dict(FORMATS["pdf"]))
        if (folder / "samples.pdf").stat().st_size > MAX_SAMPLES_PDF_BYTES:
            (folder / "samples.pdf").unlink()


def page(results: Results) -> str:
    """Return the content of table.md: question, claim, table, sentences and footnotes."""
    parts = [f"**{results.study.question}**", _claim(results), markdown(results)]
    return "\n\n".join(part for part in parts if part)


def description(results: Results) -> str:
    """Return the description of the launch for its page in MLflow, as Markdown.

    Verdicts come first, because the page shows only the beginning at first. Tables are split to fit its width.
    """
    study, found = results.study, columns(results)
    tables = {
        kind: grid([column for column in found if column.kind in ("arm", kind)])
        for kind in ("score", "test", "cost")
        if any(column.kind == kind for column in found)
    }
    parts = [
        f"**{study.question}**",
        f"Verdicts: {answer(results)}.",
        _claim(results),
        tested(results),
        tables.get("score", ""),
        tables.get("test", ""),
        bullets(comparison_sentences(results)),
        f"Held fixed over the arms: {study.holds}." if study.holds else "",
        tables.get("cost", ""),
        "Figures and the whole report (`report.html`) are under Artifacts in `report`. To repeat:",
        "\n".join(f"    {command}" for command in commands(results, "")),
        bullets(table_footnotes(results)),
    ]
    text = "\n\n".join(part for part in parts if part)
    if len(text) <= MAX_NOTE_CHARACTERS:
        return text
    return text[: MAX_NOTE_CHARACTERS - 40].rsplit("\n", 1)[0] + "\n\nThe rest is in report/table.md."


def _claim(results: Results) -> str:
    study = results.study
    section = f" (section {study.section})" if study.section else ""
    return f"The paper{section} claims: {study.claim}." if study.claim else ""


def publish(results: Results, paths: list[Path]) -> str:
    """Upload the description and the files of a report to its launch.

    The description is uploaded first: a store that rejects a tag gets no files.

    Args:
        results: the study's runs.
        paths: files of the report.

    Returns:
        "", or why the store rejected them.
    """
    try:
        results.client.set_tag(results.study.parent, MlflowTag.NOTE, description(results))
        for path in paths:
            results.client.log_artifact(results.study.parent, str(path), "report")
    except Exception as error:  # e.g. a read-only store; the report's files are written
        return short_error(error)
    return ""
