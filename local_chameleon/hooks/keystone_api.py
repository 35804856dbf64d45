# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found"
"""Keystone, with trusts as those releases have them that Chameleon runs.

There an unrestricted application credential may make trusts and a restricted one may not.  This Keystone lets either
none or both.

This module runs in the services' environment, never in this program's own.
"""

import flask
from keystone import exception
from keystone.api import trusts
from keystone.common import authorization
from keystone.wsgi.api import application

__all__ = ["application"]


def _check_application_credential() -> None:
    token = flask.request.environ.get(authorization.AUTH_CONTEXT_ENV, {}).get("token")
    if token and "application_credential" in token.methods and not token.application_credential["unrestricted"]:
        raise exception.ForbiddenAction(action="managing trusts by a restricted application credential")


trusts._check_application_credential = _check_application_credential
