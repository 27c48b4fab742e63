"""Read and write files: atomic writes, digests, text, YAML and tensors."""
