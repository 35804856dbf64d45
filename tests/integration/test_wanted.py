# SPDX-License-Identifier: Apache-2.0
"""What elements are found to ask for is what diskimage-builder's own scripts would install."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import diskimage_builder.paths
import pytest

from groundwork.errors import InputError
from image_builder import variant, wanted
from image_builder.variant import Arch
from image_builder.wanted import Wanted

PROJECT = Path(__file__).parents[2]
STOCK = Path(diskimage_builder.paths.get_path("elements"))

# Runs diskimage-builder's scripts as its build would, but for what they would install.
REFEREE = """\
set -eu -o pipefail
export _LIB=$1 TMP_HOOKS_PATH=$2 TMP_BUILD_DIR=$2 TMP_MOUNT_PATH=$2/mnt
shift 2
source "$_LIB/img-defaults"
source "$_LIB/common-functions"
named=$(elements="" vm_seen="" blockdev_seen="" _arg_defaults_hack "$@")
elements=$("$DIB_PYTHON_EXEC" "$_LIB/element-info.py" --env $named)
eval "$elements"
export MAPS=$TMP_HOOKS_PATH/maps
mkdir -p "$MAPS" "$TMP_HOOKS_PATH/environment.d"
generate_hooks > /dev/null
eval declare -A folders=($(get_image_element_array))
for element in "${!folders[@]}"; do
    if [ -f "${folders[$element]}/pkg-map" ]; then cp "${folders[$element]}/pkg-map" "$MAPS/$element"; fi
done
echo 'export DIB_DEFAULT_INSTALLTYPE=source' > "$TMP_HOOKS_PATH/environment.d/11-dib-install-type.bash"
mkdir "$TMP_HOOKS_PATH/referee.d"
cp "$REFEREE_SCRIPT" "$TMP_HOOKS_PATH/referee.d/50-referee"
"$_LIB/dib-run-parts" "$TMP_HOOKS_PATH/referee.d"
"""
INSIDE = """\
#!/bin/bash
set -eu -o pipefail
out=$TMP_HOOKS_PATH/out
"$DIB_PYTHON_EXEC" "$BIN/package-installs-squash" --elements="$IMAGE_ELEMENT" --path="$ELEMENTS_PATH" "$out"
for phase in pre-install.d install.d post-install.d; do
    "$DIB_PYTHON_EXEC" "$BIN/package-installs-v2" --phase "$phase" --noop "$out"
done
"""
# pkg-map looks in /usr/share/pkg-map, which is the image's.
PKG_MAP = """\
#!/bin/bash
words=()
while [ $# -gt 0 ]; do
    if [ "$1" = --element ]; then
        map=$MAPS/$2
        shift
    else
        words+=("$1")
    fi
    shift
done
if [ ! -e "$map" ]; then echo '{}' > "$map"; fi
exec "$DIB_PYTHON_EXEC" "$REAL_PKG_MAP" --pkg-map "$map" "${words[@]}"
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def by_diskimage_builder(
    tmp_path: Path, elements: Sequence[str], folder: Path, distro: str, release: str, arch: Arch
) -> set[str]:
    """The packages that diskimage-builder's scripts would install."""
    bin_folder = tmp_path / "bin"
    script(bin_folder / "pkg-map", PKG_MAP)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    done = subprocess.run(
        ["bash", "-c", REFEREE, "referee", STOCK.parent / "lib", hooks, *elements],
        env={
            "ARCH": arch,
            "BIN": str(STOCK / "package-installs/bin"),
            "DIB_PYTHON_EXEC": sys.executable,
            "DIB_RELEASE": release,
            "DISTRO_NAME": distro,
            "ELEMENTS_PATH": str(folder),
            "HOME": str(tmp_path),
            "PATH": f"{bin_folder}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "REAL_PKG_MAP": str(STOCK / "pkg-map/bin/pkg-map"),
            "REFEREE_SCRIPT": str(script(tmp_path / "referee", INSIDE)),
            "TMPDIR": str(tmp_path),
            "_BASE_ELEMENT_DIR": str(STOCK),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("install-packages")]
    return {word for line in lines for word in line.split()[1:]}


def by_us(elements: Sequence[str], folder: Path, distro: str, release: str, arch: Arch) -> list[Wanted]:
    return list(wanted.wanted(elements, [folder], os_name=distro, release=release, arch=arch, settings={}))


def listed(found: Sequence[Wanted]) -> set[str]:
    """Those that stand in a package-installs.yaml or .json."""
    return {one.name for one in found if one.file and one.file.stem == "package-installs"}


@pytest.mark.parametrize(
    ("distro", "release", "arch"),
    [("debian", "bookworm", Arch.ARM64), ("ubuntu", "jammy", Arch.AMD64)],
)
def test_packages_of_our_variant_are_those_that_diskimage_builder_installs(
    tmp_path: Path, distro: str, release: str, arch: Arch
) -> None:
    ours = variant.load("sage", [PROJECT / "variants"])
    elements = [f"{distro}-minimal", *ours.elements]
    found = by_us(elements, PROJECT / "elements", distro, release, arch)
    assert listed(found) == by_diskimage_builder(tmp_path, elements, PROJECT / "elements", distro, release, arch)
    assert all(one.element and one.file and one.line for one in found)


def test_packages_of_stock_elements_are_those_that_diskimage_builder_installs(tmp_path: Path) -> None:
    elements = ["ubuntu-minimal", "vm", "bootloader", "cloud-init", "growroot", "simple-init", "dib-python", "devuser"]
    empty = tmp_path / "empty"
    empty.mkdir()
    found = by_us(elements, empty, "ubuntu", "noble", Arch.AMD64)
    assert listed(found) == by_diskimage_builder(tmp_path, elements, empty, "ubuntu", "noble", Arch.AMD64)
    assert "linux-image-generic" in listed(found)


TRICKY = """\
plain:
elsewhere: {phase: pre-install.d}
nowhere: {phase: finalise.d}
here: {arch: amd64}
not-here: {not-arch: "amd64,arm64"}
there: {arch: "arm64,ppc64el"}
whenever: {when: DIB_RELEASE=bookworm}
never:
  when:
  - DISTRO_NAME = debian
  - DIB_RELEASE != bookworm
twice:
  - {arch: arm64}
  - {when: SAGE_TRICK = yes}
leaves: {uninstall: true}
helper: {build-only: true}
wanted-and-unwanted: {uninstall: true}
from-source: {installtype: source}
from-package: {installtype: package}
old-python: {dib_python_version: 2}
new-python: {dib_python_version: 3}
many:
nothing:
"""


def test_every_key_of_a_package_list_means_what_it_does_to_diskimage_builder(tmp_path: Path) -> None:
    folder = tmp_path / "elements"
    script(folder / "tricky/environment.d/50-tricky.bash", "export SAGE_TRICK=yes\n")
    (folder / "tricky/package-installs.yaml").write_text(TRICKY)
    (folder / "tricky/element-deps").write_text("package-installs\ndib-python\n")
    (folder / "tricky/pkg-map").write_text('{"distro": {"debian": {"many": "one two", "nothing": ""}}}')
    (folder / "other").mkdir()
    (folder / "other/package-installs.json").write_text('{"wanted-and-unwanted": null, "plain": null}')
    elements = ["debian-minimal", "tricky", "other"]
    found = by_us(elements, folder, "debian", "bookworm", Arch.AMD64)
    assert listed(found) == by_diskimage_builder(tmp_path, elements, folder, "debian", "bookworm", Arch.AMD64)
    names = {one.name for one in found if one.element in ("tricky", "other")}
    # diskimage-builder's element dib-python takes Debian's Python for 2.
    expected = "plain elsewhere here whenever twice helper wanted-and-unwanted from-source old-python one two"
    assert names == set(expected.split())
    many = next(one for one in found if one.name == "one")
    assert (many.element, many.file, many.line) == ("tricky", folder / "tricky/package-installs.yaml", 22)
    assert {one.element for one in found if one.name == "plain"} == {"tricky", "other"}


def test_replaced_elements_lists_count_too_as_they_do_to_diskimage_builder(tmp_path: Path) -> None:
    """And so the elements of a layer below must not lie on ELEMENTS_PATH behind empty ones."""
    folder = tmp_path / "elements"
    (folder / "cloud-init").mkdir(parents=True)
    (folder / "cloud-init/package-installs.yaml").write_text("mine:\n")
    (folder / "cloud-init/element-deps").write_text("package-installs\n")
    elements = ["debian-minimal", "cloud-init"]
    found = by_us(elements, folder, "debian", "bookworm", Arch.AMD64)
    assert listed(found) == by_diskimage_builder(tmp_path, elements, folder, "debian", "bookworm", Arch.AMD64)
    assert {"mine", "cloud-init"} <= listed(found)


def test_elements_that_a_layer_below_has_been_through_ask_for_nothing(tmp_path: Path) -> None:
    folder, linked = tmp_path / "elements", tmp_path / "linked"
    for name, deps in (("lower", ""), ("upper", "lower\n")):
        (folder / name).mkdir(parents=True)
        (folder / name / "package-installs.yaml").write_text(f"of-{name}:\n")
        (folder / name / "element-deps").write_text(f"package-installs\n{deps}")
    linked.mkdir()
    wanted.link_elements([folder], ["lower"], linked)
    elements = ["debian-minimal", "upper"]
    found = wanted.wanted(
        elements, [folder], os_name="debian", release="bookworm", arch=Arch.AMD64, settings={}, done=["lower"]
    )
    assert listed(found) == by_diskimage_builder(tmp_path, elements, linked, "debian", "bookworm", Arch.AMD64)
    assert "of-upper" in listed(found)
    assert "of-lower" not in listed(found)
    assert next(one.file for one in found if one.name == "of-upper") == folder / "upper/package-installs.yaml"


def test_older_form_of_package_lists_counts(tmp_path: Path) -> None:
    script(tmp_path / "old/install.d/package-installs-old", "# comment\nfirst\n\n-second\n")
    (tmp_path / "old/pkg-map").write_text('{"default": {"first": "the-first"}}')
    found = by_us(["debian-minimal", "old"], tmp_path, "debian", "bookworm", Arch.AMD64)
    assert [(one.name, one.line) for one in found if one.element == "old"] == [("second", 4), ("the-first", 2)]


# Does nothing, and writes down what it was to do.
SUDO = """\
#!/bin/bash
[ ! -p /dev/stdin ] || cat > /dev/null
printf '%s\\n' "$*" >> "$DONE"
"""


@pytest.mark.parametrize(("distro", "release"), [("debian", "bookworm"), ("ubuntu", "noble")])
def test_base_system_is_what_the_stock_scripts_install(tmp_path: Path, distro: str, release: str) -> None:
    elements = [f"{distro}-minimal", "quick-packages"]
    folders = [PROJECT / "elements"]
    known = wanted.expand(elements, folders, Arch.AMD64)
    environment = wanted._environment(known, folders, {"DISTRO_NAME": distro}, release, Arch.AMD64)
    script(tmp_path / "bin/sudo", SUDO)
    root = tmp_path / "root"
    root.mkdir()
    done = tmp_path / "done"
    for path in (STOCK / "debootstrap/root.d/08-debootstrap", *STOCK.glob(f"{distro}-minimal/root.d/75-*")):
        subprocess.run(
            ["bash", path],
            env={
                **environment,
                "DONE": str(done),
                "DIB_OFFLINE": "",
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
                "TARGET_ROOT": str(root),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        )
    names: set[str] = set()
    for line in done.read_text().splitlines():
        names |= {name for words in re.findall(r"--include=(\S+)", line) for name in words.split(",")}
        if match := re.search(r"apt-get install -y (.+)$", line):
            names |= set(match[1].split())
    found = by_us(elements, folders[0], distro, release, Arch.AMD64)
    assert {one.name for one in found if one.file and one.file.stem != "package-installs"} == names
    assert "gnupg2" in names if distro == "debian" else "gnupg2" not in names


def test_packages_named_beside_the_elements_count(tmp_path: Path) -> None:
    here = tmp_path / "mine.yaml"
    found = wanted.wanted(
        ["debian-minimal"], [], os_name="debian", release="bookworm", arch=Arch.AMD64, settings={},
        packages=["jq", "tmux"], origins={"jq": (here, 4)},
    )  # fmt: skip
    assert Wanted("jq", None, here, 4) in found
    assert Wanted("tmux", None, None, None) in found


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("it: {when: UNHEARD_OF=1}\n", r"package-installs\.yaml: The variable <UNHEARD_OF> is not set"),
        ("it: {when: nonsense}\n", r"package-installs\.yaml: Malformed when line: <nonsense>"),
        ("it: {arch: amd64, not-arch: arm64}\n", r"package-installs\.yaml: .*arch and not_arch"),
        ("it: [text]\n", r"package-installs\.yaml: not what diskimage-builder expects"),
        ("- it\n", r"package-installs\.yaml: expected packages"),
        ("it: {\n", r"package-installs\.yaml: not YAML"),
    ],
)
def test_package_list_that_makes_no_sense_is_told_with_its_file(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/package-installs.yaml").write_text(text)
    with pytest.raises(InputError, match=match):
        by_us(["debian-minimal", "odd"], tmp_path, "debian", "bookworm", Arch.AMD64)


def test_environment_script_that_fails_is_named(tmp_path: Path) -> None:
    path = script(tmp_path / "odd/environment.d/50-odd.bash", "export X=$UNHEARD_OF\n")
    with pytest.raises(Exception, match=re.escape(str(path))):
        by_us(["debian-minimal", "odd"], tmp_path, "debian", "bookworm", Arch.AMD64)
