"""Work on more than one machine: shards that a batch scheduler runs, and workers on a Ray cluster."""
