"""Examples that run: the arithmetic world with its trained models, and applications to copy."""
