"""Benchmarks: each command measures figures of the documentation."""
