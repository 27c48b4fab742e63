"""Load the frozen networks around the diffusion transformer.

These are autoencoders, text encoders and feature networks.
"""
