"""A human in the loop: a run waits in a file for an answer, which another process may bring."""
