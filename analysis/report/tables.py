"""Write a study's table as Markdown, CSV and LaTeX, with the sentences below it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import labels
from analysis.claims.paper_values import PaperValue, paper_value
from analysis.io.results import Results
from analysis.report.footnotes import table_footnotes
from analysis.report.sentences import claims, comparison_sentences, difference
from analysis.stats.paired import against_baseline, p_number, winner
from microdit.common.contract import (
    ACTIVE_PARAMS,
    COST_PREFIX,
    COSTS,
    GFLOPS_PER_IMAGE,
    PARAMS,
    SECONDS,
    TRAIN_FLOPS,
    USD,
    final_metric,
)
from microdit.common.numbers import Estimate, estimate, format_number, signed
from microdit.common.tables import aligned, text_table

SIZE_COSTS = (PARAMS, ACTIVE_PARAMS, GFLOPS_PER_IMAGE)


@dataclass(frozen=True)
class Column:
    """A column in print.

    Attributes:
        kind: arm, score, test or cost.
        cells: one per arm.
        bold: index of the arm that beats all others significantly.
    """

    head: str
    kind: str
    cells: tuple[str, ...]
    bold: int | None = None


def summary(results: Results) -> pd.DataFrame:
    """Return one row per arm with plain numbers, as table.csv has it.

    Returns:
        Columns arm, x; NAME, NAME_low, NAME_high and NAME_n (mean, 95% bounds, seeds) of each score and of the primary
        one's difference from the baseline; p, p_holm, d_z and g_z of that difference; costs; the paper's FID and its
        trust level. A study with diverged runs has a column of their number.
    """
    rows = []
    primary, against = results.study.primary, _against(results)
    for arm in results.listed:
        runs, row = _runs(results, arm), {"arm": arm, "x": _place(results, arm)}
        if len(results.diverged):
            row["diverged"] = int((results.diverged["arm"] == arm).sum())
        for metric in results.scores:
            row |= _spread(metric, estimate(runs[final_metric(metric)]))
        row |= _spread(f"{primary}_minus_baseline", _difference(against, arm))
        for column in ("p", "p_holm", "d_z", "g_z"):
            row[f"{primary}_{column}"] = against[arm][column] if arm in against else None
        for column in (PARAMS, ACTIVE_PARAMS, GFLOPS_PER_IMAGE, TRAIN_FLOPS, SECONDS, USD):
            if column in runs:
                row[column.removeprefix(COST_PREFIX)] = runs[column].mean()
        value = _paper(results, arm)
        row |= {"paper_fid": value.fid if value else None, "paper_trust": value.trust if value else ""}
        rows.append(row)
    return pd.DataFrame(rows)


def columns(results: Results) -> list[Column]:
    """Return the columns of the printed table."""
    study, arms = results.study, results.listed
    runs = {arm: _runs(results, arm) for arm in arms}
    found = [Column("arm", "arm", tuple(arms))]
    if study.x and study.x != "arm":
        form = _cost_position if "/" in study.x else _plain
        cells = tuple(form(_place(results, arm)) for arm in arms)
        found.append(Column(labels.setting_label(study.x), "arm", cells))
    for metric in results.scores:
        arrow = results.arrow(metric)
        head = f"{results.label(metric)} {arrow}".strip()
        best = winner(results.frame, metric, results.lower_is_better(metric))
        cells = tuple(str(estimate(runs[arm][final_metric(metric)])) for arm in arms)
        if metric == study.primary:
            cells = tuple(_with_lost(cell, results.lost(arm)) for cell, arm in zip(cells, arms, strict=True))
        found.append(Column(head, "score", cells, None if best is None else arms.index(best)))
    if study.baseline in arms:
        found += _baseline_columns(results, f"{results.label(study.primary)} − baseline")
    values = {arm: _paper(results, arm) for arm in arms}
    if any(values.values()):
        found.append(Column("paper's FID (trust)", "score", tuple(str(values[arm] or "-") for arm in arms)))
    found.append(Column("n", "score", tuple(str(len(runs[arm])) for arm in arms)))
    return found + _cost_columns(results, runs)


def _baseline_columns(results: Results, head: str) -> list[Column]:
    """Return difference from the baseline, Holm's p over arms, and effect size."""
    against = _against(results)
    columns: dict[str, list[str]] = {head: [], "p (Holm)": [], "g_z": []}
    for arm in results.listed:
        p, effect = (against[arm][name] if arm in against else math.nan for name in ("p_holm", "g_z"))
        same = "baseline" if arm == results.study.baseline else "-"
        columns[head].append(signed(_difference(against, arm)) if arm in against else same)
        columns["p (Holm)"].append(p_number(p))
        columns["g_z"].append(format_number(effect, sign=True, digits=2))
    return [Column(name, "test", tuple(cells)) for name, cells in columns.items()]


def _cost_columns(results: Results, runs: dict[str, pd.DataFrame]) -> list[Column]:
    def mean(column: str, scale: float = 1.0) -> tuple[str, ...]:
        return tuple(_format_amount(runs[arm][column].mean() / scale) for arm in results.listed)

    have = results.frame.columns
    found = [Column(COSTS[column].heading, "cost", mean(column)) for column in SIZE_COSTS if column in have]
    if TRAIN_FLOPS in have:
        found.append(Column("training PFLOPs", "cost", mean(TRAIN_FLOPS, 1e15)))
    if SECONDS in have:
        found.append(Column(COSTS[SECONDS].heading, "cost", mean(SECONDS)))
    return found


def markdown(results: Results) -> str:
    """Return the table with sentences, verdicts and footnotes, as Markdown."""
    parts = [
        grid(columns(results)),
        bullets(comparison_sentences(results)),
        tested(results),
        bullets(table_footnotes(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def tested(results: Results) -> str:
    """Return the claims about the study and their verdicts as Markdown, perhaps ""."""
    verdicts = claims(results)
    return f"Claims tested in this study:\n\n{bullets(verdicts)}" if verdicts else ""


def grid(found: Sequence[Column]) -> str:
    """Return columns as a Markdown table, the first aligned left, others right."""
    cells = zip(*(_emphasised(column, "**{}**") for column in found), strict=True)
    return aligned([[c.head for c in found], *cells], ["left", *["right"] * (len(found) - 1)], "pipe")


def terminal(results: Results, wide: bool = False) -> str:
    """Return two tables for a terminal, scores and costs.

    Args:
        results: the study's runs.
        wide: print all columns, however wide.
    """
    found = columns(results)
    blocks = []
    for kinds in (("arm", "score", "test"), ("arm", "cost")):
        part = [column for column in found if column.kind in kinds]
        rows = [[c.head for c in part], *(list(cells) for cells in zip(*(c.cells for c in part), strict=True))]
        scores = [i for i, column in enumerate(part) if column.kind == "score"]
        keep = {0, *scores[:1], *(i for i, column in enumerate(part) if column.kind in ("test", "cost"))}
        blocks.append(text_table(rows, wide, keep=keep))
    return "\n\n".join(blocks)


def latex(results: Results) -> str:
    """Return the table as LaTeX with booktabs.

    Scores are above tests and costs; verdicts and footnotes follow in small print.
    """
    found, study = columns(results), results.study
    scores = [column for column in found if column.kind in ("arm", "score")]
    others = [found[0], *(column for column in found if column.kind in ("test", "cost"))]
    body = [
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table}[t]",
        r"  \centering",
        f"  \\caption{{{_tex(study.question)}}}",
        f"  \\label{{tab:{study.name.replace('_', '-')}-{study.scale}}}",
        *_tabular(scores),
        r"  \par\medskip",
        *_tabular(others),
        r"  \par\smallskip\raggedright\footnotesize",
        *(f"  {_tex(verdict)}\\par" for verdict in claims(results)),
        r"  \scriptsize",
        *(f"  {_tex(note)}" for note in table_footnotes(results)),
        r"  \par",
        r"\end{table}",
    ]
    return "\n".join(body) + "\n"


def _tabular(found: Sequence[Column]) -> list[str]:
    """Return columns as lines of LaTeX, scaled down if they are wider than the text."""
    shown = [_emphasised(column, "\x02{}\x03") for column in found]
    rows = [[column.head for column in found], *zip(*shown, strict=True)]
    head, *lines = [f"    {' & '.join(_tex(cell) for cell in row)} \\\\" for row in rows]
    fitting = r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    begin = f"  \\begin{{tabular}}{{l{'r' * (len(found) - 1)}}}"
    return [fitting, begin, r"    \toprule", head, r"    \midrule", *lines, r"    \bottomrule", r"  \end{tabular}}"]


def _runs(results: Results, arm: str) -> pd.DataFrame:
    return results.frame[results.frame["arm"] == arm]


def _place(results: Results, arm: str) -> Any:
    """Return an arm's x, from a diverged run if none has finished."""
    runs = _runs(results, arm)
    return (runs if len(runs) else results.diverged[results.diverged["arm"] == arm])["x"].iloc[0]


def _paper(results: Results, arm: str) -> PaperValue | None:
    """Return the paper's value for an arm that has a finished run."""
    return paper_value(results.study.name, results.settings(arm)) if arm in results.arms else None


def _with_lost(cell: str, lost: str) -> str:
    """Return a score as `12.3 ± 0.4, diverged (1 of 3)`."""
    return cell if not lost else lost if cell == "-" else f"{cell}, {lost}"


def _against(results: Results) -> dict[str, dict[Any, Any]]:
    """Return the primary metric's comparison with the baseline by arm."""
    found = against_baseline(results.frame, results.study.baseline, [results.study.primary], medians=False)
    return {row["arm"]: row for row in found.to_dict("records")}


def _difference(against: Mapping[str, dict[Any, Any]], arm: str) -> Estimate:
    return difference(against[arm]) if arm in against else Estimate(math.nan, math.nan, 0)


def _emphasised(column: Column, mark: str) -> tuple[str, ...]:
    return tuple(mark.format(cell) if place == column.bold else cell for place, cell in enumerate(column.cells))


def _spread(name: str, value: Estimate) -> dict[str, object]:
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high, f"{name}_n": value.n}


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cost_position(cost: float) -> str:
    """Return a cost as an arm's position on the axis."""
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3g}"


def _format_amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else format_number(value)


def bullets(lines: Sequence[str]) -> str:
    """Return lines as a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def _tex(text: str) -> str:
    """Return `text` escaped for LaTeX, with commands for symbols."""
    special = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$"}
    special |= {"{": r"\{", "}": r"\}", "±": r"$\pm$", "−": "$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}
    special |= {"é": r"\'e", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    special |= {"\x02": r"\textbf{", "\x03": "}"}  # marks of a bold cell
    text = re.sub(r"(?<![\w.)])-(?=\d)", "−", text.replace("**", ""))  # a minus sign before a number
    return "".join(special.get(character, character) for character in text)
