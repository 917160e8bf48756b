"""Secrets in the URI of a tracking server or a storage, removed before the URI or a message is shown."""

from __future__ import annotations

import re
from urllib.parse import quote_plus, unquote


def redact_url(url: str) -> str:
    """The URL without user, password and query."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"


def redact_secrets(text: str, url: str) -> str:
    """The first line of a message, at most 300 characters.

    User and password of every URL are removed, and those of ``url`` and the secrets of its query wherever they occur.
    """
    text = text.strip().splitlines()[0] if text.strip() else ""
    text = re.sub(r"://\S*@", "://", text)
    user = url.partition("://")[2].rpartition("@")[0]
    text = text.replace(url, redact_url(url))
    query = re.findall(r"[?&][^&=]*(?:pass|pwd|token|secret|key)[^&=]*=([^&]+)", unquote(url), re.IGNORECASE)
    secrets = {user, user.partition(":")[2], *query, *map(quote_plus, query)}
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text[:300]
