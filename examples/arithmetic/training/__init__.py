"""How the weights of the arithmetic world are made: ``make train``. In the repository, and in no wheel."""
