"""Chat models and process reward models in this process, with transformers."""
