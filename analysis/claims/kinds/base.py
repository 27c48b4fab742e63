"""Define the role of a claim's kind, and the checks that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from analysis.io.results import Results
from analysis.stats.paired import paired_test
from analysis.stats.power import ALPHA, seeds_needed
from microdit.common.numbers import Estimate
from microdit.common.stores.claims import Claim


@dataclass(frozen=True)
class Check:
    """One comparison or trend of a claim.

    Attributes:
        what: the arms or the axis.
        value: in the metric's units and direction; for a gap, the lead of `arm` over `against`.
        gain: `value` with the sign that supports the claim positive; for not_worse shifted by the margin.
        p: two-sided, for the hypothesis that gain is 0.
        needed: total number of seeds for a significant result; None above power.MAX_SEEDS or if n = 1.
        has_direction: whether the metric's better direction is that of `value`; then its arrow is printed.
    """

    what: str
    metric: str
    value: Estimate
    unit: str
    gain: float
    p: float
    needed: int | None
    detail: str = ""
    has_direction: bool = True

    @property
    def holds(self) -> bool:
        """Return whether the claim is significant at ALPHA in this check."""
        return self.gain > 0 and self.p < ALPHA


class ClaimKind(ABC):
    """A kind of claim: turns a claim into checks.

    A study names a kind of its own by the dotted path of a class derived from this one, as `kind: my_kinds.Below`, and
    lists the module in `plugins`. `microdit-report` imports the module and creates the class without arguments. The
    verdict follows from the checks: reproduced if all hold, contradicted if one is significant in the other direction.
    `analysis.claims.selection` has functions that select arms; `check_of_gains` tests gains by seed.

    Attributes:
        needs: names of fields that a claim of this kind must have. Those of our kinds are in `stores.claims.NEEDS`,
            because `microdit-sweep` checks them. Free settings are in the claim's `options`.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def checks(self, results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
        """Return the checks of a claim.

        Args:
            results: the study's finished runs.
            claim: the claim, of this kind.
            metrics: those of the claim that have values, without `final/`.

        Returns:
            The checks, and why there are none; "" means that the arms share no seed.

        Raises:
            ConfigError: if the claim can't be tested as it is written; it is reported as not tested, for this reason.
        """


def check_of_gains(what: str, metric: str, values: np.ndarray, gains: np.ndarray, detail: str = "") -> Check:
    """Return Student's t test of the hypothesis that the mean gain is 0.

    Args:
        what: the arms, in print.
        metric: the metric, without `final/`.
        values: (seeds,), what is printed, in the metric's units and direction.
        gains: (seeds,), positive if a seed supports the claim.
        detail: printed after the numbers.
    """
    tested = paired_test(gains)
    needed = at_least_one_more(seeds_needed(tested.difference.mean, tested.deviation), tested.n)
    shown = paired_test(values).difference
    return Check(what, metric, shown, "", tested.difference.mean, tested.p, needed, detail)


def at_least_one_more(needed: int | None, have: int) -> int | None:
    """Return at least one seed more than an inconclusive check has.

    Args:
        needed: estimated number of seeds, which may be too low with few seeds; None if it is too large.
        have: number of seeds of the check.
    """
    return None if needed is None else max(needed, have + 1)
