"""MLflow runs to tidy frames, statistics, tables and figures. Reads MLflow alone and imports no other room."""
