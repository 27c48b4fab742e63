"""The `microdit-report` command: a study's runs in MLflow to tables and figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import ReportError
from microdit.common.command_line import (
    SWITCH,
    Parser,
    add_settings,
    completion_of_words,
    make_parser,
    run_command,
    split_words,
)
from microdit.common.errors import nearest
from microdit.common.files.paths import group_options
from microdit.common.stores.secrets import masked

if TYPE_CHECKING:
    from analysis.io.comparable_runs import SetSelection

DESCRIPTION = """\
Turn a study's runs in MLflow into tables, figures and verdicts.

microdit-report STUDY [scale=NAME] [tracking_uri=URI] [out=results]
microdit-report all [scale=NAME] [tracking_uri=URI] [out=results]

Reads the newest launch of STUDY (at that scale, else at any) from MLflow and writes results/STUDY/SCALE/:
  table.md table.csv table.tex   means with 95% intervals, differences from the baseline, costs, the paper's values
  runs.csv                       one row per run
  comparisons.csv                each metric against the baseline: differences, p, effect sizes, medians
  verdicts.csv                   the paper's claims, each check with its numbers
  figure.png .pdf                scores over the study's axis, with the paper's FID
  curves.png .pdf                training and validation loss
  cost.png .pdf                  the primary metric against training FLOPs and time
  loss_by_noise_level.png .pdf   validation loss by diffusion noise level, relative to the baseline
  search_*.png .pdf              of a search: history, parallel coordinates, importances, Pareto front
  samples.png .pdf               the same prompts sampled by every arm
  report.html                    all of it on one self-contained page
The launch's MLflow run gets the same files, unless publish=false. "all" reports every study of the store and writes
results/report.html over all of them; a study without a finished run is listed there with the reason.

Options are written name=value or --name value. Exit status: 0; 1 if "all" has no study to show, or a report failed;
2 for an error that you can fix."""
EXAMPLES = (
    "microdit-report masking_ratio scale=demo",
    "microdit-report all tracking_uri=http://mlflow:5000",
)
ALL = "all"
OPTIONS = {  # name: (what stands for its value, help)
    "study": ("NAME", "another way to name the study"),
    "scale": ("NAME", "smoke | demo | gpu | paper"),
    "tracking_uri": ("URI", "MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db)"),
    "out": ("FOLDER", "folder of the results (default results)"),
    "publish": (SWITCH, "false: write nothing to the store"),
    "set": (
        "N",
        "runs that differ in data, scoring, budget or code form separate sets: 1, the newest, is shown; 2 is the next; "
        "'only' rejects a mixture",
    ),
    "code": ("same|any", "any: different code versions may share a table"),
    "wide": (SWITCH, "true: print all columns of tables, however wide"),
}


@dataclass(frozen=True)
class Words:
    """The parsed command line."""

    study: str
    scale: str | None
    uri: str
    out: Path
    publish: bool
    choice: SetSelection
    wide: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words after the program's name; None: those of the process.

    Returns:
        0; 1 if a report of all studies is incomplete; 2 for an error of the user; 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    return run_command("microdit-report", lambda: _run(words), mask=masked)


def _run(words: Sequence[str]) -> int:
    wanted = _parse(["--help"] if "help" in words else words)
    return _report_all(wanted) if wanted.study == ALL else _report(wanted)


def _parser() -> Parser:
    parser = make_parser("microdit-report", DESCRIPTION, EXAMPLES)
    studies = group_options("study")
    values = add_settings(parser, OPTIONS, {"study": studies, "scale": group_options("scale")})
    names: Any = parser.add_argument("words", nargs="*", metavar="STUDY", help="a study's name, or 'all'")
    names.complete = completion_of_words("_microdit_report_words", values, others=(ALL, *studies))
    return parser


def _parse(words: Sequence[str]) -> Words:
    from analysis.io.store import default_uri

    parser = _parser()
    options, others = split_words(parser, words)
    for word in others:
        raise ReportError(
            f"'{word}': there is no '{word.partition('=')[0]}'; {nearest(word.partition('=')[0], OPTIONS)}"
        )
    found = vars(parser.parse_args(options))
    studies = [*found["words"], *([found["study"]] if "study" in found else [])]
    if len(studies) > 1:
        raise ReportError(f"'{studies[1]}': study is given already, as '{studies[0]}'")
    if not studies:
        raise ReportError("which study? e.g. microdit-report masking_ratio (--help shows all)")
    for name in OPTIONS:
        if found.get(name) == "":
            raise ReportError(f"'{name}=': it needs a value, as {name}=VALUE")
    choice = _choice(found.get("set", "1"), found.get("code", "same"))
    uri = found.get("tracking_uri") or default_uri()
    out = Path(found.get("out", "results"))
    publish, wide = _switch(found, "publish", "true"), _switch(found, "wide", "false")
    return Words(studies[0], found.get("scale"), uri, out, publish, choice, wide)


def _switch(found: Mapping[str, str], name: str, default: str) -> bool:
    value = found.get(name, default).lower()
    if value not in ("true", "false"):
        raise ReportError(f"{name}={value}: it must be true or false")
    return value == "true"


def _choice(which: str, code: str) -> SetSelection:
    from analysis.io.comparable_runs import SetSelection

    if code not in ("same", "any"):
        raise ReportError(f"code={code}: it must be same or any")
    if which != "only" and not (which.isascii() and which.isdigit() and len(which) < 10 and int(which)):
        raise ReportError(f"set={which}: it must be a number from 1, or only")
    return SetSelection(None if which == "only" else int(which), code == "any")


def _report(words: Words) -> int:
    from analysis.io.results import load
    from analysis.io.store import open_store
    from analysis.report.footnotes import table_footnotes
    from analysis.report.sentences import claims, comparison_sentences
    from analysis.report.study import publish, study_folder, write
    from analysis.report.tables import terminal

    results = load(open_store(words.uri), words.study, words.scale, words.choice)
    study = results.study
    folder = study_folder(words.out, study)
    paths = write(results, folder, words.uri)
    print(f"{study.question}\n\n{terminal(results, words.wide)}\n")
    blocks = (
        comparison_sentences(results),
        [text.replace("**", "") for text in claims(results)],
        table_footnotes(results),
    )
    for line in "\n\n".join("\n".join(block) for block in blocks if block).split("\n"):
        print(f"- {line}" if line else "")
    print()
    for path in paths:
        print(path)
    if words.publish:
        rejection = publish(results, paths)
        place = f"report/ of run {study.parent}"
        print(f"the store rejected the report: {rejection}" if rejection else f"uploaded to {place}")
    return 0


def _report_all(words: Words) -> int:
    from analysis.io.store import open_store
    from analysis.report.all_studies import report_all
    from analysis.report.html_sections import PAGE
    from analysis.report.study import Store

    store = Store(open_store(words.uri), words.uri)
    made = report_all(store, words.out, words.scale, words.choice, words.publish, print)
    page = words.out / PAGE
    print(f"\n{page} ({page.stat().st_size / 1e6:.1f} MB): {len(made.sections)} shown, {len(made.missing)} missing")
    if made.rejection:
        print(f"the store rejected the reports: {made.rejection}")
    return 0 if made.whole else 1
