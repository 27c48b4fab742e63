"""Run or parse every command of every README at smoke size."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readme_blocks import PROGRAMS, ROOT, SHELL_LANGUAGES, Block, blocks_of, commands, pages

from analysis import cli as report_cli
from microdit.cli import main as core_cli
from microdit.common.errors import DataError, MicroditError
from sweeps.arguments import LAUNCHER, parse_command_line
from sweeps.config.hydra_compose import compose_mapping
from sweeps.config.study import load_study, study_names

MAX_README_LINES = 200
MAX_SECONDS_PER_BLOCK = 900
EXECUTED_ELSEWHERE = (ROOT / "experiments" / "study" / "README.md",)  # by a test of its own
# Replacements that make a command small.
SMOKE_SIZE = (
    (re.compile(r"\bscale=(demo|gpu|paper)\b"), "scale=smoke"),
    (re.compile(r"(?<=/)demo(?=/)"), "smoke"),
    (re.compile(r"\bdata\.resolution=\d+"), "data.resolution=32"),
    (re.compile(r"--resolution \d+"), "--resolution 32"),
    (re.compile(r"\bevaluation\.samples=\d+"), "evaluation.samples=8"),
    (re.compile(r"--nproc-per-node[ =]\d+"), "--nproc-per-node 2"),
)
BLOCKS = [block for page in pages() for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language in SHELL_LANGUAGES and block.page not in EXECUTED_ELSEWHERE]
PYTHON = [
    block
    for block in BLOCKS
    if block.language == "python" and not block.file_name and block.page not in EXECUTED_ELSEWHERE
]


def _marked(blocks: list[Block]) -> list[object]:
    marks = {"quick": (), "slow": (pytest.mark.slow,)}
    return [pytest.param(block, id=block.name, marks=marks[block.mode]) for block in blocks if block.mode != "skip"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home folder without any cache, shared by the module's commands."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "OPTUNA", "PYTEST"))},
        "HOME": str(home),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def shell(text: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS_PER_BLOCK,
    )


def make_images(folder: Path, environment: dict[str, str]) -> None:
    """Write captioned images to `images`; more are held out than a smoke run scores."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(150):
        image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number:03}.png")
        (folder / "images" / f"{number:03}.txt").write_text(f"a cat, number {number}")


def make_config(folder: Path, environment: dict[str, str]) -> None:
    """Write a complete `config.yaml` of the smoke scale."""
    done = shell("microdit-sweep config scale=smoke > config.yaml", folder, environment)
    assert done.returncode == 0, done.stderr


def make_run(folder: Path, environment: dict[str, str]) -> None:
    """Train a run in `run`, recorded in the store under `runs`."""
    done = shell("microdit-sweep train scale=smoke output_dir=run", folder, environment)
    assert done.returncode == 0, done.stderr


def make_study(folder: Path, environment: dict[str, str]) -> None:
    """Run the study `masking_ratio`, recorded in the store under `runs`."""
    done = shell("microdit-sweep study=masking_ratio scale=smoke workers=1", folder, environment)
    assert done.returncode == 0, done.stderr


SETUPS: dict[str, Callable[[Path, dict[str, str]], None]] = {
    "images": make_images,
    "config": make_config,
    "run": make_run,
    "study": make_study,
}


def smoke_sized(text: str) -> str:
    for pattern, small in SMOKE_SIZE:
        text = pattern.sub(small, text)
    return text


def prepared(block: Block, folder: Path, environment: dict[str, str]) -> None:
    for name, text in block.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in block.setups:
        SETUPS[name](folder, environment)


@pytest.mark.parametrize("block", _marked(SHELL))
def test_commands_run(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    prepared(block, tmp_path, environment)
    done = shell(smoke_sized(block.text), tmp_path, environment)
    assert done.returncode == 0, f"{block.name}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("block", _marked(PYTHON))
def test_python_runs(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    prepared(block, tmp_path, environment)
    (tmp_path / "example.py").write_text(block.text, encoding="utf-8")
    done = shell(f"{sys.executable} example.py", tmp_path, environment)
    assert done.returncode == 0, f"{block.name}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in SHELL])
def test_commands_parse(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in block.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = commands(block.text)
    assert found
    for words in found:
        check_command(words)


def check_command(words: list[str]) -> None:
    program, rest = words[0], words[1:]
    if program in ("torchrun", "srun"):  # the started command, as `-m microdit ...`, perhaps quoted
        match = re.search(r"-m (microdit|sweeps) (.+?)'?$", " ".join(rest))
        assert match, f"{program} starts none of our commands: {rest}"
        check_command([{"microdit": "microdit", "sweeps": "microdit-sweep"}[match[1]], *match[2].split()])
    elif program == "microdit":
        core_cli._parsed(core_cli.with_show(rest))
    elif program == "microdit-sweep":
        check_sweep(rest)
    elif program == "microdit-report":
        assert report_cli._parse(rest).study in (*study_names(), "all", *NAMED_STUDIES)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), f"no such target: {rest}"
    elif program in ("pytest", "python"):
        paths = [word for word in rest if "/" in word or word.endswith(".py")]
        assert all((ROOT / word.partition("::")[0]).exists() for word in paths), f"missing file: {paths}"
    else:
        assert program in PROGRAMS, f"no rule for the command {program!r}"


NAMED_STUDIES = [Path(block.file_name).stem for block in BLOCKS if block.file_name.endswith(".yaml")]


def check_sweep(words: list[str]) -> None:
    """Compose what a `microdit-sweep` command would run."""
    line = parse_command_line(words)
    overrides = [word for word in line.overrides if not word.startswith(LAUNCHER)]
    if "study" in line.own:
        chosen = line.own["study"]
        for name in study_names() if chosen == "all" else [str(chosen)]:
            load_study(name, line.scale)
    if line.command in ("ui", "status", "relocate"):
        return
    single = [word.partition(",")[0] for word in overrides] if line.multirun else overrides
    with contextlib.suppress(DataError):  # data=latents reads its folder, after the keys are checked
        compose_mapping([f"scale={line.scale}", *single], complete=line.command != "plan")


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}"


def anchors(page: Path) -> Iterator[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()])
def test_named_files_exist(page: Path) -> None:
    """Paths start at the repository, at the page, or at a package."""
    for name in re.findall(r"`([\w.]+(?:/[\w.]+)+\.(?:py|yaml|md))`", page.read_text(encoding="utf-8")):
        starts = (ROOT, page.parent, ROOT / "microdit")
        assert any((start / name).is_file() for start in starts), f"{page}: {name}"


def test_pages_whose_blocks_run_elsewhere_are_read_there() -> None:
    others = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    for page in EXECUTED_ELSEWHERE:
        assert any(f'"{page.parent.name}" / "README.md"' in text for text in others), f"no test reads {page}"


class TestRules:
    """A command without a rule fails."""

    @pytest.fixture
    def page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("readme_blocks.ROOT", tmp_path)
        return tmp_path / "README.md"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("    make demo\n", "outside a fenced block"),
            ("```fish\nmake demo\n```\n", "no rule for blocks of 'fish'"),
            ("<!-- test: fast -->\n```bash\nmake demo\n```\n", "no rule for 'fast'"),
            ("<!-- test: skip -->\n```bash\nmake demo\n```\n", "needs a reason"),
            ("<!-- test: slow -->\nWords.\n```bash\nmake demo\n```\n", "stands before no block"),
        ],
    )
    def test_unknown_forms_are_rejected(self, page: Path, text: str, message: str) -> None:
        page.write_text(text)
        with pytest.raises(ValueError, match=message):
            blocks_of(page)

    def test_a_block_has_its_marker_and_files(self, page: Path) -> None:
        page.write_text(
            "```yaml a.yaml\nx: 1\n```\n"
            "<!-- test: slow setup=run,images -->\n\n```bash\nmake demo && make test > log\n```\n"
        )
        named, block = blocks_of(page)
        assert (named.file_name, block.mode, block.setups) == ("a.yaml", "slow", ("run", "images"))
        assert block.files == {"a.yaml": "x: 1\n"}
        assert commands(block.text) == [["make", "demo"], ["make", "test"]]

    @pytest.mark.parametrize(
        "words",
        [
            ["curl", "example.org"],
            ["make", "nothing"],
            ["microdit", "sample", "run"],
            ["microdit", "train", "config.yaml", "--nothing"],
            ["microdit-sweep", "train", "training.stepz=3"],
            ["microdit-sweep", "study=nothing"],
            ["microdit-report", "nothing"],
            ["torchrun", "-m", "other"],
        ],
    )
    def test_wrong_commands_are_rejected(self, words: list[str]) -> None:
        with pytest.raises((AssertionError, SystemExit, MicroditError)):
            check_command(words)
