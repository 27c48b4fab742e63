"""Test the web page: its content, no links to the network, and reports that fail."""

from __future__ import annotations

import base64
import io
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from report_store import ARMS, SCORES, StudyWriter, final, study_file

from analysis import cli
from analysis.errors import ReportError
from analysis.io.results import Results, load
from analysis.io.store import open_store
from analysis.report import all_studies
from analysis.report.html import Missing, render
from analysis.report.html_sections import section
from analysis.report.images import inline, report_images

EVIL = "\"><script>alert(1)</script><img src=//evil.example/x onerror=alert('2')>&amp;"
NAME = "<b onclick=alert(3)>'\"&amp;"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collect elements, links and text of a page; `stray` end tags match no start tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []  # the innermost element of each of `words`
        self.open: list[str] = []
        self.stray: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.stray.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)
            self.inside.append(self.open[-1] if self.open else "")

    def words_in(self, tag: str) -> list[str]:
        return [words for words, inside in zip(self.words, self.inside, strict=True) if inside == tag]

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def two(uri: str, root: Path, name: str, values: dict[str, list[float]], **changes: object) -> StudyWriter:
    """Write a study of SwiGLU and GELU with these clip_fd by arm, at one seed each."""
    arms = {arm: {"model.ffn.type": arm} for arm in values}
    figure = {"x": "model.ffn.type", "hue": ""}
    study = study_file(arms, range(len(next(iter(values.values())))), baseline=next(iter(arms)), figure=figure)
    writer = StudyWriter(uri, root, name, study | changes)
    for arm, scores in values.items():
        for seed, score in enumerate(scores):
            writer.run(arm, seed, final(score), images=False, command=f"microdit-sweep study={name}")
    return writer


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with two verdicts, hostile text, an unfinished study and a bad name."""
    root = tmp_path_factory.mktemp("shelf")
    shutil.copy(empty_store, root / "mlflow.db")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    two(uri, root, "ffn_activation", {"gelu": [10.0, 11.0, 12.5], "swiglu": [15.1, 16.0, 17.4]})
    arms = {name: ARMS[name] for name in ("none", "naive_75", "deferred_75")}
    masking = StudyWriter(uri, root, "masking_ratio", study_file(arms, [0, 1, 2, 3]))
    for name in arms:
        for seed, value in enumerate(SCORES[name]):
            masking.run(name, seed, final(value), images=name == "none" and seed == 0)
    masking.run("none", 3, {}, status="FAILED", error="DivergenceError: loss is NaN at step 7")
    hostile = {"question": EVIL, "paper": {"section": EVIL, "claim": EVIL}}
    two(uri, root, NAME, {"gelu": [10.0], EVIL: [11.0]}, **hostile)
    slow = StudyWriter(uri, root, "moe", study_file({"none": ARMS["none"]}, [0]))
    slow.run("none", 0, {}, status="RUNNING")
    two(uri, root, "up/../../../escaped", {"gelu": [10.0], "swiglu": [11.0]})
    return uri


@pytest.fixture(scope="module")
def out(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all") / "deep" / "results"
    assert cli.main(["all", f"tracking_uri={store}", f"out={folder}", "publish=false"]) == 0
    return folder


@pytest.fixture(scope="module")
def masking(store: str) -> Results:
    return load(open_store(store), "masking_ratio")


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_every_link_leads_somewhere(page: Page, out: Path) -> None:
    assert not page.stray
    assert not page.open
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.of("article")) == 3
    assert page.of("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.of("meta"))
    links = [link["href"] for link in page.of("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    files = [link for link in links if not link.startswith("#")]
    assert sum(link.endswith("table.tex") for link in files) == 3
    for link in files:
        assert (out / unquote(link)).is_file(), link
    assert all(label in ids for _, found in page.elements if (label := found.get("aria-labelledby")))


def test_answers_verdicts_and_missing_studies(page: Page) -> None:
    text = page.text
    answers = text[text.index("Answers") : text.index("How to read this")]
    assert "reproduced deferred masking beats naive masking at each ratio" in answers
    assert "contradicted SwiGLU beats GELU" in answers
    assert "no claim of 1 arm against gelu in CLIP-FD: 1 with fewer than two seeds" in answers
    assert "moe no run of moe at demo has finished (none, seed 0: still running)" in answers
    assert "can't name a folder" in answers
    assert answers.index("masking_ratio") < answers.index("ffn_activation"), "the paper's order"
    badges = [span["class"] for span in page.of("span") if span.get("class", "").startswith("badge")]
    assert {"badge yes", "badge no", "badge open", "badge none"} <= set(badges)


def test_a_study_has_all_that_a_reader_needs(page: Page) -> None:
    text = page.text
    study = text[text.index("masking_ratio scale demo") :]
    study = study[: study.index("Back to the answers")]
    for words in (
        "Does deferring the mask",
        "The paper (section 4) claims: deferred masking beats naive masking",
        "deferred_75: differs from none: +2.92 [1.97, 3.87] CLIP-FD over n=3 seeds, Holm p = 0.0057 (worse).",
        "5.03 (summary)",
        "512 generated samples per run against 2048 real images",
        "none, seed 3: failed (DivergenceError: loss is NaN at step 7)",
        "seeds 0, 1, 2 of 4 planned; 9 finished runs of 3 arms",
        "training FLOPs per run 2.5e+15",
        "the study holds steps",
        "microdit-report masking_ratio scale=demo",
        "MaskDiT is worse above 50% than at 50%",
        "figure.pdf",
    ):
        assert words in study, words
    alts = [image["alt"] for image in page.of("img")]
    assert len(alts) == 7, "scores and costs of each, and the samples of one"
    assert all(len(alt) > 40 for alt in alts)
    assert "deferred_75 14.1 ± 2.5" in alts[0]


def test_only_a_significant_best_is_bold(page: Page) -> None:
    bold = [word for word in page.words_in("strong") if word != "Bold"]
    assert "11.2\u00a0±\u00a03.1" in bold, "none in CLIP-FD, beyond seed noise"
    hostile = page.text[page.text.index(f"{NAME} scale demo") :]
    assert "10.00 (n=1)" in hostile
    assert "10.00 (n=1)" not in bold, "the best of one seed"


def test_text_of_the_store_is_escaped(page: Page) -> None:
    assert not page.of("script")
    assert not page.of("b") or all(not attributes for attributes in page.of("b"))
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    for words in (EVIL, NAME):
        assert page.text.count(words) >= 2
    assert any(EVIL in image["alt"] for image in page.of("img"))


def test_nothing_is_fetched(page: Page, out: Path) -> None:
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "embed", "script", "base")]
    assert all(image["src"].startswith("data:image/") for image in page.of("img"))
    assert all(link["href"].startswith(("#", "./")) for link in page.of("a"))
    assert not [name for _, found in page.elements for name in found if name in ("srcset", "background", "action")]
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = (out / "report.html").read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_a_study_has_a_page_of_its_own(out: Path) -> None:
    folder = out / "masking_ratio" / "demo"
    own = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(own.of("article")) == 1
    files = [link["href"] for link in own.of("a") if not link["href"].startswith("#")]
    assert all((folder / link).is_file() for link in files)


def test_a_name_with_a_path_writes_nothing_outside_the_folder(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {"report.html", "masking_ratio", "ffn_activation", NAME}
    assert [path.name for path in out.parent.iterdir()] == ["results"]
    assert [path.name for path in out.parent.parent.iterdir()] == ["deep"]


def test_images_shrink_until_the_page_fits(masking: Results, store: str, out: Path) -> None:
    made = section(masking, sorted((out / "masking_ratio" / "demo").glob("[fs]*.png")), store)

    def page(limit: int) -> Page:
        text = render("t", store, "demo", [made], [Missing("x", "y")], limit)
        assert len(text.encode()) <= limit
        return Page(text)

    large, none = page(9_000_000), page(45_000)
    widths = [int(image["width"]) for image in large.of("img")]
    small = page(len(render("t", store, "demo", [made], [], 9_000_000)) - 20_000)
    assert 0 < max(int(image["width"]) for image in small.of("img")) < max(widths)
    assert not none.of("img")
    assert "Image left out to limit the size of this page" in none.text
    with pytest.raises(ReportError, match="exceeds 0 MB even without images"):
        render("t", store, "demo", [made], [], 1000)


def test_inlined_figures_keep_the_colors_of_thin_lines(tmp_path: Path) -> None:
    canvas = np.full((600, 2000, 3), 255, np.uint8)
    canvas[:, :, 0] -= np.linspace(0, 60, 2000).astype(np.uint8)  # many colors that could use up the palette
    canvas[300:304] = (213, 94, 0)
    Image.fromarray(canvas).save(tmp_path / "figure.png")
    head, _, data = inline(tmp_path / "figure.png", 1000).partition(",")
    assert head == "data:image/png;base64"
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    assert found.shape == (300, 1000, 3)
    assert np.abs(found[151] - (213, 94, 0)).max() < 12


def test_figures_are_ordered(masking: Results, tmp_path: Path) -> None:
    order = ["figure", "cost", "curves", "loss_by_noise_level", "search_history", "zebra", "samples"]
    found = [*(tmp_path / f"{name}.png" for name in reversed(order)), tmp_path / "cost.pdf", tmp_path / "runs.csv"]
    drawn = report_images(masking, found)
    assert [picture.name for picture in drawn] == order
    assert [picture.pdf for picture in drawn] == ["", "cost.pdf", "", "", "", "", ""]
    assert drawn[3].caption.startswith("Final validation loss by diffusion noise level")
    assert "history" in drawn[4].caption
    assert all(picture.caption and "Arms: none, naive_75, deferred_75." in picture.alt for picture in drawn[1:])


def test_a_failing_study_does_not_stop_the_others(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(results: object, folder: Path, uri: str) -> list[Path]:
        if "masking_ratio" in folder.parts:
            raise ZeroDivisionError("of <course>")
        return []

    monkeypatch.setattr(all_studies, "write", write)
    assert cli.main(["all", f"tracking_uri={store}", f"out={tmp_path}", "publish=false"]) == 1
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.of("article")) == 2
    assert "masking_ratio its report failed (ZeroDivisionError: of <course>)" in page.text
    assert "2 shown, 3 missing" in capsys.readouterr().out


def test_a_store_that_rejects_an_upload_is_tried_once(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(all_studies, "write", lambda *_: [])
    monkeypatch.setattr(
        all_studies, "publish", lambda results, _: asked.append(results.study.name) or "it is read-only"
    )
    assert cli.main(["all", f"tracking_uri={store}", f"out={tmp_path}"]) == 0
    assert asked == ["masking_ratio"]
    assert capsys.readouterr().out.count("the store rejected the reports: it is read-only") == 1


def test_nothing_finished_is_a_page_and_status_1(fresh: tuple[str, Path], tmp_path: Path) -> None:
    StudyWriter(*fresh, "moe", study_file({"none": ARMS["none"]}, [0])).run("none", 0, {}, status="FAILED")
    assert cli.main(["all", f"tracking_uri={fresh[0]}", f"out={tmp_path / 'r'}"]) == 1
    text = Page((tmp_path / "r" / "report.html").read_text(encoding="utf-8")).text
    assert "No study has a finished run." in text
    assert "none, seed 0: failed" in text


def test_errors_that_a_user_can_fix(
    store: str, fresh: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for words, message in (
        ([f"tracking_uri={fresh[0]}", f"out={tmp_path / 'r'}"], "the store has no study at all"),
        ([f"tracking_uri={store}", "scale=dmeo", f"out={tmp_path / 'r'}"], "did you mean 'demo'?"),
        ([f"tracking_uri={store}", f"out={tmp_path / 'file'}"], "file: File exists"),
    ):
        assert cli.main(["all", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()
