"""Work on more than one machine: the executor on a Ray cluster."""
