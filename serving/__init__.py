"""Who asks: the HTTP API and its page."""
