"""Training of the arithmetic world's weights: ``make train``. In the repository, and in no wheel."""
