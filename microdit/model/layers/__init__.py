"""Define the layers: attention, blocks, feed-forwards, patch-mixer, embeddings."""
