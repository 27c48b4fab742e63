"""Test that tables are aligned and fit a terminal of 100 columns."""

from __future__ import annotations

import subprocess
import sys

from microdit.common.tables import text_table


def test_columns_are_aligned() -> None:
    lines = text_table([["arm", "fd"], ["a", "1.0"], ["longer", "10.0"]]).splitlines()
    assert lines[0] == "arm       fd"
    assert lines[2:] == ["a        1.0", "longer  10.0"]


def test_numbers_are_printed_as_given() -> None:
    assert text_table([["n"], ["1e5"], ["0010"]]).split()[2:] == ["1e5", "0010"]


def test_columns_are_left_out_from_the_right_until_it_fits() -> None:
    head = ["arm", *(f"score{i}" for i in range(20))]
    rows = [head, ["none", *["10.25 ± 0.25"] * 20]]
    narrow = text_table(rows, keep=(0, 20)).splitlines()
    assert max(map(len, narrow)) <= 100
    assert narrow[0].split() == ["arm", *(f"score{i}" for i in range(5)), "score19"]
    note = " ".join(narrow[3:])
    assert note.startswith("(not shown: score5, score6, ")
    assert note.endswith("score18; wide=true prints everything)")
    assert text_table(rows, wide=True).splitlines()[0].split() == head


def test_long_cells_are_cut_if_all_columns_are_kept() -> None:
    rows = [["trial", "note"], ["none/seed0", "x" * 200]]
    lines = text_table(rows, left=(0, 1), keep=(0, 1)).splitlines()
    assert lines[2] == "none/seed0  " + "x" * 85 + "..."
    assert len(lines[2]) == 100
    assert lines[3] == "(long cells are cut; wide=true prints everything)"
    assert "x" * 200 in text_table(rows, wide=True, left=(0, 1))


def test_a_table_without_rows_has_its_header() -> None:
    assert text_table([["arm", "fd"]]).splitlines()[0].split() == ["arm", "fd"]


def test_a_header_adds_no_width_in_any_format() -> None:
    rows = [["arm", "n"], ["none", "10"]]
    code = f"from microdit.common.tables import aligned; print(aligned({rows}, ['left', 'right'], 'pipe'))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert fresh == "| arm  |  n |\n|:-----|---:|\n| none | 10 |\n"
