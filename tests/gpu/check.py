"""Check a GPU in ten minutes: correctness, speed, memory and a short study (`make gpu-check`).

python tests/gpu/check.py [CHECK ...] [--minutes 10] [--out runs/gpu_check] [--dry-run]

A check is a set of tests that runs in a process of its own and within its own time, so that a failure, a lack of memory
or a hang ends that check only. Checks of correctness share the GPU; those that measure have it alone. After each check
gpu_check.json and gpu_check.md are written. The exit status is 0 if all checks passed, 1 if one did not, 2 without a
GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
AT_ONCE = 3  # checks that share the GPU
PASSED, FAILED, SKIPPED, UNFINISHED = "passed", "failed", "skipped", "unfinished"


@dataclass(frozen=True)
class Check:
    """Tests that run in one process."""

    title: str
    words: tuple[str, ...]  # for pytest
    seconds: float  # at most
    alone: bool = False  # nothing else may run


def _tests(name: str, *words: str) -> tuple[str, ...]:
    return str(HERE / f"test_gpu_{name}.py"), *words


def _elsewhere() -> tuple[str, ...]:
    """Return the files outside this folder that have tests of the GPU."""
    files = sorted(HERE.parent.glob("*/**/test_*.py"))
    marked = [file for file in files if file.parent != HERE and "pytest.mark.gpu" in file.read_text(encoding="utf-8")]
    return tuple(map(str, marked))


CHECKS = {
    "parity": Check("outputs, gradients and samples agree with the reference", _tests("parity"), 120),
    "feed": Check("batches on the GPU have the values of the stored data", _tests("feed"), 90),
    "resume": Check("a killed run resumes to the same weights", _tests("resume"), 120),
    "compilation": Check("training compiles into one graph", _tests("compilation"), 150),
    "synchronization": Check("training steps don't wait for the GPU", _tests("synchronization"), 90),
    "others": Check("other tests marked gpu", _elsewhere(), 150),
    "memory": Check("a step allocates what is estimated", _tests("memory"), 90, alone=True),
    "study": Check("a short study and its report", _tests("study"), 150, alone=True),
    "throughput": Check("share of the matmul peak", _tests("throughput", "-k", "not 0.5"), 300, alone=True),
    "throughput_50": Check("speed at 50% masking", _tests("throughput", "-k", "0.5 or 0.0"), 200, alone=True),
}


@dataclass(frozen=True)
class Options:
    """How checks run."""

    dry_run: bool  # on the CPU at small sizes
    deadline: float  # in seconds of time.monotonic()
    out: Path
    at_once: int = AT_ONCE


class Recorder:
    """Append one JSON line to a file when a test starts, and one when it has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failures: dict[str, str] = {}
        self._skipped: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        self._write({"test": nodeid, "outcome": UNFINISHED})

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._failures.setdefault(report.nodeid, report.longreprtext)
        elif report.skipped:
            self._skipped.add(report.nodeid)
            self._failures.pop(report.nodeid, None)
        if report.when != "teardown":
            return
        failure = self._failures.get(report.nodeid)
        outcome = FAILED if failure else SKIPPED if report.nodeid in self._skipped else PASSED
        figures = dict(report.user_properties)
        self._write({"test": report.nodeid, "outcome": outcome, "figures": figures, "message": failure or ""})

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._write({"test": report.nodeid, "outcome": FAILED, "message": report.longreprtext})

    def _write(self, row: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def run_tests(words: Sequence[str], record: Path) -> int:
    """Run tests in this process; return pytest's exit status."""
    import pytest

    fixed = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}"]
    return int(pytest.main([*words, *fixed], plugins=[Recorder(record)]))


def run_check(name: str, check: Check, options: Options) -> dict[str, Any]:
    """Run a check in its own process, and kill the process and its children if they take too long."""
    limit = min(check.seconds, options.deadline - time.monotonic())
    result: dict[str, Any] = {"check": name, "title": check.title, "outcome": UNFINISHED, "seconds": 0.0, "tests": []}
    if limit <= 0:
        return result | {"message": "no time was left"}
    if not check.words:
        return result | {"outcome": SKIPPED, "message": "there are no such tests"}
    begin = time.monotonic()
    log = options.out / f"{name}.log"
    words = [*check.words, "-m", "not gpu" if options.dry_run else "gpu"]
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        record = Path(folder) / "tests.jsonl"
        process = subprocess.Popen(
            [sys.executable, str(HERE / "check.py"), "--child", json.dumps(words), "--record", str(record)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        tests = _last_of_each(record)
    message = (
        f"ended after its {limit:.0f} s" if code is None else "" if code == 0 else f"exit status {code}; see {log}"
    )
    result |= {"seconds": time.monotonic() - begin, "tests": tests, "message": message}
    return result | {"outcome": _outcome(tests, code)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the processes that a check has left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_of_each(record: Path) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for line in record.read_text(encoding="utf-8").splitlines() if record.is_file() else []:
        row = json.loads(line)
        rows[row["test"]] = row
    return list(rows.values())


def _outcome(tests: Sequence[dict[str, Any]], code: int | None) -> str:
    """Return a check's outcome: passed only if its process ended well and no test failed; some may be skipped."""
    outcomes = {test["outcome"] for test in tests}
    if FAILED in outcomes or code not in (0, None):
        return FAILED
    if code is None or UNFINISHED in outcomes:
        return UNFINISHED
    return PASSED if PASSED in outcomes else SKIPPED


def run_checks(checks: Mapping[str, Check], options: Options) -> list[dict[str, Any]]:
    """Run checks, those that share the GPU first, and write the results after each."""
    results: dict[str, dict[str, Any]] = {}
    facts = hardware()
    shared = {name: check for name, check in checks.items() if not check.alone}

    def done(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        write(options.out, facts, [results[key] for key in checks if key in results], len(checks))
        print(f"{result['outcome']:>10s} {result['seconds']:6.1f} s  {name}: {result['title']}", flush=True)

    with ThreadPoolExecutor(options.at_once) as pool:
        running: dict[Future[dict[str, Any]], str] = {
            pool.submit(run_check, name, check, options): name for name, check in shared.items()
        }
        for future in as_completed(running):
            done(running[future], future.result())
    for name, check in checks.items():
        if check.alone:
            done(name, run_check(name, check, options))
    return [results[name] for name in checks]


def hardware() -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch
    from harness import environment

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = environment(device)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts |= {"memory_gb": found.total_memory / 1e9, "cuda": torch.version.cuda}
        facts |= {"capability": f"{found.major}.{found.minor}", "cudnn": torch.backends.cudnn.version()}
    return facts


def write(out: Path, facts: dict[str, Any], results: Sequence[dict[str, Any]], count: int) -> None:
    """Write results as JSON and as a page."""
    from microdit.common.files.atomic import write_text

    complete = len(results) == count
    passed = complete and all(result["outcome"] == PASSED for result in results)
    document = {"passed": passed, "complete": complete, "environment": facts, "checks": list(results)}
    write_text(out / "gpu_check.json", json.dumps(document, indent=1) + "\n")
    write_text(out / "gpu_check.md", page(document, count))


def page(document: dict[str, Any], count: int) -> str:
    """Return the results as Markdown."""
    checks = document["checks"]
    state = "passed" if document["passed"] else "not passed" if document["complete"] else "incomplete"
    lines = [f"# GPU check: {state}", "", *(f"- {name}: {value}" for name, value in document["environment"].items())]
    good = sum(check["outcome"] == PASSED for check in checks)
    lines += ["", f"{good} of {count} checks passed.", "", "| check | outcome | seconds | |", "|---|---|---|---|"]
    for check in checks:
        note = check["message"] or check["title"]
        lines.append(f"| {check['check']} | {check['outcome']} | {check['seconds']:.0f} | {note} |")
    lines += ["", "## Figures", "", "| check | case | figure | value | target | |", "|---|---|---|---|---|---|"]
    for check in checks:
        for test in check["tests"]:
            case = test["test"].partition("[")[2].removesuffix("]")
            for name, figure in test.get("figures", {}).items():
                lines.append(f"| {check['check']} | {case} | {name} | {_value(figure['value'])} | {_target(figure)} |")
    for check in checks:
        for test in check["tests"]:
            if test["outcome"] not in (PASSED, SKIPPED):
                message = (test.get("message") or "it had not ended")[-2000:]
                lines += ["", f"## {test['outcome']}: {test['test']}", "", "```", message, "```"]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _target(figure: dict[str, Any]) -> str:
    low, high, value = figure["at_least"], figure["at_most"], figure["value"]
    if low is None and high is None:
        return " | "
    words = " to ".join(f"{limit:g}" for limit in (low, high) if limit is not None and low != high) or f"{low:g}"
    kind = "" if low is not None and high is not None else "at least " if high is None else "at most "
    met = (low is None or value >= low) and (high is None or value <= high)
    return f"{kind}{words} | {'' if met else '**missed**'}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks and print where the page is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(CHECKS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all checks (default 10)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="folder of the results")
    parser.add_argument(
        "--dry-run", action="store_true", help="run on the CPU at small sizes, without targets of speed"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.child:
        return run_tests(json.loads(options.child), options.record)
    for name in options.checks:
        if name not in CHECKS:
            parser.error(f"there is no check '{name}'; choose from {', '.join(CHECKS)}")
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print(
            "gpu-check: no CUDA device is visible; --dry-run runs the checks on the CPU at small sizes", file=sys.stderr
        )
        return 2
    begin = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = Options(
        options.dry_run, begin + 60 * options.minutes, options.out.resolve(), 1 if options.dry_run else AT_ONCE
    )
    # the default suite runs the other files' tests without a GPU
    skipped = not CHECKS["others"].words or options.dry_run
    names = options.checks or [name for name in CHECKS if not (name == "others" and skipped)]
    results = run_checks({name: CHECKS[name] for name in names}, settings)
    good = sum(result["outcome"] == PASSED for result in results)
    print(f"{good} of {len(results)} checks passed in {time.monotonic() - begin:.0f} s: {options.out / 'gpu_check.md'}")
    return 0 if good == len(results) else 1


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(HERE.parent / "benchmarks")]
    sys.exit(main())
