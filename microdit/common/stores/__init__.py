"""Address and search the MLflow and Optuna stores.

`sweeps` and `analysis` share this package.
"""
