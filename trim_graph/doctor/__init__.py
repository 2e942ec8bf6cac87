"""Checks of a set-up, with remedies in plain words; `trim-graph doctor`.

A check is an asynchronous function from a subject (a chat model, a scorer) to a `Finding`. `chat_checks`
holds those of servers and chat models, `examination` those of scorers and of the configuration as a whole;
it runs all of them in order under a time limit.
"""
