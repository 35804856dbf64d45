# SPDX-License-Identifier: Apache-2.0
"""From a site to a connection: the entry of clouds.yaml, deadlines, retries, and errors that tell what to do.

The OpenStack SDK takes half a second to import, so it is imported only where a connection is made.
"""

import logging
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import groundwork
from chameleon_sites.sites import Site
from groundwork.errors import InputError, SageError
from groundwork.files import join_names
from groundwork.worker import Worker

if TYPE_CHECKING:
    from openstack.config import OpenStackConfig
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_SECRET = ("password", "secret", "token", "passcode")
_PLACES = "./clouds.yaml, ~/.config/openstack/clouds.yaml or /etc/openstack/clouds.yaml"


class SiteError(SageError):
    """Something failed at a site."""


class SiteUnreachable(SiteError):
    """A site does not answer, or not as it should; later it may.

    ``retry_after``: seconds that the site itself asks to wait; 0.0 where it says nothing.
    """

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


def connect(site: Site, *, deadline: float = 20.0) -> "Connection":
    """A connection to the site, with a token.  ``deadline``: seconds for each answer.

    Raises InputError for what the user must mend (no clouds.yaml, no entry, wrong credentials) and
    SiteUnreachable where the site does not answer.
    """
    found = connect_all([site], deadline=deadline)[site.name]
    if isinstance(found, SageError):
        raise found
    return found


def connect_all(sites: Sequence[Site], *, deadline: float = 20.0) -> "dict[str, Connection | SageError]":
    """Connections to all ``sites``, made at once, by site name; the error in its place where one failed."""
    found: dict[str, Connection | SageError] = {}
    try:
        config = _load_config()
    except SageError as error:
        return {site.name: error for site in sites}

    def authorize(site: Site, connection: "Connection") -> None:
        try:
            _authorize(site, connection)
            found[site.name] = connection
        except Exception as error:
            found[site.name] = explain(site.name, error)

    workers = []
    for site in sites:
        try:
            connection = _open(config, site, deadline)
        except SageError as error:
            found[site.name] = error
            continue
        workers.append(Worker(partial(authorize, site, connection), name=f"connect {site.name}"))
    for worker in workers:
        while not worker.wait(0.2):
            pass
    return {site.name: found[site.name] for site in sites}


def with_entry(sites: Iterable[Site]) -> list[Site]:
    """Those of ``sites`` that clouds.yaml has an entry for.  Raises InputError where there is no clouds.yaml."""
    clouds = _clouds(_load_config())

    def has_entry(site: Site) -> bool:
        try:
            find_entry(site, clouds, preferred=os.environ.get("OS_CLOUD"))
        except InputError:
            return False
        return True

    return [site for site in sites if site.formats and has_entry(site)]


def find_entry(site: Site, clouds: Mapping[str, Any], *, preferred: str | None = None) -> str:
    """The name of the entry of clouds.yaml that leads to the site.

    ``clouds`` is the file's mapping of that name.  In this order: the entry that the sites file names; one named
    like the site; the only one of the site's region; the only one of several regions with the site's among them.
    Of several, ``preferred`` (``OS_CLOUD``) counts.  Raises InputError where there is none, or no only one.
    """
    hint = f"name one by the key 'cloud' of {site.name} in a sites file (--sites-file)"
    if site.cloud is not None:
        if site.cloud not in clouds:
            raise InputError(
                f"clouds.yaml has no entry {site.cloud!r}, which the sites file names for {site.name}",
                hint=_known(clouds),
            )
        return _checked(site, site.cloud, clouds)
    for name in (site.slug, site.name):
        if name in clouds:
            return _checked(site, name, clouds)
    of_region = [name for name, entry in clouds.items() if _regions(entry) == [site.name]]
    among = [name for name, entry in clouds.items() if site.name in _regions(entry)]
    candidates = of_region or among
    if not candidates:
        raise InputError(
            f"clouds.yaml has no entry for {site.name}",
            hint=f"add one named {site.slug!r} with region_name: {site.name}, or {hint}",
        )
    if len(candidates) > 1 and preferred not in candidates:
        names = join_names([repr(name) for name in sorted(candidates)])
        raise InputError(f"clouds.yaml has several entries for {site.name}: {names}", hint=hint)
    return candidates[0] if len(candidates) == 1 else str(preferred)


def waits(first: float, longest: float) -> Iterator[float]:
    """Seconds to wait before each further attempt: doubled each time, and by chance, for many may wait at once."""
    while True:
        yield random.uniform(first / 2, first)  # noqa: S311 (no secret)
        first = min(2 * first, longest)


def explain(site_name: str, error: Exception) -> SageError:
    """Our error for one of the SDK's, of keystoneauth's or of requests'; ours are given back as they are."""
    import requests
    from keystoneauth1 import exceptions as auth_errors
    from openstack import exceptions as sdk_errors

    if isinstance(error, SageError):
        return error
    logger.debug("%s: %s: %s", site_name, type(error).__name__, error)
    status = getattr(error, "http_status", None) or getattr(error, "status_code", None)
    if status == 401 or isinstance(error, auth_errors.AuthPluginException | auth_errors.MissingAuthMethods):
        return InputError(
            f"{site_name} does not take the credentials",
            hint="the application credential may have expired, or belong to another site: make a new one there "
            "and write it into clouds.yaml",
        )
    if status == 403:
        return SiteError(f"{site_name} does not allow this", hint="ask for the role in your project that allows it")
    if isinstance(error, auth_errors.SSLError | requests.exceptions.SSLError):
        return InputError(
            f"the certificate of {site_name} is not trusted",
            hint="check auth_url, or name the site's authority by the key 'cacert' of its entry in clouds.yaml",
        )
    if isinstance(error, auth_errors.CatalogException | sdk_errors.EndpointNotFound):
        return InputError(
            f"the catalog behind the entry for {site_name} has no image service of that region",
            hint="check auth_url and region_name of the entry in clouds.yaml",
        )
    if isinstance(error, auth_errors.NotFound | auth_errors.DiscoveryFailure):
        return SiteUnreachable(
            f"what answers for {site_name} is no OpenStack identity service",
            hint="check auth_url in clouds.yaml; if it is right, the site is being repaired: try again later",
        )
    if isinstance(error, auth_errors.ClientException | requests.exceptions.RequestException | OSError):
        return SiteUnreachable(
            f"{site_name} does not answer" + (f" (HTTP {status})" if status else f": {_why(error)}"),
            hint="try again later; https://status.chameleoncloud.org tells of outages",
        )
    return SiteError(f"{site_name}: {type(error).__name__}: {_first_line(error)}")


def _load_config() -> "OpenStackConfig":
    named = os.environ.get("OS_CLIENT_CONFIG_FILE")
    if named and not Path(named).is_file():
        raise InputError(f"OS_CLIENT_CONFIG_FILE names {named}, which is not there")
    import yaml
    from openstack import exceptions as sdk_errors
    from openstack.config import OpenStackConfig

    try:
        config = OpenStackConfig(app_name="sage-chameleon", app_version=groundwork.__version__)
    except yaml.YAMLError as error:  # its text may quote lines of the file, secrets among them
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"clouds.yaml is not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    except (sdk_errors.SDKException, OSError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise InputError(f"clouds.yaml can't be read: {_first_line(error)}") from None
    if config.config_filename is None and not _clouds(config):
        raise InputError(
            "there is no clouds.yaml",
            hint=f"write one to {_PLACES}, or name it by OS_CLIENT_CONFIG_FILE; each site's web page offers "
            "it under Identity, Application Credentials",
        )
    return config


def _clouds(config: "OpenStackConfig") -> dict[str, Any]:
    clouds = config.cloud_config["clouds"]
    # With neither file nor variables the SDK makes up an entry "defaults".
    return {} if config.config_filename is None and set(clouds) == {"defaults"} else dict(clouds)


def _open(config: "OpenStackConfig", site: Site, deadline: float) -> "Connection":
    """A connection that has not yet said a word to the site."""
    from openstack.connection import Connection

    clouds = _clouds(config)
    entry = find_entry(site, clouds, preferred=os.environ.get("OS_CLOUD"))
    try:
        region = config.get_one(
            entry,
            region_name=site.name,
            api_timeout=deadline,
            image_connect_retries=2,
            image_connect_retry_delay=0.5,
            image_status_code_retries=0,  # the catalog's own: keystoneauth would wait for hours if the site said so
        )
        return Connection(config=region)
    except Exception as error:
        text = _without_secrets(_first_line(error), clouds[entry])
        raise InputError(f"the entry {entry!r} of clouds.yaml can't be used: {text}") from None


def _authorize(site: Site, connection: "Connection") -> None:
    begin = time.monotonic()
    try:
        connection.session.get_token()  # authorize() would wrap the error and lose its kind
    except Exception as error:
        problem = explain(site.name, error)
        # One more try for a hiccup; none where the first one took long or the site said no.
        if not isinstance(problem, SiteUnreachable) or time.monotonic() - begin > 3.0:
            raise problem from None
        time.sleep(0.5)
        connection.session.get_token()
    if connection.config.get_endpoint_from_catalog("image") is None:
        raise InputError(
            f"the catalog behind the entry {connection.config.name!r} has no image service in the region {site.name}",
            hint="check auth_url and region_name of the entry in clouds.yaml",
        )


def _checked(site: Site, name: str, clouds: Mapping[str, Any]) -> str:
    regions = _regions(clouds[name])
    if regions and site.name not in regions:
        raise InputError(
            f"the entry {name!r} of clouds.yaml is for {join_names(regions)}, not for {site.name}",
            hint=f"set its region_name to {site.name}, or name another entry in a sites file",
        )
    return name


def _regions(entry: Any) -> list[str]:
    """The regions that an entry of clouds.yaml names; none where it leaves them out."""
    if not isinstance(entry, Mapping):
        return []
    named = entry.get("regions") or entry.get("region_name") or entry.get("region-name") or []
    if isinstance(named, str):
        named = named.split(",")
    return [str(region.get("name", "")) if isinstance(region, Mapping) else str(region) for region in named]


def _known(clouds: Mapping[str, Any]) -> str:
    return f"it has: {', '.join(sorted(clouds))}" if clouds else "it has no entries"


def _why(error: Exception) -> str:
    text = f"{error} {error.__cause__ or ''}".lower()
    for sign, reason in (
        ("refused", "connection refused"),
        ("resolve", "its name is not known (DNS)"),
        ("name or service not known", "its name is not known (DNS)"),
        ("timed out", "no answer in time"),
        ("timeout", "no answer in time"),
        ("reset", "the connection broke"),
        ("aborted", "the connection broke"),
        ("broken pipe", "the connection broke"),
        ("unreachable", "network is unreachable"),
    ):
        if sign in text:
            return reason
    return type(error).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_secrets(text: str, entry: Any) -> str:
    auth = entry.get("auth") if isinstance(entry, Mapping) else None
    for key, value in (auth or {}).items() if isinstance(auth, Mapping) else ():
        if any(word in str(key) for word in _SECRET) and value:
            text = text.replace(str(value), "***")
    return text
