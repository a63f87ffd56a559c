"""Event path: events that are sent to a namespace are kept."""

from __future__ import annotations

from aiohttp import web

from romancy_service.core.limits import Limits
from romancy_service.http.bodies import Bodies
from romancy_service.http.cloud_events import check_media_type, events_of
from romancy_service.publisher import Publisher


class EventPath:
    """Any replica keeps what comes, and all deliver it."""

    def __init__(self, publisher: Publisher, limits: Limits) -> None:
        self._publisher = publisher
        self._limits = limits
        self._bodies = Bodies(limits)

    async def publish(self, request: web.BaseRequest, namespace: str) -> dict[str, object]:
        """Keep the events of a request, all or none. Says which of them were known before."""
        check_media_type(request.headers)
        async with self._bodies.read(request) as body:
            events, is_batch = events_of(request.headers, body, self._limits)
            duplicates = await self._publisher.publish(namespace, events, "events[{}]" if is_batch else "event")
        return {"duplicates": duplicates} if is_batch else {"duplicate": duplicates[0]}
