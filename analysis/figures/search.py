"""What a search found: Optuna's own pictures of a study rebuilt from the runs in MLflow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import labels
from analysis.figures import layout
from analysis.figures.styles import COLORS, NEUTRAL
from analysis.io.results import Results

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TREES_SEED = 0  # of the forest that importances are read from: same runs, same picture
LEAST = 4  # finished trials, without which importances are nothing but noise


def search_figures(results: Results) -> dict[str, Figure]:
    """History, parallel coordinates and importances by file name, of several objectives the front, too.

    None for a study that is no search.
    """
    if not results.study.search:
        return {}
    study = rebuild_optuna_study(results)
    done = len([trial for trial in study.trials if trial.state.name == "COMPLETE"])
    if done < 2:
        return {}
    found = {"search_history": _history(results, study), "search_parallel": _parallel(results, study)}
    if len(results.study.search) > 1 and done >= LEAST and len({trial.value for trial in study.trials}) > 1:
        found["search_importances"] = _importances(results, study)
    if (pareto := multi_objective_study(results)) is not None and len(
        pareto.directions
    ) == 2:  # of more a picture shows little
        found["search_front"] = _front(results, pareto)
    return found


def pareto_front(results: Results) -> list[str]:
    """Of a search for several objectives the trials that none beats in all of them, best in the first one first."""
    if (study := multi_objective_study(results)) is None:
        return []
    first = 1 if study.directions[0].name == "MINIMIZE" else -1
    best = sorted(study.best_trials, key=lambda trial: (first * trial.values[0], trial.number))
    return [str(trial.user_attrs["arm"]) for trial in best]


def multi_objective_study(results: Results) -> optuna.Study | None:
    """The finished trials of a search for several objectives as an Optuna study; None for any other study."""
    columns = {name: name if "/" in name else f"final/{name}" for name in results.study.objectives}
    if len(columns) < 2 or not set(columns.values()) <= set(results.frame):
        return None
    import optuna
    from optuna.study import StudyDirection
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [StudyDirection[way.upper()] for way in results.study.objectives.values()]
    study = optuna.create_study(directions=directions)
    for row in results.frame.sort_values("arm").to_dict("records"):
        values = [float(row[column]) for column in columns.values()]
        if all(map(math.isfinite, values)):
            study.add_trial(create_trial(values=values, user_attrs={"arm": row["arm"]}))
    return study if study.trials else None


def rebuild_optuna_study(results: Results) -> optuna.Study:
    """The search as an Optuna study in memory: the runs' parameters and final metric, in the order of their numbers.

    A pruned run is PRUNED, one that diverged or failed is FAIL, and one that is still to end is left out.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: distribution(value) for key, value in results.study.search.items()}
    study = optuna.create_study(direction="minimize" if results.study.direction == "minimize" else "maximize")
    states = {"pruned": TrialState.PRUNED, "diverged": TrialState.FAIL, "failed": TrialState.FAIL}
    rows = pd.concat([results.frame.assign(outcome="done"), results.others]) if len(results.others) else results.frame
    for row in sorted(rows.to_dict("records"), key=lambda row: str(row["arm"])):
        state = states.get(row.get("outcome", "done"), TrialState.COMPLETE)
        params = {
            key: value for key, kind in space.items() if (value := _value(row.get(f"param.{key}"), kind)) is not None
        }
        if len(params) < len(space) or row.get("outcome") not in (None, "done", *states):
            continue
        value = float(row[f"final/{results.study.primary}"]) if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=space))
    return study


def distribution(value: Any) -> optuna.distributions.BaseDistribution:
    """The distribution that a study.yaml's `search` names: a list is a choice, whole bounds make whole numbers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(value, Mapping):
        return CategoricalDistribution([str(choice) for choice in value])
    low, high, log, step = value["low"], value["high"], bool(value.get("log", False)), value.get("step")
    if all(isinstance(bound, int) for bound in (low, high)) and isinstance(step, int | None):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _value(text: Any, kind: optuna.distributions.BaseDistribution) -> Any:
    """A run's parameter, which MLflow keeps as words; None where it has none or one that isn't of the space."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if text is None or (isinstance(text, float) and pd.isna(text)):
        return None
    if isinstance(kind, CategoricalDistribution):
        return str(text) if str(text) in kind.choices else None
    number = float(text)
    return int(number) if isinstance(kind, IntDistribution) else number


@contextmanager
def _optuna_draws() -> Iterator[None]:
    """Optuna draws through pyplot in a style of its own: pyplot is left as it was."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")  # a report opens no window
    with mpl.rc_context(layout.PRINT | {"figure.constrained_layout.use": True}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these pictures are experimental
        yield
    plt.close("all")


def _history(results: Results, study: optuna.Study) -> Figure:
    """Value by trial, the best so far as steps, pruned and failed trials at the edges."""
    from matplotlib.ticker import MaxNLocator
    from optuna.visualization.matplotlib import plot_optimization_history

    with _optuna_draws():
        axis = plot_optimization_history(study, target_name=_metric(results))
        figure = _sheet(axis, 3.0)
        (best,) = axis.lines
        best.set(drawstyle="steps-post", color=COLORS[1], alpha=1.0, linewidth=1.4)
        axis.collections[0].set(color=COLORS[0], sizes=[22])
        edges = {"PRUNED": ("|", 0.03, "pruned"), "FAIL": ("x", 0.97, "diverged or failed")}
        handles: dict[str, Any] = {"a trial's final value": axis.collections[0], "best so far": best}
        for state, (marker, height, word) in edges.items():
            at = [trial.number for trial in study.trials if trial.state.name == state]
            if at:
                where = axis.get_xaxis_transform()
                style: dict[str, Any] = {"marker": marker, "linestyle": "none", "color": NEUTRAL, "transform": where}
                (handles[f"{word} ({len(at)})"],) = axis.plot(at, [height] * len(at), markersize=7, **style)
        axis.set_xlabel("trial")
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        layout.legend(figure, handles)
        layout.title(figure, results.study.question, f"History of the search, {_counts(results, study)}")
    return figure


def _parallel(results: Results, study: optuna.Study) -> Figure:
    """A line per finished trial through its settings, dark where it did well."""
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    with _optuna_draws():
        axis = plot_parallel_coordinate(study, params=list(results.study.search), target_name=_metric(results))
        figure = _sheet(axis, 3.4)
        lower = results.study.direction == "minimize"
        lines = axis.collections[0]
        lines.set(cmap="cividis" if lower else "cividis_r", linewidth=1.1, alpha=0.9, clip_on=False)
        for other in figure.axes:
            other.grid(False)
            other.spines["left" if other is axis else "right"].set_visible(True)
            other.spines["bottom"].set_visible(False)
            for text in other.get_yticklabels():  # its numbers stand among the lines
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})
        words = [_metric(results), *(labels.setting_label(key) for key in _order(axis, results.study.search))]
        axis.set_xticks(range(len(words)), [word.replace(" ", "\n", 1) for word in words], rotation=0)
        best = f"The best: {_settings(study.best_trial.params)}."
        layout.title(figure, results.study.question, f"Settings of the trials, {_counts(results, study)} {best}")
    return figure


def _importances(results: Results, study: optuna.Study) -> Figure:
    """How much of the metric's variance each setting explains.

    PED-ANOVA, Optuna's default, compares the best tenth of the trials with all: one or two of a search of ours.
    """
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization.matplotlib import plot_param_importances

    with _optuna_draws():
        axis = plot_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=TREES_SEED), target_name=_metric(results)
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
        note = "fANOVA: share of the variance over the space that a setting explains; rough where trials are few."
        layout.title(figure, results.study.question, f"Importance of the settings, {_counts(results, study)} {note}")
    return figure


def _front(results: Results, study: optuna.Study) -> Figure:
    """Every finished trial by its objectives, those on the front named."""
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
        which = f"{results.study.name}, scale {results.study.scale}: {len(study.trials)} finished trials, a seed each."
        layout.legend(
            figure, {"on the front (with its number)": best} | ({"others": others} if others is not best else {})
        )
        layout.title(figure, results.study.question, f"What no trial beats in all objectives, {which}")
    return figure


def _objective(results: Results, name: str) -> str:
    arrow = "↓" if results.study.objectives[name] == "minimize" else "↑"
    label = labels.setting_label(name) if "/" in name else labels.metric_label(name, results.tag("feature_net"))
    return f"{label} {arrow}"


def _sheet(axis: Axes, height: float) -> Figure:
    """Optuna's figure in our size, on white, in our print, its own title and legend taken off."""
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
    """The settings as Optuna put them side by side; it cuts long names short, so they are told by their beginnings."""
    heads = [text.get_text().removesuffix("...") for text in axis.get_xticklabels()][1:]
    left = sorted(keys)
    for head in heads:
        left.remove(found := next(key for key in left if key.startswith(head)))
        yield found


def _metric(results: Results) -> str:
    study = results.study
    arrow = labels.direction_arrow(study.primary, study.primary, study.direction)
    return f"{labels.metric_label(study.primary, results.tag('feature_net'))} {arrow}"


def _counts(results: Results, study: optuna.Study) -> str:
    done = sum(trial.state.name == "COMPLETE" for trial in study.trials)
    which = f"{results.study.name}, scale {results.study.scale}"
    return f"{which}: {done} finished trials of {len(study.trials)}, a seed each."


def _settings(params: Mapping[str, Any]) -> str:
    parts = (
        f"{labels.setting_label(k)} {v:.3g}" if isinstance(v, float) else f"{labels.setting_label(k)} {v}"
        for k, v in params.items()
    )
    return ", ".join(parts)
