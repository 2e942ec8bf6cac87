"""Learn policies: models of steps and scores, a simulator, planning. Needs NumPy (extra ``policies``).

Nothing is imported here: name the module, such as `trim_graph.training.step_model`.
"""
