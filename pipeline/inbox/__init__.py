"""Check new labelled batches, add them to a data set, and retrain."""
