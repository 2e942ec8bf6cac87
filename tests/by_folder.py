"""Where several processes run the tests, each takes whole folders: what a folder needs is started once."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling


class ByFolder(LoadScopeScheduling):
    """Hands out folders in the order of the tests; of the files in no folder, one by one."""

    def _split_scope(self, nodeid: str) -> str:
        return "/".join(nodeid.partition("::")[0].split("/")[:2])
