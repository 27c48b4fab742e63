"""Test the names in the store: unchanged, defined once, and importable without torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna import distributions

from analysis.io.study import study_of
from microdit.common.contract import (
    MlflowTag,
    SearchRange,
    StudyKey,
    Tag,
    final_metric,
    noise_set_metric,
    objective_metric,
)
from sweeps.config.study import load_study

ROOT = Path(__file__).parents[2]
SPELLED_OUT = re.compile(
    r"microdit\.[a-z_.]+|microdit/|microdit/train|mlflow\.(parentRunId|note|source|user|experimentKind|shared)[\w.]*"
    r"|(final|cost|train|val|eval)/([a-z_]\w*)?|images_per_second"
)
NOT_A_NAME = {"microdit.file"}  # a note inside SQLAlchemy's connection pool, not in the store
# Written out independently: stored runs have these names.
TAGS = (
    "algorithm arm attempt command data_fingerprint device direction error feature_net git_commit git_dirty host log "
    "outcome output_dir packages plan primary process queue rerun reused_from role samples scale study traceback "
    "trained_in training.batch_size training.steps trial_key version versions"
)
STUDY_KEYS = (
    "arms baseline claim claims cumulative direction divergence figure holds hue metrics name objectives paper plugins "
    "primary question scale search section seeds x"
)


def _strings(path: Path) -> list[tuple[int, str]]:
    """Return line and text of each string literal, parts of f-strings included and docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    return [(node.lineno, node.value) for node in found if isinstance(node.value, str)]


def spelled_out(path: Path) -> list[str]:
    """Return the string literals of a file that spell out a name of the store."""
    return [f"{path}:{line}: {text}" for line, text in _strings(path) if _is_name(text)]


def _is_name(text: str) -> bool:
    return SPELLED_OUT.fullmatch(text) is not None and text not in NOT_A_NAME


@pytest.mark.parametrize("package", ["sweeps", "analysis"])
def test_no_name_of_the_store_is_spelled_out(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert [name for path in files for name in spelled_out(path)] == []


def test_the_search_for_spelled_out_names_finds_them(tmp_path):
    path = tmp_path / "module.py"
    names = ['"microdit.arm"', '"mlflow.parentRunId"', '"final/fd"', 'f"final/{metric}"', 'f"microdit/{x}"', '"cost/"']
    path.write_text("\n".join(['"""final/fd"""', '"sklearn"', '"microdit-sweep"', *(f"y = {name}" for name in names)]))
    assert len(spelled_out(path)) == len(names)


def test_stored_runs_keep_their_tags():
    ours = {value for name, value in vars(Tag).items() if name.isupper() and name != "PREFIX"}
    assert ours == {f"microdit.{name}" for name in TAGS.split()}
    assert MlflowTag.PARENT == "mlflow.parentRunId"


def test_stored_studies_keep_their_keys():
    assert {value for name, value in vars(StudyKey).items() if name.isupper()} == set(STUDY_KEYS.split())


@pytest.mark.parametrize(
    ("file", "function"), [("sweeps/config/study.py", "as_mapping"), ("analysis/io/study.py", "study_of")]
)
def test_no_key_of_a_stored_study_is_spelled_out(file: str, function: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    [found] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    constants = {node.value for node in ast.walk(found) if isinstance(node, ast.Constant)}
    assert not constants & set(STUDY_KEYS.split())
    assert any(isinstance(node, ast.Name) and node.id == "StudyKey" for node in ast.walk(found))


@pytest.mark.parametrize(
    ("name", "x"), [("masking_ratio", "model.masking.ratio"), ("weight_decay_search", "optimizer.weight_decay")]
)
def test_analysis_reads_what_a_sweep_stores(name: str, x: str) -> None:
    written = load_study(name, "demo")
    parent = SimpleNamespace(
        info=SimpleNamespace(run_id="run"), data=SimpleNamespace(tags={Tag.STUDY: name, Tag.SCALE: "demo"})
    )
    stored = written.as_mapping()
    nested = (stored[StudyKey.PAPER], stored[StudyKey.METRICS], stored[StudyKey.FIGURE])
    assert set(stored).union(*nested) == set(STUDY_KEYS.split())
    read, file = study_of(stored, parent), written.file
    assert (read.question, read.section, read.claim) == (file.question.strip(), file.paper.section, file.paper.claim)
    assert (read.baseline, read.holds, read.seeds) == (file.baseline, file.holds, written.seeds)
    assert (read.primary, read.direction) == (file.metrics.primary, file.metrics.direction)
    assert (read.x, read.hue) == (x, file.figure.hue)
    assert (read.arms, read.search, read.objectives) == (written.arms, file.search, file.objectives)


def test_metric_names():
    assert final_metric("fd") == "final/fd"
    assert noise_set_metric(2, "fd") == "final/noise2/fd"
    assert objective_metric("fd") == "final/fd"
    assert objective_metric("cost/params") == "cost/params"


def test_all_of_analysis_is_imported_without_torch():
    code = """
import importlib, pkgutil, sys, analysis
names = [m.name for m in pkgutil.walk_packages(analysis.__path__, "analysis.") if not m.name.endswith("__main__")]
for name in names: importlib.import_module(name)
assert len(names) > 30, names
print(sorted({"torch", "sweeps", "hydra"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"low": 1, "high": 8}, distributions.IntDistribution(1, 8)),
        ({"low": 1, "high": 9, "step": 2}, distributions.IntDistribution(1, 9, step=2)),
        ({"low": 1, "high": 64, "log": True}, distributions.IntDistribution(1, 64, log=True)),
        ({"low": 1, "high": 8.0}, distributions.FloatDistribution(1.0, 8.0)),
        ({"low": 0, "high": 1, "step": 0.25}, distributions.FloatDistribution(0.0, 1.0, step=0.25)),
        ({"low": 1e-3, "high": 0.3, "log": True}, distributions.FloatDistribution(1e-3, 0.3, log=True)),
    ],
)
def test_a_range_gives_optunas_distribution(values: dict[str, float], expected: object) -> None:
    found = SearchRange.of(values)
    assert getattr(distributions, found.distribution)(**found.arguments) == expected
