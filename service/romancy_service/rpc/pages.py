"""Pages: tokens of lists that are in order of names."""

from __future__ import annotations

import base64
import json

from romancy_service.core.check import check_id
from romancy_service.core.limits import Limits
from romancy_service.errors import InvalidField


def page_token(listed: str, name: str) -> str:
    """A token to go on after `name` in the list `listed`, which says of what it is: a namespace, for example."""
    # Not a secret: whoever forges one sees only what the list shows anyway.
    return base64.urlsafe_b64encode(json.dumps([listed, name]).encode()).decode()


def read_page_token(token: str, listed: str, limits: Limits) -> str:
    """The name after which the page begins; empty: it is the first page. Raises InvalidField."""
    if not token:
        return ""
    try:
        of_list, name = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        if of_list == listed and isinstance(name, str):
            check_id("page_token", name, limits)
            return name
    except (ValueError, TypeError, RecursionError, InvalidField):
        pass
    remedy = "give next_page_token as it was, with the same namespace"
    raise InvalidField("page_token", "is not of this list", remedy, reason="INVALID_PAGE_TOKEN")
