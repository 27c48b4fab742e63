"""The network's layers: attention, blocks, feed-forwards, experts, patch-mixer and embeddings."""
