"""Starting the vLLM servers that a configuration names, and ending them; `trim-graph up`.

`plan` determines which servers, the memory and the command of each. `launch` checks their ports and runs the
processes.
"""
