"""Test `scale=paper` from COYO's metadata to the report, on tiny networks in real formats."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from coyo_rows import Web, row, write
from PIL import Image
from real_formats import (
    FLUX,
    SDXL,
    autoencoder_folder,
    clip_text_folder,
    inception_weights,
    open_clip_vit_folder,
    t5_folder,
)

from analysis.cli import main as report
from microdit.cli.main import main as microdit
from microdit.config.schema import load_config
from sweeps.cli import main as sweep

pytestmark = pytest.mark.slow

STUDY = """
question: Does the whole road hold?
paper: {section: none, claim: none}
arms:
  none: {model.masking.method: none, model.masking.ratio: 0}
  deferred_75: {}
baseline: none
holds: steps
seeds: [0]
metrics: {primary: fd, direction: minimize}
figure: {x: model.masking.ratio, hue: arm}
"""
PICTURES = 40


@dataclass(frozen=True)
class Stack:
    """Describe the stand-in networks; `width` is the text encoder's."""

    autoencoder: dict[str, object]
    text: str
    width: int


STACKS = {
    "SDXL and T5": Stack(SDXL, "t5", 24),
    "FLUX and transformers' CLIP text": Stack(FLUX, "clip_text", 32),
    "SDXL and open_clip": Stack(SDXL, "open_clip", 32),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder with its own cache."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out + said.err


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())
def test_from_metadata_to_report(
    stack: Stack, home: Path, python: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    # COYO's metadata, with urls of images, some of which no longer exist.
    rows = [
        row(k, f"a photo of one {('cat', 'dog')[k % 2]}, number {k}", url=f"{web.address}/ok/{k}.jpg")
        for k in range(PICTURES)
    ]
    write(home / "coyo", [*rows, row(97, "a cat that went away", url=f"{web.address}/missing/97")])
    words = ["--coyo", "coyo", "--out", "cifar-captions", "--img2dataset", str(python), "--image-size", "64"]
    quick = ["--min-size", "64", "--timeout", "2", "--retries", "0", "--val-fraction", "0.3"]
    said = done(microdit(["data", "cifar-captions", *words, *quick]), capsys)
    assert f"{PICTURES}  images of {PICTURES + 1} urls" in said
    images = home / "cifar-captions" / "images"

    # Networks in the formats in which the real ones are published.
    autoencoder_folder(home / "vae", **stack.autoencoder)
    clip = open_clip_vit_folder(home / "clip")
    text = {"t5": t5_folder, "clip_text": clip_text_folder, "open_clip": lambda _: clip}[stack.text](home / "text")
    inception = inception_weights(home / "inception.pth")

    # Latents, once.
    encode = ["data", "encode", str(images), "--out", "latents", "--resolution", "64", "--autoencoder", "vae"]
    captions = ["--captions", "--text", str(text), "--shard-size", "16"]
    done(microdit([*encode, *captions, "--cache-dir", "cache"]), capsys)
    index = json.loads((home / "latents" / "index.json").read_text())
    assert index["autoencoder"]["channels"] == stack.autoencoder["latent_channels"]

    # A study at the paper's scale, its sizes made tiny.
    (home / "road.yaml").write_text(STUDY)
    tiny = [
        *("scale=paper", "data=latents", "data.path=latents", f"data.originals={images}"),
        *("data.train_size=24", "data.val_size=6", f"text.path={text}", "cache_dir=cache"),
        *("model.width=32", "model.depth=2"),
        *("model.head_dim=16", "model.mixer.depth=1", f"model.caption_channels={stack.width}"),
        *("training.batch_size=4", "training.precision=fp32", "training.compile=false", "training.log_every=1"),
        *("training.val_images=6", "training.sample_count=2", "sampler.steps=2", "evaluation.samples=6"),
        *("evaluation.batch_size=8", "evaluation.reference_count=12", "evaluation.kid_subset_size=4"),
        *(f"evaluation.feature_weights={inception}", f"evaluation.clip={clip}"),
        "evaluation.metrics=[fd,kid,clip_fd,clip_score]",
    ]
    short = ["training.steps=3", "training.ema.start_step=0"]
    said = done(sweep(["study=road.yaml", *tiny, *short, "workers=1"]), capsys)
    assert "2 of 2" in said or "done" in said

    # The four phases' second, from the first arm that drops patches; then eight of the user's images.
    first = next(p.parent for p in sorted(home.glob("runs/road/**/model.safetensors")) if "deferred" in str(p))
    phase = [word for word in tiny if not word.startswith("evaluation.samples")]
    words = [f"training.init={first}", "output_dir=phase2", "training.steps=2", "training.ema.start_step=0"]
    done(sweep(["train", "recipe=phase2", *phase, *words, "evaluation.samples=0"]), capsys)
    tuned = ["finetune", "phase2", "--data", str(images), "--out", "tuned", "--steps", "2", "autoencoder.path=vae"]
    done(microdit(tuned), capsys)
    done(microdit(["sample", "tuned", "a photo of one dog", "--count", "2", "--out", "dog.png"]), capsys)
    with Image.open(home / "dog.png") as picture:
        assert picture.size == (128, 64)

    # Scores: of the run again, and of prompts in COCO's format.
    coco = {"annotations": [{"image_id": k, "caption": f"a dog, {k}"} for k in range(6)]}
    (home / "captions_val2014.json").write_text(json.dumps(coco))
    words = ["--prompts", "captions_val2014.json", "--metrics", "fd", "clip_fd", "clip_score", "--samples", "6"]
    said = done(microdit(["evaluate", str(first), *words]), capsys)
    assert "unpublished-inception-v3" in said
    assert "2048 features" in said

    # The report names the network: a distance on these weights is not called FID.
    done(report(["road", "scale=paper"]), capsys)
    results = home / "results" / "road" / "paper"
    with open(results / "runs.csv", newline="") as stream:
        runs = list(csv.DictReader(stream))
    assert {run["arm"] for run in runs} == {"none", "deferred_75"}
    table = (results / "table.md").read_text()
    assert "unpublished-inception-v3" in table
    assert "are not FID and KID" in table
    assert (results / "report.html").is_file()
    config = load_config(first / "config.yaml")
    sizes = (config.data.resolution, config.model.in_channels, config.model.input_size)
    # As in the latents' header; the scale's values differ.
    assert sizes == (64, stack.autoencoder["latent_channels"], 8)
