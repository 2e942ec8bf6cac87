"""Files and databases: checkpoints, journals, data files, and locks on threads."""
