"""Render a report as one self-contained HTML file.

It needs no network and no script; images are inlined.
"""

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
from microdit.common.contract import Tag
from microdit.common.stores.secrets import masked

MAX_PAGE_BYTES = 9_500_000
IMAGE_WIDTHS = (1500, 1100, 800, 560, 0)  # pixels; the first that fits is used; 0 leaves images out


@dataclass(frozen=True)
class Missing:
    """A study without a section, and the reason."""

    name: str
    why: str


def study_page(results: Results, paths: Sequence[Path], store: str) -> str:
    """Return the page of one study as HTML.

    Args:
        results: the study's runs.
        paths: files of its report, beside the page.
        store: URI of the store.
    """
    title = f"{results.study.name}, scale {results.study.scale}"
    return render(title, store, results.study.scale, [section(results, paths, store)], [])


def render(
    title: str,
    store: str,
    scale: str,
    sections: Sequence[Section],
    missing: Sequence[Missing],
    limit: int = MAX_PAGE_BYTES,
) -> str:
    """Return a page as HTML, with images as large as the limit allows.

    Args:
        title: of the page.
        store: URI of the store; passwords are masked.
        scale: in print.
        sections: of the studies.
        missing: studies without a section.
        limit: of the page, in bytes.

    Raises:
        ReportError: if the page exceeds `limit` even without images.
    """
    code = list(dict.fromkeys(version for found in sections for version in found.code))
    nets = list(dict.fromkeys(found.results.tag(Tag.FEATURE_NET) for found in sections))
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
    for width in IMAGE_WIDTHS:
        page = _template().render(context, width=width)
        if len(page.encode()) <= limit:
            return page
    raise ReportError(f"the page exceeds {limit / 1e6:.0f} MB even without images; report fewer studies or arms")


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
