"""What the project claims to be fast and good at, measured by command."""
