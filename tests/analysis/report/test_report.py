"""Test the command, from a store with known numbers to the files of the report."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_store import PROMPTS, SCORES, StudyWriter, arm, final, study_file
from scipy import stats

from analysis import cli
from analysis.figures import scores as figures
from analysis.io.results import load
from analysis.io.store import open_store
from analysis.report import study as report
from analysis.report.tables import latex, markdown, terminal

FILES = {"table.md", "table.csv", "table.tex", "runs.csv", "comparisons.csv", "verdicts.csv", "report.html"}
FIGURES = {
    f"{name}.{kind}"
    for name in ("figure", "curves", "cost", "loss_by_noise_level", "samples")
    for kind in ("png", "pdf")
}


@pytest.fixture(scope="module")
def written(masking_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert cli.main(["masking_ratio", f"tracking_uri={masking_store}", f"out={out}", "scale=demo"]) == 0
    return out / "masking_ratio" / "demo"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_all_files_are_there_and_nothing_else(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == FILES | FIGURES
    assert len(rows(written / "runs.csv")) == 15
    for path in written.glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF")


def test_table_has_the_means_and_intervals_of_the_runs(written: Path) -> None:
    for row in rows(written / "table.csv"):
        values = SCORES[row["arm"]]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert float(row["clip_fd"]) == pytest.approx(np.mean(values))
        assert (float(row["clip_fd_low"]), float(row["clip_fd_high"])) == pytest.approx((low, high))
        assert float(row["val_loss"]) == pytest.approx(0.3 + np.mean(values) / 1000)
        if row["arm"] != "none":
            differences = np.subtract(values, SCORES["none"])
            low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
            assert float(row["clip_fd_minus_baseline_low"]) == pytest.approx(low)
            assert float(row["clip_fd_minus_baseline_high"]) == pytest.approx(high)


def test_the_printed_table_is_complete(written: Path) -> None:
    text = (written / "table.md").read_text(encoding="utf-8")
    assert "deferred_75: differs from none: +2.92 [1.97, 3.87] CLIP-FD over n=3 seeds, Holm p = 0.011 (worse)." in text
    assert "deferred_50: within seed noise of none at n=3" in text
    assert "deferred_75: differs from naive_75: -12.08 [-12.44, -11.72] CLIP-FD" in text
    assert "5.03 (summary)" in text
    assert "16.5 (summary)" in text
    assert "512 generated samples per run against 2048 real images" in text
    assert "EfficientNet-Lite0 (ImageNet), score-clip" in text
    assert "CLIP-FD 1.250, FD 42.50" in text
    assert "Fewer samples (512) than features (1280)" in text
    assert "Hardware: cpu; python 3.11.7, torch 2.14.1; seconds are" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "| validation loss ↓ | CLIP-FD − baseline | p (Holm) |   g_z |" in table[0]
    assert "same images, diffusion noise and noise levels in every run" in text
    assert "paper's FID" in table[0]
    assert " FID " not in table[0].replace("paper's FID", ""), "a distance on other features is not FID"


def test_latex_table_is_balanced(masking_store: str) -> None:
    text = latex(load(open_store(masking_store), "masking_ratio"))
    lines = text.splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 2 * 6  # scores; tests and costs
    assert [len({line.count("&") for line in part}) for part in (body[:6], body[6:])] == [1, 1]
    assert text.count("{") == text.count("}")
    assert r"naive\_75" in text
    assert not set("±−↓↑é") & set(text)
    assert [line for line in lines if "rule" in line] == 2 * [r"    \toprule", r"    \midrule", r"    \bottomrule"]
    assert re.search(r"[ \[]\$-\$\d", text), "a minus, not a hyphen"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles_the_table(masking_store: str, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(latex(load(open_store(masking_store), "masking_ratio")), encoding="utf-8")
    page = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize("name", ["figure.png", "curves.png", "cost.png", "loss_by_noise_level.png", "samples.png"])
def test_figures_are_large_and_not_blank(written: Path, name: str) -> None:
    picture = np.asarray(Image.open(written / name).convert("RGB"))
    assert min(picture.shape[:2]) > 500
    assert (picture.reshape(-1, 3) != 255).any(1).mean() > 0.02
    assert len(np.unique(picture[::5, ::5].reshape(-1, 3), axis=0)) > 50


def test_samples_have_a_row_per_arm_with_the_first_seeds_images(written: Path) -> None:
    picture = np.asarray(Image.open(written / "samples.png").convert("RGB"))
    saturated = picture.max(2).astype(int) - picture.min(2) > 60
    bands = np.flatnonzero(np.diff((saturated.mean(1) > 0.2).astype(int)) == 1)
    assert len(bands) == len(SCORES)
    assert len(PROMPTS) * 200 < picture.shape[1] < len(PROMPTS) * 400


def test_the_launch_shows_the_report(written: Path, masking_store: str) -> None:
    client = open_store(masking_store)
    parent = load(client, "masking_ratio").study.parent
    logged = {item.path for item in client.list_artifacts(parent, "report")}
    assert logged == {f"report/{name}" for name in FILES | FIGURES}
    note = client.get_run(parent).data.tags["mlflow.note.content"]
    first, second, _ = note.split("\n\n", 2)
    assert first.startswith("**Does deferring the mask")
    assert second.startswith("Verdicts: **reproduced**: deferred masking beats naive masking at each ratio")
    begin = note[: note.index("|")]
    assert "The paper (section 4) claims: deferred masking beats naive masking." in begin
    assert "at each ratio (trust: summary): **reproduced**" in begin, "before the table: MLflow shows the beginning"
    assert "Held fixed over the arms: steps." in note
    assert "    microdit-report masking_ratio scale=demo" in note
    heads = [line for line in note.splitlines() if line.startswith("| arm")]
    assert [("CLIP-FD ↓" in head, "p (Holm)" in head, "params" in head) for head in heads] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip


def test_files_are_written_if_the_store_rejects_them(
    fresh: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder of the URI's name
    writer = StudyWriter(*fresh, "masking_ratio", study_file({"none": arm("none", 0.0)}, [0]))
    writer.run("none", 0, final(10.0), images=False)
    read_only = f"sqlite:///file:{fresh[0].removeprefix('sqlite:///')}?mode=ro&uri=true"
    folder = tmp_path / "out" / "masking_ratio" / "demo"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("keep")
    (folder / "samples.png").write_text("of an older report")
    assert cli.main(["masking_ratio", f"tracking_uri={read_only}", f"out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "the store rejected the report" in printed
    assert "[SQL" not in printed
    assert "10.00 (n=1)" in printed
    assert (folder / "table.md").is_file()
    assert (folder / "mine.txt").read_text() == "keep"
    assert not (folder / "samples.png").exists(), "no run stored images"


def test_a_failing_report_leaves_the_old_one(
    masking_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table.md").write_text("old")

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setitem(report.FIGURES, "figure", fail)
    with pytest.raises(RuntimeError):
        report.write(load(open_store(masking_store), "masking_ratio"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "old"


def test_inception_features_are_called_fid(fresh: tuple[str, Path]) -> None:
    writer = StudyWriter(*fresh, "masking_ratio", study_file({"none": arm("none", 0.0)}, [0]))
    writer.run("none", 0, final(10.0), feature_net="Inception-v3@aa+score-clip@bb", samples="30000")
    text = markdown(load(open_store(fresh[0]), "masking_ratio"))
    assert " FID ↓ |" in text
    assert " KID ↓ |" in text
    assert "not FID" not in text
    assert "Fewer samples" not in text


def test_unpublished_inception_weights_and_prompts_from_a_file_are_mentioned(fresh: tuple[str, Path]) -> None:
    writer = StudyWriter(*fresh, "masking_ratio", study_file({"none": arm("none", 0.0)}, [0]))
    found = final(10.0, precision=0.75, precision_real=0.875)
    writer.run("none", 0, found, feature_net="unpublished-inception-v3@aa+clip-vit-b-32@bb+prompts@cc")
    text = markdown(load(open_store(fresh[0]), "masking_ratio"))
    assert " FID ↓ |" not in text
    assert "not FID and KID" in text
    assert "feature networks: unpublished-inception-v3, clip-vit-b-32. " in text
    assert "The prompts come from a file" in text
    assert " precision ↑ |" in text
    assert "Real images have precision 0.8750." in text
    assert "than features (2048)" in text


@pytest.mark.parametrize(
    ("x", "hue", "values"),
    [
        ("optimizer.weight_decay", "", {"low": 0.001, "high": 0.3}),
        ("model.feed_forward.kind", "arm", {"SwiGLU": "swiglu", "GELU": "gelu"}),
        ("", "", {"a": 1, "b": 2}),
    ],
)
def test_any_axis_can_be_drawn(fresh: tuple[str, Path], tmp_path: Path, x: str, hue: str, values: dict) -> None:
    arms = {name: {x or "training.steps": value} for name, value in values.items()}
    study = study_file(arms, [0, 1], baseline=next(iter(arms)), figure={"x": x, "hue": hue})
    writer = StudyWriter(*fresh, "another", study)
    for number, name in enumerate(arms):
        for seed in (0, 1):
            writer.run(name, seed, final(10.0 + number + seed), images=False)
    made = {path.name for path in report.write(load(open_store(fresh[0]), "another"), tmp_path / "out")}
    tables = {"table.md", "table.csv", "table.tex", "runs.csv", "comparisons.csv", "report.html"}
    assert made == tables | {f"{name}.{kind}" for name in ("figure", "cost") for kind in ("png", "pdf")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["masking_ratio", "scael=demo"], "there is no 'scael'; did you mean 'scale'?"),
        (["masking_ratoi"], "the store has no study 'masking_ratoi'; did you mean 'masking_ratio'?"),
        (["masking_ratio", "scale=gpu"], "never launched at scale 'gpu'; valid choices: demo"),
        (["masking_ratio", "scale="], "needs a value"),
        (["masking_ratio", "mixer_size"], "study is given already"),
        (["scale=demo"], "which study?"),
        (["masking_ratio", "publish=perhaps"], "it must be true or false"),
    ],
)
def test_user_errors_are_one_line(
    masking_store: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([*words, f"tracking_uri={masking_store}", f"out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tables_for_a_terminal_fit_into_100_columns(masking_store: str) -> None:
    results = load(open_store(masking_store), "masking_ratio")
    narrow, wide = terminal(results).splitlines(), terminal(results, wide=True).splitlines()
    assert max(map(len, narrow)) <= 100 < max(map(len, wide))
    assert "CLIP-FD" in narrow[0], "the primary metric stays"
    assert any(line.startswith("(not shown: ") for line in narrow)


def test_a_missing_store_is_reported_with_the_command_that_creates_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["masking_ratio"]) == 2
    assert (
        "microdit-sweep study=masking_ratio scale=demo, or give another with tracking_uri=URI"
        in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir()), "looking for a store makes none"


def test_help_needs_no_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "microdit-report STUDY" in capsys.readouterr().out


def test_distant_scores_of_real_images_do_not_flatten_the_arms(fresh: tuple[str, Path]) -> None:
    arms = {"none": arm("none", 0.0), "naive_75": arm("naive", 0.75)}
    writer = StudyWriter(*fresh, "masking_ratio", study_file(arms, [0]))
    for number, name in enumerate(arms):
        writer.run(name, 0, final(500.0 + number, clip_fd_floor=1.0, clip_score=20.0 + number, clip_score_real=22.0))
    _, distance, score, _ = figures.score_figure(load(open_store(fresh[0]), "masking_ratio")).axes
    assert distance.get_ylim()[0] > 490
    assert distance.get_title("right") == "real: 1.000 ↓"
    assert score.get_ylim()[1] > 22
    assert not score.get_title("right")


def test_evaluation_noise_is_separated_from_seed_variance(fresh: tuple[str, Path]) -> None:
    """Two runs of two scores differ by 2 within each run and by 4 between the means."""
    writer = StudyWriter(*fresh, "masking_ratio", study_file({"none": arm("none", 0.0)}, [0, 1]))
    for seed, (first, second) in enumerate([(10.0, 12.0), (14.0, 16.0)]):
        writer.run("none", seed, final(first, **{"noise1/clip_fd": second}))
    results = load(open_store(fresh[0]), "masking_ratio")
    words = "Variance of CLIP-FD: standard deviation 2.65 between training seeds, 1.41 from evaluation noise ("
    assert words in report.page(results)
    assert results.frame["final/clip_fd"].tolist() == [11.0, 15.0], "a run counts with its mean"
