"""Test study files: which are accepted, and which are rejected before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from microdit.common.errors import ConfigError
from microdit.common.files.paths import EXPERIMENTS, group_options
from microdit.common.parsing import parse, read_yaml
from microdit.model import PRESETS, DiTConfig, preset
from sweeps.config.hydra_compose import compose_config
from sweeps.config.study import load_study
from sweeps.planning.trials import plan_trials

GOOD = {
    "question": "Does it matter?",
    "arms": {"none": {"model.masking.method": "none", "model.masking.ratio": 0.0}, "default": {}},
    "baseline": "none",
    "seeds": [0, 1],
    "figure": {"x": "model.masking.ratio"},
}


def write(folder: Path, **changes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return str(path)


def rejected(folder: Path, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_trials(load_study(write(folder, **changes), "smoke"), [])
    assert "mine.yaml" in str(caught.value)
    return str(caught.value)


def test_all_arms_of_a_seed_come_before_the_next_seed(tmp_path: Path):
    trials = plan_trials(load_study(write(tmp_path), "smoke"), [])
    assert [trial.seed for trial in trials] == [0, 0, 1, 1]
    assert {trial.arm for trial in trials[:2]} == {"none", "default"}
    assert len({trial.key for trial in trials}) == 4


def test_arms_differ_in_what_they_name_and_nothing_else(tmp_path: Path):
    trials = plan_trials(load_study(write(tmp_path), "smoke"), [])
    assert set(trials[0].params) == {"model.masking.method", "model.masking.ratio"}


def test_the_validation_loss_can_be_the_primary_metric_without_being_scored(tmp_path: Path):
    metrics = {"primary": "val_loss", "direction": "minimize"}
    assert plan_trials(load_study(write(tmp_path, metrics=metrics), "smoke"), ["evaluation.metrics=[fd]"])
    assert "did you mean 'val_loss'" in rejected(tmp_path, metrics={"primary": "val_los"})


def test_axes_make_a_grid_times_the_arms(tmp_path: Path):
    axes = {"optimizer.lr": [1e-3, 2e-3], "optimizer.weight_decay": [0.0, 0.1]}
    study = load_study(write(tmp_path, axes=axes, baseline="none_lr=0.001_weight_decay=0.0"), "smoke")
    assert len(study.arms) == 8
    trials = plan_trials(study, [])
    lr = {trial.arm: trial.config.optimizer.lr for trial in trials}
    assert lr["default_lr=0.002_weight_decay=0.1"] == 2e-3


def test_the_command_line_takes_precedence_over_the_arms(tmp_path: Path):
    arms = {"a": {"optimizer.lr": 1e-3}, "b": {"optimizer.weight_decay": 0.5}}
    study = load_study(write(tmp_path, arms=arms, baseline="a"), "smoke")
    trials = plan_trials(study, ["optimizer.lr=0.25"])
    assert {trial.config.optimizer.lr for trial in trials} == {0.25}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quesion": "x"}, ["'quesion'", "'question'"]),
        ({"baseline": "nnone"}, ["'baseline'", "'none'"]),
        ({"axes": {"optimizer.lr": []}}, ["'optimizer.lr'", "at least one"]),
        ({"axes": {"optimizer.lr": [1.0, 1.0]}}, ["'optimizer.lr'", "twice"]),
        ({"arms": {"a": {}, "b": {}}, "baseline": "a"}, ["'a' and 'b'", "same settings"]),
        ({"arms": {"none": {"optimizer.lrr": 1}}}, ["arm 'none'", "'optimizer.lrr'", "'optimizer.lr'"]),
        ({"arms": {"none": {"model.masking.ratio": 0.99}}}, ["arm 'none'", "'model.masking.ratio'", "keeps none"]),
        ({"arms": {"none": {"model.masking.method": "nave"}}}, ["arm 'none'", "naive"]),
        ({"arms": {"none": {"model.width": 33}}}, ["arm 'none'", "'model.width'", "nearest"]),
        ({"seeds": []}, ["'seeds'"]),
        ({"seeds": [1, 1]}, ["'seeds'"]),
        ({"holds": "stepz"}, ["'holds'", "'steps'"]),
        ({"scales": {"dmo": {}}}, ["'scales.dmo'", "'demo'"]),
        ({"scales": {"smoke": {"arms": ["nope"]}}}, ["'scales.smoke.arms'", "'nope'"]),
        ({"arms": {}, "axes": {}}, ["'arms', 'axes' or 'search'"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict, words: list[str]):
    message = rejected(tmp_path, **changes)
    for word in words:
        assert word in message


def test_what_a_study_holds_is_checked(tmp_path: Path):
    arms = {"none": {"training.steps": 2}, "default": {}}
    message = rejected(tmp_path, arms=arms)
    assert "holds steps" in message
    assert "'none' has 16" in message
    assert "'default' 32" in message
    assert "holds params" in rejected(tmp_path, arms={"none": {"model.depth": 4}, "default": {}}, holds="params")


@pytest.mark.parametrize("option", group_options("model"))
def test_every_model_file_composes(option: str):
    compose_config(["scale=paper", f"model={option}", "data.path=/d", "autoencoder.path=/a", "text.path=/t"])


@pytest.mark.parametrize(
    ("option", "name"),
    [("microdit_tiny", "MicroDiT_Tiny_2"), ("microdit_xl", "MicroDiT_XL_2"), ("dit_tiny", PRESETS[0])],
)
def test_model_files_are_the_presets(option: str, name: str):
    values = read_yaml(EXPERIMENTS / "model" / f"{option}.yaml")
    composed = compose_config(["scale=paper", f"model={option}", "data.path=/d", "autoencoder.path=/a", "text.path=/t"])
    from microdit.model.cost import network as cost

    assert cost.parameters(composed.model) == cost.parameters(preset(name))
    assert parse(DiTConfig, {**values, "mixer": values["mixer"]}).width == preset(name).width


def test_missing_paths_at_paper_scale_are_named():
    with pytest.raises(ConfigError, match=r"no default here for data\.path, autoencoder\.path;"):
        compose_config(["scale=paper"])
    with pytest.raises(ConfigError, match=r"no default here for autoencoder\.path;"):
        compose_config(["scale=paper", "data=emoji"])


CLAIM = "text: t, kind: better, metrics: [fd], arm: {optimizer.lr: 0.1}, against: {optimizer.lr: 0.2}"


def with_claims(tmp_path: Path, claims: str) -> Path:
    path = tmp_path / "claimed.yaml"
    path.write_text(f"question: q\naxes: {{optimizer.lr: [0.1, 0.2]}}\nclaims: {claims}\n")
    return path


def test_a_study_states_claims_of_its_own(tmp_path: Path) -> None:
    stored = load_study(str(with_claims(tmp_path, f"[{{{CLAIM}}}]")), "smoke").as_mapping()["claims"]
    assert stored == [
        {
            "text": "t",
            "kind": "better",
            "metrics": ["fd"],
            "arm": {"optimizer.lr": 0.1},
            "against": {"optimizer.lr": 0.2},
        }
    ]
    assert load_study("masking_ratio", "smoke").as_mapping()["claims"] == []


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ("[{text: t}]", r"claims\[0\], 't': key 'kind' is missing"),
        (f"[{{{CLAIM}}}, {{{CLAIM}, trust: summary}}]", r"claims\[1\], 't': unknown key 'trust'"),
        (f"[{{{CLAIM.replace('better', 'beter')}}}]", r"'kind' is 'beter'; did you mean 'better'\?"),
        (
            f"[{{{CLAIM.replace('lr: 0.1', 'lrs: 0.1')}}}]",
            r"claims\[0\].*'optimizer\.lrs'.*'optimizer\.lr'",
        ),
        (f"[{{{CLAIM.replace('better', 'not_worse')}, margin: {{fd: much}}}}]", r"'margin' of fd is 'much'"),
        (f"[{{{CLAIM.replace('0.1}', '{abov: 1}}')}}}]", r"unknown condition 'abov'; did you mean 'above'\?"),
        ("[t]", r"claims\[0\]: a claim must be a mapping"),
    ],
)
def test_a_wrong_claim_is_rejected_with_its_place(claims: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_study(str(with_claims(tmp_path, claims)), "smoke")
