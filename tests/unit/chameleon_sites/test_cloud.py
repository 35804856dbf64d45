# SPDX-License-Identifier: Apache-2.0
"""From a site to its entry of clouds.yaml, and from the SDK's errors to ours."""

from pathlib import Path
from typing import Any

import pytest
import requests
from keystoneauth1 import exceptions as auth_errors

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable, connect_all, explain, find_entry
from chameleon_sites.sites import DiskFormat, Site, SiteKind
from groundwork.errors import InputError, SageError

UC = Site("CHI@UC", "https://uc/v3", SiteKind.BAREMETAL, (DiskFormat.RAW,))
NAMED = Site("CHI@UC", "https://uc/v3", SiteKind.BAREMETAL, (DiskFormat.RAW,), cloud="mine")


def entry(region: str | None = None, **keys: Any) -> dict[str, Any]:
    return {"auth": {"password": "hunter2"}, **({"region_name": region} if region else {}), **keys}


@pytest.mark.parametrize(
    ("site", "clouds", "expected"),
    [
        (NAMED, {"mine": entry("CHI@UC"), "chi_uc": entry("CHI@UC")}, "mine"),
        (NAMED, {"mine": entry(regions=["CHI@TACC", "CHI@UC"])}, "mine"),
        (NAMED, {"mine": entry(regions=[{"name": "CHI@UC", "values": {}}])}, "mine"),
        (UC, {"chi_uc": entry("CHI@UC"), "other": entry("CHI@UC")}, "chi_uc"),
        (UC, {"CHI@UC": entry("CHI@UC"), "other": entry("CHI@UC")}, "CHI@UC"),
        (UC, {"chi_uc": entry()}, "chi_uc"),
        (UC, {"uc": entry("CHI@UC"), "tacc": entry("CHI@TACC")}, "uc"),
        (UC, {"uc": entry("CHI@UC"), "all": entry(regions=["CHI@UC", "CHI@TACC"])}, "uc"),
        (UC, {"tacc": entry("CHI@TACC"), "all": entry(regions=["CHI@UC", "CHI@TACC"])}, "all"),
        (UC, {"a": entry("CHI@UC"), "b": entry("CHI@UC"), "preferred": entry("CHI@UC")}, "preferred"),
    ],
)
def test_an_entry_is_found(site: Site, clouds: dict[str, Any], expected: str) -> None:
    assert find_entry(site, clouds, preferred="preferred") == expected


@pytest.mark.parametrize(
    ("site", "clouds", "said"),
    [
        (NAMED, {"chi_uc": entry("CHI@UC")}, "no entry 'mine'"),
        (NAMED, {"mine": entry("CHI@TACC")}, "is for CHI@TACC, not for CHI@UC"),
        (UC, {"chi_uc": entry("CHI@TACC")}, "is for CHI@TACC, not for CHI@UC"),
        (UC, {}, "no entry for CHI@UC"),
        (UC, {"tacc": entry("CHI@TACC"), "none": entry(), "wrong": "text"}, "no entry for CHI@UC"),
        (UC, {"b": entry("CHI@UC"), "a": entry("CHI@UC")}, "several entries for CHI@UC: 'a' and 'b'"),
        (UC, {"b": entry(regions=["CHI@UC"] * 2), "a": entry(regions=["CHI@UC", "x"])}, "several entries"),
    ],
)
def test_an_entry_that_is_not_clear_is_wrong_input(site: Site, clouds: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        find_entry(site, clouds, preferred="elsewhere")
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_the_key_cloud_is_named_where_several_entries_fit() -> None:
    with pytest.raises(InputError) as caught:
        find_entry(UC, {"a": entry("CHI@UC"), "b": entry("CHI@UC")})
    assert "'cloud'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (auth_errors.Unauthorized(), InputError),
        (auth_errors.MissingRequiredOptions([]), InputError),
        (auth_errors.EndpointNotFound(), InputError),
        (auth_errors.SSLError("certificate verify failed"), InputError),
        (auth_errors.Forbidden(), SiteError),
        (auth_errors.ConnectFailure("connection refused"), SiteUnreachable),
        (auth_errors.ConnectTimeout("timed out"), SiteUnreachable),
        (auth_errors.ServiceUnavailable(), SiteUnreachable),
        (auth_errors.DiscoveryFailure(), SiteUnreachable),
        (auth_errors.NotFound(), SiteUnreachable),
        (requests.exceptions.ChunkedEncodingError(), SiteUnreachable),
        (OSError("broken pipe"), SiteUnreachable),
        (ValueError("surprise"), SiteError),
        (InputError("ours"), InputError),
    ],
)
def test_errors_are_told_as_ours(error: Exception, kind: type[SageError]) -> None:
    assert type(explain("CHI@UC", error)) is kind


def test_no_clouds_yaml_is_wrong_input_at_every_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "absent.yaml"))
    (error,) = connect_all([UC]).values()
    assert isinstance(error, InputError)
    assert "absent.yaml" in str(error)


@pytest.mark.parametrize(
    "text",
    ["clouds: [hunter2", "clouds:\n  chi_uc: hunter2\n", "- hunter2\n", "clouds:\n  chi_uc:\n    auth: hunter2\n"],
)
def test_a_spoilt_clouds_yaml_is_wrong_input_and_no_secret_is_told(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "clouds.yaml").write_text(text)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    (error,) = connect_all([UC]).values()
    assert isinstance(error, InputError)
    assert "hunter2" not in f"{error} {error.hint}"


def test_secrets_are_struck_out() -> None:
    auth = {"application_credential_secret": "hunter2", "auth_url": "http://uc"}
    assert cloud._without_secrets("bad hunter2 at http://uc", {"auth": auth}) == "bad *** at http://uc"
