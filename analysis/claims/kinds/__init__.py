"""Test each kind of claim."""
