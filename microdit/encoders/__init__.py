"""Frozen networks around the diffusion transformer: autoencoders, text encoders, the scoring CLIP."""
