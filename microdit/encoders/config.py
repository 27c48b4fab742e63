"""Settings of the encoders, and paths of the bundled networks.

The scripts in `microdit/assets/build/` trained these networks. Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from microdit.common.limits import Range, check_settings
from microdit.common.registry import Registry

ROOT = Path(__file__).parent.parent / "assets"
VAE = ROOT / "vae"
TEXT_CLIP = ROOT / "text_clip"
SCORE_CLIP = ROOT / "score_clip"

LITE0_SIDE = 224  # pixels; the size that EfficientNet-Lite0 was trained at
OF_DATA = "data"  # path of the autoencoder of precomputed latents


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of the autoencoder."""

    path: str = "builtin"  # builtin (4 channels, f4) | pixels | data | an AutoencoderKL folder | OWNER/NAME[/SUBFOLDER]
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of its arithmetic; stored latents are fp16


@dataclass(frozen=True)
class TextConfig:
    """Settings of the text encoder.

    `path` is `builtin` (a small CLIP), `minilm` (all-MiniLM-L6-v2 of the extra of that name), a local folder of
    open_clip's or transformers' format, open_clip's `MODEL/TAG` or `hf-hub:OWNER/NAME`, or `transformers:OWNER/NAME`.
    """

    path: str = "builtin"
    layer: Literal["last", "penultimate"] = "last"  # whose output conditions the network, after the final norm
    # S, for transformers' encoders; null: the encoder's own, at most 77.
    length: Annotated[int | None, Range(1, 1 << 16)] = None
    cache: bool = True  # features kept on disk; false: encoded for each batch
    encoder: str | None = None  # registered name or dotted path of a class of the user's; null: what `path` names

    def __post_init__(self) -> None:
        check_settings("text", self)


# `text` exports it with its type.
TEXT_ENCODERS: Registry[Any] = Registry("text.encoder", {})
