"""Shadow mode on the example models: an application that keeps its answers, and what its shadow found."""
