"""The `microdit-report` command: a study's runs in MLflow to tables and figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import ReportError, nearest, shortened
from microdit.common.process.terminal import safely
from microdit.common.stores.secrets import masked

if TYPE_CHECKING:
    from analysis.io.comparable_runs import SetSelection

HELP = """\
microdit-report STUDY [scale=NAME] [tracking_uri=URI] [out=results]
microdit-report all [scale=NAME] [tracking_uri=URI] [out=results]
microdit-report bench [runs=10000] [points=100] [arms=100]   # what a report of a big store costs, on one made for it

Reads the newest launch of STUDY (at that scale, else at any) from MLflow and writes results/STUDY/SCALE/:
  table.md table.csv table.tex   means with 95% intervals, differences from the baseline, costs, the paper's values
  runs.csv                       a row per run
  comparisons.csv                each metric against the baseline: differences, p, effect sizes, medians
  verdicts.csv                   the paper's claims, each check with its numbers
  figure.png .pdf                scores over the study's axis, the paper's FID beside them
  curves.png .pdf                training and validation loss
  cost.png .pdf                  the primary metric against training FLOPs and time
  noise.png .pdf                 validation loss against the baseline's, by noise level
  search_*.png .pdf              of a search: history, parallel coordinates, importances, front of several objectives
  samples.png .pdf               the same prompts drawn by every arm
  report.html                    all of it on one page that needs nothing beside it
It logs them onto the launch too, where microdit-sweep ui shows them. "all" does so for every study of the store, and
writes results/report.html over them all; a study without a finished run is listed there with the reason.

  scale=NAME         smoke | demo | gpu | paper
  tracking_uri=URI   MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db)
  out=FOLDER         where the results go (default: results)
  publish=false      leave the store as it is
  set=N              runs that can't be compared (other data, scoring, budget or code) are apart: 1, the newest set, is
                     shown; 2 is the next; only refuses a mixture
  code=any           different code versions may stand in one table

Exit status: 0; 1 where "all" has no study to show, or one whose report failed; 2 for an error that you can mend.

e.g. microdit-report masking_ratio scale=demo"""
ALL, BENCH = "all", "bench"

KEYS = ("study", "scale", "tracking_uri", "out", "publish", "set", "code")


@dataclass(frozen=True)
class Words:
    """The command line, sorted."""

    study: str
    scale: str | None
    uri: str
    out: Path
    publish: bool
    choice: SetSelection


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0; 1 if a report of all studies is not whole; 2 for an error that the user can fix."""
    return safely(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or any(word in ("-h", "--help", "help") for word in words):
        print(HELP)
        return 0
    try:
        if words[0] == BENCH:
            from report_scaling import bench

            return bench(words[1:])
        wanted = _sort(words)
        return _report_all(wanted) if wanted.study == ALL else _report(wanted)
    except ReportError as error:
        print(f"microdit-report: {masked(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that can't be written, a name that no file system takes
        place = f"{shortened(str(error.filename), 300)}: " if error.filename else ""
        print(f"microdit-report: {place}{error.strerror or error}", file=sys.stderr)
        return 2


def _sort(words: Sequence[str]) -> Words:
    from analysis.io.store import default_uri

    found: dict[str, str] = {}
    for word in words:
        key, sep, value = word.partition("=")
        if not sep:
            key, value = "study", word
        if key not in KEYS:
            raise ReportError(f"'{word}': there is no '{key}'; {nearest(key, KEYS)}")
        if not value:
            raise ReportError(f"'{word}': it needs a value, as {key}=VALUE")
        if key in found:
            raise ReportError(f"'{word}': {key} is given already, as '{found[key]}'")
        found[key] = value
    if "study" not in found:
        raise ReportError("which study? e.g. microdit-report masking_ratio (--help shows all)")
    publish = found.get("publish", "true").lower()
    if publish not in ("true", "false"):
        raise ReportError(f"publish={publish}: it must be true or false")
    choice = _choice(found.get("set", "1"), found.get("code", "same"))
    uri = found.get("tracking_uri") or default_uri()
    return Words(found["study"], found.get("scale"), uri, Path(found.get("out", "results")), publish == "true", choice)


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
    try:
        paths = write(results, folder, words.uri)
    except OSError as error:
        raise ReportError(f"{folder} can't be written: {error.strerror or error}") from None
    print(f"{study.question}\n\n{terminal(results)}\n")
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
        refusal = publish(results, paths)
        place = f"report/ of run {study.parent}"
        print(f"the store would not take the report ({refusal})" if refusal else f"{place} in the store has them too")
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
    if made.refusal:
        print(f"the store would not take the reports ({made.refusal})")
    return 0 if made.whole else 1
