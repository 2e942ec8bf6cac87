"""Process reward models (PRMs): input formats, networks, scores, and conversion for vLLM."""
