"""What production saw, whether it has drifted, and telling someone."""
