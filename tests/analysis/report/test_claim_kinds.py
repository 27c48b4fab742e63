"""Test a user's kind of claim, from a study's YAML to the report."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from report_store import ARMS, SCORES, StudyWriter, final, study_file
from scipy import stats

from analysis import cli
from analysis.claims.kinds.registry import CLAIM_KINDS
from analysis.errors import ReportError
from analysis.io.study import study_of
from microdit.common.contract import Tag
from microdit.common.errors import ConfigError
from microdit.common.stores.claims import NEEDS
from sweeps.config.study import load_study

PLUGIN = '''
from analysis.claims.kinds.base import ClaimKind, check_of_gains
from analysis.claims.selection import select
from microdit.common.contract import final_metric


class Below(ClaimKind):
    """The score of each selected arm is below a limit."""

    needs = ("arm", "options")

    def checks(self, results, claim, metrics):
        limit, checks = claim.options["limit"], []
        for arm in select(results, claim.arm):
            for metric in metrics:
                values = results.frame.loc[results.frame["arm"] == arm, final_metric(metric)].to_numpy()
                checks.append(check_of_gains(f"{arm} below {limit}", metric, values - limit, limit - values))
        return checks, "no such arm"


class Other:
    pass
'''
CLAIM = {"kind": "kinds_of_a_user.Below", "metrics": ["clip_fd"], "arm": {"arm": "deferred_75"}}
CLAIMS = [
    CLAIM | {"text": "below 20", "options": {"limit": 20}},
    CLAIM | {"text": "below 10", "options": {"limit": 10}},
    CLAIM | {"text": "no arm", "arm": {"arm": "nobody"}, "options": {"limit": 10}},
    CLAIM | {"text": "no limit"},
    CLAIM | {"text": "no kind", "kind": "kinds_of_a_user.Other"},
    CLAIM | {"text": "no class", "kind": "kinds_of_a_user.Bellow"},
    CLAIM | {"text": "no module", "kind": "module_that_is_missing.Below"},
]
PLUGINS = ["module_that_is_missing", "kinds_of_a_user"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a study and the user's file."""
    (tmp_path / "kinds_of_a_user.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "kinds_of_a_user", raising=False)
    return tmp_path


def with_claims(folder: Path, claims: list[dict[str, object]], plugins: list[str]) -> str:
    path = folder / "limits.yaml"
    arms = {"none": {}} | {name: settings for name, settings in ARMS.items() if name != "none"}
    values = {"question": "?", "arms": arms, "overrides": {"plugins": plugins}, "claims": claims}
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_claim_of_a_users_kind_is_tested_in_the_report(folder: Path, fresh: tuple[str, Path]) -> None:
    stored = load_study(with_claims(folder, CLAIMS, PLUGINS), "smoke").as_mapping()
    assert "kinds_of_a_user" not in sys.modules  # a sweep checks the claim's form without the class

    uri, root = fresh
    study = study_file(ARMS, [0, 1, 2], claims=stored["claims"], plugins=stored["plugins"])
    launch = StudyWriter(uri, root, "limits", study)
    for name, values in SCORES.items():
        for seed, value in enumerate(values):
            launch.run(name, seed, final(value), images=False)
    launch.client.set_terminated(launch.parent, "FINISHED")
    assert cli.main(["limits", f"tracking_uri={uri}", f"out={folder / 'results'}"]) == 0

    out = folder / "results" / "limits" / "demo"
    with (out / "verdicts.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["claim"]: row for row in csv.DictReader(stream)}
    for limit, word in ((20, "reproduced"), (10, "contradicted")):
        row = rows[f"below {limit}"]
        assert (row["verdict"], row["check"], float(row["n"])) == (word, f"deferred_75 below {limit}", 3)
        assert float(row["p"]) == pytest.approx(stats.ttest_1samp(SCORES["deferred_75"], limit).pvalue)
        assert float(row["value"]) == pytest.approx(sum(SCORES["deferred_75"]) / 3 - limit)
    reasons = {
        "no arm": "no such arm",
        "no limit": "a claim of kind kinds_of_a_user.Below needs 'options'",
        "no kind": "no class derived from analysis.claims.kinds.base.ClaimKind",
        "no class": "'kind' is 'kinds_of_a_user.Bellow', which can't be imported",
        "no module": "module 'module_that_is_missing', which can't be imported",
    }
    for text, reason in reasons.items():
        assert rows[text]["verdict"] == "not tested here"
        assert reason in rows[text]["detail"]
    assert "below 20 (this study): **reproduced**" in (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "plugins", "message"),
    [
        ({}, [], r"claims\[0\]: 'kind' is 'kinds_of_a_user\.Below'; list its module 'kinds_of_a_user'"),
        ({"kind": "a..Below"}, ["a"], r"'kind' is 'a\.\.Below'; valid choices: better, .*by its dotted path"),
        ({"kind": "better", "against": {"arm": "none"}, "options": {"a": 1}}, [], "kind better has no 'options'"),
        ({"kind": "better", "against": {"arm": "none"}, "margin": {"fd": 0.1}}, [], "kind better has no 'margin'"),
        ({"options": [1]}, PLUGINS, "'options' must be a mapping"),
        ({"arm": {"optimizer.lrs": 1}}, PLUGINS, r"'optimizer\.lrs'.*'optimizer\.lr'"),
    ],
)
def test_a_sweep_rejects_a_wrong_claim(
    changes: dict[str, object], plugins: list[str], message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(with_claims(folder, [CLAIM | {"text": "t"} | changes], plugins), "smoke")


def test_stored_plugins_must_be_a_list_of_modules() -> None:
    tags = {Tag.STUDY: "limits", Tag.SCALE: "demo"}
    launch = SimpleNamespace(data=SimpleNamespace(tags=tags), info=SimpleNamespace(run_id="r"))
    assert study_of({"plugins": ["a"]}, launch).plugins == ("a",)
    with pytest.raises(ReportError, match="'plugins' must be a list of modules, not 'abc'"):
        study_of({"plugins": "abc"}, launch)


def test_each_kind_has_its_needs_and_an_implementation() -> None:
    assert set(NEEDS) == set(CLAIM_KINDS)
