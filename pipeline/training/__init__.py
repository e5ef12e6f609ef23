"""Training data of the candidates, and how probes and fine-tuned networks are trained."""
