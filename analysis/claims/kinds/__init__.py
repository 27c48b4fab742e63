"""Kinds of claims: how each one is tested."""
