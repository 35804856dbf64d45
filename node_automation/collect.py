# SPDX-License-Identifier: Apache-2.0
"""What an experiment's nodes have to tell, in one folder with a manifest, which also says how to run it again.

``<experiment>-<run id>-<time>/`` has ``manifest.json``, ``experiment.json`` and a folder a node: what its role's
commands print under their names, files and folders below ``files/``.  It appears by one rename, when all is there.
"""

import contextlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import groundwork
from chameleon_sites.sites import Site
from groundwork import console, files, products
from groundwork.errors import InputError, SageError
from image_builder import catalog
from node_automation import experiment as experiments
from node_automation import ledger, on_node, parallel, reach, role, ssh, status, survey, up
from node_automation.experiment import Experiment, Image, Node
from node_automation.ledger import Run
from node_automation.on_node import NotDone
from node_automation.role import Collect, Command
from node_automation.server import Server
from node_automation.tagged import Things

if TYPE_CHECKING:
    from fabric import Connection as Shell
    from openstack.connection import Connection

MANIFEST = "manifest.json"
EXPERIMENT = "experiment.json"
_FORMAT = 1
_MOST = 4 << 30  # bytes of one path, or of what one command prints; compressed ones of a path
_MOST_FILES = 100_000
_PATH_DEADLINE = 1800.0  # seconds
_BLOCK = 1 << 20
_AT_ONCE = 16  # nodes
_REACH = 60.0  # seconds for a node that has answered before
_VENDOR_DATA = "/var/cache/vendordata2.json"  # of Chameleon's images and ours


@dataclass(frozen=True)
class CollectedFile:
    """A file, by its path below the folder; size in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CollectedNode:
    """What a node was, and what came of it.

    ``image_sha512`` is the digest of the image's data; ``machine`` the bare-metal node's or the virtual machine's own
    id, where the site tells it.  Times are UTC, RFC 3339.  ``problems``: what could not be had, a line each.
    """

    name: str
    role: str
    site: str
    node_type: str
    machine: str | None
    server_id: str
    image_id: str
    image_name: str
    image_sha512: str | None
    lease_id: str | None
    lease_name: str | None
    lease_starts_at: str | None
    lease_ends_at: str | None
    launched_at: str | None
    address: str | None
    fixed_address: str | None
    files: tuple[CollectedFile, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class CollectManifest:
    """The file ``manifest.json``.  ``format`` rises with each change that an older program could not read."""

    format: int
    experiment: str
    run_id: str
    collected_at: str
    program: str
    nodes: tuple[CollectedNode, ...]


@contextlib.contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``folder`` by one rename when the block ends well, and else is gone."""
    if folder.exists():
        raise InputError(f"{folder} is there already", hint="name another folder")
    files.make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        files.give_to_owner_of(folder.parent, temporary)
        temporary.rename(folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write(folder: Path, manifest: CollectManifest, experiment: Experiment) -> None:
    """Write the two documents."""
    products.save(experiment, folder / EXPERIMENT)
    products.save(manifest, folder / MANIFEST)


def read(folder: Path) -> tuple[CollectManifest, Experiment]:
    """The documents of a folder that was collected.  Raises InputError where it is none."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} was not made by `fab collect`: it has no {MANIFEST}")
    manifest = products.load(CollectManifest, folder / MANIFEST)
    if manifest.format > _FORMAT:
        raise InputError(f"{folder} is of a later version of this program ({manifest.program})")
    return manifest, products.load(Experiment, folder / EXPERIMENT)


def images_of(manifest: CollectManifest) -> dict[str, dict[str, Image]]:
    """Role -> site -> the image that its nodes ran on.  Raises InputError where it is not known, or there were two."""
    found: dict[str, dict[str, Image]] = {}
    for node in manifest.nodes:
        image = Image(node.image_id, node.image_name, node.image_sha512)
        if not node.image_id:
            raise InputError(f"{node.name}: nothing tells on which image it ran")
        other = found.setdefault(node.role, {}).setdefault(node.site, image)
        if other.id != image.id:
            raise InputError(
                f"the {node.role} nodes at {node.site} ran on two images, {other.id} and {image.id}",
                hint="take a folder that was collected of nodes on one image",
            )
    return found


def collect(
    experiment: Experiment,
    run: Run,
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    state: Path,
    identity: Path,
    output: Path,
) -> tuple[Path, CollectManifest]:
    """Bring home what all nodes of a run have to tell; the folder below ``output``, and its manifest.

    What can't be had of a node is among its ``problems``.  Raises SageError where no node stands.
    """
    things = status.look(sites, connections)
    standing: dict[str, tuple[str, Server]] = {}
    for site in sites:
        found = things[site.name]
        if isinstance(found, Things):
            standing |= {one.name: (site.name, one) for one in found.servers if one.run == run}
    nodes = [node for node in experiments.nodes(experiment) if node.name in standing]
    if not nodes:
        raise SageError(f"no node of {experiment.name} stands", hint="`fab status` tells what stands")
    now = ledger.written(datetime.now(timezone.utc))
    name = f"{experiment.name}-{run.id}-{now.replace('-', '').replace(':', '')}"
    with folder_beside(output / name) as folder, console.stage(f"collect {experiment.name}") as stage:
        left = {node.name for node in nodes}

        def one_node(node: Node) -> CollectedNode:
            site, one = standing[node.name]
            connection = connections[site]
            assert not isinstance(connection, SageError), "it told of the node"
            about = _about(connection, node, site, one, things[site])
            try:
                user = experiment.group(node.role).role.user
                target = reach.reach(connection, one.id, identity, deadline=_REACH, user=user)
                shell, _ = ssh.connect(target)
                with shell:
                    values = up.values_of(experiment, node, site, standing)
                    group = experiment.group(node.role)
                    got, problems = fetch(
                        shell, role.joined(group.role.collect, group.collect), values, folder / node.name
                    )
                    about = replace(about, machine=_machine(shell), files=got, problems=problems)
            except SageError as problem:
                about = replace(about, problems=(str(problem),))
            left.discard(node.name)
            stage.detail(f"waiting for {', '.join(sorted(left))}")
            return about

        told = parallel.at_most(_AT_ONCE, [partial(one_node, node) for node in nodes])
        rows = []
        for node, answer in zip(nodes, told, strict=True):
            if isinstance(answer, SageError):
                raise answer
            rows.append(answer)
            for problem in answer.problems:
                console.warn(f"{node.name}: {problem}")
        manifest = CollectManifest(
            _FORMAT, experiment.name, run.id, now, f"sage-chameleon {groundwork.__version__}", tuple(rows)
        )
        write(folder, manifest, experiment)
    return output / name, manifest


def _about(connection: "Connection", node: Node, site: str, one: Server, things: "Things | SageError") -> CollectedNode:
    """What the site tells of a node."""
    assert isinstance(things, Things)
    lease = next((row for row in things.leases if one.reservation in {part.id for part in row.reservations}), None)
    try:
        image = catalog.get(connection, one.image_id) if one.image_id else None
    except SageError:  # deleted since then: its id is all that is left
        image = None
    return CollectedNode(
        name=node.name,
        role=node.role,
        site=site,
        node_type=one.node_type,
        machine=None,
        server_id=one.id,
        image_id=one.image_id,
        image_name=image.name if image else "",
        image_sha512=image.os_hash_value if image and image.os_hash_algo == "sha512" else None,
        lease_id=lease.id if lease else None,
        lease_name=lease.name if lease else None,
        lease_starts_at=lease.starts_at if lease else None,
        lease_ends_at=lease.ends_at if lease else None,
        launched_at=one.created_at,
        address=one.floating_ip,
        fixed_address=one.fixed_ip,
        files=(),
        problems=(),
    )


def _machine(shell: "Shell") -> str | None:
    """The id of the bare-metal node, where the site's vendor data tell it."""
    try:
        told = json.loads(on_node.read(shell, _VENDOR_DATA))
        return str(told["chameleon"]["node"])
    except (SageError, ValueError, KeyError, TypeError):
        return None


def again(
    manifest: CollectManifest,
    experiment: Experiment,
    connections: "Mapping[str, Connection | SageError]",
    name: str | None = None,
) -> Experiment:
    """The experiment on the very images that it ran on, at the sites where it ran; under another name if one is given.

    An image is the same by its id, or where that is gone by the digest of its data.  Raises SageError where a site has
    it no more.
    """
    found: dict[str, dict[str, Image]] = {}
    for role_name, places in images_of(manifest).items():
        for site, image in places.items():
            connection = connections[site]
            if isinstance(connection, SageError):
                raise connection
            found.setdefault(role_name, {})[site] = _same_image(connection, site, image)
    return replace(experiments.on_same_images(experiment, found), name=ledger.check_name(name or experiment.name))


def _same_image(connection: "Connection", site: str, image: Image) -> Image:
    same = survey.find_image(connection, image.id)
    if same is None and image.digest is not None:
        same = survey.find_image(connection, survey.DIGEST + image.digest)
    if same is None:
        digest = f", sha512 {image.digest[:16]}..." if image.digest else ""
        raise SageError(
            f"{site} no longer has the image {image.name or image.id} that this ran on ({image.id}{digest})",
            hint="where you still have that build, `sage-image publish` brings the very same data there again",
        )
    if None not in (same.digest, image.digest) and same.digest != image.digest:
        raise SageError(f"{site}: the image {image.id} holds other data than when this ran")
    return same


def fetch(
    connection: Any, wanted: Collect, values: Mapping[str, str], folder: Path
) -> tuple[tuple[CollectedFile, ...], tuple[str, ...]]:
    """Bring home what is wanted of one node, into ``folder``; the files, and what could not be had.

    ``connection`` is a fabric.Connection.
    """
    files.make_folder(folder)
    problems = []
    for command in wanted.commands:
        try:
            _fetch_output(connection, command, values, folder / command.name)
        except SageError as error:
            problems.append(f"{command.name}: {error}")
    for path in wanted.paths:
        filled = role.fill_in(path, values)
        try:
            problems += _fetch_path(connection, filled, folder / "files")
        except SageError as error:
            problems.append(f"{filled}: {error}")
    found = []
    for path_here in sorted(folder.rglob("*")):
        if path_here.is_file():
            name = f"{folder.name}/{path_here.relative_to(folder).as_posix()}"
            found.append(CollectedFile(name, path_here.stat().st_size, files.sha256_file(path_here)))
    return tuple(found), tuple(problems)


def _fetch_output(connection: Any, command: Command, values: Mapping[str, str], path: Path) -> None:
    """What a command prints; kept also where it fails, for it may tell why."""
    with path.open("wb") as stream:
        said = on_node.run(connection, command.run, values, command.deadline, to=stream, most=_MOST)
    if said.code != 0:
        raise NotDone(f"exit status {said.code}: {said.last}")


def _fetch_path(connection: Any, path: str, folder: Path) -> list[str]:
    """A file or folder of the node's, below ``folder``; what was left out of it."""
    absolute = path.startswith("/")
    name = path.strip("/") if absolute else path.removeprefix("~/").strip("/")
    values = {"SAGE_BASE": "/" if absolute else ".", "SAGE_WHAT": name or "."}
    script = 'tar --create --gzip --file=- --directory="$SAGE_BASE" -- "./$SAGE_WHAT"'
    with tempfile.TemporaryFile(dir=folder.parent) as stream:
        said = on_node.run(connection, script, values, _PATH_DEADLINE, to=stream, most=_MOST)
        stream.seek(0)
        left_out = unpack(stream, folder) if said.code in (0, 1) or stream.read(1) else []
    if said.code != 0:  # 1: a file changed while it was read
        left_out.append(f"{path}: tar ended with exit status {said.code}: {said.last}")
    return left_out


def unpack(stream: IO[bytes], folder: Path) -> list[str]:
    """Unpack what a node packed, which is not trusted: plain files and folders below ``folder`` alone.

    Returns what was left out.  Raises SageError where it is no archive, or too much.
    """
    left_out, size, count = [], 0, 0
    try:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                count += 1
                parts = [part for part in PurePosixPath(member.name).parts if part != "."]
                if count > _MOST_FILES:
                    raise SageError(f"more than {_MOST_FILES:,} files")
                if ".." in parts or member.name.startswith("/"):
                    left_out.append(f"{member.name}: a path that leads out")
                    continue
                place = folder.joinpath(*parts)
                if member.isdir():
                    files.make_folder(place)
                elif member.isfile():
                    size += member.size
                    if size > 4 * _MOST:
                        raise SageError(f"more than {4 * _MOST >> 30} GiB once unpacked")
                    source = archive.extractfile(member)
                    assert source is not None
                    files.make_folder(place.parent)
                    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "wb") as to:
                        shutil.copyfileobj(source, to, _BLOCK)
                else:
                    left_out.append(f"{member.name}: neither file nor folder")
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, TypeError) as error:  # of a header cut short
        raise SageError(f"what the node packed can't be unpacked: {error}") from None
    return left_out
