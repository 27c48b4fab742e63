"""Intervals, paired comparisons, trends, power and variance components."""
