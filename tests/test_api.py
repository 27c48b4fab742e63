"""Test the public API with `import microdit as md`."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, fake_cuda, load_outside, made_outside
from PIL import Image

import microdit as md
from microdit.common.rng import RowDraws
from microdit.diffusion import samplers
from microdit.encoders import autoencoder
from microdit.pipeline import pretrained

SIDE = 32


def squares(count: int, offset: int = 0) -> md.ImageCaptionDataset:
    """Return plain squares of `count` gray levels."""
    images = np.stack([np.full((SIDE, SIDE, 3), 5 * i + offset, np.uint8) for i in range(count)])
    return md.ImageCaptionDataset(images, [f"gray number {i}" for i in range(count)])


@pytest.fixture(scope="module")
def config(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> md.Config:
    out = tmp_path_factory.mktemp("api") / "run"
    return md.Config.preset("smoke", [f"cache_dir={cache_dir}", f"output_dir={out}", "evaluation.samples=0"])


@pytest.fixture(scope="module")
def result(config: md.Config) -> md.TrainingResult:
    train, val = squares(24).split(val_fraction=0.25)
    return md.train(config, data=train, val_data=val)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_importing_the_package_loads_neither_torch_nor_a_tracker() -> None:
    code = "import sys, microdit as md; dir(md); assert not {'torch', 'numpy', 'mlflow', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_see_the_names_that_exist() -> None:
    tree = ast.parse(Path(md.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: (node.module or "").removeprefix("microdit.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == md.PUBLIC
    for name in md.__all__:
        assert getattr(md, name).__doc__
        assert name in dir(md)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        md.Pipelin  # noqa: B018
    assert (Path(md.__file__).parent / "py.typed").is_file()


def test_training_on_data_in_memory_returns_a_pipeline_and_metrics(
    config: md.Config, result: md.TrainingResult
) -> None:
    assert result.metrics["final/val_loss"] > 0
    assert result.folder == Path(config.output_dir)
    assert (result.folder / "model.safetensors").is_file()
    images = result.pipeline(["a cat", "a dog"], num_samples=2, steps=2, guidance=2.0, seed=0)
    assert [image.size for image in images] == [(SIDE, SIDE)] * 4
    assert all(isinstance(image, Image.Image) for image in images)


def test_a_runs_identity_includes_the_content_of_its_data(
    config: md.Config, result: md.TrainingResult, tmp_path: Path
) -> None:
    train, val = squares(24).split(val_fraction=0.25)
    again = md.train(dataclasses.replace(config, output_dir=str(tmp_path / "same")), data=train, val_data=val)
    assert md.trial_key(again.pipeline.config) == md.trial_key(result.pipeline.config)
    assert again.metrics["final/val_loss"] == result.metrics["final/val_loss"]
    other_train, other_val = squares(24, offset=1).split(val_fraction=0.25)
    other = md.train(
        dataclasses.replace(config, output_dir=str(tmp_path / "other")), data=other_train, val_data=other_val
    )
    assert md.trial_key(other.pipeline.config) != md.trial_key(result.pipeline.config)
    assert md.trial_key(config) != md.trial_key(result.pipeline.config)
    with pytest.raises(md.CheckpointError):  # the finished run's checkpoint is of other data
        md.train(config, data=other_train, val_data=other_val)


def test_a_dataset_of_the_users_own_class_is_trained_on(config: md.Config, tmp_path: Path) -> None:
    class Stripes:
        classes = ("stripe",)
        resolution = SIDE
        fingerprint = "stripes of my own"

        def __len__(self) -> int:
            return 16

        def __getitem__(self, i: int) -> md.Sample:
            image = np.zeros((SIDE, SIDE, 3), np.uint8)
            image[:, :: i + 1] = 255
            return md.Sample(image, f"stripes {i}", 0, {})

    done = md.train(dataclasses.replace(config, output_dir=str(tmp_path)), data=Stripes(), val_data=squares(8))
    assert done.metrics["final/val_loss"] > 0


def test_saving_round_trips_bit_for_bit(result: md.TrainingResult, tmp_path: Path) -> None:
    result.pipeline.save_pretrained(tmp_path / "saved")
    saved = tmp_path / "saved" / "model.safetensors"
    assert saved.read_bytes() == (result.folder / "model.safetensors").read_bytes()  # weights and text record
    opened = md.Pipeline.from_pretrained(tmp_path / "saved")
    assert opened.config == result.pipeline.config
    assert opened.text == result.pipeline.text is not None
    drawn = [pixels(pipe(["a cat"], num_samples=2, steps=2)) for pipe in (opened, result.pipeline)]
    assert np.array_equal(*drawn)
    from_file = md.Pipeline.from_pretrained(saved)
    assert np.array_equal(pixels(from_file(["a cat"], num_samples=2, steps=2)), drawn[0])


def test_a_bare_file_of_weights_needs_a_configuration(result: md.TrainingResult, tmp_path: Path) -> None:
    bare = shutil.copy(result.folder / "model.safetensors", tmp_path / "weights.safetensors")
    with pytest.raises(md.ConfigError, match=r"weights\.safetensors has no config\.yaml beside it"):
        md.Pipeline.from_pretrained(bare)
    pipe = md.Pipeline.from_pretrained(bare, config=result.pipeline.config)
    assert len(pipe("a cat", steps=1)) == 1
    with pytest.raises(md.MicroditError, match="no such file"):
        md.Pipeline.from_pretrained(tmp_path / "nothing")


def test_sampler_guidance_and_callback_are_chosen(result: md.TrainingResult) -> None:
    pipe = result.pipeline
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def callback(step: int, steps: int, latents: torch.Tensor) -> None:
        seen.append((step, steps, tuple(latents.shape)))

    heun = pixels(pipe("a cat", num_samples=2, steps=3, guidance=3.0, callback=callback))
    assert [step[:2] for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[0][2] == (2, 4, 8, 8)
    one_by_one = pixels(pipe("a cat", num_samples=2, steps=3, guidance=3.0, batch_size=1))
    assert np.abs(one_by_one.astype(int) - heun).max() <= 1  # other batches may round otherwise
    for change in (
        {"sampler": "euler"},
        {"guidance": 1.0},
        {"seed": 1},
        {"steps": 2},
        {"sampler": md.SamplerConfig(sigma_max=10.0)},
        {"guidance_interval": (0.5, None)},
    ):
        settings = {"num_samples": 2, "steps": 3, "guidance": 3.0} | change
        assert not np.array_equal(pixels(pipe("a cat", **settings)), heun), change
    for wrong, message in (
        ({"sampler": "hune"}, "'sampler.type' is 'hune'; did you mean 'heun'"),
        ({"steps": 0}, r"'sampler\.steps' is 0"),
        ({"guidance_by": "path_drop", "guidance": 2.0}, "path_drop"),
        ({"num_samples": 0}, "num_samples is 0"),
    ):
        with pytest.raises(md.ConfigError, match=message):
            pipe("a cat", **wrong)


def test_a_pipeline_computes_in_half_precision(result: md.TrainingResult) -> None:
    exact = pixels(result.pipeline("a cat", steps=2))
    pipe = md.Pipeline.from_pretrained(result.folder).to("cpu", dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    rounded = pixels(pipe("a cat", steps=2))
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded.astype(int) - exact).mean() < 8
    with pytest.raises(md.ConfigError, match=r"dtype is torch\.int8"):
        pipe.to(dtype=torch.int8)
    with pytest.raises(md.ConfigError, match="device is 'gpu'"):
        pipe.to("gpu")


def test_a_pipeline_draws_on_a_gpu_in_half_precision(
    result: md.TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = md.Pipeline.from_pretrained(result.folder)
    latents: list[tuple[torch.device, torch.dtype, tuple[int, ...]]] = []
    products: set[tuple[torch.device, torch.dtype]] = set()
    monkeypatch.setattr(pretrained, "_checked_device", torch.device)  # the fake device is not visible to PyTorch
    monkeypatch.setattr(autoencoder, "_load", made_outside(autoencoder._load))
    monkeypatch.setattr(samplers, "sigma_steps", made_outside(samplers.sigma_steps))  # it checks values
    # The pipeline's own cache would keep a network without values.
    monkeypatch.setattr(
        pretrained, "open_autoencoder", lambda config, place: autoencoder.build_autoencoder(config.autoencoder, place)
    )
    with fake_cuda():
        assert pipe.to("cuda", dtype=torch.bfloat16) is pipe
        assert (pipe.device, pipe.dtype) == (CUDA, torch.bfloat16)
        encoders = pipe.autoencoder, pipe.text_encoder
        pipe.to("cuda")
        assert (pipe.autoencoder, pipe.text_encoder) == encoders  # on the device already, so not opened again
        load_outside(pipe.text_encoder)
        for module in pipe.denoiser.net.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda _, given, made: products.add((made.device, made.dtype)))
        images = pipe(
            ["a cat", "a dog"],
            steps=2,
            guidance=2.0,
            callback=lambda step, steps, x: latents.append((x.device, x.dtype, tuple(x.shape))),
        )
    assert [(image.mode, image.size) for image in images] == [("RGB", (SIDE, SIDE))] * 2
    assert latents == [(CUDA, torch.float64, (2, 4, 8, 8))] * 2
    assert products == {(CUDA, torch.bfloat16)}


def test_half_precision_round_trips(result: md.TrainingResult, tmp_path: Path) -> None:
    pipe = md.Pipeline.from_pretrained(result.folder).to(dtype=torch.bfloat16)
    pipe.save_pretrained(tmp_path)
    opened = md.Pipeline.from_pretrained(tmp_path)
    assert opened.dtype == torch.float32
    drawn = [pixels(made("a cat", num_samples=2, steps=2)) for made in (pipe, opened.to(dtype=torch.bfloat16))]
    assert np.array_equal(*drawn)
    assert pixels(pipe.to(dtype=torch.float32)("a cat", steps=2)).dtype == np.uint8
    assert pipe.dtype == torch.float32


def test_a_short_training_of_a_preset_names_the_other_overrides() -> None:
    words = ["training.steps=20"]
    with pytest.raises(md.ConfigError) as caught:
        md.Config.preset("demo", words)
    fixes = re.findall(r"(?:schedule|training)\.[\w.]+=\d+", str(caught.value))
    assert fixes == ["schedule.warmup_steps=20", "training.ema.start_step=19"]
    assert md.Config.preset("demo", [*words, *fixes]).training.steps == 20
    for fix in fixes:  # each is needed, and the nearest value that is allowed
        key, _, value = fix.partition("=")
        with pytest.raises(md.ConfigError, match=f"also set {re.escape(fix)} "):
            md.Config.preset("demo", [*words, *fixes, f"{key}={int(value) + 1}"])


def test_evaluation_scores_any_dataset(result: md.TrainingResult) -> None:
    scores = md.evaluate(result.pipeline, squares(16), evaluation=md.EvalConfig(samples=4, metrics=("clip_score",)))
    assert scores["samples"] == 4
    assert -100 <= scores["clip_score"] <= 100
    assert scores["val_loss"] > 0
    assert md.evaluate(result.pipeline, squares(16)).keys() == {"val_loss"}  # the run's settings have no samples
    with pytest.raises(md.ConfigError, match=r"trained on data that a Python program passed"):
        md.evaluate(result.pipeline)


def test_mistakes_in_data_are_named(config: md.Config) -> None:
    with pytest.raises(md.ConfigError, match="give 'data' and 'val_data', or neither"):
        md.train(config, data=squares(4))
    with pytest.raises(md.DataError, match="val_data is 'list', which lacks part of a dataset"):
        md.train(config, data=squares(4), val_data=[])  # type: ignore[arg-type]
    small = md.ImageCaptionDataset([Image.new("RGB", (40, 20))], ["wide"], resolution=16)
    with pytest.raises(md.ConfigError, match=r"16 px, but 'data\.resolution' is 32; use .*'data\.resolution=16'"):
        md.train(config, data=small, val_data=small)
    for wrong, message in (
        (lambda: md.ImageCaptionDataset([], []), "0 images, 0 captions"),
        (lambda: md.ImageCaptionDataset([Image.new("RGBA", (4, 4))], ["a"]), "mode RGBA; convert it to RGB"),
        (lambda: md.ImageCaptionDataset(np.zeros((1, 4, 4, 3)), ["a"]), "float64 .* must be uint8"),
        (lambda: md.ImageCaptionDataset([Image.new("L", (4, 2))], ["a"]), "give 'resolution'"),
        (lambda: md.ImageCaptionDataset([Image.new("L", (4, 4))], ["a"], [2], ["x"]), "label 0 is 2"),
        (lambda: squares(1).split(), "1 images can't be split"),
    ):
        with pytest.raises(md.DataError, match=message):
            wrong()


def test_a_registered_masking_method_trains(config: md.Config, tmp_path: Path) -> None:
    plans: list[int] = []

    @md.register_masking("counted")
    class Counted(md.Masking):
        """Mask naively and count the plans."""

        def plan(self, draws: RowDraws) -> md.PatchMask | None:
            plans.append(draws.count)
            return super().plan(draws)

    words = [f"cache_dir={config.cache_dir}", f"output_dir={tmp_path}", "evaluation.samples=0", "training.steps=2"]
    counted = md.Config.preset("smoke", [*words, "model.masking.method=counted"])
    assert md.train(counted).metrics["final/val_loss"] > 0
    assert plans == [8, 8]
    with pytest.raises(md.ConfigError, match="'naive' is already registered"):
        md.register_masking("naive")(Counted)
