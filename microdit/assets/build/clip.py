"""Train one of the two bundled CLIPs on new emoji-captions scenes, on one CPU thread.

    python -m microdit.assets.build.clip text  --minutes 20     # conditions the network
    python -m microdit.assets.build.clip score --minutes 22     # only scores; other seeds and sizes

Each caption has a hard negative, the caption with one fact changed (NegCLIP, Yuksekgonul et al., arXiv 2210.01936).
Without them a small CLIP distinguishes classes and colors but neither counts nor "left of" from "right of".

Output in open_clip's format: open_clip_config.json, open_clip_model.safetensors, and the tokenizer's own merge list.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from microdit.assets.build.bpe import learn_merges, vocabulary_size, write_merges
from microdit.assets.build.hard_negatives import ATTRIBUTES, swap
from microdit.common.files.atomic import atomic_path
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset
from microdit.encoders.config import ROOT

MEAN = STD = (0.5, 0.5, 0.5)
MERGES = 700
CONTEXT = 32


@dataclass(frozen=True)
class Recipe:
    """Configure the training of one of the two CLIPs; they share no randomness."""

    seed: int
    embed_dim: int
    vision: dict[str, Any]
    text: dict[str, Any]
    lr: float
    batch: int


RECIPES = {
    "text": Recipe(
        seed=11,
        embed_dim=96,
        vision={"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
        text={"context_length": CONTEXT, "width": 128, "heads": 4, "layers": 3},
        lr=1.5e-3,
        batch=96,
    ),
    "score": Recipe(
        seed=77,
        embed_dim=128,
        vision={"image_size": 64, "layers": [1, 1, 1, 1], "width": 20},
        text={"context_length": CONTEXT, "width": 96, "heads": 4, "layers": 2},
        lr=2e-3,
        batch=128,
    ),
}


class Scenes:
    """Generate an endless stream of scenes of every setting, each used once."""

    def __init__(self, seed: int) -> None:
        options = [(1, True, True), (2, True, True), (3, True, False), (3, True, True)]
        self._sets = [
            build_dataset(
                DataConfig(seed=seed + i, train_size=10**6, max_objects=objects, hues=hues, scenery=scenery), "train"
            )
            for i, (objects, hues, scenery) in enumerate(options)
        ]
        self._next = 0
        self._rng = np.random.default_rng(seed)

    def batch(self, count: int) -> tuple[Tensor, list[str]]:
        """Return the next images and their captions.

        Args:
            count: number of images.

        Returns:
            (count, 3, H, W) float32 in [-1, 1], and `count` captions.
        """
        items = []
        for _ in range(count):
            turn, index = self._next % len(self._sets), self._next // len(self._sets)
            items.append(self._sets[turn][index])
            self._next += 1
        images = torch.from_numpy(np.stack([item.image for item in items]))
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1, [item.caption for item in items]

    def wrong(self, caption: str) -> str:
        """Return a caption with one fact changed; unchanged if no fact can be.

        Half of the time the relation is changed if there is one, otherwise a random attribute.
        """
        others = [str(name) for name in self._rng.permutation(ATTRIBUTES)]
        order = ["relation", *others] if self._rng.random() < 0.5 else others
        return next((changed for name in order if (changed := swap(caption, name, self._rng)) is not None), caption)


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Return the result of open_clip's `encode_text`, without encoding padding.

    The tower is causal, so padding cannot affect the tokens before it.

    Args:
        model: open_clip's CLIP.
        tokens: (B, S) int64, padded with 0.

    Returns:
        (B, E) float32.
    """
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection


def contrastive(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    """Return CLIP's symmetric loss (arXiv 2103.00020, figure 3).

    Equal captions are correct matches of each other.

    Args:
        model: open_clip's CLIP.
        images: (B, 3, H, W).
        tokens: (2B, S), B captions, then their hard negatives, which are wrong matches of every image.

    Returns:
        A scalar.
    """
    count = len(images)
    image = F.normalize(model.encode_image(images), dim=-1)
    text = F.normalize(encode_text(model, tokens), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T  # (B, 2B)
    same = (tokens[:count].unsqueeze(1) == tokens.unsqueeze(0)).all(-1).float()
    to_text, to_image = same / same.sum(1, keepdim=True), same[:, :count] / same[:, :count].sum(0)
    return (F.cross_entropy(logits, to_text) + F.cross_entropy(logits[:, :count].T, to_image.T)) / 2


def main() -> None:
    """Train the chosen CLIP for the given time, saving it every minute."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from open_clip.tokenizer import SimpleTokenizer
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=tuple(RECIPES))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.which]
    out = arguments.out or ROOT / f"{arguments.which}_clip"
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)  # open_clip initializes from the global generator

    scenes = Scenes(recipe.seed * 1000)
    merges = learn_merges(Scenes(recipe.seed * 1000 + 500).batch(6000)[1], MERGES)
    scratch = out.parent / f".{out.name}-merges.txt.gz"
    write_merges(merges, scratch)
    tokenizer = SimpleTokenizer(bpe_path=str(scratch), context_length=CONTEXT)
    text = {**recipe.text, "vocab_size": vocabulary_size(merges)}
    model = CLIP(recipe.embed_dim, CLIPVisionCfg(**recipe.vision), CLIPTextCfg(**text))
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    begin, step, reported = time.monotonic(), 0, 0.0
    while (spent := (time.monotonic() - begin) / 60 / arguments.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min((step + 1) / 100, 1) * (0.5 + 0.5 * math.cos(math.pi * spent))
        images, captions = scenes.batch(recipe.batch)
        model.train()
        loss = contrastive(model, images, tokenizer([*captions, *map(scenes.wrong, captions)]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        ema.update_parameters(model)
        step += 1
        if time.monotonic() - reported > 60:
            reported = time.monotonic()
            save(ema.module, recipe, text, scratch, out)
            print(f"{spent:5.1%} step {step} loss {loss.item():.4f} scale {model.logit_scale.exp():.1f}", flush=True)
    save(ema.module, recipe, text, scratch, out)
    scratch.unlink()
    print(f"{step} steps of {recipe.batch}: {sum(p.numel() for p in model.parameters()):,} parameters in {out}")


def save(model: nn.Module, recipe: Recipe, text: dict[str, Any], merges: Path, out: Path) -> None:
    """Write an open_clip folder with weights in float16.

    Args:
        model: open_clip's CLIP.
        recipe: sizes of the model.
        text: `text_cfg` of the configuration.
        merges: the tokenizer's merge list.
        out: the folder.
    """
    config = {
        "model_cfg": {"embed_dim": recipe.embed_dim, "vision_cfg": recipe.vision, "text_cfg": text},
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    tensors = {
        name: (value.half() if value.is_floating_point() else value).detach().contiguous().clone()
        for name, value in model.state_dict().items()
        if name != "attn_mask"
    }
    with atomic_path(out) as folder:
        folder.mkdir()
        save_file(tensors, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
        (folder / "bpe_merges.txt.gz").write_bytes(merges.read_bytes())


if __name__ == "__main__":
    main()
