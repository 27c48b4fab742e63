"""Draw the inputs of training steps and copy them to the device."""
