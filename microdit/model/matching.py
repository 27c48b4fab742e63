"""A constant-width network that costs as much as a layer-wise one, so that a study compares shapes, not sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from microdit.errors import ConfigError
from microdit.model import cost
from microdit.model.config import DiTConfig
from microdit.model.widths import WidthConfig

TOLERANCE = 0.01


def match_constant(
    config: DiTConfig, hold: Literal["params", "flops"] = "params", text_tokens: int = cost.TEXT_TOKENS
) -> DiTConfig:
    """The constant-width twin of `config`, equal in parameters or in training FLOPs within 1%.

    Attention takes the mean of the schedule's ratios (in whole heads), and the feed-forward's ratio is then solved for.
    Raises ConfigError where rounding leaves nothing within the tolerance.
    """
    measure = _measure(hold, text_tokens)
    wanted = measure(config)
    heads = config.width // config.head_dim
    mean = sum(config.attn_width.ratios(config.depth)) / config.depth
    best: DiTConfig | None = None
    for count in sorted(range(1, heads + 1), key=lambda n: abs(n / heads - mean)):
        ratio = count / heads
        attention = WidthConfig("constant", ratio, ratio, config.attn_width.multiple_of)
        candidate = _solve_ffn(replace(config, attn_width=attention), measure, wanted)
        if best is None or abs(measure(candidate) - wanted) < abs(measure(best) - wanted):
            best = candidate
        if abs(measure(best) - wanted) <= TOLERANCE * wanted:
            return best
    assert best is not None
    raise ConfigError(
        f"no constant width matches {wanted:,} {hold} within {TOLERANCE:.0%}; the nearest has {measure(best):,} "
        "(a smaller 'model.ffn_width.multiple_of' gives finer steps)"
    )


def _measure(hold: str, text_tokens: int) -> Callable[[DiTConfig], int]:
    if hold == "params":
        return cost.parameters
    if hold == "flops":
        return lambda config: cost.training_flops(config, text_tokens)
    raise ConfigError(f"'hold' is '{hold}'; it must be params or flops")


def _solve_ffn(config: DiTConfig, measure: Callable[[DiTConfig], int], wanted: int) -> DiTConfig:
    """Bisects the constant feed-forward ratio; cost never falls as it grows."""

    def at(ratio: float) -> DiTConfig:
        width = WidthConfig("constant", ratio, ratio, config.ffn_width.multiple_of)
        return replace(config, ffn_width=width)

    low, high = 1 / config.width, 2 * max(config.ffn_width.start, config.ffn_width.end)
    while (high - low) * config.width > 0.5:  # finer steps change no width
        middle = (low + high) / 2
        if measure(at(middle)) < wanted:
            low = middle
        else:
            high = middle
    best = min(low, high, key=lambda ratio: abs(measure(at(ratio)) - wanted))
    short = (at(round(best, digits)) for digits in (2, 3, 4) if round(best, digits) > 0)
    return next((twin for twin in short if measure(twin) == measure(at(best))), at(best))
