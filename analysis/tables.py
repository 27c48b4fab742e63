"""The study's table as Markdown, CSV and LaTeX, the runs behind it, and the notes that belong under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import names
from analysis.load import Results
from analysis.paper import citation, paper_value, paper_values, trust_meaning
from analysis.stats import Estimate, estimate, number, paired, sentence, signed

COSTS = {"cost/params": "params", "cost/active_params": "active", "cost/gflops_per_image": "GFLOPs/image"}


@dataclass(frozen=True)
class Column:
    """A column in print: `kind` is arm, score or cost; one cell an arm."""

    head: str
    kind: str
    cells: tuple[str, ...]


def summary(results: Results) -> pd.DataFrame:
    """A row per arm with plain numbers: each score's mean, low, high and n, the difference from the baseline, costs."""
    rows = []
    for arm in results.arms:
        runs, row = _runs(results, arm), {"arm": arm, "x": _runs(results, arm)["x"].iloc[0]}
        for metric in _scores(results):
            row |= _spread(metric, estimate(runs[f"final/{metric}"]))
        row |= _spread(f"{results.study.primary}_minus_baseline", _difference(results, arm))
        for column in ("params", "active_params", "gflops_per_image", "train_flops", "seconds", "usd"):
            if f"cost/{column}" in runs:
                row[column] = runs[f"cost/{column}"].mean()
        value = paper_value(results.study.name, _settings(results, arm))
        row |= {"paper_fid": value.fid if value else None, "paper_trust": value.trust if value else ""}
        rows.append(row)
    return pd.DataFrame(rows)


def columns(results: Results) -> list[Column]:
    """The table in print."""
    study, arms = results.study, results.arms
    runs = {arm: _runs(results, arm) for arm in arms}
    found = [Column("arm", "arm", tuple(arms))]
    if study.x and study.x != "arm":
        cells = tuple(_plain(runs[arm]["x"].iloc[0]) for arm in arms)
        found.append(Column(names.setting(study.x), "arm", cells))
    net = results.tag("feature_net")
    for metric in _scores(results):
        head = f"{names.title(metric, net)} {names.arrow(metric, study.primary, study.direction)}".strip()
        found.append(Column(head, "score", tuple(str(estimate(runs[arm][f"final/{metric}"])) for arm in arms)))
    if study.baseline in arms:
        head = f"{names.title(study.primary, net)} − baseline"
        cells = tuple("baseline" if arm == study.baseline else signed(_difference(results, arm)) for arm in arms)
        found.append(Column(head, "score", cells))
    values = {arm: paper_value(study.name, _settings(results, arm)) for arm in arms}
    if any(values.values()):
        found.append(Column("paper's FID (trust)", "score", tuple(str(values[arm] or "-") for arm in arms)))
    found.append(Column("n", "score", tuple(str(len(runs[arm])) for arm in arms)))
    return found + _cost_columns(results, runs)


def _cost_columns(results: Results, runs: dict[str, pd.DataFrame]) -> list[Column]:
    def mean(column: str, scale: float = 1.0) -> tuple[str, ...]:
        return tuple(_amount(runs[arm][column].mean() / scale) for arm in results.arms)

    have = results.frame.columns
    found = [Column(head, "cost", mean(column)) for column, head in COSTS.items() if column in have]
    if "cost/train_flops" in have:
        found.append(Column("training PFLOPs", "cost", mean("cost/train_flops", 1e15)))
    if "cost/seconds" in have:
        found.append(Column("seconds", "cost", mean("cost/seconds")))
    return found


def markdown(results: Results) -> str:
    """The table with what it says in sentences and its notes."""
    found = columns(results)
    rows = [[column.head for column in found], *(list(cells) for cells in zip(*(c.cells for c in found), strict=True))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(found))]
    lines = [f"| {' | '.join(_pad(cell, widths[i], i == 0) for i, cell in enumerate(row))} |" for row in rows]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    body = [lines[0], rule, *lines[1:]]
    parts = ["\n".join(body), _bullets(sentences(results)), _bullets(notes(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def terminal(results: Results) -> str:
    """Two narrow tables, scores and costs, for a terminal."""
    found = columns(results)
    blocks = []
    for kind in ("score", "cost"):
        part = [column for column in found if column.kind in (kind, "arm")]
        rows = [[c.head for c in part], *(list(cells) for cells in zip(*(c.cells for c in part), strict=True))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(part))]
        lines = ["  ".join(_pad(cell, widths[i], i == 0) for i, cell in enumerate(row)).rstrip() for row in rows]
        blocks.append("\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]))
    return "\n\n".join(blocks)


def sentences(results: Results) -> list[str]:
    """Does an arm differ from the baseline, and from its neighbour at the same x, beyond the noise of the seeds?"""
    study = results.study
    if not study.baseline:
        return []
    if study.baseline not in results.arms:
        return [f"The baseline {study.baseline} has no finished run, so nothing is compared with it."]
    name = names.title(study.primary, results.tag("feature_net"))
    others = [arm for arm in results.arms if arm != study.baseline]
    pairs = [(arm, study.baseline) for arm in others] + _same_x(results, others)
    column = f"final/{study.primary}"
    return [sentence(a, b, paired(results.frame, column, a, b), name, study.direction) for a, b in pairs]


def _same_x(results: Results, arms: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of arms at the same place of the figure's axis: what the study's lines are drawn to compare."""
    if results.study.x in ("", "arm"):
        return []
    place = {arm: _runs(results, arm)["x"].iloc[0] for arm in arms}
    return [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :] if place[a] == place[b]]


def notes(results: Results) -> list[str]:
    """What a reader must know to judge the table."""
    study, frame = results.study, results.frame
    found = [
        "Mean ± half-width of Student's 95% interval over n seeds. A difference is the mean over seeds of arm minus "
        "baseline at the same seed, with its own 95% interval; intervals are per comparison, not corrected for their "
        "number.",
        *_measurement(results),
    ]
    paper = paper_values(study.name)
    if paper:
        listed = "; ".join(f"{value.arm} {value}" for value in paper)
        words = ", ".join(f"{word}: {trust_meaning(word)}" for word in dict.fromkeys(v.trust for v in paper))
        found.append(
            f"The paper ({citation()}) reports FID on Inception features at its own scale, which compares with ours in "
            f"order only: {listed}. Trust: {words}."
        )
    holds = f" The arms hold {study.holds} fixed." if study.holds else ""
    hardware = results.tag("device")
    found.append(f"Hardware: {hardware}; seconds are wall-clock for training, on a machine that may be shared.{holds}")
    dirty = " with uncommitted changes" if "true" in set(frame["tag.git_dirty"]) else ""
    commits = ", ".join(dict.fromkeys(str(commit)[:10] for commit in frame["tag.git_commit"]))
    found.append(f"Scale {study.scale}; code {commits}{dirty}; data {results.tag('data_fingerprint')[:16]}.")
    reused = int((frame["tag.reused_from"] != "").sum())
    if reused:
        found.append(f"{reused} of {len(frame)} runs were trained in an earlier launch and reused.")
    if results.absent:
        found.append(f"Without a result: {'; '.join(results.absent)}.")
    return found


def _measurement(results: Results) -> list[str]:
    """Counts, networks and floors, and the warning that too few samples call for."""
    frame, net = results.frame, results.tag("feature_net")
    samples = results.tag("samples")
    reference = _mean(frame, "final/reference_images")
    against = "" if reference is None else f" against {reference:.0f} real images"
    networks = names.networks(net)
    text = f"{samples} generated samples a run{against}; feature networks: {', '.join(networks)}."
    if not networks[0].lower().startswith("inception"):
        text += " FD (Fréchet) and KD (kernel distance) are on the first one's features and are not FID and KID."
    found = [text]
    floors = []
    for metric in _scores(results):
        floor = _mean(frame, f"final/{metric}_floor")
        if floor is not None:
            floors.append(f"{names.title(metric, net)} {number(floor)}")
        real = _mean(frame, f"final/{metric}_real")
        if real is not None:
            found.append(f"Real images have {names.title(metric, net)} {number(real)}.")
    if "val_loss" in _scores(results):
        found.append(
            "Validation loss: of the averaged weights, unmasked, on held-out images, with the same images, noise and "
            "noise levels in every run; it compares arms of the same latents and diffusion settings."
        )
    if floors:
        found.insert(1, f"Floor, between two sets of real images of these sizes: {', '.join(floors)}.")
    width = names.feature_width(networks[0])
    if width and samples.isdigit() and int(samples) < width:
        found.append(
            f"Fewer samples ({samples}) than features ({width}): the covariance of {networks[0]}'s features is "
            "singular, so FD is biased upwards; compare it between arms and with its floor, not with other reports."
        )
    return found


def latex(results: Results) -> str:
    """The table for a paper: booktabs, the notes below it in small print."""
    found = columns(results)
    head = " & ".join(_tex(column.head) for column in found)
    rows = [" & ".join(_tex(cell) for cell in cells) + r" \\" for cells in zip(*(c.cells for c in found), strict=True)]
    study = results.study
    body = [
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table}[t]",
        r"  \centering",
        f"  \\caption{{{_tex(study.question)}}}",
        f"  \\label{{tab:{study.name.replace('_', '-')}-{study.scale}}}",
        r"  \resizebox{\linewidth}{!}{%",
        f"  \\begin{{tabular}}{{l{'r' * (len(found) - 1)}}}",
        r"    \toprule",
        f"    {head} \\\\",
        r"    \midrule",
        *(f"    {row}" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        r"  \par\smallskip\raggedright\footnotesize",
        *(f"  {_tex(note)}" for note in [*sentences(results), *notes(results)]),
        r"\end{table}",
    ]
    return "\n".join(body) + "\n"


def runs_csv(results: Results) -> pd.DataFrame:
    """A row per run, as loaded."""
    return results.frame


def _scores(results: Results) -> list[str]:
    return names.scores(results.frame.columns, results.study.primary)


def _runs(results: Results, arm: str) -> pd.DataFrame:
    return results.frame[results.frame["arm"] == arm]


def _difference(results: Results, arm: str) -> Estimate:
    study = results.study
    if study.baseline not in results.arms or arm == study.baseline:
        return Estimate(float("nan"), float("nan"), 0)
    return paired(results.frame, f"final/{study.primary}", arm, study.baseline)


def _settings(results: Results, arm: str) -> dict[str, object]:
    """An arm's config keys and values, as far as the launch and its runs name them."""
    row = _runs(results, arm).iloc[0]
    params: dict[str, object] = {
        str(k).removeprefix("param."): v for k, v in row.items() if str(k).startswith("param.")
    }
    return params | dict(results.study.arms.get(arm, {}))


def _spread(name: str, value: Estimate) -> dict[str, object]:
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high, f"{name}_n": value.n}


def _mean(frame: pd.DataFrame, column: str) -> float | None:
    return float(frame[column].mean()) if column in frame and frame[column].notna().any() else None


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else number(value)


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _tex(text: str) -> str:
    """Escaped for LaTeX, symbols in their commands."""
    special = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$"}
    special |= {"{": r"\{", "}": r"\}", "±": r"$\pm$", "−": "$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}
    special |= {"é": r"\'e", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    return "".join(special.get(character, character) for character in text)
