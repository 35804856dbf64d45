# SPDX-License-Identifier: Apache-2.0
"""The table of this package's settings: flags, environment, configuration file and ``docs/settings.md`` come of it."""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from groundwork.errors import InputError
from groundwork.settings import Setting, folder, manual, one_of, whole_number
from image_builder import canary
from image_builder.catalog import Visibility
from image_builder.hardware import Firmware
from image_builder.journal import default_folder
from image_builder.upkeep import parse_date
from image_builder.variant import Arch


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sage-chameleon"


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise InputError(f"expected a URL that begins with http:// or https://, found {text!r}")
    if urlsplit(text).username is not None:
        raise InputError("a URL with a password in it would stand in logs", hint="use a proxy that knows the password")
    return text.rstrip("/")


def _uri(text: str) -> str:
    if not urlsplit(text).scheme:
        raise InputError(f"expected a URI, as https://..., found {text!r}")
    return text


FORCE = Setting("force", "build and publish again even if nothing has changed", switch=True, only_flag=True)
REFRESH = Setting("refresh", "take the archive's newest packages", switch=True)
CONFIG = Setting("config", "a configuration file to read instead of the usual ones", only_flag=True, metavar="FILE")
DEBUG = Setting("debug", "log what is done and show tracebacks", switch=True)
QUIET = Setting("quiet", "no progress, only warnings, errors and the result", switch=True)
JSON = Setting("json", "print the result as JSON", switch=True, only_flag=True)
DRY_RUN = Setting("dry-run", "print what would be done, and do nothing", switch=True, only_flag=True)
COMMON = (CONFIG, JSON, QUIET, DEBUG)

SITES_FILE = Setting("sites-file", "YAML file that adds sites or changes ours", folder, metavar="FILE")
SITE = Setting(
    "site", "a site, by its region's name (CHI@UC); may be repeated", also=("-g", "--region"), many=True, default=()
)
CACHE_DIR = Setting(
    "cache-dir",
    "where downloads and unfinished products are kept",
    folder,
    default=_cache(),
    shown="~/.cache/sage-chameleon",
)
CACHE_LIMIT = Setting(
    "cache-limit",
    "GiB that layers and unfinished disks may take in the cache; those not used for longest are dropped",
    whole_number(1, 100_000),
    default=20,
    metavar="GIB",
)
OUTPUT_DIR = Setting("output-dir", "where finished images are put", folder, default=Path.cwd() / "build", shown="build")
VARIANTS_DIR = Setting(
    "variants-dir", "a folder of variants of your own; may be repeated", folder, many=True, default=()
)
ELEMENTS_DIR = Setting(
    "elements-dir",
    "a folder of elements of your own; may be repeated (those of ELEMENTS_PATH count too)",
    folder,
    many=True,
    default=(),
)
ACCEL = Setting(
    "accel", "how QEMU runs the image: auto, kvm or tcg", one_of("accelerator", ("auto", "kvm", "tcg")), default="auto"
)
BOOT_TIMEOUT = Setting(
    "boot-timeout", "seconds from power-on to the first login", whole_number(10, 7200), default=600, metavar="SECONDS"
)
VISIBILITY = Setting(
    "visibility",
    "who may see a published image: public, community, shared or private; where a site refuses the first, the next "
    "is taken",
    one_of("visibility", list(Visibility)),
    many=True,
    default=("public", "community", "private"),
)
KEEP = Setting("keep", "how many of our images of a name stay at a site", whole_number(1, 1000), default=3, metavar="N")
UPLOAD_TIMEOUT = Setting(
    "upload-timeout",
    "seconds that the upload to a site may take",
    whole_number(10, 86400),
    default=7200,
    metavar="SECONDS",
)
CANARY = Setting(
    "canary",
    "try the image at each site, from the bytes that the site gives back, before it becomes the current one",
    switch=True,
)
NO_CANARY = Setting("no-canary", "publish without a canary, whatever else is set", switch=True, only_flag=True)
CANARY_COMMAND = Setting(
    "canary-command",
    "the command that tries a candidate: exit code 0 pass, 1 fail, 75 inconclusive",
    canary.check_command,
    shown="boots it by QEMU",
    metavar="COMMAND",
)
CANARY_TIMEOUT = Setting(
    "canary-timeout",
    "seconds that a canary may take at a site, waiting for other sites' boots included",
    whole_number(1, 10_800),
    default=3600,
    metavar="SECONDS",
)
KEEP_YOUNGER = Setting(
    "keep-younger",
    "our images that were built within so many days stay at a site, however many they are",
    whole_number(0, 3650),
    default=0,
    metavar="DAYS",
)
STATE_DIR = Setting(
    "state-dir",
    "what outlives a run: the journal of what is done at sites; nights' reports, logs, lock and status page",
    folder,
    default=default_folder(),
    shown="~/.local/state/sage-chameleon",
)
PUBLISHING = (
    VISIBILITY,
    KEEP,
    KEEP_YOUNGER,
    UPLOAD_TIMEOUT,
    STATE_DIR,
    CANARY,
    NO_CANARY,
    CANARY_COMMAND,
    CANARY_TIMEOUT,
)

SUMMARY = Setting(
    "summary",
    "write a summary in Markdown; in a GitHub workflow it is added to the job's page",
    folder,
    default=folder(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None,
    shown="$GITHUB_STEP_SUMMARY",
    metavar="FILE",
)
HOOKS = Setting("hooks", "YAML file that says whom to tell of a run: commands, webhooks, mail", folder, metavar="FILE")
METRICS = Setting(
    "metrics", "write Prometheus metrics for node_exporter's textfile collector (NAME.prom)", folder, metavar="FILE"
)
PUSHGATEWAY = Setting("pushgateway", "send Prometheus metrics to this pushgateway", _url, metavar="URL")
TELLING = (SUMMARY, HOOKS, METRICS, PUSHGATEWAY)

SIGN_KEY = Setting(
    "sign-key",
    "sign builds with this OpenSSH key: a private key's file, or a public key's whose private one is in the agent",
    folder,
    metavar="FILE",
)
SIGNERS = Setting(
    "signers",
    "who may have signed a build: a file as ALLOWED SIGNERS in ssh-keygen(1) says; checks the signatures",
    folder,
    metavar="FILE",
)
VARIANT = Setting("variant", "the variant to build; may be repeated", also=("-v",), many=True, default=())
RELEASE = Setting("release", "noble, jammy, resolute or bookworm", also=("-n",), default="noble")
ARCH = Setting(
    "arch",
    "amd64 or arm64",
    one_of("architecture", list(Arch)),
    shown="this machine's, or the variant's only one",
)
CREATE_IMAGE = (
    VARIANT,
    RELEASE,
    ARCH,
    SITE,
    Setting("kvm", "make the formats that KVM sites boot, also where no site is named", also=("-k",), switch=True),
    Setting("cuda-version", "the CUDA version, for variants that have CUDA", also=("-c",), metavar="VERSION"),
    Setting("revision", "take the archive as it was at a UTC time, YYYYMMDDTHHMMSSZ", also=("-r",), metavar="TIME"),
    Setting("mirror", "the archive to build from, instead of the distribution's own", _url, metavar="URL"),
    Setting(
        "keyring",
        "the file of OpenPGP keys that the archive's signature is checked against",
        folder,
        shown="the distribution's",
        metavar="FILE",
    ),
    Setting("publish", "upload to the sites named and make it the current image there", switch=True, only_flag=True),
    DRY_RUN,
    REFRESH,
    FORCE,
    SIGN_KEY,
    Setting("builder-id", "who vouches for the provenance: the URI of a machine or a workflow", _uri, metavar="URI"),
    Setting("no-verify", "do not boot the image (it can't be published then)", switch=True, only_flag=True),
    OUTPUT_DIR,
    CACHE_DIR,
    CACHE_LIMIT,
    VARIANTS_DIR,
    ELEMENTS_DIR,
    SITES_FILE,
    ACCEL,
    BOOT_TIMEOUT,
    *PUBLISHING,
    *TELLING,
    *COMMON,
)


PAGE = Setting("page", "the status page, one HTML file", folder, shown="index.html in the state folder", metavar="FILE")
KEEP_LOGS = Setting("keep-logs", "how many nights' logs stay", whole_number(1, 10_000), default=30, metavar="N")
KEEP_RUNS = Setting("keep-runs", "how many nights' reports stay", whole_number(1, 10_000), default=90, metavar="N")
KEEP_BUILDS = Setting(
    "keep-builds",
    "how many builds of each of a night's images stay on this machine",
    whole_number(1, 10_000),
    default=3,
    metavar="N",
)
_NOT_NIGHTLY = (
    *("variant", "release", "arch", "kvm", "cuda-version", "revision", "publish", "refresh", "no-verify", "canary"),
)
NIGHTLY = (
    *(setting for setting in CREATE_IMAGE if setting.name not in _NOT_NIGHTLY),
    PAGE,
    KEEP_LOGS,
    KEEP_RUNS,
    KEEP_BUILDS,
)
SITES = (SITE, SITES_FILE)
LIST = (*SITES, *COMMON)
# How `sage-image canary` boots an image, also where publishing starts it.
BOOTING = (VARIANTS_DIR, CACHE_DIR, ACCEL, BOOT_TIMEOUT)
PUBLISH = (*SITES, *PUBLISHING, DRY_RUN, FORCE, *BOOTING, *TELLING, *COMMON)
TRY = (SITES_FILE, *BOOTING, *COMMON)
UPKEEP = (*SITES, DRY_RUN, STATE_DIR, *COMMON)
PROMOTE = (*UPKEEP, VISIBILITY)
ROLLBACK = (
    *UPKEEP,
    Setting(
        "to",
        "the newest build by this date or time (UTC), as 2026-11-20 or 20261120T031500Z, instead of the one before",
        parse_date,
        metavar="DATE",
        only_flag=True,
    ),
)
PRUNE = (
    *UPKEEP,
    KEEP,
    KEEP_YOUNGER,
    Setting(
        "older-than",
        "delete only what was built more than so many days ago",
        whole_number(0, 36500),
        metavar="DAYS",
        only_flag=True,
    ),
)
ADOPT = (
    *UPKEEP,
    Setting("as", "the public name that it is a build of (default: its own name)", metavar="NAME", only_flag=True),
)
SHARE = (
    *UPKEEP,
    Setting("project", "share it with this project, by id; may be repeated", many=True, default=(), only_flag=True),
    Setting(
        "remove", "share it no more with this project, by id; may be repeated", many=True, default=(), only_flag=True
    ),
)
VERIFY = (
    Setting("variant", "whose checks to make, for an image without a manifest beside it", also=("-v",)),
    SIGNERS,
    Setting("no-boot", "check digests and signatures alone, and do not boot the image", switch=True, only_flag=True),
    ARCH,
    Setting(
        "firmware",
        "boot on this one alone: bios (as a virtual machine) or uefi (as a bare-metal node); may be repeated",
        one_of("firmware", list(Firmware)),
        many=True,
        default=(),
        only_flag=True,
    ),
    VARIANTS_DIR,
    CACHE_DIR,
    ACCEL,
    BOOT_TIMEOUT,
    *COMMON,
)
SHOW = (
    Setting("size", "where the bytes go: by package, by folder, the largest files", switch=True, only_flag=True),
    *COMMON,
)
DIFF = COMMON
DESCRIBE = (
    SITE,
    SITES_FILE,
    Setting("since", "the build before: tell what changed since then", folder, only_flag=True, metavar="MANIFEST"),
    Setting(
        "output",
        "write NAME.md and NAME.html there, instead of the Markdown here",
        folder,
        only_flag=True,
        metavar="DIR",
    ),
    VARIANTS_DIR,
    *COMMON,
)
SIGN = (SIGN_KEY, *COMMON)
ALL = tuple({setting.name: setting for setting in (*PUBLISH, *CREATE_IMAGE, *NIGHTLY, SIGNERS)}.values())

_MANUAL = """\
# Settings

Made by `make docs` from `image_builder/settings.py`. A flag counts before the environment, that before the
configuration file: `~/.config/sage-chameleon/config.yaml`, then `/etc/sage-chameleon/config.yaml`, or instead of
both the one that `--config` or `SAGE_CONFIG` names. Settings that may be repeated are separated by commas in the
environment and are a list in the file.

"""

if __name__ == "__main__":
    sys.stdout.write(_MANUAL + manual(ALL))
