"""Test text features against the released code's, computed from a random CLIP's weights by plain tensor operations.

Released: open_clip's text tower with all of its layers, then its final layer norm; 77 tokens, without pooling and
projection, and without a mask for padding.
"""

from __future__ import annotations

import gzip
import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microdit.encoders.config import TextConfig
from microdit.encoders.text import build_text_encoder

LAYERS, HEADS, WIDTH, EMBED = 3, 4, 32, 12  # the released tower has 24, 16, 1024 and 1024
CAPTIONS = ["a red car", "", "two dogs " * 60]
START, END, LENGTH = 49406, 49407, 77
ENDS = (("", 0), ("</w>", 256))


@pytest.fixture(scope="module", params=[True, False], ids=["quickgelu", "gelu"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random CLIP in open_clip's format, with the released one's activation (quickgelu) or without."""
    out = tmp_path_factory.mktemp("clip")
    settings = {
        "embed_dim": EMBED,
        "quick_gelu": request.param,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": HEADS, "layers": LAYERS},
    }
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**settings).state_dict()
    for tensor in weights.values():  # norms and biases start at 1 and 0, which would hide a missing one
        if tensor.is_floating_point():
            tensor += 0.1 * torch.randn(tensor.shape)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / "open_clip_model.safetensors")
    return out


@cache
def merges() -> dict[tuple[str, str], int]:
    """Return the ranks of CLIP's merges of two tokens."""
    path = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1:48895]
    return {(first, second): rank for rank, (first, second) in enumerate(line.split() for line in lines)}


def token_numbers(caption: str) -> list[int]:
    """Return the caption's tokens as ids: start, words, end, then zeros; cut at 77 with the end kept.

    Ids: 256 characters ("!" is 0), the same at a word's end, then the merges' results.
    """
    ranks = merges()
    vocabulary = {first + second: 512 + rank for (first, second), rank in ranks.items()}
    vocabulary |= {chr(code) + end: code - 33 + shift for code in range(33, 127) for end, shift in ENDS}
    ids = [START]
    for word in caption.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [vocabulary[part] for part in parts]
    ids = [*ids[: LENGTH - 1], END]
    return ids + [0] * (LENGTH - len(ids))


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def tower(tokens: Tensor, w: dict[str, Tensor], layers: int, quick: bool) -> Tensor:
    """Map (B, 77) -> (B, 77, WIDTH) by embeddings, `layers` causal blocks and the final norm."""
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    future = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
    for i in range(layers):
        p = f"transformer.resblocks.{i}"
        qkv = norm(x, w, f"{p}.ln_1") @ w[f"{p}.attn.in_proj_weight"].T + w[f"{p}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        weight = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + future).softmax(-1)
        mixed = (weight @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ w[f"{p}.attn.out_proj.weight"].T + w[f"{p}.attn.out_proj.bias"]
        hidden = norm(x, w, f"{p}.ln_2") @ w[f"{p}.mlp.c_fc.weight"].T + w[f"{p}.mlp.c_fc.bias"]
        active = hidden * (1.702 * hidden).sigmoid() if quick else hidden * (1 + (hidden / math.sqrt(2)).erf()) / 2
        x = x + active @ w[f"{p}.mlp.c_proj.weight"].T + w[f"{p}.mlp.c_proj.bias"]
    return norm(x, w, "ln_final")


@pytest.mark.parametrize(("layer", "layers"), [("last", LAYERS), ("penultimate", LAYERS - 1)])
@torch.no_grad()
def test_features_are_the_layers_output_after_the_final_norm(layer: str, layers: int, folder: Path) -> None:
    quick = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"]
    tokens = torch.tensor([token_numbers(caption) for caption in CAPTIONS])
    expected = tower(tokens, load_file(folder / "open_clip_model.safetensors"), layers, quick)
    found = build_text_encoder(TextConfig(str(folder), layer)).encode(CAPTIONS)  # type: ignore[arg-type]
    assert isinstance(found, Tensor), "padding is masked, but the released code attends to it"
    assert found.shape == (3, 77, WIDTH)  # not EMBED: there is no projection
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_features_equal_those_of_open_clips_text_tower(folder: Path) -> None:
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=True).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    assert tokens.tolist() == [token_numbers(caption) for caption in CAPTIONS]
    theirs = model.forward_intermediates(
        text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True
    )["text_intermediates"][-1]
    ours = build_text_encoder(TextConfig(str(folder))).encode(CAPTIONS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
