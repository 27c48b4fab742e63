"""Feed-forwards and mixers by name.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from typing import Any

from microdit.common.registry import Registry

# `feed_forward` and `patch_mixer` export these with their types.
FEED_FORWARDS: Registry[Any] = Registry(
    "model.ffn.type",
    {
        "swiglu": "microdit.model.layers.feed_forward.SwiGLU",
        "gelu": "microdit.model.layers.feed_forward.GELU",
    },
)
MIXERS: Registry[Any] = Registry(
    "model.mixer.type",
    {"transformer": "microdit.model.layers.patch_mixer.PatchMixer"},
    base="microdit.model.layers.patch_mixer.Mixer",
)
