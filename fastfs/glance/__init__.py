# SPDX-License-Identifier: Apache-2.0
"""fastfs as the filesystem driver of glance_store: the only room that knows OpenStack.

Importing this does not import glance_store.  `install` has fastfs found under the name of glance_store's own
driver, `uninstall` ends that, `status` tells what is the case.
"""

from fastfs.glance.activation import Status, install, status, uninstall

__all__ = ["Status", "install", "status", "uninstall"]
