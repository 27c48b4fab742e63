"""Test that the shipped ImageNet weights fit the network, and that folding keeps its outputs."""

from __future__ import annotations

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image

from microdit.encoders.efficientnet_lite0 import build_lite0, fold_batch_norm

MILITARY_UNIFORM = 652  # ImageNet's class of Admiral Hopper's portrait


def portrait() -> torch.Tensor:
    """Return a photograph that ships with matplotlib, (1, 3, 224, 224) in [-1, 1]."""
    image = Image.open(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("RGB")
    side = min(image.size)
    square = image.crop((0, 0, side, side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1


def test_the_classifier_recognizes_a_photograph() -> None:
    with torch.no_grad():
        found = build_lite0(classifier=True)(portrait()).softmax(-1)[0]
    assert int(found.argmax()) == MILITARY_UNIFORM
    assert float(found.max()) > 0.25


def test_folding_batch_norm_keeps_the_features() -> None:
    x = portrait()
    with torch.no_grad():
        plain, folded = build_lite0()(x), fold_batch_norm(build_lite0())(x)
    assert plain.shape == (1, 1280)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
