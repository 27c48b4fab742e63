"""Estimate the mutation score of model, diffusion, training loop and statistics from a random sample.

    python tests/mutation.py --margin 0.04 --seed 0

mutmut makes the mutants and finds which tests reach which function (once, into `mutants/`; remove that folder after a
change of the sources). This script then forks one process per mutant from one that has imported all tests. A mutant
runs its quickest tests first; survivors run all others. Verdicts are stored, so an interrupted command resumes.
Error messages are not mutated (pyproject.toml, [tool.mutmut]).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path("mutants")
AREAS = {
    "model": ("microdit/model",),
    "diffusion": ("microdit/diffusion",),
    "training": ("microdit/training",),
    "statistics": ("analysis",),
}
SMALLEST = (
    "microdit.model.cost.flops.*"  # a run of these few mutants makes all of them, and the statistics of the tests
)
QUICK_SECONDS = 10.0  # total time of the tests that a mutant runs first
CANNOT_RUN = (4, 5)  # pytest's codes for a wrong command, such as a conftest that can't be imported, and for no tests
SLOWEST_SECONDS = 200.0  # a mutant that takes longer hangs, and counts as killed


def mutants(area: str) -> list[str]:
    """Return all mutants of `area`."""
    names: list[str] = []
    for root in AREAS[area]:
        for path in sorted((FOLDER / root).rglob("*.meta")):
            names += json.loads(path.read_text())["exit_code_by_key"]
    return sorted(names)


def sample_size(count: int, margin: float) -> int:
    """Return the number of mutants to draw of `count` for a 95% interval of +-`margin` about 90%.

    Normal approximation for a finite set.
    """
    infinite = 1.96**2 * 0.9 * 0.1 / margin**2 if margin else math.inf
    return math.ceil(count * infinite / (infinite + count - 1)) if margin else count


class Tests:
    """Hold which tests reach which function, and their durations."""

    def __init__(self, more: Sequence[str]) -> None:
        stats = json.loads((FOLDER / "mutmut-stats.json").read_text())
        self._seconds = stats["duration_by_test"]
        self._reaching = stats["tests_by_mangled_function_name"]
        self._more = list(more)

    def quickest(self) -> list[str]:
        """Return the quicker half of all tests."""
        return sorted(self._seconds, key=self._seconds.__getitem__)[: len(self._seconds) // 2]

    def of(self, mutant: str) -> tuple[list[str], list[str]]:
        """Return the quickest tests of a mutant, and the others."""
        found = sorted(self._reaching.get(mutant.partition("__mutmut_")[0], ()), key=self._seconds.__getitem__)
        quick, total = list(self._more), 0.0
        for test in found:
            total += self._seconds[test]
            if total > QUICK_SECONDS and len(quick) > 3:
                break
            quick.append(test)
        return quick, [test for test in found if test not in quick]


def survives(mutant: str, tests: Sequence[str]) -> bool:
    """Return whether all `tests` pass in a fork with the mutant switched on."""
    if not tests:
        return True
    child = os.fork()
    if child == 0:
        code = 3
        with contextlib.suppress(BaseException):
            os.environ["MUTANT_UNDER_TEST"] = mutant
            void = os.open(os.devnull, os.O_WRONLY)
            os.dup2(void, 1)
            os.dup2(void, 2)
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", *tests]))
        os._exit(code)
    deadline = time.monotonic() + SLOWEST_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code in CANNOT_RUN:
                raise RuntimeError(f"pytest can't run the tests of {mutant or 'the unmutated code'} (code {code})")
            return code == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run_sample(sample: Sequence[str], verdicts: Path, tests: Tests, again: bool) -> dict[str, bool]:
    """Return whether each mutant of the sample survives."""
    known: dict[str, bool] = json.loads(verdicts.read_text()) if verdicts.is_file() else {}
    missing = [name for name in sample if name not in known or (again and known[name])]
    if missing:
        import pytest

        home = Path.cwd()
        os.chdir(FOLDER)
        sys.path.insert(0, str(Path.cwd()))
        pytest.main(["--collect-only", "-qqq"])
        if not survives("", tests.quickest()):
            raise RuntimeError("the tests fail on unmutated code, so verdicts would mean nothing")
        for name in missing:
            quick, others = tests.of(name)
            known[name] = survives(name, quick) and survives(name, others)
            (home / verdicts).write_text(json.dumps(known, indent=0))
        os.chdir(home)
    return {name: known[name] for name in sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margin", type=float, default=0.04, help="half width of each area's interval; 0 runs all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=[*AREAS])
    parser.add_argument("--again", action="store_true", help="run survivors again, after tests were added")
    parser.add_argument("--also", nargs="+", default=[], help="tests that are newer than `mutants/`")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MICRODIT_TEST_CACHE": str((FOLDER / "cache").resolve())}
    if not (FOLDER / "mutmut-stats.json").is_file():
        subprocess.run(["mutmut", "run", SMALLEST], check=True)
    killed_of_all = run_of_all = 0
    for area in given.areas:
        names = mutants(area)
        sample = random.Random(given.seed).sample(names, sample_size(len(names), given.margin))
        found = run_sample(sample, FOLDER / f"verdicts-{area}-{given.seed}.json", Tests(given.also), given.again)
        survivors = [name for name, alive in found.items() if alive]
        killed = len(found) - len(survivors)
        killed_of_all, run_of_all = killed_of_all + killed, run_of_all + len(found)
        print(f"{area}: {killed} of {len(found)} killed ({killed / len(found):.1%}); {len(names)} mutants in all")
        print(*(f"    {name}" for name in sorted(survivors)), sep="\n", flush=True)
    print(f"overall: {killed_of_all} of {run_of_all} killed ({killed_of_all / run_of_all:.1%})")


if __name__ == "__main__":
    main()
