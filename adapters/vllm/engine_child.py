"""The main module of vLLM's engine processes; see `trim_graph.adapters.vllm.engine`.

A process started by ``spawn`` runs its parent's main module, which would start a script without ``if __name__
== "__main__"`` once more; this module replaces it. And vLLM's engine process would outlive a killed parent,
with the memory it holds; with this module it ends too.
"""

import os
import signal
import threading
import time

_LOOK_S = 1.0
_GRACE_S = 15.0
"""Seconds for the engine to abort its calls and free its memory."""


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__mp_main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), name="trim-graph watch", daemon=True).start()
