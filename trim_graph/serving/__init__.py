"""Starting the vLLM servers that a configuration names, and ending them; `trim-graph up`.

`plan` says which servers and with what arguments, `launcher` how vLLM is called, `memory` divides GPUs,
`ports` looks at what is there already, `fleet` runs the processes.
"""
