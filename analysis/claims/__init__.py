"""Claims of the paper, values that it reports, and verdicts on the claims."""
