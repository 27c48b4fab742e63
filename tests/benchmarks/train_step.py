r"""Compare the training speed of checkouts and settings, interleaved in one run.

python tests/benchmarks/train_step.py --variant base=OTHER_CHECKOUT --variant new=. \
    --variant "bf16=. training.precision=bf16"

Every variant is a process that runs the checkout's own training loop on random latents and captions. The processes take
turns, one block of steps each, so that a load on the machine slows all of them alike. A variant's ratio is the median
over rounds of the first variant's CPU seconds divided by its own. CPU seconds exclude the time in which other programs
held the core; they equal elapsed time on an idle machine because each process has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

ARMS = {
    "none": ("model.masking.method=none", "model.masking.ratio=0"),
    "naive": ("model.masking.method=naive", "model.masking.ratio=0.75"),
    "deferred": ("model.masking.method=deferred", "model.masking.ratio=0.75"),
}
WARMUP_BLOCKS = 2
IMAGES = 4096
ENDLESS_STEPS = 10**6
BLOCK = ("training.val_every=0", "training.sample_every=0", "training.checkpoint_every=0", "training.ema.start_step=0")


class RandomData:
    """Random latents and caption features, with the interface of an encoded dataset."""

    sigma_data = 0.5
    fingerprint = ""

    def __init__(self, model: Any, tokens: int, images: int = IMAGES) -> None:
        draw = np.random.default_rng(0)
        side = model.input_size
        self.shape = (images, model.in_channels, side, side)
        self._latents = draw.standard_normal(self.shape, np.float32).astype(np.float16)
        self._captions = draw.standard_normal((images, tokens, model.caption_channels), np.float32).astype(np.float16)
        self.targets = SimpleNamespace(fingerprint="", batch=lambda rows: torch.zeros(len(rows), 0, 0))

    def __len__(self) -> int:
        return len(self._latents)

    def stored(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        latents, captions = (torch.from_numpy(array[rows]) for array in (self._latents, self._captions))
        return latents, captions, self.targets.batch(rows)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        latents, captions = (array[rows].astype(np.float32) for array in (self._latents, self._captions))
        return torch.from_numpy(latents), torch.from_numpy(captions)


class Turns:
    """A logger that waits for the next turn whenever a block of steps is done, and reports the block's seconds."""

    def __init__(self) -> None:
        self._begin: float | None = None
        self._faults = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._begin is not None:
            seconds, faults = time.process_time() - self._begin, _page_faults() - self._faults
            print(json.dumps({"seconds": seconds, "faults": faults, "loss": values["train/loss"]}), flush=True)
        if not sys.stdin.readline():
            sys.exit(0)
        self._begin, self._faults = time.process_time(), _page_faults()

    def flush(self) -> None:
        pass


def work(overrides: Sequence[str], scale: str, tokens: int) -> None:
    """Train with the modules of the working directory, one block per line of standard input."""
    from microdit.config.identity import ALGORITHM, training_key
    from microdit.config.schema import Config
    from microdit.pipeline.inputs import build_accelerator
    from microdit.training.checkpoint import Identity
    from microdit.training.trainer import train

    config = Config.preset(scale, overrides)
    data: Any = RandomData(config.model, tokens)
    identity = Identity(training_key(config), ALGORITHM, "")
    train(config, data, data, identity, Turns(), build_accelerator(config))


def work_at_472a175(overrides: Sequence[str], scale: str, tokens: int) -> None:
    """Do the same with the modules' names of the commit that ratios are measured against."""
    from microdit.run import build_accelerator  # type: ignore[import-not-found]
    from microdit.training.loop import train  # type: ignore[import-not-found]
    from sweeps.compose import compose_config  # type: ignore[import-not-found]

    config = compose_config([f"scale={scale}", *overrides])
    data = RandomData(config.model, tokens)
    train(config, data, data, Turns(), build_accelerator(config))


class Variant:
    """A worker process with a checkout and settings."""

    def __init__(self, words: str, arm: str, options: argparse.Namespace, output: Path) -> None:
        name, _, rest = words.partition("=")
        checkout, *changes = rest.split()
        settings = [word for word in changes if "." in word.partition("=")[0]]
        variables = dict(word.split("=", 1) for word in changes if word not in settings)
        root = Path(checkout).resolve()
        overrides = [*BLOCK, f"training.steps={ENDLESS_STEPS}", f"training.log_every={options.steps}", *ARMS[arm]]
        overrides += [f"output_dir={output / name}", *settings]
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--scale", options.scale]
        command += ["--tokens", str(options.tokens), *overrides]
        self.name, self.seconds, self.faults = name, [], []
        self.loss = float("nan")
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._send()  # the block that ends with the first log is start-up

    def _send(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def block(self, timed: bool) -> None:
        """Run one block of steps."""
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        if timed:
            self.seconds.append(answer["seconds"])
            self.faults.append(answer["faults"])
        self.loss = answer["loss"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per arm and variant."""
    rows = []
    for arm in options.arms.split(","):
        with tempfile.TemporaryDirectory() as output:
            variants = [Variant(words, arm, options, Path(output)) for words in options.variant]
            try:
                rows += _rounds(arm, variants, options)
            finally:
                for variant in variants:
                    variant.end()
    return rows


def _rounds(arm: str, variants: list[Variant], options: argparse.Namespace) -> list[dict[str, Any]]:
    for turn in range(WARMUP_BLOCKS + options.rounds):
        order = variants if turn % 2 == 0 else variants[::-1]
        for variant in order:
            if turn:
                variant._send()
            variant.block(turn >= WARMUP_BLOCKS)
    rows = []
    for variant in variants:
        ratios = [first / own for first, own in zip(variants[0].seconds, variant.seconds, strict=True)]
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        rows.append(
            {
                "arm": arm,
                "variant": variant.name,
                "cpu_ms_per_step": 1000 * statistics.median(variant.seconds) / options.steps,
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [quarters[0], quarters[2]],
                "page_faults_per_step": statistics.median(variant.faults) / options.steps,
                "loss": variant.loss,
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'arm':>9s} {'variant':>16s} {'CPU ms':>8s} {'ratio':>6s} {'quartiles':>12s} {'faults':>7s} {'loss':>9s}"
    ]
    for row in rows:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"{row['arm']:>9s} {row['variant']:>16s} {row['cpu_ms_per_step']:8.1f} {row['ratio']:6.3f} "
            f"{low:5.2f}-{high:5.2f} {row['page_faults_per_step']:8.0f} {row['loss']:9.6f}"
        )
    return "\n".join(lines)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _worker() -> Callable[[Sequence[str], str, int], None]:
    return work_at_472a175 if Path("microdit/training/loop.py").is_file() else work


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the training speed of checkouts and settings.")
    parser.add_argument(
        "--variant", action="append", default=[], help="NAME=CHECKOUT [KEY=VALUE or VARIABLE=VALUE ...]"
    )
    parser.add_argument("--arms", default=",".join(ARMS), help="masking methods (default: all three)")
    parser.add_argument("--scale", default="demo")
    parser.add_argument("--tokens", type=int, default=32, help="caption length (default 32)")
    parser.add_argument("--steps", type=int, default=5, help="steps per block (default 5)")
    parser.add_argument("--rounds", type=int, default=30, help="timed blocks per variant (default 30)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker()(options.overrides, options.scale, options.tokens)
    else:
        rows = compare(options)
        print(table(rows))
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
