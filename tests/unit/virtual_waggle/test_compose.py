# SPDX-License-Identifier: Apache-2.0
"""Compose files of all shapes are read as Compose reads them, and what is wrong in one is named with its place."""

from pathlib import Path

import pytest

from groundwork.errors import InputError
from tests.unit.virtual_waggle.compose import FOLDER, SHAPES, shape
from virtual_waggle import compose, compose_tree
from virtual_waggle.compose_model import Condition, MountKind, Resources, Service, Stack


def read(folder: Path, text: str, **variables: str) -> Stack:
    (folder / "compose.yaml").write_text(text)
    return compose.load(folder / "compose.yaml", variables)


def one(folder: Path, rows: str) -> Service:
    """A service ``one`` with these keys."""
    indented = "".join(f"    {row}\n" for row in rows.splitlines())
    return read(folder, f"services:\n  one:\n    image: a:1\n{indented}").services["one"]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_read(name: str) -> None:
    found = shape(name)
    assert found.services
    assert all(service.image or service.build for service in found.services.values())


def test_the_shop() -> None:
    found = shape("web-db-redis")
    assert found.name == "shop"
    web, db = found.services["web"], found.services["db"]
    assert (web.image, web.build) == ("registry.example.org/shop/web:1.4", True)
    assert web.command == ("gunicorn", "--bind", "0.0.0.0:8000", "shop.wsgi:application")
    assert [(port.target, port.published) for port in web.ports] == [(8000, 8080)]
    assert web.environment["DEBUG"] == "false"
    assert web.environment["WORKERS"] == "4"
    assert {one.service: one.condition for one in web.depends_on} == {
        "migrations": Condition.COMPLETED,
        "db": Condition.HEALTHY,
        "cache": Condition.STARTED,
    }
    assert db.healthcheck is not None
    assert db.healthcheck.test == ("/bin/sh", "-c", "pg_isready -U ${POSTGRES_USER} -d shop")
    assert (db.healthcheck.interval, db.healthcheck.start_period, db.healthcheck.retries) == (5, 20, 10)
    assert found.volumes["db-data"].name == "shop_db-data"
    assert [service.name for service in compose.selected(found)] == ["db", "migrations", "cache", "web"]


def test_a_required_variable_that_is_unset_is_named() -> None:
    with pytest.raises(InputError) as caught:
        compose.load(FOLDER / "wordpress.yaml", {})
    assert "wordpress.yaml:10: services.wordpress.environment.WORDPRESS_DB_USER: the variable MYSQL_USER is set" in str(
        caught.value
    )
    assert caught.value.hint == "set MYSQL_USER"


def test_secrets_are_read_and_not_shown() -> None:
    found = shape("wordpress")
    assert found.secrets["db_password"].content == b"correct horse battery staple\n"
    assert "horse" not in repr(found)
    assert [(grant.target, grant.mode) for grant in found.services["db"].secrets] == [
        ("/run/secrets/db_password", 0o440)
    ]
    hardened = shape("hardened")
    assert [(grant.source, grant.target, grant.mode) for grant in hardened.services["api"].secrets] == [
        ("tls-key", "/run/secrets/tls-key", None),
        ("signing", "/etc/api/signing.key", 0o400),
        ("token", "/run/secrets/token", None),
    ]
    assert hardened.secrets["token"].content == b"a token"
    assert (hardened.secrets["signing"].external, hardened.secrets["signing"].name) == (True, "signing-key")


def test_what_is_known_and_not_read_is_told_with_its_line() -> None:
    told = {unread.name: unread.place.line for unread in shape("elk").unread}
    assert told == {"services.elasticsearch.ulimits": 24, "services.logstash.logging": 55}


def test_configs_come_from_files_and_from_the_text_itself() -> None:
    found = shape("monitoring")
    assert b"scrape_interval: 15s" in (found.configs["prometheus"].content or b"")
    assert found.configs["rules"].content == b"groups: []\n"
    assert [grant.target for grant in found.services["prometheus"].configs] == [
        "/etc/prometheus/prometheus.yml",
        "/rules",
    ]


def test_env_files_come_before_the_environment_and_may_be_absent() -> None:
    notebook = shape("jupyter").services["notebook"]
    merged = compose.environment(notebook)
    assert merged["JUPYTER_TOKEN"] == "not-so-secret"
    assert merged["GREETING"] == "hello jovyan"
    assert merged["LITERAL"] == "${NB_USER}"
    assert "CHOWN_HOME" not in merged
    assert compose.environment(shape("monitoring").services["grafana"])["GF_SECURITY_ADMIN_PASSWORD"] == 'p ss"word'
    assert notebook.mounts[0].source == "/home/someone/notebooks"
    assert notebook.shm_size == 1 << 30
    assert notebook.resources.gpus == 1
    assert notebook.healthcheck is None


def test_deployments() -> None:
    worker = shape("worker").services["worker"]
    assert (worker.entrypoint, worker.command) == (
        ("/usr/bin/env", "python3"),
        ("-m", "worker", "--queue", "high priority"),
    )
    assert worker.replicas == 6
    assert worker.resources == Resources(0.5, 256 << 20, 0.25, 128 << 20, 100)
    assert (worker.restart, worker.restart_attempts) == ("on-failure", 3)
    assert worker.constraints[0] == "node.labels.disk == ssd"
    queue = shape("worker").services["queue"]
    assert (queue.restart, queue.stop_grace_period) == ("always", 60)
    assert shape("worker").services["agent"].mode == "global"


def test_profiles_choose_services() -> None:
    found = shape("profiles")
    assert [service.name for service in compose.selected(found)] == ["app"]
    assert [service.name for service in compose.selected(found, ["debug"])] == ["app", "debugger", "mailhog"]
    assert [service.name for service in compose.selected(found, ["*"])] == ["app", "debugger", "mailhog", "tests"]
    with pytest.raises(InputError, match=r"profiles.yaml:16: services.tests.depends_on: mailhog is off") as caught:
        compose.selected(found, ["test"])
    assert caught.value.hint == "it belongs to the profile debug or mail"


def test_networks() -> None:
    found = shape("networks")
    front = found.services["front"]
    assert {one.network: one.aliases for one in front.networks} == {
        "outside": (),
        "inside": ("gateway", "gateway.inside"),
    }
    assert found.networks["vault"].internal
    assert front.extra_hosts == (("camera.local", "192.0.2.7"), ("host.docker.internal", "host-gateway"))
    assert front.sysctls == {"net.ipv4.ip_unprivileged_port_start": "0"}
    assert found.services["sidecar"].network_mode == "service:front"
    assert found.services["batch"].networks == ()
    assert [one.network for one in shape("profiles").services["app"].networks] == ["default"]


def test_volumes_of_all_kinds() -> None:
    found = shape("volumes")
    rows = [(mount.kind, mount.source, mount.target, mount.read_only) for mount in found.services["all"].mounts]
    assert rows == [
        (MountKind.VOLUME, "named", "/named", False),
        (MountKind.VOLUME, "named", "/named-again/", True),
        (MountKind.VOLUME, "outside", "/outside", False),
        (MountKind.VOLUME, "", "/anonymous", False),
        (MountKind.BIND, str(FOLDER / "files/rules.yml"), "/etc/rules.yml", True),
        (MountKind.BIND, str(FOLDER / "written"), "/written", False),
        (MountKind.BIND, str(FOLDER.parent / "sibling"), "/sibling", True),
        (MountKind.TMPFS, "", "/scratch", False),
        (MountKind.VOLUME, "shared", "/shared", False),
        (MountKind.BIND, "/etc/localtime", "/etc/localtime", True),
        (MountKind.TMPFS, "", "/tmp", False),  # noqa: S108
        (MountKind.TMPFS, "", "/run", False),
    ]
    assert [mount.size for mount in found.services["all"].mounts if mount.size] == [16 << 20, 64 << 20]
    assert (found.volumes["outside"].external, found.volumes["outside"].name) == (True, "their-volume")


def test_healthchecks_of_all_forms() -> None:
    found = shape("healthchecks").services
    tests = {name: check.test for name, service in found.items() if (check := service.healthcheck)}
    assert tests == {
        "list": ("check", "--all"),
        "shell": ("/bin/sh", "-c", "check || exit 1"),
        "text": ("/bin/sh", "-c", "check || exit 1"),
    }
    assert found["list"].healthcheck is not None
    assert found["list"].healthcheck.start_period == 45
    assert found["shell"].healthcheck is not None
    assert found["shell"].healthcheck.interval == 0.5


def test_a_healthcheck_without_a_test_is_the_images_own(tmp_path: Path) -> None:
    for rows in ("{interval: 5s}", "{disable: false}", "{test: []}"):
        found = one(tmp_path, f"healthcheck: {rows}")
        assert (found.healthcheck, found.healthcheck_off) == (None, False)
    assert one(tmp_path, "healthcheck: {disable: true}").healthcheck_off
    assert one(tmp_path, "healthcheck: {test: [NONE]}").healthcheck_off
    found = one(tmp_path, "healthcheck: {test: [CMD-SHELL, curl, -f, http://localhost]}")
    assert found.healthcheck is not None
    assert found.healthcheck.test == ("/bin/sh", "-c", "curl -f http://localhost")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("healthcheck: {interval: 5s}", ["healthcheck"]),
        ("healthcheck: {disable: false}", []),
        ("volumes: ['/:/host:ro,rslave', '/a:/b:rprivate']", ["volumes[0].rslave"]),
        ("tmpfs: ['/a:size=50%', '/b:mode=700,size=1m']", ["tmpfs[0].size", "tmpfs[1].mode"]),
        ("networks: {default: {interface_name: eth1}}", ["networks.default.interface_name"]),
        ("pull_refresh_after: 1w", ["pull_refresh_after"]),
        ("gpus: all", ["gpus"]),
        (
            "deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: all}]}}}",
            ["deploy.resources.reservations.devices[0].count"],
        ),
    ],
)
def test_what_compose_takes_is_taken_and_what_is_not_read_of_it_is_told(
    tmp_path: Path, rows: str, told: list[str]
) -> None:
    found = read(tmp_path, f"services:\n  one:\n    image: a:1\n    {rows}\n")
    assert [unread.name for unread in found.unread] == [f"services.one.{name}" for name in told]


def test_a_restart_policy_under_deploy_counts_before_restart(tmp_path: Path) -> None:
    found = one(tmp_path, "restart: on-failure:3\ndeploy: {restart_policy: {condition: any}}")
    assert (found.restart, found.restart_attempts) == ("always", None)
    with pytest.raises(InputError, match=r"deploy.restart_policy.conditon: unknown key"):
        one(tmp_path, "restart: always\ndeploy: {restart_policy: {conditon: any}}")


def test_a_service_that_is_not_there_is_waited_for_only_where_it_is_required(tmp_path: Path) -> None:
    rows = "depends_on: {absent: {condition: service_healthy, required: %s}}"
    assert one(tmp_path, rows % "false").depends_on == ()
    with pytest.raises(InputError, match="unknown service 'absent'"):
        one(tmp_path, rows % "true")


def test_annotations_are_those_of_the_service_and_of_deploy(tmp_path: Path) -> None:
    found = one(tmp_path, "annotations: {a: '1'}\ndeploy: {labels: [a=0, b=2]}")
    assert found.annotations == {"a": "1", "b": "2"}


def test_merge_keys_are_written_out() -> None:
    found = shape("merge-keys").services
    assert found["one"].environment == {
        "LEVEL": "warning",
        "ROLE": "service",
        "REGION": "eu",
        "EXTRA": "1",
    }
    assert found["two"].environment == {"ROLE": "service", "LEVEL": "info", "REGION": "eu"}
    assert (found["one"].restart, found["one"].restart_attempts) == ("on-failure", 5)
    assert (found["two"].restart, found["two"].restart_attempts) == ("no", None)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("80", [(80, None, "tcp", "")]),
        ("8080:80", [(80, 8080, "tcp", "")]),
        ("22:22", [(22, 22, "tcp", "")]),
        ("127.0.0.1:8080:80/udp", [(80, 8080, "udp", "127.0.0.1")]),
        ("127.0.0.1::80", [(80, None, "tcp", "127.0.0.1")]),
        ("[::1]:8080:80", [(80, 8080, "tcp", "::1")]),
        ("3000-3001", [(3000, None, "tcp", ""), (3001, None, "tcp", "")]),
        ("9090-9091:8080-8081", [(8080, 9090, "tcp", ""), (8081, 9091, "tcp", "")]),
        ("9090-9091:80", [(80, 9090, "tcp", "")]),
        ("0:80", [(80, None, "tcp", "")]),
        ("53:53/UDP", [(53, 53, "udp", "")]),
    ],
)
def test_ports(tmp_path: Path, port: str, expected: list[tuple[int, int | None, str, str]]) -> None:
    found = one(tmp_path, f"ports:\n  - {port if port[0] != '[' else repr(port)}").ports
    assert [(port.target, port.published, port.protocol, port.host) for port in found] == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("1.5s", 1.5), ("10us", 1e-5), ("0s", 0), ("1w2d", 9 * 86400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert compose_tree.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 << 20), ("1gb", 1 << 30), ("1.5G", 3 << 29), ("100", 100), ("2KiB", 2048), ("7b", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert compose_tree.byte_count(text) == size


def test_values_are_typed_as_yaml_1_2_and_compose_have_it(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        "environment:\n  A: yes\n  B: 2024-01-01\n  C: 12:30\n  D: 1.5\n  E: ''\n  F: True\n  1: x\nread_only: true",
    )
    expected = {"A": "yes", "B": "2024-01-01", "C": "12:30", "D": "1.5", "E": "", "F": "true", "1": "x"}
    assert found.environment == expected
    assert found.read_only


def test_a_variable_in_the_file_can_stand_for_a_number_or_a_truth_value(tmp_path: Path) -> None:
    found = read(tmp_path, "services: {a: {image: x, scale: '${N:-3}', read_only: '${RO:-true}'}}", N="2")
    assert (found.services["a"].replicas, found.services["a"].read_only) == (2, True)


def test_unset_variables_are_told(tmp_path: Path) -> None:
    assert read(tmp_path, "services: {a: {image: 'x:$TAG', user: '${UID-}'}}").unset == ("TAG",)


def test_the_file_dotenv_fills_in_what_is_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=file\nB=file\n")
    assert compose.with_dotenv(tmp_path / "compose.yaml", {"A": "here"}) == {"A": "here", "B": "file"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("prots: ['80']", ":4: services.one.prots: unknown key"),
        ("ports: ['80:x']", ":4: services.one.ports[0]: expected port"),
        ("ports:\n  - '80'\n  - 70000", ":6: services.one.ports[1]: expected ports from 1 to 65535"),
        ("ports: [8000-8002:80-81]", ":4: services.one.ports[0]: the two ranges of ports differ"),
        ("ports: ['1-60000:1-60000']", "more than 1000 ports"),
        ("environment: [=x]", ":4: services.one.environment[0]: expected key=value"),
        ("environment: {A: [1]}", ":4: services.one.environment.A: expected a text, found a list"),
        ("environment: 3", ":4: services.one.environment: expected a mapping"),
        ("healthcheck: {test: [CMDX, a]}", "services.one.healthcheck.test: expected [CMD"),
        ("healthcheck: {test: a, interval: 30}", "services.one.healthcheck.interval: expected a duration"),
        ("healthcheck: {test: a, interval: soon}", "expected a duration as 1m30s, found 'soon'"),
        ("healthcheck: {test: [CMD-SHELL]}", "services.one.healthcheck.test: expected [CMD"),
        ("restart: allways", "services.one.restart: 'allways' is none"),
        ("restart: always:3", "expected on-failure:<times>"),
        ("mem_limit: lots", "services.one.mem_limit: expected a size"),
        ("deploy: {resources: {limits: {cpus: -1}}}", "services.one.deploy.resources.limits.cpus: expected a number"),
        ("deploy: {mode: sometimes}", "services.one.deploy.mode: 'sometimes'"),
        ("volumes: ['a:b:c:d']", "services.one.volumes[0]: expected source:/target"),
        ("volumes: [data:/data]", ":4: services.one.volumes: unknown volume 'data'"),
        ("volumes: ['./a:b']", ":4: services.one.volumes[0]: 'b' is no absolute path"),
        ("volumes: [{type: bnd, target: /a}]", "services.one.volumes[0].type: 'bnd'"),
        ("volumes: [{type: bind, target: /a}]", "the key 'source' is missing"),
        ("networks: [lan]", ":4: services.one.networks: unknown network 'lan'"),
        ("secrets: [key]", ":4: services.one.secrets: unknown secret 'key'"),
        ("configs: [conf]", ":4: services.one.configs: unknown config 'conf'"),
        ("depends_on: [two]", ":4: services.one.depends_on: unknown service 'two'"),
        ("depends_on: [one]", "they wait for each other: one -> one"),
        ("depends_on: {one: {condition: service_happy}}", "services.one.depends_on.one.condition: 'service_happy'"),
        ("env_file: absent.env", "services.one.env_file: can't read"),
        ("extends: {service: two}", "services.one.extends: extends is not taken here"),
        ("network_mode: host\nnetworks: [default]", "stands beside networks"),
        ('command: "it\'s"', "services.one.command: can't be split"),
        ("init: perhaps", "services.one.init: expected true or false, found 'perhaps'"),
        ("image: $", ":4: services.one: key 'image' stands twice"),
        ("user: $", ":4: services.one.user: no variable at '$'"),
        ("tmpfs: /tmp:size=lots", "expected a size as 64m"),
        ("extra_hosts: [nowhere]", "expected name:address"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        one(tmp_path, rows)
    assert words in str(caught.value)
    assert "compose.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("services: {}", "the key 'services' is missing"),
        ("services: [a]", "services: expected a mapping"),
        ("services:\n  a: {build: .\n", "compose.yaml:3: expected"),
        ("services: {" + "".join(f"s{n}: {{image: x}}, " for n in range(501)) + "}", "more than 500 services"),
        ("services: {a: {}}", "services.a: has neither image nor build"),
        ("services: {a b: {image: x}}", "'a b' is no name"),
        ("service: {a: {image: x}}", "service: unknown key"),
        ("include: [b.yaml]\nservices: {a: {image: x}}", ":1: include: include is not taken here"),
        ("name: Über\nservices: {a: {image: x}}", "is no name of a project"),
        ("services: {a: {image: x}}\nsecrets: {s: {}}", "secrets.s: expected one of file"),
        ("services: {a: {image: x}}\nsecrets: {s: {environment: NONE}}", "the variable NONE is not set"),
        ("services: {a: {image: !!python/name:os.system x}}", "is not known here"),
        ("services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "a -> b -> a"),
        (
            "services: {a: {image: x, depends_on: {b: {condition: service_healthy}}},"
            " b: {image: x, healthcheck: {disable: true}}}",
            "its healthcheck is off",
        ),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


def doubling(first: str, row: str) -> str:
    """Each row names the one before eight times."""
    return first + "".join(row.format(name=name, before=", ".join([f"*{before}"] * 8)) for before, name in BEFORE)


BEFORE = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "f"), ("f", "g"), ("g", "h")]


@pytest.mark.parametrize(
    "text",
    [
        doubling("a: &a [x,x,x,x,x,x,x,x]\n", "{name}: &{name} [{before}]\n"),
        doubling("a: &a {x: 1}\n", "{name}: &{name} {{<<: [{before}]}}\n"),
        "services: &s {a: *s}",
        "services: &s {<<: *s}",
        "services: " + "[" * 50 + "]" * 50,
        "services: " + "[" * 3_000,
        "x: " + "a" * (513 << 10),
    ],
    ids=["aliases", "merges", "recursive", "merges itself", "deep", "far too deep", "large"],
)
def test_a_file_made_to_exhaust_the_reader_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        read(tmp_path, text)


def test_a_file_that_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        compose.load(tmp_path / "compose.yaml", {})
    with pytest.raises(InputError, match="can't read"):
        compose.load(tmp_path / "absent.yaml", {})
