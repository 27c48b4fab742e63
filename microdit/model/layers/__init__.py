"""Define the network's layers.

They are attention, blocks, feed-forwards, experts, patch-mixer and embeddings.
"""
