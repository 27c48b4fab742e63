"""Train each given config.yaml and record its curve; torchrun starts this script in multi-process tests.

torchrun --nproc-per-node 2 several.py A/config.yaml B/config.yaml
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from microdit.common.process.distributed import destroy_process_group
from microdit.config.schema import load_config
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run


class Curve(NullLogger):
    """Write every step's metrics to `curve.json` in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "curve.json"
        self.values: dict[str, dict[str, float]] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.values.setdefault(str(step), {}).update(values)

    def finish(self, status: str) -> None:
        self.path.write_text(json.dumps(self.values))


def main() -> None:
    for path in sys.argv[1:]:
        config = load_config(path)
        run(config, Curve(Path(config.output_dir)))
    destroy_process_group()


if __name__ == "__main__":
    main()
