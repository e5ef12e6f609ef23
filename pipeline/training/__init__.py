"""What candidates learn from, and how they learn."""
