"""Searches of MLflow runs by exact tags, whatever characters the values have.

MLflow's filter language has no escapes: a value stands between quotes of one kind and may not hold that kind. What
can't be written in it is compared here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from microdit.common.contract import OUR_EXPERIMENTS

PAGE = 1000
NEWEST = "attributes.start_time DESC"


def search_runs(
    client: Any,
    experiments: Sequence[str],
    tags: Mapping[str, str],
    status: str = "",
    order: str = NEWEST,
    most: int | None = None,
) -> list[Any]:
    """The runs of `experiments` that have all of `tags` (and `status`), in `order`.

    At most the first `most`.
    """
    return list(islice(_matching(client, experiments, tags, status, order, min(most or PAGE, PAGE)), most))


def _matching(
    client: Any, experiments: Sequence[str], tags: Mapping[str, str], status: str, order: str, size: int
) -> Iterator[Any]:
    words = where(tags, status)
    token = None
    while True:
        page = client.search_runs(list(experiments), words, order_by=[order], max_results=size, page_token=token)
        yield from (run for run in page if all(run.data.tags.get(name) == value for name, value in tags.items()))
        token = page.token
        if not token:
            return


def where(tags: Mapping[str, str], status: str = "") -> str:
    """A filter of MLflow for as many of the conditions as it can express."""
    words = [f"tags.`{name}` = {quoted}" for name, value in tags.items() if (quoted := _quoted(value))]
    if status:
        words.append(f"attributes.status = '{status}'")
    return " and ".join(words)


def _quoted(value: str) -> str:
    """`value` between quotes that it doesn't hold itself; '' if it holds both kinds."""
    free = [quote for quote in "'\"" if quote not in value]
    return f"{free[0]}{value}{free[0]}" if free else ""


def our_experiments(client: Any) -> list[Any]:
    """Return the active experiments of this project, by name."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_experiments(filter_string=OUR_EXPERIMENTS, order_by=["name ASC"], page_token=token)
        found += page
        token = page.token
        if not token:
            return found
