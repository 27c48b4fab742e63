"""Test that the notebook runs from its first cell to its last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "notebooks" / "first_hour.ipynb"


def test_the_first_hour_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")], "clear its outputs"
    code.append("print(table.to_csv(index=False), deviations)")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "OPTUNA"))}
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)],  # a file would be imported again by the sweep's workers
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = done.stdout[done.stdout.index("training.caption_dropout,") :].splitlines()[1:4]
    assert [float(row.split(",")[0]) for row in rows] == [0.0, 0.1, 0.3]
    assert len({row.split(",")[2] for row in rows}) == 3, "each arm trained differently"
