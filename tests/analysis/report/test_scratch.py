"""What a killed report left behind is removed by the next one; what a live one writes is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from analysis.report.scratch import scratch_folder, sweep

WRITER = """
import sys, time
from pathlib import Path
from analysis.report.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1]), "report") as folder:
    (folder / "half").write_text("a")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_dead_writers_folder_is_swept_and_a_live_ones_is_not(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        [left] = tmp_path.iterdir()
        with scratch_folder(tmp_path, "report") as own:
            assert sweep(tmp_path) == []
            assert own.is_dir()
        assert (left / "half").is_file()
    finally:
        writer.kill()
        writer.wait()
    assert sweep(tmp_path) == [left]
    assert list(tmp_path.iterdir()) == []


def test_older_leftovers_are_swept_by_age_and_nothing_of_the_users_is(tmp_path: Path) -> None:
    for name in (".report.ab12cd34", ".report.zzzzzzzz", ".mine.ab12cd34"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.md").write_text("x")
    (tmp_path / ".report.html.4711").write_text("x")
    for name in (".report.ab12cd34", ".mine.ab12cd34"):
        os.utime(tmp_path / name / "table.md", (1e9, 1e9))
        os.utime(tmp_path / name, (1e9, 1e9))
    os.utime(tmp_path / ".report.html.4711", (1e9, 1e9))
    assert sorted(path.name for path in sweep(tmp_path)) == [".report.ab12cd34", ".report.html.4711"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.ab12cd34", ".report.zzzzzzzz"]
