"""Reading and writing files: atomic writes, digests, text, YAML and tensors."""
