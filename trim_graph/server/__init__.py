"""`trim-graph serve`: a server that answers in OpenAI's protocol. Needs the extra ``serve``."""

from .app import check_servable, create_app
from .keys import ApiKeys, read_keys

__all__ = ["ApiKeys", "check_servable", "create_app", "read_keys"]
