"""Turn MLflow runs into data frames, statistics, tables and figures.

The package uses neither PyTorch nor the model.
"""
