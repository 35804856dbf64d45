# SPDX-License-Identifier: Apache-2.0
"""Which packages an image's elements ask for, and where they do so, known before any build.

diskimage-builder's own code decides which elements there are and what their ``package-installs.yaml`` mean;
what it has only as scripts for the inside of the image (pkg-map, package-installs) is done here the same way, and
a test compares the two.  What an element's script installs by itself (``apt-get install`` in ``install.d``)
can't be seen from outside, but for the base system's.
"""

import json
import logging
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import yaml

from groundwork import process
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError
from image_builder.variant import Arch

# The phases whose packages diskimage-builder installs; those of any other phase it passes over.
_PHASES = ("pre-install.d", "install.d", "post-install.d")
_FORMS = ("json", "yaml")
# What scripts of diskimage-builder's base systems install by themselves: element -> script, packages.
_BY_SCRIPT = {
    "debian-minimal": ("root.d/75-debian-minimal-baseinstall", "systemd-sysv busybox sudo gnupg2 python3"),
    "debootstrap": ("root.d/08-debootstrap", "apt tzdata"),
    "ubuntu-minimal": ("root.d/75-ubuntu-minimal-baseinstall", "systemd-sysv busybox sudo python3"),
}
_BASH_DEADLINE = 60.0


@dataclass(frozen=True)
class Wanted:
    """A package, as the archive calls it, and who asks for it: an element or, where that is None, the variant.

    ``line`` counts from 1.
    """

    name: str
    element: str | None
    file: Path | None
    line: int | None

    def __str__(self) -> str:
        who = f"element {self.element!r}" if self.element else "the variant"
        where = f" ({self.file}:{self.line})" if self.file and self.line else f" ({self.file})" if self.file else ""
        return f"{who} asks for it{where}"


def wanted(
    elements: Sequence[str],
    folders: Sequence[Path],
    *,
    os_name: str,
    release: str,
    arch: Arch,
    settings: Mapping[str, str],
    packages: Sequence[str] = (),
    origins: Mapping[str, tuple[Path, int]] = MappingProxyType({}),
    done: Sequence[str] = (),
) -> tuple[Wanted, ...]:
    """All that is asked for, in order of name; what several ask for stands there for each.

    ``elements`` are those named to diskimage-builder, ``folders`` where they are looked for before its own;
    ``os_name`` is ``debian`` or ``ubuntu``; ``settings`` are the environment that the elements run in;
    ``packages`` are those named beside the elements, and ``origins`` says in which file and line; ``done`` are
    elements that a layer below has been through: they ask for nothing any more.
    Raises InputError, with the file, for an element that is not there or can't be understood.
    """
    if done:
        with tempfile.TemporaryDirectory(prefix="elements-") as linked:
            link_elements(folders, done, Path(linked))
            return wanted(
                elements, [Path(linked)], os_name=os_name, release=release, arch=arch, settings=settings,
                packages=packages, origins=origins,
            )  # fmt: skip
    known = expand(elements, folders, arch)
    environment = _environment(known, folders, {"DISTRO_NAME": os_name, **settings}, release, arch)
    found = {Wanted(name, None, *origins.get(name, (None, None))) for name in packages}
    found |= set(_listed(known, folders, environment))
    for element, folder in known.items():
        found |= set(_plainly_listed(element, folder, known, environment))
        if element in _BY_SCRIPT:
            script, names = _BY_SCRIPT[element]
            found |= {_found_in(name, element, folder / script) for name in names.split()}
    found |= set(_for_mmdebstrap(known, environment))
    return tuple(sorted(found, key=lambda one: (one.name, one.element or "", str(one.file), one.line or 0)))


def expand(elements: Sequence[str], folders: Sequence[Path], arch: Arch) -> dict[str, Path]:
    """Element -> its folder, for those named and all that they depend on, in order of name."""
    from diskimage_builder import element_dependencies

    # That one of our elements takes the place of a stock one of its name is as it should be.
    logging.getLogger(element_dependencies.__name__).setLevel(logging.ERROR)
    names = list(elements)
    if "vm" in names and not any(name.startswith("block-device-") for name in names):
        names.append("block-device-efi" if arch is Arch.ARM64 else "block-device-mbr")  # as disk-image-create does
    paths = ":".join(map(str, (*folders, _stock())))
    try:
        return {name: Path(path) for name, path in sorted(element_dependencies.get_elements(names, paths))}
    except element_dependencies.MissingElementException as error:
        raise InputError(str(error)) from None
    except element_dependencies.AlreadyProvidedException as error:
        raise InputError(f"two elements provide the same: {error}") from None
    except element_dependencies.MissingOSException:
        raise InputError(
            "none of the elements is a base system", hint="debian-minimal and ubuntu-minimal are"
        ) from None
    except element_dependencies.InvalidElementDir as error:
        raise InputError(str(error)) from None


def link_elements(folders: Sequence[Path], done: Sequence[str], target: Path) -> None:
    """Fill ``target``, for diskimage-builder's ELEMENTS_PATH, with the elements of the folders, but empty ones for
    those that are ``done``.

    It must stand alone there: diskimage-builder 3.43 counts the package lists of *all* elements of a name along the
    path (package-installs-squash), also of those that another takes the place of, and then without their pkg-map.
    """
    for name in done:
        (target / name).mkdir()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not (target / path.name).exists():
                (target / path.name).symlink_to(path.resolve())


def spare_update(target: Path) -> None:
    """Have no layer fetch the archive's indexes anew: put into ``target`` an element dpkg that leaves it out.

    A layer is built of the indexes that it was planned by, which are there before it begins.  A dpkg of the user's own
    folders stays as it is.
    """
    if not (target / "dpkg").exists():
        shutil.copytree(_stock() / "dpkg", target / "dpkg", ignore=shutil.ignore_patterns("99-apt-get-update"))


def _stock() -> Path:
    import diskimage_builder.paths

    return Path(diskimage_builder.paths.get_path("elements"))


# As disk-image-create and dib-run-parts make the environment that elements' scripts see.
_SOURCE = """\
set -ue -o pipefail
export _LIB=$1
source "$_LIB/img-defaults"
for file in $(find "$TMP_HOOKS_PATH/environment.d" -maxdepth 1 -xtype f | grep -E '/[0-9A-Za-z_\\.-]+$' |
              LANG=C sort -n); do
    echo "sourcing $file"
    source "$file"
done 1>&2
env --null
"""


def _environment(
    known: Mapping[str, Path], folders: Sequence[Path], settings: Mapping[str, str], release: str, arch: Arch
) -> dict[str, str]:
    """What the variables are once all ``environment.d`` were read."""
    with tempfile.TemporaryDirectory(prefix="elements-") as temporary:
        hooks = Path(temporary)
        (hooks / "environment.d").mkdir()
        for folder in known.values():
            _link_hooks(folder, hooks)
        try:
            text = process.run(
                ["bash", "-c", _SOURCE, "bash", _stock().parent / "lib"],
                env={
                    "ARCH": str(arch),
                    "DIB_DEBUG_TRACE": "0",
                    "DIB_DEFAULT_INSTALLTYPE": "source",
                    "DIB_IMAGE_CACHE": temporary,
                    "DIB_PYTHON_EXEC": sys.executable,
                    "DIB_RELEASE": release,
                    "ELEMENTS_PATH": ":".join(map(str, folders)),
                    "HOME": temporary,
                    "IMAGE_ELEMENT": " ".join(known),
                    "TMPDIR": temporary,
                    "TMP_BUILD_DIR": temporary,
                    "TMP_HOOKS_PATH": temporary,
                    "TMP_MOUNT_PATH": f"{temporary}/mnt",
                    "_BASE_ELEMENT_DIR": str(_stock()),
                    **settings,
                },
                inherit=False,
                cwd=hooks,
                timeout=_BASH_DEADLINE,
            )
        except ProcessError as error:
            files = re.findall(r"^sourcing \S+/(environment\.d/\S+)$", error.output, re.MULTILINE)
            last = files[-1] if files else "environment.d"
            owner = next((folder for folder in known.values() if (folder / last).exists()), hooks)
            raise SageError(
                f"{owner / last} failed: {error}",
                hint="it is read before any package is looked for; what does it need?",
            ) from None
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _link_hooks(element: Path, hooks: Path) -> None:
    """Put an element's folders together with those of the others, as diskimage-builder's ``generate_hooks`` does."""
    for top in sorted(element.iterdir()):
        if not top.is_dir() or top.name in ("tests", "__pycache__"):
            continue
        for path in sorted(top.rglob("*")):
            link = hooks / path.relative_to(element)
            if path.is_dir():
                link.mkdir(parents=True, exist_ok=True)
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                if path.parent == top:
                    raise InputError(f"two elements have the same script: {path} and {link.readlink()}")
                link.unlink()
            link.symlink_to(path)


def _listed(known: Mapping[str, Path], folders: Sequence[Path], environment: Mapping[str, str]) -> Iterator[Wanted]:
    """What the elements' package-installs.yaml and .json ask for."""
    squash, say = _squash(environment)
    data: Any = defaultdict(partial(defaultdict, list))
    files: dict[str, list[Path]] = defaultdict(list)
    for element in known:
        # Those of all elements of the name: see link_elements.
        lists = [folder / element / f"package-installs.{form}" for folder in (*folders, _stock()) for form in _FORMS]
        for path in lists:
            if not path.exists():
                continue
            path = path.resolve()
            files[element].append(path)
            entries = _load(path)
            try:
                data = squash(data, entries, element)
            except (RuntimeError, SystemExit) as error:  # a variable that is not set; said why, and exited
                raise InputError(f"{path}: {error if isinstance(error, RuntimeError) else ' '.join(say)}") from None
            except (AttributeError, TypeError):
                raise InputError(f"{path}: not what diskimage-builder expects", hint="package: {phase: ...}") from None
    for phase in _PHASES:
        for name, element in data[phase]["install"]:
            path = next(path for path in files[element] if name in _load(path))
            for real in mapped(name, known[element], environment, _map_of(element, known)):
                yield _found_in(real, element, path, spelt=name)


def _load(path: Path) -> Mapping[str, Any]:
    text = path.read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except ValueError:
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected packages and what is to be done with them")
    return data


def _squash(environment: Mapping[str, str]) -> tuple[Any, list[str]]:
    """diskimage-builder's function that puts package lists together, made to see this environment.

    Also a list that takes what it says before it gives up.
    """
    script = _stock() / "package-installs/bin/package-installs-squash"
    function = runpy.run_path(str(script))["collect_data"]
    said: list[str] = []
    # Only in this copy of its code, so that nothing else in this program sees it.
    function.__globals__["os"] = SimpleNamespace(environ=environment, path=os.path)
    function.__globals__["print"] = said.append
    return function, said


def _map_of(element: str, known: Mapping[str, Path]) -> Path:
    """The element's pkg-map, or the one that another brings for it (``pkg-maps/<element>``: see element initramfs)."""
    own = known[element] / "pkg-map"
    others = [path for folder in known.values() if (path := folder / "pkg-maps" / element).exists()]
    return own if own.exists() or not others else others[0]


def mapped(name: str, element: Path, environment: Mapping[str, str], path: Path | None = None) -> list[str]:
    """The distribution's packages for a name of this element, by its ``pkg-map`` (or the one at ``path``); none where
    it says so."""
    names = pkg_map(path or element / "pkg-map", environment["DISTRO_NAME"], environment["DIB_RELEASE"])
    return str(names.get(name) or ("" if name in names else name)).split()


@cache
def pkg_map(path: Path, distro: str, release: str) -> Mapping[str, str]:
    """Name -> packages, as text; the release's counts before the distribution's, its family's and the default."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names: dict[str, str] = dict(data.get("default", {}))
        names.update(data.get("family", {}).get("debian" if distro in ("debian", "ubuntu") else None) or {})
        names.update(data.get("distro", {}).get(distro) or {})
        names.update(data.get("release", {}).get(distro, {}).get(release, {}))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    except (AttributeError, TypeError):
        raise InputError(f"{path}: not what diskimage-builder expects of a pkg-map") from None
    return names


def _plainly_listed(
    element: str, folder: Path, known: Mapping[str, Path], environment: Mapping[str, str]
) -> Iterator[Wanted]:
    """What ``<phase>/package-installs-<name>`` ask for, diskimage-builder's older form: one package a line."""
    for phase in _PHASES:
        for path in sorted((folder / phase).glob("package-installs-*")):
            owner = path.name.removeprefix("package-installs-")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                name = line.strip()
                if not name or name.startswith("#"):
                    continue
                name = name.removeprefix("-")
                for real in (
                    mapped(name, known[owner], environment, _map_of(owner, known)) if owner in known else name.split()
                ):
                    yield Wanted(real, element, path, number)


def _for_mmdebstrap(known: Mapping[str, Path], environment: Mapping[str, str]) -> Iterator[Wanted]:
    """What an element has mmdebstrap install beside the base system (``--include``)."""
    scripts = [(element, path) for element, folder in known.items() for path in sorted(folder.glob("environment.d/*"))]
    for word in shlex.split(environment.get("DIB_MMDEBSTRAP_EXTRA_ARGS", "")):
        for name in re.split(r"[,\s]+", word.removeprefix("--include=")) if word.startswith("--include=") else ():
            found = (_found_in(name, element, path) for element, path in scripts)
            yield next((one for one in found if one.line), Wanted(name, None, None, None))


def _found_in(name: str, element: str, path: Path, *, spelt: str | None = None) -> Wanted:
    """A package with the line that names it."""
    pattern = re.compile(rf"(?<![A-Za-z0-9.+_-]){re.escape(spelt or name)}(?![A-Za-z0-9.+_-])")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.lstrip().startswith("#") and pattern.search(line):
            return Wanted(name, element, path, number)
    return Wanted(name, element, path, None)
