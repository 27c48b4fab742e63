"""Train and evaluate, generate, fine-tune, open a finished run, compute costs."""
