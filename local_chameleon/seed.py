# SPDX-License-Identifier: Apache-2.0
"""What a new Keystone is filled with: regions, services and endpoints, projects, users, application credentials."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from groundwork.errors import SageError
from local_chameleon import profiles
from local_chameleon.catalog import SERVICES
from local_chameleon.profiles import Profile

_INTERFACES = ("public", "internal", "admin")
_ADMINISTRATORS = ("placement", "network", "compute", "reservation")  # services that act for all projects


@dataclass(frozen=True)
class Credential:
    """An application credential; ``suffix`` is what its entries in clouds.yaml have behind the region's name."""

    suffix: str
    id: str
    secret: str


def seed(port: int, profile: Profile, *, admin_password: str, service_passwords: Mapping[str, str]) -> list[Credential]:
    """Fill a Keystone that was only bootstrapped; gives the projects' credentials.  Raises SageError."""
    from openstack.exceptions import SDKException  # takes 0.5 s to import, and is needed once in a cloud's life

    try:
        return _seed(port, profile, admin_password, service_passwords)
    except SDKException as error:
        raise SageError(f"Keystone could not be filled: {error}", hint="see keystone/service.log") from None


def _seed(port: int, profile: Profile, admin_password: str, service_passwords: Mapping[str, str]) -> list[Credential]:
    admin = connect(port, profile.regions[0], "admin", admin_password, "admin").identity
    roles = {role.name: role for role in admin.roles()}
    identity = next(iter(admin.services(type="identity")))
    for region in profile.regions[1:]:  # the first one is Keystone's bootstrap's
        admin.create_region(id=region)
        # Keystone's middleware looks for the identity endpoint of its own region, with any of the interfaces.
        _create_endpoints(admin, identity.id, region, profiles.keystone_url(port))

    service_project = admin.create_project(name="service", domain_id="default")
    for service_type in profile.services:
        name = SERVICES[service_type].USER
        user = admin.create_user(name=name, domain_id="default", password=service_passwords[name])
        for role in ("service", *(["admin"] if service_type in _ADMINISTRATORS else [])):
            admin.assign_project_role_to_user(service_project, user, roles[role])
        service = admin.create_service(name=name, type=service_type)
        for region in profile.regions:
            _create_endpoints(admin, service.id, region, profiles.endpoint(port, profile, region, service_type))
    credentials = []
    for number, project in enumerate(profiles.PROJECTS, 1):
        credentials += _create_project(port, profile, admin, number, project, roles["member"])
    return credentials


def _create_endpoints(admin: Any, service_id: str, region: str, url: str) -> None:
    for interface in _INTERFACES:
        admin.create_endpoint(service_id=service_id, interface=interface, region_id=region, url=url)


def _create_project(port: int, profile: Profile, admin: Any, number: int, name: str, role: Any) -> list[Credential]:
    project = admin.create_project(name=name, domain_id="default")
    # Nobody logs in with this password: it only makes the credentials, which only the user may make.
    password = secrets.token_hex(24)
    user = admin.create_user(name=f"researcher-{name}", domain_id="default", password=password)
    admin.assign_project_role_to_user(project, user, role)
    own = connect(port, profile.regions[0], user.name, password, name).identity
    kinds = [("automation", True, f"_{number}" if number > 1 else "")]
    if number == 1 and profile.lends:  # what many users have by mistake; Blazar can't do with it
        kinds.append(("restricted", False, "_restricted"))
    credentials = []
    for label, unrestricted, suffix in kinds:
        made = own.create_application_credential(user.id, name=label, unrestricted=unrestricted)
        credentials.append(Credential(suffix, made.id, made.secret))
    return credentials


def connect(port: int, region: str, user: str, password: str, project: str) -> Any:
    """openstacksdk's connection to a region by a user's password."""
    import openstack

    return openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        auth_type="password",
        auth={**_domains(), **_login(port, user, password, project)},
        region_name=region,
        identity_api_version=3,
    )


def clouds(port: int, profile: Profile, *, admin_password: str, credentials: Iterable[Credential]) -> dict[str, Any]:
    """The contents of clouds.yaml.

    Entries are ``chi_uc`` (the first project's credential), ``chi_uc_2`` (the second's), ``admin_chi_uc`` (all
    rights), and so on for each region; where there are leases also ``chi_uc_restricted``.
    """
    common = {"interface": "public", "identity_api_version": 3}
    entries: dict[str, Any] = {}
    for credential in credentials:
        for region in profile.regions:
            entries[profiles.slug(region) + credential.suffix] = {
                "auth_type": "v3applicationcredential",
                "auth": {
                    "auth_url": profiles.keystone_url(port),
                    "application_credential_id": credential.id,
                    "application_credential_secret": credential.secret,
                },
                "region_name": region,
                **common,
            }
    for region in profile.regions:
        entries[f"admin_{profiles.slug(region)}"] = {
            "auth_type": "password",
            "auth": {**_login(port, "admin", admin_password, "admin"), **_domains()},
            "region_name": region,
            **common,
        }
    return {"clouds": entries}


def _login(port: int, user: str, password: str, project: str) -> dict[str, str]:
    return {
        "auth_url": profiles.keystone_url(port),
        "username": user,
        "password": password,
        "project_name": project,
    }


def _domains() -> dict[str, str]:
    return {"user_domain_id": "default", "project_domain_id": "default"}
