"""Studies to trials, trials to workers, workers to MLflow."""
