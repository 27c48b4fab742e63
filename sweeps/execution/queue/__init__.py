"""The trial queue: an Optuna study whose trials are claimed by workers."""
