"""Select captioned photographs of the ten CIFAR-10 classes.

`cifar-captions` takes them from COYO-700M's metadata.
"""
