"""Coverage-guided fuzzing of the step splitter and of the layouts that reward models read.

``pip install atheris`` (Linux, Python 3.11 to 3.13), then::

    python -m tests.fuzz steps -max_total_time=600
    python -m tests.fuzz prm -max_total_time=600

Every option behind the target is libFuzzer's; it prints how many inputs it has tried. What it finds becomes
a case of ``tests/test_untrusted.py``.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["trim_graph"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"tests.fuzz: choose a target: {', '.join(TARGETS)}")
    check = TARGETS[name]()

    def one(data: bytes) -> None:
        given = atheris.FuzzedDataProvider(data)
        texts = [given.ConsumeUnicode(given.ConsumeIntInRange(0, 60)) for _ in range(3)]
        choices = [given.ConsumeIntInRange(0, 1000) for _ in range(6)]
        check(texts, choices)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


main()
