"""Locate the weights of the bundled autoencoder and of the two bundled CLIPs."""
