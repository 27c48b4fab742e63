"""Claims of the paper, the paper's values, and verdicts on them."""
