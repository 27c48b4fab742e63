"""Load frozen networks: autoencoders, text encoders and feature networks."""
