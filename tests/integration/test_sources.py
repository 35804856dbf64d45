# SPDX-License-Identifier: Apache-2.0
"""Further sources from a real git server and a web server on loopback: right, wrong, absent, cut off."""

import base64
import hashlib
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from groundwork.errors import InputError, SageError
from image_builder import sources, variant
from image_builder.manifest import FurtherSource
from tests.integration import commands

GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@t",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@t",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}
WHEN = 1767225600  # that time
_USER = base64.b64encode(b"me:s3cret").decode()


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *words], env={**os.environ, **GIT}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Server:
    """Its address, its folder of repositories and files, and what was asked of it."""

    url: str
    top: Path
    asked: list[str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """``/git/`` is git's smart HTTP server (``/old/`` without protocol 2, ``/own/`` for one user), all else files."""
    top = tmp_path / "served"
    top.mkdir()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/own/") and self.headers.get("Authorization") != f"Basic {_USER}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="own"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path.startswith(("/git/", "/old/", "/own/")):
                self._git()
                return
            name, _, cut = self.path.lstrip("/").partition("?")
            if not (top / name).is_file():
                self.send_error(404)
                return
            data = (top / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = bool(cut)

        do_POST = do_GET  # noqa: N815

        def _git(self) -> None:
            path, _, query = self.path.partition("?")
            size = int(self.headers.get("Content-Length") or 0)
            env = {
                **GIT,
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(top),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path[4:],
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(size),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "REMOTE_ADDR": "127.0.0.1",
            }
            if not self.path.startswith("/old/"):
                env["GIT_PROTOCOL"] = self.headers.get("Git-Protocol", "")
            done = subprocess.run(
                ["git", "http-backend"], env=env, input=self.rfile.read(size), capture_output=True, check=False
            )
            head, _, body = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for key, value in fields.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield Server(f"http://127.0.0.1:{web.server_port}", top, asked)
    web.shutdown()
    web.server_close()


@dataclass(frozen=True)
class Repository:
    """A repository of two commits; ``first`` is named by no branch."""

    path: Path
    first: str
    tree: str
    last: str


@pytest.fixture
def repository(server: Server, tmp_path: Path) -> Repository:
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "--quiet", "--initial-branch=main")
    (work / "app.py").write_text("print('$Format:%H$')\r\n")
    (work / "run").write_text("#!/bin/sh\n")
    (work / "run").chmod(0o755)
    (work / "secret").write_text("also here\n")
    (work / "link").symlink_to("app.py")
    (work / ".gitattributes").write_text("secret export-ignore\napp.py export-subst text eol=lf filter=lfs\n")
    git(work, "add", ".")
    git(work, "-c", "core.autocrlf=false", "commit", "--quiet", "--message=one")
    first = git(work, "rev-parse", "HEAD")
    (work / "second").write_text("2\n")
    git(work, "add", ".")
    git(work, "commit", "--quiet", "--message=two")
    git(work, "clone", "--quiet", "--bare", str(work), str(server.top / "plugin.git"))
    return Repository(work, first, git(work, "rev-parse", f"{first}^{{tree}}"), git(work, "rev-parse", "HEAD"))


def load(folder: Path, row: str) -> tuple[variant.Source, ...]:
    folder.mkdir(exist_ok=True)
    (folder / "v.yaml").write_text(f"description: x\nimage_name: x\nelements: [a]\nsources:\n- {row}\n")
    return variant.load("v", [folder]).sources


def named(url: str, repository: Repository, **other: str) -> str:
    values = {"commit": repository.first, "tree": repository.tree, **other}
    return f"{{name: p, git: '{url}', commit: '{values['commit']}', tree: '{values['tree']}', to: /opt/p}}"


@pytest.mark.parametrize("kind", ["git", "old"])
def test_a_commit_is_taken_as_it_is_also_from_servers_that_give_branches_alone(
    server: Server, repository: Repository, tmp_path: Path, kind: str
) -> None:
    found = load(tmp_path / "v", named(f"{server.url}/{kind}/plugin.git", repository))
    laid = sources.prepare(found, tmp_path / "cache", tmp_path / "laid")
    assert (laid / "p/to").read_text() == "/opt/p\n"
    tree = laid / "p/tree"
    names = sorted(path.name for path in tree.iterdir())
    assert names == [".gitattributes", "app.py", "link", "run", "secret"]
    # as committed, whatever the repository's attributes say
    shown = subprocess.run(
        ["git", "-C", repository.path, "cat-file", "blob", f"{repository.first}:app.py"],
        capture_output=True,
        check=True,
    )
    assert (tree / "app.py").read_bytes() == shown.stdout
    assert b"$Format:%H$" in shown.stdout
    assert os.readlink(tree / "link") == "app.py"
    assert (tree / "run").stat().st_mode & 0o777 == 0o755
    assert {path.lstat().st_mtime for path in (tree, *tree.iterdir())} == {WHEN}
    assert sources.record(found) == (FurtherSource("p", found[0].url, repository.first, repository.tree, "/opt/p"),)


def test_git_takes_credentials_from_netrc(
    server: Server, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load(tmp_path / "v", named(f"{server.url}/own/plugin.git", repository))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(SageError, match=r"source p can't be fetched"):
        sources.prepare(found, tmp_path / "cache", tmp_path / "one")
    (home / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    laid = sources.prepare(found, tmp_path / "cache", tmp_path / "two")
    assert (laid / "p/tree/run").exists()


def test_what_was_fetched_is_not_fetched_again(server: Server, repository: Repository, tmp_path: Path) -> None:
    found = load(tmp_path / "v", named(f"{server.url}/git/plugin.git", repository))
    sources.prepare(found, tmp_path / "cache", tmp_path / "one")
    server.asked.clear()
    sources.prepare(found, tmp_path / "cache", tmp_path / "two")
    assert server.asked == []
    assert (tmp_path / "two/p/tree/run").exists()


@pytest.mark.parametrize("kind", ["git", "old"])
def test_a_commit_that_is_not_there_is_wrong_input(
    server: Server, repository: Repository, tmp_path: Path, kind: str
) -> None:
    row = named(f"{server.url}/{kind}/plugin.git", repository, commit="1" * 40)
    with pytest.raises(InputError, match=r"v\.yaml:5: sources\[0\]\.commit: there is no commit 1{40} at"):
        sources.prepare(load(tmp_path / "v", row), tmp_path / "cache", tmp_path / "laid")
    assert not list((tmp_path / "cache/sources").glob("1*[!l]"))


def test_a_wrong_tree_is_wrong_input_also_out_of_the_cache(
    server: Server, repository: Repository, tmp_path: Path
) -> None:
    row = named(f"{server.url}/git/plugin.git", repository, tree="2" * 40)
    for attempt in ("one", "two"):
        with pytest.raises(InputError) as caught:
            sources.prepare(load(tmp_path / "v", row), tmp_path / "cache", tmp_path / attempt)
        said = str(caught.value)
        assert f"v.yaml:5: sources[0].tree: the commit's tree is {repository.tree}, expected {'2' * 40}" in said
        assert caught.value.exit_code == 2


def test_a_repository_that_does_not_answer_is_told(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(SageError, match=r"source p can't be fetched from http://127\.0\.0\.1:9/p\.git") as caught:
        sources.prepare(
            load(tmp_path / "v", named("http://127.0.0.1:9/p.git", repository)), tmp_path / "c", tmp_path / "l"
        )
    assert caught.value.exit_code == 1
    assert caught.value.hint


def test_a_user_that_is_asked_for_is_no_wait(server: Server, repository: Repository, tmp_path: Path) -> None:
    row = named(f"{server.url}/git/other.git", repository)
    with pytest.raises(SageError, match="can't be fetched"):
        sources.prepare(load(tmp_path / "v", row), tmp_path / "cache", tmp_path / "laid")


# ---------------------------------------------------------------------------------------------------------- archives


@pytest.fixture
def archive(server: Server, tmp_path: Path) -> str:
    """An archive at the server's ``/d.tar.gz``; its SHA-256."""
    content = tmp_path / "content"
    content.mkdir()
    (content / "file").write_bytes(os.urandom(200_000))
    with tarfile.open(server.top / "d.tar.gz", "w:gz") as packed:
        packed.add(content, "data-1.0")
    return hashlib.sha256((server.top / "d.tar.gz").read_bytes()).hexdigest()


def row_of(url: str, digest: str) -> str:
    return f"{{name: d, archive: '{url}', sha256: '{digest}', to: /opt/d}}"


def test_an_archive_is_taken_and_kept(server: Server, archive: str, tmp_path: Path) -> None:
    found = load(tmp_path / "v", row_of(f"{server.url}/d.tar.gz", archive))
    for attempt in ("one", "two"):
        laid = sources.prepare(found, tmp_path / "cache", tmp_path / attempt)
        assert (laid / "d/tree/file").read_bytes() == (tmp_path / "content/file").read_bytes()
    assert server.asked == ["/d.tar.gz"]


def test_a_kept_archive_that_was_damaged_is_fetched_again(server: Server, archive: str, tmp_path: Path) -> None:
    found = load(tmp_path / "v", row_of(f"{server.url}/d.tar.gz", archive))
    sources.prepare(found, tmp_path / "cache", tmp_path / "one")
    (tmp_path / "cache/sources" / archive).write_bytes(b"bad")
    sources.prepare(found, tmp_path / "cache", tmp_path / "two")
    assert (tmp_path / "two/d/tree/file").exists()


def test_another_file_is_wrong_input(server: Server, archive: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        sources.prepare(
            load(tmp_path / "v", row_of(f"{server.url}/d.tar.gz", "3" * 64)), tmp_path / "cache", tmp_path / "laid"
        )
    said = str(caught.value)
    assert f"v.yaml:5: sources[0].sha256: the file's SHA-256 is {archive}, expected {'3' * 64}" in said
    assert list((tmp_path / "cache/sources").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "words"), [("/d.tar.gz?cut", "ended after [0-9]+ of [0-9]+ bytes"), ("/absent", "says 404")]
)
def test_half_a_download_and_an_absent_file_are_told(
    server: Server, archive: str, tmp_path: Path, path: str, words: str
) -> None:
    with pytest.raises(SageError, match=words) as caught:
        sources.prepare(load(tmp_path / "v", row_of(server.url + path, archive)), tmp_path / "cache", tmp_path / "laid")
    assert caught.value.exit_code == 1
    assert list((tmp_path / "cache/sources").iterdir()) == []


def test_an_archive_that_reaches_outside_stops_the_build(server: Server, tmp_path: Path) -> None:
    with tarfile.open(server.top / "evil.tar", "w") as packed:
        packed.addfile(tarfile.TarInfo("../../evil"))
    digest = hashlib.sha256((server.top / "evil.tar").read_bytes()).hexdigest()
    with pytest.raises(SageError, match="nothing of it was taken"):
        sources.prepare(
            load(tmp_path / "v", row_of(f"{server.url}/evil.tar", digest)), tmp_path / "cache", tmp_path / "laid"
        )
    assert not list(tmp_path.rglob("evil"))


def test_create_image_ends_with_2_for_a_wrong_digest_before_anything_is_built(
    server: Server, archive: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"description: x\nextends: base\nsources:\n- {row_of(server.url + '/d.tar.gz', '3' * 64)}\n"
    )
    words = ("--variant", "mine", "--release", "bookworm", "--no-verify", "--variants-dir", str(tmp_path))
    places = ("--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "out"))
    done = commands.run("create-image", *words, *places, timeout=120)
    assert done.code == 2, done.err
    assert f"mine.yaml:4: sources[0].sha256: the file's SHA-256 is {archive}" in done.err
    assert not (tmp_path / "cache/dib").exists()


# ------------------------------------------------------------------------------------------------ into the image's tree


def test_the_element_puts_a_source_in_its_place_and_nothing_over_another(
    server: Server, repository: Repository, tmp_path: Path
) -> None:
    found = load(tmp_path / "v", named(f"{server.url}/git/plugin.git", repository))
    laid = sources.prepare(found, tmp_path / "cache", tmp_path / "laid")
    script = Path(__file__).parents[2] / "elements/sources/extra-data.d/50-sources"
    env = {**os.environ, "SAGE_SOURCES": str(laid), "TMP_MOUNT_PATH": str(tmp_path / "tree")}

    def put() -> "subprocess.CompletedProcess[str]":
        command: list[str | Path] = ["unshare", "--user", "--map-root-user", "--", script]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    done = put()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tree/opt/p/run").stat().st_mtime == WHEN
    assert os.readlink(tmp_path / "tree/opt/p/link") == "app.py"
    assert not (tmp_path / "tree/opt/p/to").exists()
    again = put()
    assert again.returncode == 1
    assert "source p: /opt/p is in the image already" in again.stderr
