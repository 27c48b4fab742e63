"""What the web page says of a study, as plain text and rows: the template escapes and arranges it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from analysis import labels
from analysis.claims.verdicts import NOT_TESTED, Check, Verdict, numbers, origin, verdicts
from analysis.io.comparable_runs import NOT_RECORDED, identity
from analysis.io.results import Results
from analysis.report.footnotes import measurement, of_paper
from analysis.report.images import SAMPLES, Picture, pictures
from analysis.report.sentences import comparison_sentences, noise
from analysis.report.tables import Column, columns
from analysis.stats.intervals import number, signed
from analysis.stats.paired import against_baseline, p_number
from analysis.stats.power import ALPHA
from microdit.common.stores.secrets import masked

NO_CLAIM = "no claim"  # the badge of a study that nobody claims anything of
PAGE = "report.html"
COMMANDS = 3  # of a study that are shown


@dataclass(frozen=True)
class ClaimSummary:
    """A claim and what became of it; `why` is what an open verdict would take, `rows` are its checks in print."""

    word: str
    text: str
    origin: str = ""
    told: str = ""
    why: str = ""
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def brief(self) -> str:
        """The claim in a line."""
        return f"{self.text} ({self.why})" if self.why else self.text


@dataclass(frozen=True)
class Section:
    """All that the page says of one study."""

    anchor: str
    results: Results
    answers: list[ClaimSummary]
    judged: list[ClaimSummary]
    says: list[str]
    scores: list[Column]
    tests: list[Column]
    costs: list[Column]
    figures: list[Picture]
    samples: list[Picture]
    held: list[tuple[str, str]]
    budget: list[tuple[str, str]]
    notes: list[str]
    rerun: list[str]
    files: list[tuple[str, str]]

    @property
    def newest(self) -> datetime:
        """When the newest run began."""
        return datetime.fromtimestamp(float(self.results.frame["started"].max()) / 1000, UTC)

    @property
    def code(self) -> list[str]:
        """Code versions of the runs."""
        frame = self.results.frame
        dirty = frame["tag.git_dirty"].map(lambda value: " with uncommitted changes" if value == "true" else "")
        return list(dict.fromkeys(frame["tag.git_commit"].str[:10] + dirty))


def section(results: Results, paths: Sequence[Path], store: str, base: str = "./", number: int = 1) -> Section:
    """The section of a study whose report is in `paths`, which lie at `base` as seen from the page."""
    found = columns(results)
    judged = [_judged(results, verdict) for verdict in verdicts(results)]
    drawn = pictures(results, paths, base)
    return Section(
        anchor=f"study-{number}",
        results=results,
        answers=_answers(results, judged),
        judged=judged,
        says=comparison_sentences(results),
        scores=[column for column in found if column.kind in ("arm", "score")],
        tests=[column for column in found if column.kind in ("arm", "test")],
        costs=[column for column in found if column.kind in ("arm", "cost")],
        figures=[picture for picture in drawn if picture.name != SAMPLES],
        samples=[picture for picture in drawn if picture.name == SAMPLES],
        held=_held(results),
        budget=_budget(results),
        notes=[*measurement(results), *noise(results), *of_paper(results)],
        rerun=commands(results, store),
        files=[(path.name, f"{base}{quote(path.name)}") for path in paths if path.name != PAGE],
    )  # fmt: skip


def _judged(results: Results, verdict: Verdict) -> ClaimSummary:
    told = numbers(results, verdict) if verdict.checks else f"{verdict.why}."
    rows = tuple(_row(results, check) for check in verdict.checks)
    why = verdict.why if verdict.checks else ""
    return ClaimSummary(
        verdict.word, verdict.claim.text, origin(verdict.claim), f"{told[:1].upper()}{told[1:]}", why, rows
    )


def _row(results: Results, check: Check) -> tuple[str, ...]:
    """A check in print: what, metric, value, p, n, holds, seeds needed."""
    metric = labels.metric_label(check.metric, results.tag("feature_net"))
    detail = f" ({check.detail})" if check.detail else ""
    open_check = not check.holds and check.value.n > 1
    needed = ("over 100" if check.needed is None else f"about {check.needed}") if open_check else "-"
    value = f"{signed(check.value)}{check.unit}"
    holds = "yes" if check.holds else "no"
    return f"{check.what}{detail}", metric, value, p_number(check.p), str(check.value.n), holds, needed


def answer(results: Results) -> str:
    """The study in a line of Markdown: each verdict and its claim."""
    judged = [_judged(results, verdict) for verdict in verdicts(results)]
    return "; ".join(f"**{found.word}**: {found.text}" for found in _answers(results, judged))


def _answers(results: Results, judged: Sequence[ClaimSummary]) -> list[ClaimSummary]:
    """The study in a line or two: each claim that was tested; what the arms come to where none was."""
    tested = [ClaimSummary(found.word, found.brief) for found in judged if found.word != NOT_TESTED]
    if tested:
        left = len(judged) - len(tested)
        rest = [ClaimSummary(NOT_TESTED, f"{left} more claim{'s' if left > 1 else ''}")] if left else []
        return [*tested, *rest]
    word = NOT_TESTED if judged else NO_CLAIM
    return [ClaimSummary(word, _summary(results))]


def _summary(results: Results) -> str:
    """`of 4 arms against none in CLIP-FD: 1 better, 3 within noise`."""
    study = results.study
    title = labels.metric_label(study.primary, results.tag("feature_net"))
    found = against_baseline(results.frame, study.baseline, [study.primary], medians=False)
    if found.empty:
        return f"{len(results.arms)} arm{'s' if len(results.arms) > 1 else ''}, compared with no baseline"
    lower = labels.lower_is_better(study.primary, study.primary, study.direction)
    words = []
    for row in found.to_dict("records"):
        if row["n"] < 2:
            words.append("with one seed or none, which can't tell")
        elif row["p_holm"] >= ALPHA:
            words.append("within noise")
        else:
            words.append("better" if (row["difference"] < 0) == lower else "worse")
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return f"of {len(words)} arm{'s' if len(words) > 1 else ''} against {study.baseline} in {title}: {counts}"


def _held(results: Results) -> list[tuple[str, str]]:
    """What the runs were made to share, with its value."""
    study = results.study
    rows = [("the study holds", study.holds)] if study.holds else []
    facts = identity(results.frame, study.holds)
    return rows + [(str(name), "; ".join(dict.fromkeys(facts[name]))) for name in facts.columns]


def _budget(results: Results) -> list[tuple[str, str]]:
    """What the study spent: steps, batch, compute, seeds."""
    frame, study = results.frame, results.study
    steps, batch = (_range(frame, f"config.training.{name}") for name in ("steps", "batch_size"))
    seeds = ", ".join(str(seed) for seed in sorted(set(frame["seed"])))
    rows = [("training steps", steps), ("batch", batch)]
    rows.append(("training FLOPs of a run", _range(frame, "cost/train_flops")))
    if "cost/train_flops" in frame:
        rows.append(("training FLOPs in all", number(float(frame["cost/train_flops"].sum()))))
    rows.append(("parameters", _range(frame, "cost/params")))
    planned = f" of {len(study.seeds)} planned" if len(set(frame["seed"])) < len(study.seeds) else ""
    rows.append(("seeds", f"{seeds}{planned}; {len(frame)} finished runs of {len(results.arms)} arms"))
    if "cost/seconds" in frame:
        minutes = float(frame["cost/seconds"].sum()) / 60
        rows.append(("training time in all", f"{number(minutes, digits=3)} minutes on {results.tag('device')}"))
    against = _range(frame, "final/reference_images")
    rows.append(("scored with", f"{results.tag('samples')} samples a run against {against} real images"))
    return rows


def _range(frame: pd.DataFrame, column: str) -> str:
    """A column's value, or its least and largest."""
    values = pd.to_numeric(frame[column], errors="coerce").dropna() if column in frame else pd.Series(dtype=float)
    if values.empty:
        return NOT_RECORDED
    low, high = _amount(float(values.min())), _amount(float(values.max()))
    return low if low == high else f"{low} to {high}"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else number(value)


def commands(results: Results, store: str) -> list[str]:
    """What trained these runs, as it was recorded, and what makes this report from `store`."""
    study = results.study
    report = f"microdit-report {shlex.quote(study.name)} scale={shlex.quote(study.scale)}"
    return [*_trained(results), f"{report} tracking_uri={shlex.quote(masked(store))}" if store else report]


def _trained(results: Results) -> list[str]:
    frame, study = results.frame, results.study
    own = frame[frame["tag.reused_from"] == ""]
    recorded = (own if len(own) else frame)["tag.command"]
    found = [masked(command) for command in dict.fromkeys(recorded) if command != NOT_RECORDED]
    return found[:COMMANDS] or [f"microdit-sweep study={shlex.quote(study.name)} scale={shlex.quote(study.scale)}"]
