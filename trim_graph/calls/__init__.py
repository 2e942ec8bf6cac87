"""Model calls within a run: their limits and charges, calls that a crash interrupts, and speculation."""
