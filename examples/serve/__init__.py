"""A routed pair of models behind OpenAI's protocol, with keys, quotas and metrics."""
