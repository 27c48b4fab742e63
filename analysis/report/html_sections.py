"""Collect the content of a study's section of the web page as text and rows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from analysis.claims.kinds.base import Check
from analysis.claims.verdicts import NOT_TESTED, Verdict, numbers, origin, verdicts
from analysis.io.columns import code_versions, config_column, tag_column
from analysis.io.comparable_runs import NOT_RECORDED, identity
from analysis.io.results import Results
from analysis.report.footnotes import measurement, of_paper
from analysis.report.images import SAMPLES, ReportImage, report_images
from analysis.report.sentences import comparison_sentences, evaluation_noise
from analysis.report.tables import Column, columns
from analysis.stats.paired import against_baseline, p_number
from analysis.stats.power import ALPHA, MAX_SEEDS
from microdit.common.contract import PARAMS, REFERENCE_IMAGES, SECONDS, TRAIN_FLOPS, Tag, final_metric
from microdit.common.numbers import format_number, signed
from microdit.common.stores.secrets import masked

NO_CLAIM = "no claim"  # badge of a study without claims
PAGE = "report.html"
MAX_COMMANDS_SHOWN = 3
COMMIT_CHARACTERS = 10
MAX_GROUPED = 1e9  # larger whole numbers are printed with an exponent


@dataclass(frozen=True)
class ClaimSummary:
    """A claim and its verdict.

    Attributes:
        numbers: those of the decisive check.
        why: number of seeds that an inconclusive verdict needs.
        rows: all checks in print.
    """

    word: str
    text: str
    origin: str = ""
    numbers: str = ""
    why: str = ""
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def brief(self) -> str:
        """Return the claim in one line."""
        return f"{self.text} ({self.why})" if self.why else self.text


@dataclass(frozen=True)
class Section:
    """The content of one study's section."""

    anchor: str
    results: Results
    answers: list[ClaimSummary]
    verdicts: list[ClaimSummary]
    sentences: list[str]
    scores: list[Column]
    tests: list[Column]
    costs: list[Column]
    figures: list[ReportImage]
    samples: list[ReportImage]
    held: list[tuple[str, str]]
    budget: list[tuple[str, str]]
    notes: list[str]
    commands: list[str]
    files: list[tuple[str, str]]

    @property
    def newest(self) -> datetime:
        """Return when the newest run started."""
        return datetime.fromtimestamp(float(self.results.frame["started"].max()) / 1000, UTC)

    @property
    def code(self) -> list[str]:
        """Return the distinct code versions of the runs."""
        return list(dict.fromkeys(code_versions(self.results.frame, COMMIT_CHARACTERS)))


def section(results: Results, paths: Sequence[Path], store: str, base: str = "./", number: int = 1) -> Section:
    """Return the section of a study.

    Args:
        results: the study's runs.
        paths: files of the study's report.
        store: URI of the store, for the command that repeats the report.
        base: their folder relative to the page.
        number: of the section on the page.
    """
    found = columns(results)
    judged = [_judged(results, verdict) for verdict in verdicts(results)]
    images = report_images(results, paths, base)
    return Section(
        anchor=f"study-{number}",
        results=results,
        answers=_answers(results, judged),
        verdicts=judged,
        sentences=comparison_sentences(results),
        scores=[column for column in found if column.kind in ("arm", "score")],
        tests=[column for column in found if column.kind in ("arm", "test")],
        costs=[column for column in found if column.kind in ("arm", "cost")],
        figures=[image for image in images if image.name != SAMPLES],
        samples=[image for image in images if image.name == SAMPLES],
        held=_held(results),
        budget=_budget(results),
        notes=[*measurement(results), *evaluation_noise(results), *of_paper(results)],
        commands=commands(results, store),
        files=[(path.name, f"{base}{quote(path.name)}") for path in paths if path.name != PAGE],
    )  # fmt: skip


def _judged(results: Results, verdict: Verdict) -> ClaimSummary:
    text = numbers(results, verdict) if verdict.checks else f"{verdict.why}."
    rows = tuple(_row(results, check) for check in verdict.checks)
    why = verdict.why if verdict.checks else ""
    return ClaimSummary(
        verdict.word, verdict.claim.text, origin(verdict.claim), f"{text[:1].upper()}{text[1:]}", why, rows
    )


def _row(results: Results, check: Check) -> tuple[str, ...]:
    """Return a check in print: what, metric, value, p, n, holds, seeds needed."""
    metric = results.label(check.metric)
    detail = f" ({check.detail})" if check.detail else ""
    open_check = not check.holds and check.value.n > 1
    needed = (f"over {MAX_SEEDS}" if check.needed is None else f"about {check.needed}") if open_check else "-"
    value = f"{signed(check.value)}{check.unit}"
    holds = "yes" if check.holds else "no"
    return f"{check.what}{detail}", metric, value, p_number(check.p), str(check.value.n), holds, needed


def answer(results: Results) -> str:
    """Return each claim and its verdict in one line of Markdown."""
    judged = [_judged(results, verdict) for verdict in verdicts(results)]
    return "; ".join(f"**{found.word}**: {found.text}" for found in _answers(results, judged))


def _answers(results: Results, judged: Sequence[ClaimSummary]) -> list[ClaimSummary]:
    """Return the tested claims; if none was tested, a summary of the arms."""
    tested = [ClaimSummary(found.word, found.brief) for found in judged if found.word != NOT_TESTED]
    if tested:
        left = len(judged) - len(tested)
        rest = [ClaimSummary(NOT_TESTED, f"{left} more claim{'s' if left > 1 else ''}")] if left else []
        return [*tested, *rest]
    word = NOT_TESTED if judged else NO_CLAIM
    return [ClaimSummary(word, _summary(results))]


def _summary(results: Results) -> str:
    """Return `of 4 arms against none in CLIP-FD: 1 better, 3 within seed noise`."""
    study = results.study
    title = results.label(study.primary)
    found = against_baseline(results.frame, study.baseline, [study.primary], medians=False)
    if found.empty:
        count = f"{len(results.arms)} arm{'s' if len(results.arms) > 1 else ''}"
        return f"{count}, not compared, because the baseline has no finished run"
    lower = results.lower_is_better(study.primary)
    words = []
    for row in found.to_dict("records"):
        if row["n"] < 2:
            words.append("with fewer than two seeds, so untested")
        elif row["p_holm"] >= ALPHA:
            words.append("within seed noise")
        else:
            words.append("better" if (row["difference"] < 0) == lower else "worse")
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return f"of {len(words)} arm{'s' if len(words) > 1 else ''} against {study.baseline} in {title}: {counts}"


def _held(results: Results) -> list[tuple[str, str]]:
    """Return what all runs share, by name."""
    study = results.study
    rows = [("the study holds", study.holds)] if study.holds else []
    facts = identity(results.frame, study.holds)
    return rows + [(str(name), "; ".join(dict.fromkeys(facts[name]))) for name in facts.columns]


def _budget(results: Results) -> list[tuple[str, str]]:
    """Return the budget: steps, batch size, compute, seeds."""
    frame, study = results.frame, results.study
    steps, batch = (_range(frame, config_column(f"training.{name}")) for name in ("steps", "batch_size"))
    seeds = ", ".join(str(seed) for seed in sorted(set(frame["seed"])))
    rows = [("training steps", steps), ("batch size", batch)]
    rows.append(("training FLOPs per run", _range(frame, TRAIN_FLOPS)))
    if TRAIN_FLOPS in frame:
        rows.append(("total training FLOPs", format_number(float(frame[TRAIN_FLOPS].sum()))))
    rows.append(("parameters", _range(frame, PARAMS)))
    planned = f" of {len(study.seeds)} planned" if len(set(frame["seed"])) < len(study.seeds) else ""
    rows.append(("seeds", f"{seeds}{planned}; {len(frame)} finished runs of {len(results.arms)} arms"))
    if SECONDS in frame:
        minutes = float(frame[SECONDS].sum()) / 60
        rows.append(("total training time", f"{format_number(minutes, digits=3)} minutes on {results.tag(Tag.DEVICE)}"))
    against = _range(frame, final_metric(REFERENCE_IMAGES))
    rows.append(("scored with", f"{results.tag(Tag.SAMPLES)} samples per run against {against} real images"))
    return rows


def _range(frame: pd.DataFrame, column: str) -> str:
    """Return a column's value, or its smallest and largest."""
    values = pd.to_numeric(frame[column], errors="coerce").dropna() if column in frame else pd.Series(dtype=float)
    if values.empty:
        return NOT_RECORDED
    low, high = _format_amount(float(values.min())), _format_amount(float(values.max()))
    return low if low == high else f"{low} to {high}"


def _format_amount(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < MAX_GROUPED else format_number(value)


def commands(results: Results, store: str) -> list[str]:
    """Return the commands that trained the runs and that make this report.

    Args:
        results: the study's runs, which recorded the former.
        store: URI of the store; "" leaves it out.
    """
    study = results.study
    report = f"microdit-report {shlex.quote(study.name)} scale={shlex.quote(study.scale)}"
    return [*_trained(results), f"{report} tracking_uri={shlex.quote(masked(store))}" if store else report]


def _trained(results: Results) -> list[str]:
    frame, study = results.frame, results.study
    own = frame[frame[tag_column(Tag.REUSED_FROM)] == ""]
    recorded = (own if len(own) else frame)[tag_column(Tag.COMMAND)]
    found = [masked(command) for command in dict.fromkeys(recorded) if command != NOT_RECORDED]
    return found[:MAX_COMMANDS_SHOWN] or [
        f"microdit-sweep study={shlex.quote(study.name)} scale={shlex.quote(study.scale)}"
    ]
