"""Draw final validation loss by diffusion noise level.

Losses are shown by quarter of the levels, relative to the baseline.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from analysis.figures import layout
from analysis.figures.styles import arm_styles
from analysis.io.results import QUARTER_LOSS, Results
from analysis.stats.paired import differences
from microdit.common.numbers import Estimate, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARM_SPREAD = 0.7  # fraction of a quarter's width over which the arms are spread


@layout.with_print_style
def noise_level_figure(results: Results) -> Figure | None:
    """Return each arm's loss relative to the baseline's by noise level.

    Args:
        results: the study's runs.

    Returns:
        The figure; None without losses by quarter, without a baseline run or another arm, or if the arms' noise levels
        differ.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    baseline = results.study.baseline
    quarters = sorted(column for column in results.frame.columns if QUARTER_LOSS.fullmatch(column))
    arms, which = layout.select_arms(results)
    others = [arm for arm in arms if arm != baseline]
    if not quarters or not others or baseline not in results.arms or not one_distribution(results):
        return None
    found = {arm: [ratio(results, column, arm) for column in quarters] for arm in others}
    found = {arm: values for arm, values in found.items() if any(value.n for value in values)}
    if not found:
        return None
    figure, (axis,) = layout.panels(1, 3.0)
    figure.set_figwidth(5.5)
    looks = arm_styles(results).arms
    handles: dict[str, Any] = {}
    for place, (arm, values) in enumerate(found.items()):
        look, shift = looks[arm], ARM_SPREAD * ((place + 0.5) / len(found) - 0.5)
        at = np.arange(len(quarters)) + shift
        mean = np.array([value.mean for value in values])
        bars = [[value.mean - value.low for value in values], [value.high - value.mean for value in values]]
        handles[arm] = axis.errorbar(
            at, mean, yerr=bars, color=look.color, marker=look.marker, linestyle=look.line, linewidth=1.0,
            markersize=5.5, markeredgecolor="white", markeredgewidth=0.6, elinewidth=1.0, capsize=2,
        ).lines[0]  # fmt: skip
    handles[f"{baseline} (baseline)"] = axis.axhline(1.0, color="black", linewidth=0.9, linestyle=":", zorder=1)
    layout.set_y_limits(axis, [1.0, *(value.mean for values in found.values() for value in values)])
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(range(len(quarters)), _labels(results, quarters))
    axis.set_xlim(-0.5, len(quarters) - 0.5)
    axis.grid(False, axis="x")
    for edge in range(1, len(quarters)):
        axis.axvline(edge - 0.5, color="#d0d0d0", linewidth=0.6, zorder=0)
    axis.set_xlabel("diffusion noise level, by quarter of the levels used for validation")
    axis.set_ylabel(f"validation loss / loss of {baseline}")
    layout.legend(figure, handles)
    _describe(figure, results, found, which)
    return figure


def ratio(results: Results, column: str, arm: str) -> Estimate:
    """Return the geometric mean over seeds of the loss ratio to the baseline.

    An arm's loss is divided by the baseline's at the same seed. Student's interval is computed on logarithms, so it is
    asymmetric here.

    Args:
        results: the study's runs.
        column: the loss.
        arm: the arm.
    """
    frame = results.frame.assign(logged=np.log(results.frame[column].where(results.frame[column] > 0)))
    logs = estimate(differences(frame, "logged", arm, results.study.baseline).tolist())
    return RatioEstimate(math.exp(logs.mean), logs.half, logs.n) if logs.n else logs


class RatioEstimate(Estimate):
    """A geometric mean; `half` is the half-width of the interval of its logarithm."""

    @property
    def low(self) -> float:
        return self.mean * math.exp(-self.half)

    @property
    def high(self) -> float:
        return self.mean * math.exp(self.half)


def one_distribution(results: Results) -> bool:
    """Return whether all arms have the same noise levels for validation."""
    return len({_distribution(results, arm) for arm in results.arms}) == 1


def quarter_edges(results: Results, count: int) -> list[float]:
    """Return the noise levels between equal shares of validation.

    The levels have a log-normal distribution.

    Args:
        results: the study's runs.
        count: number of shares.

    Returns:
        `count` - 1 values of sigma, ascending; empty if the distribution is unknown.
    """
    found = _distribution(results, results.arms[0])
    if None in found:
        return []
    mean, std = (float(value) for value in found)  # type: ignore[arg-type]
    return [math.exp(mean + std * float(special.ndtri(share / count))) for share in range(1, count)]


def _distribution(results: Results, arm: str) -> tuple[float | None, float | None]:
    settings = results.settings(arm)

    def value(name: str) -> float | None:
        own = settings.get(f"evaluation.{name}")
        found = settings.get(f"diffusion.{name}") if own in (None, "None") else own
        return None if found is None else float(found)

    return value("p_mean"), value("p_std")


def _labels(results: Results, quarters: list[str]) -> list[str]:
    """Return `q1 (cleanest)` and so on, with the bounds of the noise levels below."""
    numbers = [re.sub(r"\D", "", quarter) for quarter in quarters]
    heads = [f"q{number}" for number in numbers]
    heads[0] += " (cleanest)"
    heads[-1] += " (noisiest)"
    bounds = [f"{edge:.2g}" for edge in quarter_edges(results, len(quarters))]
    if not bounds:
        return heads
    below = [f"σ < {bounds[0]}", *(f"{a} – {b}" for a, b in zip(bounds, bounds[1:], strict=False)), f"σ > {bounds[-1]}"]
    return [f"{head}\n{words}" for head, words in zip(heads, below, strict=True)]


def _describe(figure: Figure, results: Results, found: dict[str, list[Estimate]], which: str) -> None:
    study = results.study
    pairs = {value.n for values in found.values() for value in values}
    n = f"n={min(pairs)}" if len(pairs) == 1 else f"n={min(pairs)} to {max(pairs)}"
    bars = "bars: 95% interval over pairs, clipped at the panel's edge" if max(pairs) > 1 else "no interval at n=1"
    head = f"Final validation loss by diffusion noise level; {study.name}, scale {study.scale}"
    text = f"Geometric mean of the ratio at the same seed, {n} pair{'s' if max(pairs) > 1 else ''}; {bars}."
    layout.title(figure, head, f"{text} Below 1 is better. {which}".strip())
