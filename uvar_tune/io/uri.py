"""A tracking or storage URI as it may be shown."""

from __future__ import annotations

import re
from urllib.parse import quote_plus, unquote


def shown(uri: str) -> str:
    """The URI without what may be secret in it: user, password and query."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"


def cleaned(text: str, uri: str) -> str:
    """The first line of a message, without any URI's user and password, and without this one's wherever they stand."""
    text = text.strip().splitlines()[0] if text.strip() else ""
    text = re.sub(r"://\S*@", "://", text)
    user = uri.partition("://")[2].rpartition("@")[0]
    text = text.replace(uri, shown(uri))
    query = re.findall(r"[?&][^&=]*(?:pass|pwd|token|secret|key)[^&=]*=([^&]+)", unquote(uri), re.IGNORECASE)
    secrets = {user, user.partition(":")[2], *query, *map(quote_plus, query)}
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text[:300]
