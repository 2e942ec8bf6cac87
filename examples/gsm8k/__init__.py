"""GSM8K with two pretrained models: a scorer of one's own, thresholds, baselines, and what they save."""
