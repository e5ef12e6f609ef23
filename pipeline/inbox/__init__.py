"""Labelled batches that arrive: checked, taken into a data set, trained on."""
