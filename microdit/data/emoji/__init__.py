"""Provide the dataset `emoji-captions`: captioned scenes of the ten CIFAR-10 classes, drawn on the fly."""
