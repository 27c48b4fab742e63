"""Paths of the bundled networks, which the scripts in `microdit/assets/build/` trained."""

from pathlib import Path

ROOT = Path(__file__).parent.parent / "assets"
VAE = ROOT / "vae"
TEXT_CLIP = ROOT / "text_clip"
SCORE_CLIP = ROOT / "score_clip"
