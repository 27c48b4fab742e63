"""Test every bundled study: composed at every scale, checked against its fixed settings, run for two steps."""

from __future__ import annotations

import dataclasses
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from launching import stored_runs

from microdit.common.errors import ConfigError
from microdit.common.files.paths import EXPERIMENTS, group_options
from microdit.common.parsing import flatten, to_mapping
from microdit.config.identity import identity_mapping
from microdit.config.schema import Config
from microdit.pipeline.train_and_evaluate import run
from sweeps.cli import main
from sweeps.config.hydra_compose import compose_mapping
from sweeps.config.study import Study, load_study, study_names
from sweeps.planning.match_budget import HELD
from sweeps.planning.trials import BUDGET_TOLERANCE, Trial, arm_configs, plan_trials

SCALES = group_options("scale")
PAGE = EXPERIMENTS / "study" / "README.md"
PATHS = ("data.path=/d", "autoencoder.path=/a", "text.path=/t")  # required at paper scale


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace measured times by FLOPs in studies of equal time; measuring takes seconds per network."""
    monkeypatch.setattr(
        "sweeps.planning.throughput_cache.cached_seconds_per_image", lambda config: HELD["flops"][0](config) / 1e15
    )


@cache
def planned(name: str, scale: str) -> tuple[Study, tuple[Trial, ...]]:
    study = load_study(name, scale)
    return study, tuple(plan_trials(study, PATHS if scale == "paper" else ()))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", study_names())
def test_every_study_composes_and_holds_its_budget_fixed(name: str, scale: str) -> None:
    study, trials = planned(name, scale)
    assert {trial.arm for trial in trials} == set(study.arms)
    assert len(trials) == len(study.arms) * len(study.seeds)
    assert all(trial.config.training.steps > 0 for trial in trials)
    if study.file.holds not in HELD or study.file.holds == "time":
        return
    measure, _ = HELD[study.file.holds]
    figures = [measure(trial.config) for trial in trials]
    assert max(figures) - min(figures) <= BUDGET_TOLERANCE * max(figures)


@pytest.mark.parametrize("name", study_names())
def test_its_first_comment_has_the_launch_line_the_cost_and_what_is_held_fixed(name: str) -> None:
    lines = (EXPERIMENTS / "study" / f"{name}.yaml").read_text().splitlines()
    head = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert head.split("\n")[0].endswith("?")
    assert f"# Launch: microdit-sweep study={name} " in head
    assert re.search(r"^# Cost: .*\d", head, re.MULTILINE)
    assert "# Held fixed:" in head
    assert f"`{name}`" in PAGE.read_text()


@pytest.mark.parametrize("name", study_names())
def test_arms_differ_from_the_baseline_in_exactly_what_they_name(name: str) -> None:
    study, _ = planned(name, "demo")
    configs = arm_configs(study, [])
    base = study.file.baseline or next(iter(configs))
    plain = flatten(identity_mapping(configs[base]))
    for arm, config in configs.items():
        named = {**leaves(study.arms[base]), **leaves(study.arms[arm])}
        flat = flatten(identity_mapping(config))
        changed = {key for key in {*flat, *plain} if flat.get(key) != plain.get(key)}
        assert changed <= set(named), f"{arm} differs from {base} in what it doesn't name"
        flat = flatten(to_mapping(config))  # includes the values that runs without the key used
        for key, value in leaves(study.arms[arm]).items():
            if value != "match":
                wanted = list(value) if isinstance(value, list) else value
                assert flat[key] == (tuple(wanted) if isinstance(flat[key], tuple) else wanted), f"{arm}: {key}"


def leaves(overrides: object, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in dict(overrides).items():  # type: ignore[call-overload]
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def shortened(config: Config) -> Config:
    ema = dataclasses.replace(config.training.ema, start_step=0)
    training = dataclasses.replace(config.training, steps=2, ema=ema, val_every=0, sample_every=0, checkpoint_every=0)
    return dataclasses.replace(
        config,
        name="two steps",
        training=training,
        schedule=dataclasses.replace(config.schedule, warmup_steps=0),
        evaluation=dataclasses.replace(config.evaluation, samples=0),
    )


@pytest.mark.parametrize("name", study_names())
def test_every_arm_runs_two_steps_at_smoke(name: str, cache_dir: Path, tmp_path: Path) -> None:
    study, trials = planned(name, "smoke")
    done = _done(cache_dir)
    for trial in trials[: len(study.arms)] if not study.file.search else trials[:1]:
        config = dataclasses.replace(shortened(trial.config), cache_dir=str(cache_dir))
        key = repr(identity_mapping(config))
        if config.optimizer.lr > 1 or key in done:  # meant to diverge; or another study's arm too
            continue
        done.add(key)
        folder = tmp_path / trial.arm
        metrics = run(dataclasses.replace(config, output_dir=str(folder)))
        assert metrics["final/val_loss"] > 0
        assert (folder / "model.safetensors").is_file()


@cache
def _done(cache_dir: Path) -> set[str]:
    return set()


def test_layerwise_widths_do_not_collapse() -> None:
    study, _ = planned("layerwise_scaling", "paper")
    configs = arm_configs(study, [], complete=False)
    from microdit.model import DiT

    net = DiT(dataclasses.replace(configs["layerwise"].model, width=512), seed=None)
    assert len({block.mlp.w1.out_features for block in net.blocks}) >= 15  # type: ignore[union-attr]


def test_studies_share_their_baselines() -> None:
    keys = [{t.key for t in planned(name, "paper")[1]} for name in study_names()]
    assert sum(len(own) for own in keys) - len(set().union(*keys)) >= 3 * 6


class TestMatching:
    """Test `match` as an arm's value."""

    STUDY = """
question: x
arms: {{a: {{}}, b: {{model.masking.method: none, model.masking.ratio: 0.0, {key}: match}}}}
baseline: a
holds: {holds}
overrides: {{training.steps: 300}}
seeds: [0]
metrics: {{primary: val_loss}}
"""

    def write(self, key: str, holds: str) -> Study:
        Path("mine.yaml").write_text(self.STUDY.format(key=key, holds=holds))
        return load_study("mine.yaml", "smoke")

    def test_the_nearest_number_of_steps_is_found(self) -> None:
        configs = arm_configs(self.write("training.steps", "flops"), [])
        measure, _ = HELD["flops"]
        wanted, b = measure(configs["a"]), configs["b"]
        others = [
            dataclasses.replace(b, training=dataclasses.replace(b.training, steps=b.training.steps + d))
            for d in (-1, 1)
        ]
        assert all(abs(measure(b) - wanted) <= abs(measure(other) - wanted) for other in others)

    def test_the_command_line_moves_the_baseline_and_the_match_follows(self) -> None:
        study = self.write("training.steps", "flops")
        plain, doubled = arm_configs(study, []), arm_configs(study, ["training.steps=600"])
        assert doubled["a"].training.steps == 600
        assert abs(doubled["b"].training.steps - 2 * plain["b"].training.steps) <= 1

    @pytest.mark.parametrize(
        ("key", "holds", "words"),
        [
            ("training.steps", "nothing", ["'training.steps' is 'match'", "'holds'"]),
            ("optimizer.lr", "flops", ["holds flops", "arm 'b'"]),
        ],
    )
    def test_what_can_not_match_is_rejected(self, key: str, holds: str, words: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            plan_trials(self.write(key, holds), [])
        for word in words:
            assert word in str(caught.value)


def test_a_violated_budget_is_an_error_with_arms_and_amounts() -> None:
    text = "{question: x, arms: {a: {}, b: {model.depth: 3}}, baseline: a, holds: HELD, metrics: {primary: val_loss}}"
    for held, words in (("flops", "training FLOPs"), ("params", "parameters"), ("active_params", "active parameters")):
        Path("mine.yaml").write_text(text.replace("HELD", held))
        with pytest.raises(ConfigError, match=rf"holds {held}, but arm 'a' has [\d,]+ {words} and arm 'b' [\d,]+"):
            plan_trials(load_study("mine.yaml", "smoke"), [])


def test_cumulative_arms_build_on_one_another() -> None:
    arms = "{a: {}, +b: {optimizer.lr: 0.5}, +c: {model.depth: 1}}"
    Path("mine.yaml").write_text(f"{{question: x, cumulative: true, arms: {arms}, baseline: a}}")
    study = load_study("mine.yaml", "smoke")
    assert study.arms == {"a": {}, "+b": {"optimizer.lr": 0.5}, "+c": {"optimizer.lr": 0.5, "model.depth": 1}}


def test_a_scale_narrows_an_axis_and_changes_the_baseline() -> None:
    text = "{question: x, axes: {optimizer.lr: [1, 2, 3]}, baseline: lr=1, scales: {smoke: SMOKE}}"
    Path("mine.yaml").write_text(text.replace("SMOKE", "{axes: {optimizer.lr: [2, 3]}, baseline: lr=3}"))
    study = load_study("mine.yaml", "smoke")
    assert (list(study.arms), study.file.baseline) == (["lr=2", "lr=3"], "lr=3")
    assert list(load_study("mine.yaml", "demo").arms) == ["lr=1", "lr=2", "lr=3"]
    Path("mine.yaml").write_text(text.replace("SMOKE", "{axes: {optimizer.Ir: [2]}}"))
    with pytest.raises(ConfigError, match=r"'scales.smoke.axes' has 'optimizer.Ir'.*'optimizer.lr'"):
        load_study("mine.yaml", "smoke")


def test_free_keys_are_free_under_options_alone() -> None:
    values = compose_mapping(["model.masking.options.rows=2"])
    assert values["model"]["masking"]["options"] == {"rows": 2}
    with pytest.raises(ConfigError, match=r"unknown key 'model\.options\.rows'"):
        compose_mapping(["model.options.rows=2"])


def test_a_diverged_run_is_a_result_if_the_study_sets_it(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study=learning_rate", "scale=smoke", "workers=1", f"cache_dir={cache_dir}", "evaluation.samples=0"]
    assert main(words) == 0
    assert "diverged lr=1e+30_steps=4/seed0" in capsys.readouterr().err
    assert main(words) == 0
    assert "2 finished before, 0 to run" in capsys.readouterr().err, "it would diverge again: not tried again"
    [diverged] = stored_runs(study="learning_rate", query="tags.`microdit.outcome` = 'diverged'")
    assert "step" in diverged.data.tags["microdit.error"]


def test_the_page_on_adding_an_axis_can_be_followed_word_by_word(
    cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Write the page's files and run its commands, in a folder outside the package."""
    from analysis.cli import main as report

    blocks = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    printed = ""
    for language, name, text in blocks:
        if language == "sh":
            for line in text.splitlines():
                command, *words = shlex.split(line)
                quick = [f"cache_dir={cache_dir}", "training.steps=2"] if command == "microdit-sweep" else []
                assert {"microdit-sweep": main, "microdit-report": report}[command]([*words, *quick]) == 0, line
                printed += capsys.readouterr().out
        else:
            (tmp_path / name).write_text(text)
    assert yaml.safe_load((tmp_path / "my_axis.yaml").read_text())["question"] in printed
    for study, arms in (
        ("my_axis", ["caption_dropout=0.0", "caption_dropout=0.1", "caption_dropout=0.3"]),
        ("rows", ["patches", "rows_1", "rows_2"]),
        ("objective", ["edm", "flow"]),
    ):
        [table] = tmp_path.glob(f"results/{study}/smoke/table.md")
        for arm in arms:
            assert arm in table.read_text()
    verdicts = (tmp_path / "results/my_axis/smoke/table.md").read_text()
    assert "some caption dropout is better than none (this study)" in verdicts
