"""Paired comparisons, trends, power and variance components.

Intervals are in `microdit.common.numbers`.
"""
