# SPDX-License-Identifier: Apache-2.0
# What runs at the start of an interpreter, by a .pth file or by ``fastfs glance run``.  It is executed as text, since
# importing it would import the package: it must cost nothing where glance_store is not imported, and break nothing.
import sys


class FastfsGlance:
    """Waits for glance_store's filesystem driver to be imported."""

    fastfs_glance = True

    @staticmethod
    def find_spec(name: str, path: "list[str] | None" = None, target: "object" = None) -> "object":
        if name != "glance_store._drivers.filesystem":
            return None
        try:
            from fastfs.glance.activation import find_spec
        except Exception as error:
            import os

            if os.environ.get("FASTFS_GLANCE_STRICT", "").lower() in ("1", "true", "yes", "on"):
                raise
            # With fastfs uninstalled, this file may be left; that is no fault.
            if not (isinstance(error, ModuleNotFoundError) and error.name == "fastfs"):
                import logging

                logging.getLogger("fastfs.glance").warning("fastfs is not used, it cannot be imported: %s", error)
            return None
        return find_spec(name, path)


if not any(getattr(finder, "fastfs_glance", False) for finder in sys.meta_path):
    sys.meta_path.insert(0, FastfsGlance)  # type: ignore[arg-type]
