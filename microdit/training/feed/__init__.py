"""Draw the inputs of training steps and bring them to the device."""
