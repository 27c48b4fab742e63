"""Search MLflow runs by exact tags, with any characters in their values.

MLflow's filter language has no escapes: a value is quoted and must not contain its own quote character. Conditions that
can't be written in it are checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from microdit.common.contract import OUR_EXPERIMENTS, Role, Tag

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
    """Return the runs that have all of the given tags.

    Args:
        client: MLflow's client.
        experiments: ids of the experiments to search.
        tags: name and exact value of each tag.
        status: MLflow's status of the runs; any if "".
        order: MLflow's order of the runs.
        most: return at most this many; all if None.
    """
    search = partial(client.search_runs, list(experiments), where(tags, status), order_by=[order])
    found = _all_pages(partial(search, max_results=min(most or PAGE, PAGE)))
    return list(islice((run for run in found if tags.items() <= run.data.tags.items()), most))


def _all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def where(tags: Mapping[str, str], status: str = "") -> str:
    """Return MLflow's filter for as many conditions as it can express.

    Args:
        tags: name and exact value of each tag.
        status: MLflow's status of the runs; any if "".
    """
    words = [f"tags.`{name}` = {quoted}" for name, value in tags.items() if (quoted := _quoted(value))]
    if status:
        words.append(f"attributes.status = '{status}'")
    return " and ".join(words)


def _quoted(value: str) -> str:
    """Return `value` in quotes that it doesn't contain; "" if it contains both kinds."""
    free = [quote for quote in "'\"" if quote not in value]
    return f"{free[0]}{value}{free[0]}" if free else ""


def our_experiments(client: Any) -> list[Any]:
    """Return the active experiments of this project, by name."""
    return list(_all_pages(partial(client.search_experiments, filter_string=OUR_EXPERIMENTS, order_by=["name ASC"])))


def launches(client: Any, experiment: str, scale: str = "", most: int | None = None) -> list[Any]:
    """Return the parent runs of an experiment's launches, newest first.

    Args:
        client: MLflow's client.
        experiment: id of the experiment.
        scale: of the launches; any if "".
        most: return at most this many; all if None.
    """
    tags = {Tag.ROLE: Role.LAUNCH} | ({Tag.SCALE: scale} if scale else {})
    return search_runs(client, [experiment], tags, most=most)
