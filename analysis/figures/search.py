"""Draw a search with Optuna's own plots of the rebuilt study."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from analysis import labels
from analysis.figures import layout
from analysis.figures.styles import COLORS, NEUTRAL
from analysis.io.results import Results
from analysis.io.search import multi_objective_study, rebuild_optuna_study
from microdit.common.contract import MINIMIZE

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOREST_SEED = 0  # of the importances' random forest: same runs, same figure
MIN_TRIALS_FOR_IMPORTANCE = 4


def search_figures(results: Results) -> dict[str, Figure]:
    """Return the figures of a search by file name.

    They are history, parallel coordinates, importances and, with two objectives, the Pareto front.

    Args:
        results: the study's runs.

    Returns:
        Empty for a study that is no search, or that has fewer than two finished trials.
    """
    if not results.study.search:
        return {}
    study = rebuild_optuna_study(results)
    done = len([trial for trial in study.trials if trial.state.name == "COMPLETE"])
    if done < 2:
        return {}
    found = {"search_history": _history(results, study), "search_parallel": _parallel(results, study)}
    if (
        len(results.study.search) > 1
        and done >= MIN_TRIALS_FOR_IMPORTANCE
        and len({trial.value for trial in study.trials}) > 1
    ):
        found["search_importances"] = _importances(results, study)
    objectives = multi_objective_study(results)
    if objectives is not None and len(objectives.directions) == 2:
        found["search_front"] = _front(results, objectives)
    return found


@contextmanager
def _optuna_draws() -> Iterator[None]:
    """Let Optuna draw in our style, and restore pyplot's settings afterwards."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")  # open no window
    with mpl.rc_context(layout.PRINT | {"figure.constrained_layout.use": True}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls these plots experimental
        yield
    plt.close("all")


def _history(results: Results, study: optuna.Study) -> Figure:
    """Return values by trial, the best so far, and unfinished trials at the edges."""
    from matplotlib.ticker import MaxNLocator
    from optuna.visualization.matplotlib import plot_optimization_history

    with _optuna_draws():
        axis = plot_optimization_history(study, target_name=_metric(results))
        figure = _sheet(axis, 3.0)
        (best,) = axis.lines
        best.set(drawstyle="steps-post", color=COLORS[1], alpha=1.0, linewidth=1.4)
        axis.collections[0].set(color=COLORS[0], sizes=[22])
        edges = {"PRUNED": ("|", 0.03, "pruned"), "FAIL": ("x", 0.97, "diverged or failed")}
        handles: dict[str, Any] = {"final value of a trial": axis.collections[0], "best so far": best}
        for state, (marker, height, label) in edges.items():
            at = [trial.number for trial in study.trials if trial.state.name == state]
            if at:
                where = axis.get_xaxis_transform()
                style: dict[str, Any] = {"marker": marker, "linestyle": "none", "color": NEUTRAL, "transform": where}
                (handles[f"{label} ({len(at)})"],) = axis.plot(at, [height] * len(at), markersize=7, **style)
        axis.set_xlabel("trial")
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        layout.legend(figure, handles)
        layout.title(figure, results.study.question, f"Search history. {_counts(results, study)}")
    return figure


def _parallel(results: Results, study: optuna.Study) -> Figure:
    """Return one line per finished trial through its settings; dark lines are better."""
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    with _optuna_draws():
        axis = plot_parallel_coordinate(study, params=list(results.study.search), target_name=_metric(results))
        figure = _sheet(axis, 3.4)
        lower = results.study.direction == MINIMIZE
        lines = axis.collections[0]
        lines.set(cmap="cividis" if lower else "cividis_r", linewidth=1.1, alpha=0.9, clip_on=False)
        for other in figure.axes:
            other.grid(False)
            other.spines["left" if other is axis else "right"].set_visible(True)
            other.spines["bottom"].set_visible(False)
            for text in other.get_yticklabels():  # lines cross its numbers
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})
        words = [_metric(results), *(labels.setting_label(key) for key in _order(axis, results.study.search))]
        axis.set_xticks(range(len(words)), [word.replace(" ", "\n", 1) for word in words], rotation=0)
        best = f"Best: {_settings(study.best_trial.params)}."
        layout.title(figure, results.study.question, f"Settings of the trials. {_counts(results, study)} {best}")
    return figure


def _importances(results: Results, study: optuna.Study) -> Figure:
    """Return the share of the metric's variance that each setting explains, by fANOVA.

    Optuna's default, PED-ANOVA, compares the best tenth of the trials with all; our searches have too few trials.
    """
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization.matplotlib import plot_param_importances

    with _optuna_draws():
        axis = plot_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=FOREST_SEED), target_name=_metric(results)
        )
        figure = _sheet(axis, 1.5 + 0.3 * len(results.study.search))
        for bar in axis.patches:
            bar.set_color(COLORS[0])
        for text in axis.texts:
            text.set_text(f" {text.get_text()}")
        axis.set_yticks(axis.get_yticks(), [labels.setting_label(text.get_text()) for text in axis.get_yticklabels()])
        axis.set_xlabel(f"importance for {_metric(results)} (share)")
        axis.set_ylabel("")
        axis.margins(x=0.12)
        axis.grid(False, axis="y")
        note = "fANOVA: share of the variance over the space that a setting explains; rough with few trials."
        layout.title(figure, results.study.question, f"Importance of the settings. {_counts(results, study)} {note}")
    return figure


def _front(results: Results, study: optuna.Study) -> Figure:
    """Return finished trials by their two objectives; those on the front are labeled."""
    from optuna.visualization.matplotlib import plot_pareto_front

    wanted = results.study.objectives
    with _optuna_draws():
        axis = plot_pareto_front(study, target_names=[_objective(results, name) for name in wanted])
        figure = _sheet(axis, 3.6)
        others, best = (axis.collections[0], axis.collections[-1])
        others.set(color=NEUTRAL, sizes=[20], alpha=0.7)
        best.set(color=COLORS[1], sizes=[30], alpha=1.0)
        for trial in study.best_trials:
            name = str(trial.user_attrs["arm"]).removeprefix("trial_")
            axis.annotate(name, trial.values, (4, 4), textcoords="offset points", fontsize=7)
        which = (
            f"{results.study.name}, scale {results.study.scale}: {len(study.trials)} finished trials, one seed each."
        )
        layout.legend(
            figure, {"on the Pareto front (with its number)": best} | ({"others": others} if others is not best else {})
        )
        layout.title(figure, results.study.question, f"Pareto front of the objectives. {which}")
    return figure


def _objective(results: Results, name: str) -> str:
    arrow = "↓" if results.study.objectives[name] == MINIMIZE else "↑"
    label = labels.setting_label(name) if "/" in name else results.label(name)
    return f"{label} {arrow}"


def _sheet(axis: Axes, height: float) -> Figure:
    """Return Optuna's figure in our size and style, without its own title and legend."""
    from matplotlib.figure import Figure

    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.set_layout_engine("constrained")
    figure.set_size_inches(6.0, height)
    figure.set_facecolor("white")
    axis.set_title("")
    axis.set_title("", loc="left")
    if (found := axis.get_legend()) is not None:
        found.remove()
    for each in figure.axes:
        each.set_facecolor("white")
        each.grid(True, color=layout.PRINT["grid.color"], linewidth=0.6, linestyle="-")
        each.set_axisbelow(True)
        each.tick_params(labelsize=7.5, colors="black")
        for label in (each.xaxis.label, each.yaxis.label, *each.texts):
            label.set(fontsize=8, color="black")
        for name, spine in each.spines.items():
            spine.set(visible=each is axis and name in ("left", "bottom"), edgecolor="black", linewidth=0.7)
    return figure


def _order(axis: Axes, keys: Iterable[str]) -> Iterator[str]:
    """Yield the settings in Optuna's order.

    It truncates long names, so they are matched by their beginnings.
    """
    heads = [text.get_text().removesuffix("...") for text in axis.get_xticklabels()][1:]
    left = sorted(keys)
    for head in heads:
        left.remove(found := next(key for key in left if key.startswith(head)))
        yield found


def _metric(results: Results) -> str:
    study = results.study
    return f"{results.label(study.primary)} {results.arrow(study.primary)}"


def _counts(results: Results, study: optuna.Study) -> str:
    done = sum(trial.state.name == "COMPLETE" for trial in study.trials)
    which = f"{results.study.name}, scale {results.study.scale}"
    return f"{which}: {done} of {len(study.trials)} trials finished, one seed each."


def _settings(params: Mapping[str, Any]) -> str:
    parts = (
        f"{labels.setting_label(k)} {v:.3g}" if isinstance(v, float) else f"{labels.setting_label(k)} {v}"
        for k, v in params.items()
    )
    return ", ".join(parts)
