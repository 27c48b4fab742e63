"""Frozen networks around the diffusion transformer: autoencoders, text encoders, feature networks."""
