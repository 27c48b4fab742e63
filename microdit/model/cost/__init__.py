"""What a network costs: FLOPs, parameters and memory."""
