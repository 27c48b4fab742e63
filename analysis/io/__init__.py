"""Reading runs from MLflow into data frames."""
