"""Test verdicts on planted effects: present, reversed, or pure seed noise."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from planted import METRICS, Score, results

from analysis.claims import selection
from analysis.claims import verdicts as verdict
from analysis.claims.paper_values import facts, trust_meaning
from analysis.claims.selection import all_claims
from analysis.claims.verdicts import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, REPRODUCED, line, verdicts
from analysis.io.results import Results
from analysis.io.study import study_of
from microdit.common.contract import Tag
from microdit.common.errors import ConfigError
from microdit.common.parsing import flatten
from microdit.common.stores.claims import parse_claim

METHOD, RATIO = "model.masking.method", "model.masking.ratio"
MASKED = {
    f"{method}_{ratio}": {METHOD: method, RATIO: ratio} for method in ("naive", "deferred") for ratio in (0.5, 0.75)
}
Arms = Mapping[str, Mapping[str, Any]]


def masked(settings: Mapping[str, Any]) -> float:
    """Score naive masking worse, and more so at 75%."""
    return 40 * settings[RATIO] ** 2 * (settings[METHOD] == "naive")


def words(found: Results) -> list[str]:
    return [one.word for one in verdicts(found)]


def axis(key: str, values: list[Any], **others: Any) -> Arms:
    return {f"arm{i}": {key: value} | others for i, value in enumerate(values)}


def maskdit(settings: Mapping[str, Any]) -> float:
    return 50 * max(0.0, settings[RATIO] - 0.5)


DEFERRED = {METHOD: "deferred", RATIO: 0.75}
BETAS = {f"b{i}": {"optimizer.beta2": value} for i, value in enumerate((0.9, 0.95, 0.99, 0.999))}
SCHEDULE = "model.ffn_width.schedule"
MEAN, STD = "diffusion.p_mean", "diffusion.p_std"
AGAINST = {name: {METHOD: "none", RATIO: 0.0} for name in ("small", "fewer_steps")} | {"masked": DEFERRED}
# Per study: arms, a score that supports its first claim (lower is better), and the verdicts on all its claims.
PLANTED: list[tuple[str, Arms, Score, list[str]]] = [
    ("masking_ratio", MASKED, masked, [REPRODUCED, REPRODUCED, NOT_TESTED]),
    (
        "masking_ratio",
        {f"m{ratio}": {METHOD: "maskdit", RATIO: ratio} for ratio in (0.5, 0.75, 0.875)},
        maskdit,
        [NOT_TESTED, NOT_TESTED, REPRODUCED],
    ),
    (
        "mask_granularity",
        axis("model.masking.block_size", [1, 2, 4, 8], **DEFERRED),
        lambda s: 8 * s["model.masking.block_size"],
        [REPRODUCED],
    ),
    (
        "ffn_activation",
        axis("model.ffn.type", ["gelu", "swiglu"]),
        lambda s: 9.0 * (s["model.ffn.type"] == "gelu"),
        [REPRODUCED],
    ),
    (
        "weight_decay",
        axis("optimizer.weight_decay", [0.0, 0.01, 0.03, 0.1]),
        lambda s: -200 * s["optimizer.weight_decay"],
        [REPRODUCED],
    ),
    ("adamw_beta2", BETAS, lambda s: -100 * s["optimizer.beta2"], [REPRODUCED]),
    (
        "learning_rate",
        axis("optimizer.lr", [1e-4, 2e-4, 4e-4, 8e-4], **{"training.steps": 100, "training.batch_size": 8}),
        lambda s: -5 * np.log2(s["optimizer.lr"]),
        [REPRODUCED],
    ),
    (
        "layerwise_scaling",
        axis(SCHEDULE, ["layerwise", "constant"]),
        lambda s: 9.0 * (s[SCHEDULE] == "constant"),
        [REPRODUCED],
    ),
    ("noise_distribution", axis(MEAN, [-0.6, -1.2], **{STD: 1.2}), lambda s: -9 * s[MEAN], [REPRODUCED]),
    ("moe", axis("model.experts.every_n", [0, 2]), lambda s: -9 * s["model.experts.every_n"], [REPRODUCED]),
    ("masking_vs_downscaling", AGAINST, lambda s: 30 * (s[METHOD] == "none"), [REPRODUCED, CONTRADICTED]),
    ("masking_vs_downscaling_time", AGAINST, lambda s: 30 * (s[METHOD] == "none"), [REPRODUCED]),
    ("micro_budget", axis("model.depth", [4, 5, 6]), lambda s: -9.0 * s["model.depth"], [REPRODUCED]),
]


@pytest.mark.parametrize(("study", "arms", "score", "expected"), PLANTED)
def test_a_planted_effect_is_found_and_its_reversal_contradicts(
    study: str, arms: Arms, score: Score, expected: list[str]
) -> None:
    assert words(results(study, arms, score, seeds=5)) == expected
    reverse = words(results(study, arms, lambda settings: -score(settings), seeds=5))
    for word, was in zip(reverse, expected, strict=True):
        assert word == {REPRODUCED: CONTRADICTED, CONTRADICTED: REPRODUCED}.get(was, was)


def test_every_study_of_the_paper_has_a_claim_that_is_tested_above() -> None:
    tested = {study for study, *_ in PLANTED} | {"mixer_size", "unmasked_finetune", "masking_vs_downscaling_time"}
    ours = {"micro_budget", "masking_vs_downscaling_time"}
    assert tested == set(all_claims()) == set(facts()["studies"]) | ours


def test_a_larger_mixer_is_one_with_more_parameters() -> None:
    arms = {name: DEFERRED | {"model.mixer.depth": depth} for name, depth in (("a", 1), ("b", 2), ("c", 4), ("d", 6))}
    params = {name: 1e6 * settings["model.mixer.depth"] for name, settings in arms.items()}
    found = results("mixer_size", arms, lambda s: -5 * s["model.mixer.depth"], params=params)
    assert words(found) == [REPRODUCED]
    assert "Page's L, rho" in line(found, verdicts(found)[0])


def test_an_unmasked_tail_is_compared_under_the_same_masking() -> None:
    arms = {
        f"{method}_{tail}": {METHOD: method, "model.masking.ratio": 0.75, "training.unmasked_tail": tail}
        for method in ("naive", "deferred")
        for tail in (0.0, 0.1)
    }
    worse = {"naive": 50.0, "deferred": 0.0}  # more than any tail gains
    found = results("unmasked_finetune", arms, lambda s: worse[s[METHOD]] - 90 * s["training.unmasked_tail"], seeds=5)
    assert words(found) == [REPRODUCED]


@pytest.mark.parametrize(("study", "arms", "score", "expected"), PLANTED[:1] + PLANTED[3:5])
def test_seed_noise_is_inconclusive_with_the_number_of_seeds_needed(
    study: str, arms: Arms, score: Score, expected: list[str]
) -> None:
    found = results(study, arms, lambda settings: 0.0, seeds=3)
    first = verdicts(found)[0]
    assert first.word == INCONCLUSIVE
    assert "seeds needed)" in line(found, first)
    needed = [check.needed for check in first.checks if not check.holds]
    assert all(n is None or n > 3 for n in needed)


def test_seeds_needed_are_enough() -> None:
    """An effect of one standard deviation needs ten seeds; four estimate about as many."""

    def score(settings: Mapping[str, Any]) -> float:
        return 2.0**0.5 * (settings["model.ffn.type"] == "gelu")

    def found(rng: int, seeds: int) -> verdict.Verdict:
        planted = results("ffn_activation", PLANTED[3][1], score, seeds, rng=rng, metrics=["clip_fd"])
        return verdicts(planted)[0]

    assert np.mean([found(rng, 10).word == REPRODUCED for rng in range(120)]) == pytest.approx(0.8, abs=0.11)
    few = [one for one in (found(rng, 4) for rng in range(100)) if one.word == INCONCLUSIVE]
    assert 30 < len(few) < 95
    assert 6 <= np.median([101 if (n := one.checks[0].needed) is None else n for one in few]) <= 30


def test_seed_noise_alone_is_rarely_a_verdict() -> None:
    """A claim on one metric has an error rate of 2.5% in each direction."""
    arms = PLANTED[8][1]
    seen = []
    for rng in range(300):
        planted = results("noise_distribution", arms, lambda s: 0.0, seeds=3, rng=rng, metrics=["clip_score"])
        seen += words(planted)
    for word in (REPRODUCED, CONTRADICTED):
        assert seen.count(word) / 300 < 0.025 + 3.5 * (0.025 * 0.975 / 300) ** 0.5


def test_one_seed_is_inconclusive_and_has_no_p() -> None:
    found = results("ffn_activation", PLANTED[3][1], PLANTED[3][2], seeds=1)
    first = verdicts(found)[0]
    assert first.word == INCONCLUSIVE
    text = line(found, first)
    assert "**inconclusive** (n=1 is not enough)" in text
    assert "no p, n=1" in text


def test_one_ratio_in_the_other_direction_contradicts_the_claim() -> None:
    def score(settings: Mapping[str, Any]) -> float:
        return masked(settings) if settings[RATIO] == 0.75 else -masked(settings)

    found = results("masking_ratio", MASKED, score)
    first = verdicts(found)[0]
    assert first.word == CONTRADICTED
    text = line(found, first)
    assert "holds in 3 of 6 checks; deferred_0.5 against naive_0.5: " in text


def test_one_metric_short_of_significance_is_inconclusive() -> None:
    found = results("ffn_activation", PLANTED[3][1], PLANTED[3][2])
    rng = np.random.default_rng(0)
    found.frame["final/clip_score"] = rng.normal(size=len(found.frame))
    first = verdicts(found)[0]
    assert [check.holds for check in first.checks] == [True, True, False]
    assert first.word == INCONCLUSIVE
    assert "CLIP score" in line(found, first)


def test_names_of_arms_do_not_matter() -> None:
    renamed = {f"x{i}": settings for i, settings in enumerate(MASKED.values())}
    assert words(results("masking_ratio", renamed, masked)) == words(results("masking_ratio", MASKED, masked))


def test_only_arms_of_one_ratio_are_pairs() -> None:
    pairs = selection.pairs(results("masking_ratio", MASKED, masked), all_claims()["masking_ratio"][0])
    assert pairs == [("deferred_0.5", "naive_0.5"), ("deferred_0.75", "naive_0.75")]


def test_what_a_scale_lacks_is_not_tested_here() -> None:
    found = results("masking_ratio", {"none": {METHOD: "none", RATIO: 0.0}, "naive_75": MASKED["naive_0.75"]}, masked)
    texts = [line(found, one) for one in verdicts(found)]
    assert all("**not tested here**" in text for text in texts)
    assert "no arm with model.masking.method=deferred" in texts[0]
    without = results("ffn_activation", PLANTED[3][1], PLANTED[3][2], metrics=["clip_fd"])
    assert line(without, verdicts(without)[0]).endswith("Not tested: fd, clip_score.")
    assert "no run has" in verdicts(results("moe", {"a": {}}, lambda s: 0.0, metrics=["val_loss"]))[0].why
    assert verdicts(results("my_axis", {"a": {}}, lambda s: 0.0)) == []


def test_not_worse_needs_the_interval_within_the_margin() -> None:
    """Means are near 100, so the margin is 5 for distances and 1 for CLIP score."""
    arms = {"base": {"k": 0.0}, "more": {"k": 1.0}}
    for loss, noise, word in ((0.1, 0.1, REPRODUCED), (0.1, 4.0, INCONCLUSIVE), (9.0, 0.1, CONTRADICTED)):
        found = results("micro_budget", arms, lambda s, loss=loss: loss * s["k"], noise=noise)
        assert words(found) == [word]
        assert "more against base" in line(found, verdicts(found)[0])
    worse_but_little = results("micro_budget", arms, lambda s: 0.5 * s["k"], noise=0.01)
    assert words(worse_but_little) == [REPRODUCED]


def test_a_verdict_has_its_source_and_trust_level() -> None:
    found = results("masking_vs_downscaling", AGAINST, lambda s: 30 * (s[METHOD] == "none"))
    texts = [line(found, one) for one in verdicts(found)]
    assert "(trust: notes): **reproduced**" in texts[0]
    assert "(an independent 2025 report on the released code, trust: notes): **contradicted**" in texts[1]
    table = verdict.table(verdicts(found))
    assert table["verdict"].tolist() == [REPRODUCED] * 3 + [CONTRADICTED] * 3
    assert table["seeds_needed"][:3].isna().all()


def test_claims_use_existing_keys_and_trust_levels() -> None:
    base = yaml.safe_load((Path(__file__).parents[3] / "experiments" / "base.yaml").read_text(encoding="utf-8"))
    keys = set(flatten(base))
    for listed in all_claims().values():
        for claim in listed:
            assert trust_meaning(claim.trust)
            assert set(claim.metrics) <= set(METRICS)
            used = {*claim.arm, *claim.against, *claim.where, *claim.same, claim.axis} - {"", "arm"}
            for key in used:
                assert key in keys or key.startswith("cost/") or key.rpartition(".")[0] in keys, key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kidn": "better"}, "unknown key 'kidn'; did you mean 'kind'?"),
        ({"kind": "beter"}, "did you mean 'better'?"),
        ({"kind": "trend"}, "a claim of kind trend needs 'axis'"),
        ({"trust": ""}, "'trust' is missing"),
        ({"arm": {"model.depth": {"abov": 1}}}, "unknown condition 'abov'; did you mean 'above'?"),
    ],
)
def test_an_invalid_claim_is_rejected(changes: dict[str, Any], message: str) -> None:
    good = {"text": "t", "trust": "summary", "kind": "better", "metrics": ["fd"], "arm": {"a": 1}, "against": {"a": 2}}
    assert parse_claim(good, "claims.yaml").text == "t"
    with pytest.raises(ConfigError, match=r"claims\.yaml, 't'") as caught:
        parse_claim(good | changes, "claims.yaml")
    assert message in str(caught.value)


LAUNCH = SimpleNamespace(
    data=SimpleNamespace(tags={Tag.STUDY: "mine", Tag.SCALE: "demo"}), info=SimpleNamespace(run_id="r")
)
OWN = {"text": "b beats a", "kind": "better", "metrics": ["fd"], "arm": {"arm": "b"}, "against": {"arm": "a"}}


def test_claims_in_a_studys_own_yaml_are_judged() -> None:
    study = study_of(
        {"claims": [OWN, OWN | {"text": "a beats b", "arm": {"arm": "a"}, "against": {"arm": "b"}}]}, LAUNCH
    )
    found = results("mine", {"a": {"x": 1}, "b": {"x": 2}}, lambda s: -9.0 * s["x"], noise=0.0)
    own = dataclasses.replace(found, study=dataclasses.replace(found.study, claims=study.claims))
    first, second = verdicts(own)
    assert (first.word, second.word) == (REPRODUCED, CONTRADICTED)
    assert line(own, first).startswith("b beats a (this study): **reproduced**: b against a: -9.000 [")
    assert verdicts(found) == []
    assert study_of({}, LAUNCH).claims == ()


def test_a_margin_of_another_kind_is_rejected() -> None:
    """A margin of 50% would turn a loss into a gain."""
    with pytest.raises(ConfigError, match="a claim of kind better has no 'margin'; kind not_worse allows a difference"):
        study_of({"claims": [OWN | {"margin": {"fd": 0.5}}]}, LAUNCH)


def test_a_stored_claim_that_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match=r"study\.yaml, 'b beats a': 'kind' is 'beter'; did you mean 'better'"):
        study_of({"claims": [OWN | {"kind": "beter"}]}, LAUNCH)


def the_first_line(study: str, arms: Arms, score: Score, **changes: Any) -> str:
    found = results(study, arms, score, noise=0.0, **changes)
    return line(found, verdicts(found)[0])


def test_the_line_of_one_comparison_on_one_metric() -> None:
    """Without seed noise all differences are equal: zero width, and p is 0."""
    text = the_first_line("ffn_activation", PLANTED[3][1], PLANTED[3][2], metrics=["clip_fd"])
    assert text == (
        "SwiGLU beats GELU (trust: summary): **reproduced**: arm1 against arm0: -9.000 [-9.000, -9.000] CLIP-FD ↓, "
        "p < 0.0001, n=4. Not tested: fd, clip_score."
    )


def test_the_line_of_a_trend_has_its_test_and_steps() -> None:
    blocks = axis("model.masking.block_size", [1, 2, 4, 8], **DEFERRED)
    text = the_first_line("mask_granularity", blocks, PLANTED[2][2])  # 8, 16, 32, 64: 18.4 per doubling
    assert text == (
        "larger contiguous masked blocks are worse (trust: summary): **reproduced**: holds in 3 of 3 checks; "
        "trend over masking block size: +18.400 [18.400, 18.400] FD ↓ per doubling, p < 0.0001, n=4, "
        "Page's L, rho 1.00, 3 of 3 steps in that direction."
    )


def test_groups_of_a_trend_are_named_if_there_are_several() -> None:
    arms = {
        f"{method}{size}": {METHOD: method, RATIO: 0.75, "model.masking.block_size": size}
        for method in ("naive", "deferred")
        for size in (1, 2, 4)
    }
    found = results("mask_granularity", arms, lambda s: 8 * s["model.masking.block_size"], metrics=["fd"])
    first = verdicts(found)[0]
    assert [check.what for check in first.checks] == [
        f"trend over masking block size at masking method {method}, masking ratio 0.75"
        for method in ("naive", "deferred")
    ]


def test_a_gap_has_no_direction_of_its_own() -> None:
    found = results("masking_ratio", MASKED, masked, noise=0.0, metrics=["fd"])
    gap = verdicts(found)[1]
    assert line(found, gap).startswith(f"{gap.claim.text} (trust: {gap.claim.trust}): **reproduced**: gap over masking")
    assert " FD per unit, " in line(found, gap)


def test_every_column_of_the_table_of_verdicts() -> None:
    found = results("ffn_activation", PLANTED[3][1], PLANTED[3][2], metrics=["clip_fd"])
    one = verdicts(found)[0]
    [row] = verdict.table([one]).to_dict("records")
    [check] = one.checks
    assert row == {
        "claim": "SwiGLU beats GELU",
        "trust": "summary",
        "source": "",
        "section": one.claim.section,
        "kind": "better",
        "verdict": REPRODUCED,
        "check": "arm1 against arm0",
        "metric": "clip_fd",
        "n": 4,
        "value": check.value.mean,
        "low": check.value.low,
        "high": check.value.high,
        "unit": "",
        "p": check.p,
        "holds": True,
        "detail": "",
        "seeds_needed": None,
    }
    open_ = verdicts(results("ffn_activation", PLANTED[3][1], lambda s: 0.4 * PLANTED[3][2](s) / 9.0, seeds=3))[0]
    needed = verdict.table([open_])["seeds_needed"].tolist()
    assert needed == pytest.approx([check.needed or np.nan for check in open_.checks], nan_ok=True)
    nothing = verdicts(results("ffn_activation", {"a": {"model.ffn.type": "gelu"}}, lambda s: 0.0))
    assert verdict.table(nothing)["detail"].tolist() == ["no arm with model.ffn.type=swiglu"]


@pytest.mark.parametrize(
    ("study", "arms", "why"),
    [
        ("micro_budget", {"a": {"model.depth": 4}}, "fewer than two arms"),
        (
            "masking_ratio",
            {"a": {METHOD: "naive", RATIO: 0.5}, "b": {METHOD: "deferred", RATIO: 0.75}},
            "no two arms with the same model.masking.ratio",
        ),
        (
            "weight_decay",
            axis("optimizer.weight_decay", [0.1]),
            "fewer than two values of optimizer.weight_decay per seed",
        ),
        (
            "mask_granularity",
            axis("model.masking.block_size", [2], **DEFERRED),
            "fewer than two values of model.masking.block_size per seed among arms with model.masking.ratio above 0",
        ),
    ],
)
def test_why_a_claim_is_not_tested(study: str, arms: Arms, why: str) -> None:
    found = results(study, arms, lambda settings: 0.0)
    first = verdicts(found)[0]
    assert line(found, first) == f"{first.claim.text} (trust: {first.claim.trust}): **not tested here**: {why}."
