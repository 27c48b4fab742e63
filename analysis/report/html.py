"""One HTML file that needs nothing beside it: no other host, no script, pictures inlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from analysis import labels
from analysis.claims.paper_values import citation, facts
from analysis.errors import ReportError
from analysis.io.results import Results
from analysis.report.html_sections import PAGE, Section, section
from microdit.common.stores.secrets import masked

LIMIT = 9_500_000  # bytes of a page
WIDTHS = (1500, 1100, 800, 560, 0)  # pixels of its pictures, the first that fits; 0 leaves them out


@dataclass(frozen=True)
class Missing:
    """A study that the page can't show, and why."""

    name: str
    why: str


def study_page(results: Results, paths: Sequence[Path], store: str) -> str:
    """The page of one study, to lie in the folder of `paths`."""
    title = f"{results.study.name}, scale {results.study.scale}"
    return render(title, store, results.study.scale, [section(results, paths, store)], [])


def render(
    title: str, store: str, scale: str, sections: Sequence[Section], missing: Sequence[Missing], limit: int = LIMIT
) -> str:
    """The page, its pictures as large as `limit` bytes allow."""
    code = list(dict.fromkeys(version for found in sections for version in found.code))
    nets = list(dict.fromkeys(found.results.tag("feature_net") for found in sections))
    context = {
        "title": title,
        "store": masked(store),
        "scale": scale,
        "code": code,
        "newest": max((found.newest for found in sections), default=None),
        "networks": list(dict.fromkeys(network for net in nets for network in labels.networks(net))),
        "inception": any(labels.metric_label("fd", net) == "FID" for net in nets),
        "trust": facts()["trust"],
        "citation": citation(),
        "sections": sections,
        "missing": missing,
        "page": PAGE,
        "style": Markup((files("analysis.report") / "templates" / "page.css").read_text(encoding="utf-8")),
    }
    for width in WIDTHS:
        page = _template().render(context, width=width)
        if len(page.encode()) <= limit:
            return page
    raise ReportError(f"the page is over {limit / 1e6:.0f} MB without its pictures: report fewer studies or arms")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
