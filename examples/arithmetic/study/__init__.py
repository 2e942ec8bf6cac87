"""The study of the arithmetic world: how its shipped policies were chosen, and what every policy comes to.

It is part of the repository and of no wheel. ``make results`` runs it.
"""
