"""Key manager that serves X.509 certificates out of a directory, so that signed images need no Barbican.

castellan accepts any importable class as ``[key_manager] backend``. Only ``get`` is needed to check signatures; the
certificate's identifier is the name of a DER file in the directory named by ``GLANCE_E2E_CERTIFICATES``.
"""

import os
from pathlib import Path
from typing import Any

from castellan.common import exception
from castellan.common.objects import x_509
from castellan.key_manager import key_manager


class FileKeyManager(key_manager.KeyManager):  # type: ignore[misc]
    """Read-only key manager over a directory of certificates."""

    def __init__(self, configuration: Any) -> None:
        super().__init__(configuration)
        self._directory = Path(os.environ["GLANCE_E2E_CERTIFICATES"])

    def get(self, _context: Any, managed_object_id: str, metadata_only: bool = False) -> Any:
        """Return the certificate; ``metadata_only`` makes no difference for public data."""
        path = self._directory / f"{managed_object_id}.der"
        if not path.is_file():
            raise exception.ManagedObjectNotFoundError(uuid=managed_object_id)
        return x_509.X509(path.read_bytes())

    def list(self, _context: Any, object_type: Any = None, metadata_only: bool = False) -> Any:
        """Return every certificate."""
        return [x_509.X509(path.read_bytes()) for path in sorted(self._directory.glob("*.der"))]

    def _refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError("this key manager can only be read")

    create_key = create_key_pair = store = copy = delete = add_consumer = remove_consumer = _refuse
