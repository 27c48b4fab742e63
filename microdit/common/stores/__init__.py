"""Addresses and searches of the MLflow and Optuna stores, shared by `sweeps` and `analysis`."""
