"""Scores with confidence intervals, slices, and the plots and pages of the report."""
