"""The engine: the only writer of history."""

from romancy_service.engine.engine import Engine

__all__ = ["Engine"]
