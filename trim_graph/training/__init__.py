"""Learn policies: models of steps and scores, a simulator, planning. Needs the extras ``policies`` or ``train``.

Nothing is imported here: name the module, such as `trim_graph.training.step_model`.
"""
