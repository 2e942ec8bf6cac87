"""MATH-500 and AIME with Qwen2.5 on a user's GPUs: all policies and baselines by one command."""
