"""MLflow: runs, model versions, and the gate that decides about production."""
