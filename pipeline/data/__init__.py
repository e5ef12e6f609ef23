"""Reading, describing, validating and splitting images."""
