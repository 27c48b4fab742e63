"""MLflow: opening stores, logging runs, saved views, links and retries."""
