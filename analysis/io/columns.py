"""Name the columns of the data frame of runs, and derive facts from them."""

from __future__ import annotations

import pandas as pd

from microdit.common.contract import Tag

NOT_RECORDED = "not recorded"
PARAM_PREFIX = "param."


def tag_column(tag: str) -> str:
    """Return the column of a tag, such as `tag.arm` for `microdit.arm`."""
    return f"tag.{tag.removeprefix(Tag.PREFIX)}"


def param_column(param: str) -> str:
    """Return the column of an MLflow param."""
    return PARAM_PREFIX + param


def config_column(key: str) -> str:
    """Return the column of a setting in a run's config.yaml."""
    return f"config.{key}"


def code_versions(frame: pd.DataFrame, commit_characters: int | None = None) -> pd.Series:
    """Return the commit of each run, with a note about uncommitted changes.

    Args:
        frame: one row per run, with columns `tag.git_commit` and `tag.git_dirty`.
        commit_characters: length of a commit; None: all.
    """
    dirty = frame[tag_column(Tag.GIT_DIRTY)].map(lambda value: " with uncommitted changes" if value == "true" else "")
    return frame[tag_column(Tag.GIT_COMMIT)].str[:commit_characters] + dirty


def mean_or_none(frame: pd.DataFrame, column: str) -> float | None:
    """Return the mean of a column; None if it is missing or has no value.

    Args:
        frame: one row per run.
        column: the column.
    """
    return float(frame[column].mean()) if column in frame and frame[column].notna().any() else None
