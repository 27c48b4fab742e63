"""Judge claims, and compare with values that the paper reports."""
