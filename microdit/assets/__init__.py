"""The shipped miniature stack: an autoencoder and two CLIPs, with the scripts that made them."""

from pathlib import Path

ROOT = Path(__file__).parent
VAE = ROOT / "vae"
TEXT_CLIP = ROOT / "text_clip"
SCORE_CLIP = ROOT / "score_clip"
