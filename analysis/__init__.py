"""Turns MLflow runs into data frames, statistics, tables and figures.

Uses neither torch nor the model.
"""
