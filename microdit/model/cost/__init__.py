"""Compute the cost of a network: FLOPs, parameters and memory."""
