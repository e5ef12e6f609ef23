"""MLflow runs, registered model versions, and the promotion gate."""
