"""Chat models asked by prompt: for the next step of a solution, or for a rating of steps."""
