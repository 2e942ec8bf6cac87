"""Learning when to ask the large model: traces of runs, and what policies are planned and trained from."""
