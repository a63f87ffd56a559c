"""Dispatch: who gets which task."""

from romancy_service.dispatch.dispatch import Dispatch

__all__ = ["Dispatch"]
