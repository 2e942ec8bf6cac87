"""Calls of models within a run: what one may use, what a crash loses, and steps written ahead."""
