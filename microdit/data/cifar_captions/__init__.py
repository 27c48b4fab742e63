"""`cifar-captions`: captioned photographs of the ten CIFAR-10 classes, selected from COYO-700M's metadata."""
