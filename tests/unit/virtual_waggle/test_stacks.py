# SPDX-License-Identifier: Apache-2.0
"""The two stacks are what all three forms can run: nothing too new for docker-compose 1.29, no secret in a variable."""

import importlib
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from groundwork.errors import InputError
from virtual_waggle import compose, healthy, kubernetes, native
from virtual_waggle.beehive import deployment as of_beehive
from virtual_waggle.beehive import settings as beehive_settings
from virtual_waggle.beehive import state as beehive_state
from virtual_waggle.beehive.state import State
from virtual_waggle.broker import Place
from virtual_waggle.compose_model import MountKind, Stack
from virtual_waggle.containers import definition
from virtual_waggle.forms import Deployment
from virtual_waggle.node import deployment as of_node
from virtual_waggle.node import state as node_state

FILES = {"node": of_node.COMPOSE_FILE, "beehive": of_beehive.COMPOSE_FILE}
SERVICES = {
    "node": ["rabbitmq", "sharing", "uploader", "playback", "metrics", "recorder"],
    "beehive": ["rabbitmq", "registration", "upload-server", "loader", "api"],
}
NEWER = {"name", "include", "extends", "develop", "attach", "annotations", "provider", "models", "pull_policy"}
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)

# Imported here: some libraries look for others by a subprocess, which no test may start.
MODULES = {
    name: importlib.import_module(name)
    for name in (
        *(f"virtual_waggle.node.{one}" for one in ("sharing", "uploader", "playback", "metrics", "recorder")),
        *(f"virtual_waggle.beehive.{one}" for one in ("registration", "upload_server", "loader", "api")),
    )
}

both = pytest.mark.parametrize("name", FILES)


def read(name: str) -> Stack:
    return compose.load(FILES[name], {}, name=name)


def node(folder: Path, *, native: bool = False, **environment: str) -> Deployment:
    state = node_state.make_ready(folder)
    node_state.write_broker_files(state, of_node.place(state, native=native, environment=environment))
    return of_node.deployment(state, native=native, environment=environment)


def beehive(folder: Path, *, native: bool = False, **environment: str) -> Deployment:
    state = State(folder)
    folder.mkdir(exist_ok=True)
    state.settings_file.write_text("BEEHIVE_HOST=beehive.example.org\nBEEHIVE_PORT=5771\n")
    known = beehive_settings.read(state.settings_file)
    place = of_beehive.place(state, known, native=native, environment=environment)
    beehive_state.deploy(state, {}, place, now=NOW)
    return of_beehive.deployment(state, native=native, environment=environment)


@both
def test_the_services_are_those_of_the_design(name: str) -> None:
    assert list(read(name).services) == SERVICES[name]


@both
def test_nothing_is_read_over_and_nothing_is_unset(name: str) -> None:
    found = read(name)
    # limits of logs are Docker's own: a cluster has its own, and plain processes too (supervisor.LARGEST_LOG)
    assert {unread.name.rpartition(".")[2] for unread in found.unread} == {"logging"}
    assert found.unset == ()


@both
def test_docker_compose_1_29_knows_all_of_it(name: str) -> None:
    text = FILES[name].read_text()
    data = yaml.safe_load(text)
    assert set(data) <= {"services", "secrets", "x-service", "x-environment"}
    for service in data["services"].values():
        assert not set(service) & NEWER
        assert "deploy" not in service  # it reads that in a swarm alone
    # It knows ${VARIABLE}, and :- and - with a default that holds no other variable.
    for expression in re.findall(r"\$\{[^}]*\}?", text):
        assert re.fullmatch(r"\$\{[A-Z_]+(:?-[^${}]*)?\}", expression), expression


@both
def test_every_service_is_confined(name: str) -> None:
    for service in read(name).services.values():
        assert service.user == "990:990"
        assert service.read_only
        assert service.cap_drop == ("ALL",)
        assert service.security_opt == ("no-new-privileges:true",)
        assert service.resources.memory_limit
        assert service.restart == "unless-stopped"
        assert service.labels["org.sagecontinuum.state"].startswith("/var/lib/")
        assert not service.privileged


@both
def test_no_log_grows_without_end(name: str) -> None:
    for service in yaml.safe_load(FILES[name].read_text())["services"].values():
        assert service["logging"]["options"] == {"max-size": "4m", "max-file": "2"}


@both
def test_only_what_nodes_and_readers_need_is_open_beyond_loopback(name: str) -> None:
    outside = {
        port.published for service in read(name).services.values() for port in service.ports if port.host != "127.0.0.1"
    }
    assert outside == (set() if name == "node" else {5671, 20022, 20023, 8080})


@both
def test_images_are_there_and_modules_get_the_variables_that_they_read(name: str) -> None:
    images = {image.name for image in definition.load().images}
    for service in read(name).services.values():
        assert service.image in images
        assert service.command
        if service.command[:2] == ("python3", "-m"):
            module = MODULES[service.command[2]]
            if not hasattr(module, "TABLE"):  # the sharing service's
                continue
            known = {variable.name for variable in module.TABLE}
            needed = {variable.name for variable in module.TABLE if variable.default is None}
            given = set(service.environment) - {"PYTHONPATH"}
            assert needed <= given, service.name
            assert given <= known, service.name


@both
def test_every_secret_is_a_file_with_its_own_name_and_is_used(name: str) -> None:
    found = read(name)
    used = {grant.source for service in found.services.values() for grant in service.secrets}
    assert used == set(found.secrets)
    for key, secret in found.secrets.items():
        assert secret.file is not None
        assert secret.file.name == key


@both
def test_state_lies_at_the_same_path_inside_and_outside(name: str) -> None:
    for service in read(name).services.values():
        for mount in service.mounts:
            if mount.kind is MountKind.BIND and service.name != "metrics":
                assert mount.source == mount.target


@both
def test_kubernetes_takes_it(name: str) -> None:
    found = kubernetes.convert(read(name), profiles=["*"], wait_image="sage/waggle")
    for document in found.documents:
        kubernetes_validate.validate(document, "1.37", strict=True)
    # Nothing else than what lies on the host, ports that are on loopback, and limits of logs.
    assert {re.sub(r".*\.", "", loss.name) for loss in found.losses if not loss.name.startswith("secrets.")} <= {
        *("volumes", "ports", "rabbitmq", "apps", "nodes", "store", "uploads", "logging"),
    }


def test_a_node_alone_and_one_with_a_beehive(tmp_path: Path) -> None:
    given = node(tmp_path / "state")
    stack = compose.load(given.compose_file, given.variables)
    alone = [service.name for service in compose.selected(stack, given.profiles)]
    assert alone == ["rabbitmq", "sharing", "uploader", "playback", "metrics", "recorder"]
    assert not [secret for secret in stack.secrets.values() if secret.missing]
    assert stack.services["sharing"].environment["WAGGLE_NODE_ID"] == given.variables["WAGGLE_NODE_ID"]
    assert not stack.services["uploader"].environment["WAGGLE_BEEHIVE_HOST"]


@pytest.mark.parametrize("registered", [False, True])
def test_a_node_with_a_beehive_limits_uploads_at_once_and_sends_them_when_it_is_registered(
    tmp_path: Path, registered: bool
) -> None:
    state = tmp_path / "state"
    (state / "private").mkdir(parents=True)
    (state / "waggle-node.env").write_text("WAGGLE_NODE_ID=00000000000000aa\nWAGGLE_BEEHIVE_HOST=beehive.example\n")
    if registered:
        for name in ("beehive-ca.pem", "node-cert.pem", "node-key.pem"):
            (state / "private" / name).write_text("pem")
        known_as = node_state.registered_as("00000000000000aa", "beehive.example", 20022)
        (state / "private/registered-as").write_text(known_as)
    given = node(state)
    stack = compose.load(given.compose_file, given.variables)
    found = {service.name: service for service in compose.selected(stack, given.profiles)}
    assert set(found) == {"rabbitmq", "sharing", "uploader", "playback", "metrics"}
    assert found["uploader"].environment["WAGGLE_BEEHIVE_HOST"] == ("beehive.example" if registered else "")


def test_a_beehive_tells_its_services_its_settings(tmp_path: Path) -> None:
    given = beehive(tmp_path / "state")
    stack = compose.load(given.compose_file, given.variables)
    registration = stack.services["registration"].environment
    assert (registration["BEEHIVE_HOST"], registration["BEEHIVE_PORT"]) == ("beehive.example.org", "5771")
    assert registration["BEEHIVE_MANAGEMENT"] == "http://rabbitmq:15672"
    assert stack.services["rabbitmq"].ports[0].published == 5771
    assert stack.services["rabbitmq"].ports[0].target == 5671
    assert not [secret for secret in stack.secrets.values() if secret.missing]


@pytest.mark.parametrize(
    ("member", "address", "interface"),
    [("hive1", "0.0.0.0", "0,0,0,0"), ("hive2", "192.0.2.7", "192,0,2,7")],  # noqa: S104
)
def test_a_clusters_machine_has_a_broker_that_others_reach_and_goes_to_theirs(
    tmp_path: Path, member: str, address: str, interface: str
) -> None:
    state = State(tmp_path / "state")
    given = {
        "BEEHIVE_HOST": "hive1,hive2,hive3",
        "BEEHIVE_CLUSTER": "hive1,hive2,hive3",
        "BEEHIVE_MEMBER": "hive1",
        "BEEHIVE_QUEUE_TYPE": "quorum",
        "BEEHIVE_STORE": "postgresql://beehive@db/beehive",
        "BEEHIVE_ADDRESS": address,
    }
    beehive_state.deploy(state, given, Place("", "", ""), now=NOW)
    beehive_state.deploy(state, {"BEEHIVE_MEMBER": member}, Place("", "", ""), now=NOW)
    made = of_beehive.deployment(state, native=True, environment={})
    stack = compose.load(made.compose_file, made.variables)
    broker = stack.services["rabbitmq"].environment
    assert broker["RABBITMQ_NODENAME"] == f"beehive@{member}"
    assert f"inet_dist_use_interface {{{interface}}}" in str(broker["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"])
    assert broker["ERL_EPMD_ADDRESS"] == ("" if address == "0.0.0.0" else address)  # noqa: S104
    others = [f"{host}:5671" for host in ("hive1", "hive2", "hive3") if host != member]
    for name in ("loader", "api"):
        assert stack.services[name].environment["WAGGLE_BROKER"] == ",".join(["localhost:5671", *others])
    names = {service.name for service in compose.selected(stack, made.profiles)}
    assert names == {"rabbitmq", "loader", "api"} | ({"registration", "upload-server"} if member == "hive1" else set())
    with pytest.raises(InputError, match="BEEHIVE_CLUSTER: a cluster's services run without containers"):
        of_beehive.place(state, beehive_settings.read(state.settings_file), native=False, environment={})


def test_links_to_files_begin_with_the_address_that_was_set_or_that_a_reader_uses(tmp_path: Path) -> None:
    state = State(tmp_path / "state")

    def address() -> object:
        made = of_beehive.deployment(state, native=True, environment={"BEEHIVE_API_URL": "http://nobody.asked"})
        return compose.load(made.compose_file, made.variables).services["api"].environment["BEEHIVE_API_URL"]

    beehive_state.deploy(state, {"BEEHIVE_HOST": "hive1,hive2,hive3"}, Place("", "", ""), now=NOW)
    assert address() == ""
    beehive_state.deploy(state, {"BEEHIVE_API_URL": "https://data.example.org"}, Place("", "", ""), now=NOW)
    assert address() == "https://data.example.org"
    cluster = {
        "BEEHIVE_API_URL": "",
        "BEEHIVE_CLUSTER": "hive1,hive2,hive3",
        "BEEHIVE_MEMBER": "hive2",
        "BEEHIVE_QUEUE_TYPE": "quorum",
        "BEEHIVE_STORE": "postgresql://beehive@db/beehive",
    }
    beehive_state.deploy(state, cluster, Place("", "", ""), now=NOW)
    assert address() == "http://hive1:8080"  # where the files are, whichever machine is asked


@pytest.mark.parametrize("make", [node, beehive])
def test_no_secret_is_in_a_variable(make: Callable[..., Deployment], tmp_path: Path) -> None:
    given = make(tmp_path / "state", native=True)
    secrets = [path.read_text().strip() for path in (tmp_path / "state/private").glob("*password")]
    assert secrets
    assert not [secret for secret in secrets if secret in str(given)]


@pytest.mark.parametrize("make", [node, beehive])
def test_plain_processes_listen_on_loopback_and_see_the_state_itself(
    make: Callable[..., Deployment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_resolved", lambda command, path, service: command)
    given = make(tmp_path / "state", native=True, BEEHIVE_ADDRESS="127.0.0.1")
    for planned in native._plan(given):
        for key, value in planned.environment.items():
            assert not value.startswith(("/run/secrets", "/host")), key
            assert "0.0.0.0" not in value, key  # noqa: S104
            assert "rabbitmq:" not in value, key
    configuration = (tmp_path / "state/private/rabbitmq.conf").read_text()
    assert "/run/secrets" not in configuration


def test_a_health_check_finds_its_address_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    class Connection:
        status = 200

        def __init__(self, host: str, port: int, timeout: float) -> None:
            asked.append((host, port))

        def request(self, method: str, path: str) -> None:
            asked.append((method, path))

        def getresponse(self) -> "Connection":
            return self

    monkeypatch.setattr("http.client.HTTPConnection", Connection)
    monkeypatch.setenv("LISTEN", "0.0.0.0:8080")
    assert healthy.main("LISTEN", "/healthz") == 0
    assert asked == [("127.0.0.1", 8080), ("GET", "/healthz")]
    monkeypatch.setattr(Connection, "status", 503)
    assert healthy.main("LISTEN", "/healthz") == 1


def test_a_service_that_listens_is_found_without_a_connection() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 00000000:1628 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:4E36 0100007F:1628 01 00000000:00000000\n"
    )
    assert healthy.is_listened_at(5672, table)
    assert not healthy.is_listened_at(20022, table)  # a connection from that port
    assert not healthy.is_listened_at(80, table)


@pytest.mark.parametrize("native", [False, True])
def test_how_often_services_are_looked_at_is_a_setting(tmp_path: Path, native: bool) -> None:
    asked = {"WAGGLE_HEALTH_INTERVAL": "61", "BEEHIVE_HEALTH_INTERVAL": "61"}
    both_made = [make(tmp_path / make.__name__, native=native, **asked) for make in (node, beehive)]
    for made in both_made:
        stack = compose.load(made.compose_file, made.variables, name=made.name)
        found = {service.healthcheck.interval for service in stack.services.values() if service.healthcheck}
        assert found == {61.0}
    with pytest.raises(InputError, match=r"WAGGLE_HEALTH_INTERVAL: .*1.*3600"):
        node(tmp_path / "other", WAGGLE_HEALTH_INTERVAL="0")
