"""Scores with intervals, slices, and the pages and plots that show them."""
