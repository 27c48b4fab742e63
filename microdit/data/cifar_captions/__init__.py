"""Make `cifar-captions`: captioned photographs of the ten CIFAR-10 classes, chosen from COYO-700M."""
