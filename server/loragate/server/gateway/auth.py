"""Who is calling: a key becomes a tenant, or the request ends here."""

import hmac

from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.server.errors import ModelNotFound, PermissionDenied, Unauthenticated


class Authenticator:
    """Looks keys up in the registry's snapshot; knows nothing of transports."""

    def __init__(self, registry: SnapshotWatcher, admin_key: str) -> None:
        self._registry = registry
        self._admin_digest = hash_key(admin_key)

    def authenticate(self, key: str | None, endpoint_tenant: str | None = None) -> str:
        """Returns the key's tenant.

        `endpoint_tenant` is the tenant of a per-tenant endpoint: another tenant's key finds
        nothing there. Raises Unauthenticated, PermissionDenied for the admin key (which opens no
        model), or ModelNotFound.
        """
        if not key:
            raise Unauthenticated(
                "No API key was sent; send it as 'Authorization: Bearer <key>', or in x-api-key."
            )
        digest = hash_key(key)
        tenant = self._registry.current.tenant_of_key(digest)
        if tenant is None:
            if hmac.compare_digest(digest, self._admin_digest):
                raise PermissionDenied(
                    "This is the admin key, which opens no model; use a tenant's key "
                    "(loragate key create TENANT)."
                )
            raise Unauthenticated("This API key is unknown or was revoked.")
        if endpoint_tenant is not None and endpoint_tenant != tenant:
            raise ModelNotFound("There is no such endpoint for this key.")
        return tenant

    def is_tenant_key(self, key: str) -> bool:
        return self._registry.current.tenant_of_key(hash_key(key)) is not None

    def is_admin_key(self, key: str) -> bool:
        return hmac.compare_digest(hash_key(key), self._admin_digest)
