"""What is wrong with a set-up, in plain words; `trim-graph doctor`.

A check is an asynchronous function from a subject (a chat model, a scorer) to a `Finding`. `examination`
runs them in order under a time limit; the checks are in `server_checks`, `chat_checks`, `stop_checks`,
`scorer_checks` and `setup_checks`.
"""
