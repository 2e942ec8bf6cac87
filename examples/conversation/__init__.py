"""Several turns on one thread, and budgets that runs share: per run, per thread, per user."""
