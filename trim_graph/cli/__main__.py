"""`python -m trim_graph.cli`."""

from . import main

main()
