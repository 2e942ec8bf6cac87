"""The study of the arithmetic world: how its shipped policies were chosen, and the results of every policy.

It is part of the repository and of no wheel. ``make results`` and ``make scorers`` run it.
"""
