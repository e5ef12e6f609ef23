"""Scores of many images, and crack maps of photos."""
