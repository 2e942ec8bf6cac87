"""Chat models and process reward models on vLLM: behind a server, or on an engine in this process."""
