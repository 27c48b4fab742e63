"""Create tiny networks with random weights in the formats of the real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

# Settings of the published autoencoders' configurations, besides their sizes.
SDXL: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True}
FLUX: dict[str, Any] = {  # as Stable Diffusion 3's is, with other factors
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": False,
}
WORDS = (
    "a red car on a street",
    "two cats",
    "a dog",
    "an orange deer in front of a green meadow",
    "frogs and ships",
    "a photo of one small bird over the blue sea, drawn by hand",
)


def autoencoder(levels: int = 4, **settings: Any) -> Any:
    """Return a diffusers AutoencoderKL that halves the image `levels` - 1 times."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4,) + (8,) * (levels - 1),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **settings,
    ).eval()


def autoencoder_folder(folder: Path, levels: int = 4, **settings: Any) -> Path:
    """Save such an autoencoder."""
    autoencoder(levels, **settings).save_pretrained(folder)
    return folder


def t5_folder(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """Return a T5 encoder of transformers, 24 wide, with a unigram vocabulary, as T5's own."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    _save_tokenizer(folder, tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = transformers.T5Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=24, d_kv=8, d_ff=32, num_layers=3, num_heads=3
    )
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


def clip_text_folder(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """Save a CLIP text encoder of transformers, 32 wide, with 16 positions; padded with its end token."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(words, trainer)
    ends = list(zip(special, (0, 1), strict=True))
    single = "<|startoftext|> $A <|endoftext|>"
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=ends)
    _save_tokenizer(folder, tokenizer, pad_token=special[1], eos_token=special[1], bos_token=special[0])
    config = transformers.CLIPTextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, tokenizer: Any, **special: str) -> None:
    import transformers

    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def open_clip_vit_folder(folder: Path) -> Path:
    """Save a whole CLIP of open_clip, vision and text transformers 32 wide, with its own vocabulary of 49,408."""
    import open_clip

    settings = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
    }
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = open_clip.CLIP(**settings)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    numbers = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": numbers}))
    return folder


def inception_weights(path: Path) -> Path:
    """Return random weights in exactly the layout that torch-fidelity reads, of a scale that keeps features apart."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        """Keep the random weights."""

        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            return None

    torch.save({}, path)
    torch.manual_seed(0)
    network = Blank("blank", ["2048"], feature_extractor_weights_path=str(path))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return path


def dinov2_weights(path: Path) -> Path:
    """Return random weights in the layout of DINOv2's ViT-S/14 for 518 pixels, which distinguish images."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=518)
    for weight in network.parameters():  # with its own initial values, outputs barely depend on the image
        nn.init.normal_(weight, std=0.06)
    torch.save(network.state_dict() | {"mask_token": torch.zeros(1, 384)}, path)
    return path
