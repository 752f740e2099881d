"""Paste filter that stands in for Keystone: every request is made by one and the same administrator.

Glance's pipeline without authentication knows neither user nor project, and images without an owner behave
differently (quotas, import). Filling in the headers that Keystone's middleware would have set keeps Glance's own
context middleware, and with it the usual code path.
"""

from collections.abc import Callable, Iterable
from typing import Any

IDENTITY = {
    "HTTP_X_IDENTITY_STATUS": "Confirmed",
    "HTTP_X_USER_ID": "e2e-user",
    "HTTP_X_USER_NAME": "e2e",
    "HTTP_X_PROJECT_ID": "e2e-project",
    "HTTP_X_PROJECT_NAME": "e2e",
    "HTTP_X_ROLES": "admin,member,reader",
}

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def filter_factory(_global_conf: dict[str, str], **_local_conf: str) -> Callable[[WsgiApp], WsgiApp]:
    """Return the filter, in the form that PasteDeploy asks for."""

    def wrap(app: WsgiApp) -> WsgiApp:
        def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            environ.update(IDENTITY)
            return app(environ, start_response)

        return call

    return wrap
