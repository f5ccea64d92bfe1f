"""API keys: ``lg-`` and eight characters that may be shown, a hyphen, and the secret.

The secret has 256 random bits, so one plain SHA-256 hides it; a slow hash would
only slow the requests.
"""

from __future__ import annotations

import base64
import hashlib
import secrets

from loragate.adapters.registry.records import NewKey


def mint_key(tenant: str) -> NewKey:
    """A new random key. It works once its hash is in the registry."""
    public = base64.b32encode(secrets.token_bytes(5)).decode().lower()
    key_id = f"lg-{public}"
    return NewKey(tenant, f"{key_id}-{secrets.token_urlsafe(32)}", key_id)


def hash_key(key: str) -> str:
    """What the registry keeps of a key, and what `Snapshot.tenant_of_key` takes."""
    return hashlib.sha256(key.encode()).hexdigest()
