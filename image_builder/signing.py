# SPDX-License-Identifier: Apache-2.0
"""Signatures by OpenSSH keys, made and checked by ``ssh-keygen -Y``; format: OpenSSH's ``PROTOCOL.sshsig``.

The signature of ``X`` is ``X.sig`` beside it.  Keys may be files or lie in an agent; who may sign is told by a file
as ``allowed_signers`` in ssh-keygen(1) says.
"""

from pathlib import Path

from groundwork import files, process
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError

NAMESPACE = "sage-image"  # so that a signature made for anything else, as a git commit, does not count here
ENDING = ".sig"
_DEADLINE = 60.0  # seconds; a key on a token may wait for a touch


def signature_of(document: Path) -> Path:
    """Where the signature of a document is."""
    return document.with_name(document.name + ENDING)


def check_key(key: Path) -> None:
    """Raise InputError unless something can be signed with this key now: before hours are spent on a build.

    ``key`` is a private key's file, or a public key's whose private one lies beside it or in the agent.
    """
    process.require("ssh-keygen")
    if not key.is_file():
        raise InputError(f"there is no key file {key}", hint="make a key: ssh-keygen -t ed25519")
    _make(key, b"")


def sign(document: Path, key: Path) -> None:
    """Write the document's signature beside it."""
    files.write_text(signature_of(document), _make(key, document.read_bytes()))


def fingerprint(key: Path) -> str:
    """``SHA256:...`` of a private or public key's file; a passphrase is not asked for."""
    try:
        return process.run(["ssh-keygen", "-l", "-E", "sha256", "-f", key], timeout=_DEADLINE).split()[1]
    except (ProcessError, IndexError):
        raise InputError(f"{key} is not a key of OpenSSH") from None


def is_signed_by(document: Path, key: Path) -> bool:
    """Whether the document has a signature, by this very key, that fits its content."""
    try:
        return fingerprint(key) == _signer(document)
    except SageError:
        return False


def verify(document: Path, signers: Path) -> str:
    """The principal, as the signers' file calls it, who signed the document.

    Raises SageError for a signature that is absent, does not fit or is by a key that may not sign; InputError for
    a signers' file that can't be read.
    """
    process.require("ssh-keygen")
    try:
        signers.read_bytes()
    except OSError as error:
        raise InputError(
            f"can't read {signers}: {error.strerror}", hint="see ALLOWED SIGNERS in ssh-keygen(1)"
        ) from None
    signer = _signer(document)
    signature = signature_of(document)
    try:
        found = process.run(["ssh-keygen", "-Y", "find-principals", "-s", signature, "-f", signers], timeout=_DEADLINE)
    except ProcessError as error:
        wrong = [line for line in error.output.splitlines() if line.startswith(f"{signers}:")]
        raise SageError(
            f"{document} is signed by the key {signer}, which is none of those in {signers}",
            hint=f"a line there is not understood: {wrong[0]}" if wrong else "add the key there if you trust it",
        ) from None
    reason = ""
    for principal in found.replace(",", "\n").split():
        command: list[str | Path] = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", principal]
        command += ["-s", signature, "-f", signers]
        try:
            process.run(command, input=document.read_bytes(), timeout=_DEADLINE)
        except ProcessError as error:
            reason = error.output.strip().splitlines()[0] if error.output.strip() else str(error)
            continue
        return principal
    raise SageError(f"{document}: the key {signer} may not sign this: {reason}")


def _signer(document: Path) -> str:
    """The fingerprint of the key that signed the document; SageError where its signature does not fit."""
    signature = signature_of(document)
    if not signature.is_file():
        raise SageError(f"{document} is not signed: there is no {signature.name}", hint="sage-image sign BUILD")
    command: list[str | Path] = ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature]
    try:
        return process.run(command, input=document.read_bytes(), timeout=_DEADLINE).split()[-1]
    except ProcessError as error:
        if "namespace" in error.output:
            raise SageError(f"{signature} was made for another purpose than {NAMESPACE!r}") from None
        if "incorrect signature" in error.output:
            raise SageError(
                f"{signature} does not fit: {document.name} was changed since, or it is another file's signature"
            ) from None
        raise SageError(f"{signature} is not a signature of OpenSSH") from None


def _make(key: Path, content: bytes) -> str:
    try:
        # ssh-keygen asks the agent first, and takes the private key beside a public one
        return process.run(["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", key], input=content, timeout=_DEADLINE)
    except ProcessError as error:
        if "passphrase" in error.output:
            raise InputError(
                f"the key {key} has a passphrase",
                hint=f"put it into an agent: ssh-add {key} (root must see the same SSH_AUTH_SOCK)",
            ) from None
        if "too open" in error.output:
            raise InputError(f"others may read the key {key}", hint=f"chmod 600 {key}") from None
        if "No private key" in error.output:
            raise InputError(
                f"there is no private key for {key}, neither beside it nor in an agent",
                hint=f"ssh-add {key.with_suffix('') if key.suffix == '.pub' else key}",
            ) from None
        if "load public key" in error.output:
            raise InputError(f"{key} is not a key of OpenSSH", hint="make a key: ssh-keygen -t ed25519") from None
        raise InputError(f"can't sign with {key}: {error}") from None
