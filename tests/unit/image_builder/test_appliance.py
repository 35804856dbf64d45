# SPDX-License-Identifier: Apache-2.0
"""The page of an image tells what the manifest, the variant and the sites say, and shows all of it as mere text."""

import ast
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import html5lib
import pytest

from chameleon_sites.sites import DiskFormat, load_sites
from groundwork.errors import InputError
from image_builder import appliance, comparison, recipe, variant
from image_builder.appliance import Appliance, describe, to_html, to_markdown
from image_builder.catalog import SiteImage
from image_builder.comparison import SizeChange
from image_builder.inspection import BuildDifference
from image_builder.manifest import CheckReport, CheckResult, ImageFile, Manifest, Package
from image_builder.publication import Problem, SiteInventory
from image_builder.variant import Arch, FirstStep, Variant

VARIANTS = [Path(__file__).parents[3] / "variants"]
HOSTILE = "</code></pre><script>alert(1)</script>|`x`[click](javascript:alert(1))\n\n# head\n<img src=x onerror=y>"
CHECKS = tuple(
    CheckResult(name, firmware, True, 1.0, "true", "")
    for firmware in ("bios", "uefi")
    for name in ("login as cc by key", "cc runs a container without sudo")
)
PACKAGES = (
    Package("linux-image-amd64", "6.1.192-2", "amd64"),
    Package("docker.io", "20.10.24+dfsg1-1", "amd64"),
    Package("openssh-server", "1:9.2p1-2", "amd64"),
)
MADE = Manifest(
    build_id="20261120T031500Z-dddddddd",
    image_name="Sage-Debian12",
    variant="sage",
    release="bookworm",
    os_name="Debian",
    os_version="12",
    arch="amd64",
    recipe_digest="dddddddd" * 8,
    checks_digest="0" * 64,
    built_at="2026-11-20T03:15:00Z",
    project_version="0.1.0",
    commit="c" * 40,
    clean=True,
    elements={"docker": "0", "virtual-waggle": "0"},
    packages=PACKAGES,
    disk_size=5 << 30,
    files=(ImageFile(DiskFormat.QCOW2_ZSTD, "Sage-Debian12.zstd.qcow2", 450 << 20, "0" * 32, "ab" * 32, "cd" * 64),),
    checks=CheckReport(CHECKS, {"bios": 40.0, "uefi": 44.0}),
    stage_seconds={},
)


def sage() -> Variant:
    return variant.load("sage", VARIANTS)


def standing(build_id: str = MADE.build_id) -> SiteImage:
    return SiteImage(
        id="11111111-2222-3333-4444-555555555555",
        name=MADE.image_name,
        status="active",
        hidden=False,
        protected=False,
        visibility="public",
        owner="us",
        size=450 << 20,
        created_at="2026-11-20T04:00:00Z",
        updated_at="2026-11-20T04:00:00Z",
        disk_format="qcow2",
        os_hash_algo="sha512",
        os_hash_value="cd" * 64,
        tags=("sage-image",),
        properties={
            "sage_state": "current",
            "sage_image_name": MADE.image_name,
            "sage_build_id": build_id,
            "sage_promoted_at": "2026-11-20T04:10:00.000000Z",
        },
    )


def difference(before: tuple[Package, ...], after: tuple[Package, ...]) -> BuildDifference:
    found = comparison.compare([], [], before, after)
    total = SizeChange("/", 1000 << 20, 1010 << 20)
    return BuildDifference("Sage-Debian12/20261119T031500Z-cccccccc", "it", True, replace(found, total=total))


def page(html: str) -> Any:
    """The page's tree; raises where the HTML is not valid."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)


def text(html: str) -> str:
    return " ".join("".join(page(html).itertext()).split())


def blocks(markdown: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", markdown, re.DOTALL | re.MULTILINE)


def everything() -> Appliance:
    sites = [load_sites()[name] for name in ("CHI@UC", "KVM@TACC", "CHI@TACC")]
    problem = Problem("CHI@TACC does not answer", None, False)
    found = (
        SiteInventory("CHI@UC", (standing(),), None),
        SiteInventory("KVM@TACC", (standing("another"),), None),
        SiteInventory("CHI@TACC", (), problem),
    )
    return describe(MADE, sage(), sites, found, difference((), PACKAGES))


def test_the_page_tells_what_the_manifest_says() -> None:
    told = text(to_html(describe(MADE, sage())))
    for fact in (
        "Sage-Debian12",
        "Debian 12 (bookworm), amd64",
        "2026-11-20T03:15:00Z",
        MADE.build_id,
        "450.0 MiB",
        "5,120.0 MiB",
        "Packages 3",
        "Linux 6.1.192-2",
        "Docker 20.10.24+dfsg1-1",
        "virtual-waggle and beehive-server 0.1.0",
        "2 checks in the booted image, on BIOS and UEFI",
        "cc runs a container without sudo",
        "ab" * 32,
        "c" * 40,
    ):
        assert fact in told, fact
    assert "Docker Compose" not in told, "no package of it is in the image"
    assert sage().description in told


def test_an_image_that_was_not_booted_is_not_called_checked() -> None:
    told = text(to_html(describe(replace(MADE, checks=None), sage())))
    assert "Checked not booted" in told
    assert "What was checked" not in told
    failed = CheckReport((replace(CHECKS[0], passed=False), *CHECKS[1:]), {})
    assert "Checked not booted" in text(to_html(describe(replace(MADE, checks=failed), sage())))


def test_a_commit_with_changes_on_top_is_not_named() -> None:
    assert "c" * 40 not in to_markdown(describe(replace(MADE, clean=False), sage()))


def test_the_commands_can_be_typed() -> None:
    markdown = to_markdown(describe(MADE, sage()))
    shell = blocks(markdown, "bash")
    words = [shlex.split(line) for found in shell for line in found.replace("\\\n", " ").splitlines()]
    servers = [line for line in words if line[:3] == ["openstack", "server", "create"]]
    assert [line[line.index("--image") + 1] for line in servers] == ["Sage-Debian12"] * 2
    assert [line[line.index("--flavor") + 1] for line in servers] == ["baremetal", "reservation:RESERVATION_ID"]
    leases = [line[-1] for line in words if line[:4] == ["openstack", "reservation", "lease", "create"]]
    assert leases[0].endswith('resource_properties=["=", "$node_type", "compute_skylake"]')
    assert "resource_type=flavor:instance" in leases[1]
    assert ["export", "OS_CLOUD=chi_uc"] in words
    assert ["export", "OS_CLOUD=kvm_tacc"] in words
    programs = blocks(markdown, "python")
    assert len(programs) == 2
    for program in programs:
        names = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
        assert "Sage-Debian12" in names


def test_the_commands_are_for_the_sites_that_are_named() -> None:
    uc = to_markdown(describe(MADE, sage(), [load_sites()["CHI@TACC"]], [SiteInventory("CHI@TACC", (), None)]))
    assert "OS_CLOUD=chi_tacc" in uc
    assert "KVM@TACC" not in uc
    kvm = to_markdown(describe(MADE, sage(), [load_sites()["KVM@TACC"]], [SiteInventory("KVM@TACC", (), None)]))
    assert "OS_CLOUD=kvm_tacc" in kvm
    assert "bare metal, with" not in kvm


def test_arm64_and_cuda_name_nodes_that_have_it() -> None:
    arm = to_markdown(describe(replace(MADE, arch="arm64"), variant.load("sage-arm64", VARIANTS)))
    assert "compute_arm64" in arm
    assert "KVM@TACC" not in arm
    assert "gpu_rtx_6000" in to_markdown(describe(MADE, variant.load("sage-cuda", VARIANTS)))


def test_the_page_tells_what_stands_at_the_sites_and_what_could_not_be_asked() -> None:
    told = text(to_html(everything()))
    assert "CHI@UC baremetal 11111111-2222-3333-4444-555555555555 public 2026-11-20" in told
    assert "KVM@TACC kvm 11111111-2222-3333-4444-555555555555 (another build) public" in told
    assert "CHI@TACC baremetal CHI@TACC does not answer" in told


def test_the_page_tells_what_changed() -> None:
    before = (replace(PACKAGES[0], version="6.1.190-1"), PACKAGES[1], Package("gone", "1", "amd64"))
    told = text(to_html(describe(MADE, sage(), difference=difference(before, PACKAGES))))
    assert "What changed since 20261119T031500Z-cccccccc" in told
    assert "linux-image-amd64 6.1.190-1 6.1.192-2" in told
    assert "gone 1 -" in told
    assert "openssh-server - 1:9.2p1-2" in told
    assert "docker.io 20.10.24" not in told
    assert "Files: 1,000.0 MiB before, 1,010.0 MiB now" in told


def test_of_many_changes_some_are_named_and_the_others_counted() -> None:
    many = tuple(Package(f"package-{number:03}", "1", "amd64") for number in range(100))
    told = text(to_html(describe(MADE, sage(), difference=difference((), many))))
    assert "package-039" in told
    assert "package-040" not in told
    assert "And 60 more" in told
    assert "Packages: 100 added" in told


@pytest.mark.parametrize("made", [describe(MADE, sage()), everything()])
def test_the_page_is_valid_loads_nothing_and_has_no_dead_links(made: Appliance) -> None:
    html = to_html(made)
    tree = page(html)
    assert tree.find(".//title").text == "Sage-Debian12"
    assert tree.find(".//meta[@name='viewport']") is not None
    assert [node for node in tree.iter() if node.get("src") or node.tag in ("link", "script", "iframe")] == []
    ids = {node.get("id") for node in tree.iter()}
    links = [node.get("href") for node in tree.iter() if node.get("href")]
    assert all(link.startswith("https://") or link[1:] in ids for link in links)
    assert "url(" not in html
    assert "<" not in re.sub(r"```.*?```|`[^`]*`", "", to_markdown(made), flags=re.DOTALL)


def tags(html: str) -> list[str]:
    return sorted(str(node.tag) for node in page(html).iter())


def test_hostile_names_are_shown_and_do_nothing() -> None:
    before = everything()
    tame = difference((), (replace(PACKAGES[0], name="x", version="y"),))
    wild = difference((), (replace(PACKAGES[0], name=HOSTILE, version=HOSTILE),))
    packages = (replace(PACKAGES[0], version=HOSTILE), *PACKAGES[1:])
    checks = CheckReport((replace(CHECKS[0], name=HOSTILE), CHECKS[1]), {"bios": 1.0})
    files = (replace(MADE.files[0], name=HOSTILE),)
    described = describe(
        replace(
            MADE, packages=packages, checks=checks, files=files, os_name=HOSTILE, image_name=HOSTILE, commit=HOSTILE
        ),
        replace(sage(), description=HOSTILE, limits=(HOSTILE,), first_steps=(FirstStep(HOSTILE, "```\n" + HOSTILE),)),
        difference=wild,
    )
    described = replace(
        described, standing=tuple(replace(row, problem=HOSTILE, site=HOSTILE) for row in before.standing)
    )
    likewise = describe(
        replace(MADE, checks=CheckReport(CHECKS[:2], {"bios": 1.0})),
        replace(sage(), limits=("x",), first_steps=(FirstStep("x", "y"),)),
        difference=tame,
    )
    likewise = replace(likewise, standing=before.standing)
    html = to_html(described)
    assert tags(html) == tags(to_html(likewise)), "no tag more, none less"
    assert "alert(1)" in text(html)
    assert not [node for node in page(html).iter() if any(key.startswith("on") for key in node.attrib)]
    markdown = to_markdown(described)
    outside = re.sub(r"(?ms)^ *(`{3,}).*?^ *\1$", "", markdown)
    assert not re.search(r"(?m)^# head", outside)


def test_what_is_typed_can_not_hide_a_command() -> None:
    described = describe(replace(MADE, image_name="x'; rm -rf ~; '"), sage())
    lines = [line for found in blocks(to_markdown(described), "bash") for line in found.splitlines()]
    named = [shlex.split(line.rstrip("\\")) for line in lines if "--image" in line]
    assert [words[words.index("--image") + 1] for words in named] == ["x'; rm -rf ~; '"] * 2


@pytest.mark.parametrize("name", sorted(variant.available(VARIANTS)))
def test_each_of_our_variants_has_a_page(name: str) -> None:
    chosen = variant.load(name, VARIANTS)
    html = to_html(describe(replace(MADE, variant=name, arch=str(chosen.arches[-1])), chosen))
    assert "Secure Boot" in text(html)
    assert chosen.first_steps
    for step in chosen.first_steps:
        shlex.split(step.run)


def test_what_a_variant_says_for_its_page_adds_to_its_parents() -> None:
    base, own = variant.load("base", VARIANTS), sage()
    assert own.limits[: len(base.limits)] == base.limits
    assert len(own.limits) > len(base.limits)
    assert set(base.software) < set(own.software)
    assert own.first_steps[0] == base.first_steps[0]


def test_what_a_variant_says_for_its_page_changes_no_digest() -> None:
    own = sage()
    bare = replace(own, limits=(), first_steps=(), software={}, node_type="compute_zen3")
    folders = [VARIANTS[0].with_name("elements")]
    digests = {recipe.make(one, "bookworm", Arch.AMD64, element_folders=folders).digest for one in (own, bare)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("limits: none", "limits: expected a list"),
        ('limits: ["two\\nlines"]', "limits"),
        ("first_steps: [{run: ls}]", "the key 'text' is missing"),
        ("first_steps: [{text: look, command: ls}]", "unknown key"),
        ("software: {Docker: 'docker io'}", "software.Docker"),
        ("node_type: a b", "node_type"),
    ],
)
def test_mistakes_are_told_with_file_line_and_key(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: sage\ndescription: mine\n{line}\n")
    with pytest.raises(InputError) as caught:
        variant.load("mine", [tmp_path, *VARIANTS])
    assert "mine.yaml:3" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("value", ["`", "``x`", "a|b", "x`", ""])
def test_code_shows_what_it_is_given(value: str) -> None:
    from markdown_it import MarkdownIt

    row = f"| a | b |\n|---|---|\n| {appliance.code(value)} | 1 |\n"
    tree = page("<!DOCTYPE html><title>x</title>" + MarkdownIt("commonmark").enable("table").render(row))
    cells = ["".join(cell.itertext()) for cell in tree.iter("td")]
    assert cells[-1] == "1"
    if value:
        assert cells[0] == value
