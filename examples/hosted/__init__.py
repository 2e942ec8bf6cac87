"""Two hosted chat models and an LLM judge, no process reward model; and what asking by prompt costs."""
