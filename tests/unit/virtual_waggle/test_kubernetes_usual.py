# SPDX-License-Identifier: Apache-2.0
"""The usual Compose files come up in Kubernetes, keep what they hold apart and to themselves, and losses are told."""

import base64
import functools
from pathlib import Path

import pytest

from tests.unit.virtual_waggle.compose import shape
from tests.unit.virtual_waggle.manifests import container, convert, kinds, losses, one, pod
from virtual_waggle import kubernetes
from virtual_waggle.kubernetes import Manifests


@functools.cache
def converted(name: str) -> Manifests:
    return kubernetes.convert(shape(name))


def one_service(folder: Path, rows: str, more: str = "") -> Manifests:
    """A service ``app`` with these keys; ``more`` stands beside ``services``."""
    indented = "".join(f"    {row}\n" for row in rows.splitlines())
    return convert(folder, f"services:\n  app:\n    image: x\n    restart: always\n{indented}{more}")


def told(found: Manifests, key: str) -> str:
    return " / ".join(loss.why for loss in found.losses if loss.name == key)


def mounts(found: Manifests, kind: str = "Deployment", name: str = "app") -> dict[str, dict[str, object]]:
    """By path: the mount, and the volume that it shows."""
    volumes = {volume["name"]: volume for volume in pod(found, kind, name).get("volumes", [])}
    rows = container(found, kind, name).get("volumeMounts", [])
    return {row["mountPath"]: {**volumes[row["name"]], **row} for row in rows}


def labels(found: Manifests, kind: str, name: str) -> set[str]:
    return set(one(found, kind, name)["spec"]["template"]["metadata"]["labels"])


# ------------------------------------------------------------------------------------- names, waiting, starting up


def test_a_name_leads_to_all_ports_of_its_pods_from_their_start() -> None:
    for name in ("kafka", "rabbit", "queue", "once"):  # which names itself; a port that is not told; an alias; a Job
        spec = one(converted("cluster"), "Service", name)["spec"]
        assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    assert "once" in kinds(converted("cluster"))["Job"]


def test_who_waits_looks_for_a_name_that_is_known_while_the_other_is_ready() -> None:
    found = converted("cluster")
    spec = one(found, "Service", "kafka-ready")["spec"]
    assert spec["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in spec
    assert spec["selector"] == one(found, "Service", "kafka")["spec"]["selector"]
    inits = pod(found, "Deployment", "front")["initContainers"]
    assert [init["name"] for init in inits[:2]] == ["wait-for-kafka", "migrate"]
    waits = {init["name"]: init["command"] for init in inits if "command" in init}
    assert waits["wait-for-kafka"][3] == "kafka-ready"
    assert waits["wait-for-once"][3] == "once-ready"  # a Job
    # in full: BusyBox' nslookup ends with 1 when one of the names with a suffix is unknown
    assert waits["wait-for-kafka"][2].startswith('name="$0$$(sed -n "s/^search ')
    assert 'nslookup "$name" 2> /dev/null | grep -q "^Name:"' in waits["wait-for-kafka"][2]
    assert "front-ready" not in kinds(found)["Service"]


def test_what_has_no_health_check_in_the_file_is_ready_when_its_port_is_open() -> None:
    found = converted("cluster")
    assert container(found, "Deployment", "rabbit")["readinessProbe"]["tcpSocket"] == {"port": 15672}
    assert "counts as healthy when its port 15672 is open" in told(found, "services.front.depends_on.rabbit")
    assert "not when it has ended" in told(found, "services.front.depends_on.once")
    for name in ("once", "batch"):
        assert "readinessProbe" in container(found, "Job", name)
        assert "livenessProbe" not in container(found, "Job", name)


@pytest.mark.parametrize(
    ("rows", "tries"),
    [("interval: 5s, retries: 5", 60), ("interval: 5s, retries: 5, start_period: 10m", 125), ("interval: 10m", 3)],
)
def test_nothing_is_killed_for_not_being_well_in_its_first_minutes(tmp_path: Path, rows: str, tries: int) -> None:
    found = container(one_service(tmp_path, f"healthcheck: {{test: [CMD, x], {rows}}}"), "Deployment", "app")
    assert found["startupProbe"]["failureThreshold"] == tries
    assert found["startupProbe"]["periodSeconds"] == found["livenessProbe"]["periodSeconds"]


def test_an_init_container_is_on_its_networks_and_that_is_told() -> None:
    found = converted("cluster")
    assert {"compose.network/compose-front", "compose.network/compose-back"} <= labels(found, "Deployment", "front")
    assert told(found, "services.front.networks") == "its pod is on back too, for migrate, which runs in it"
    assert "compose.network/compose-back" in labels(found, "Deployment", "sidecar")  # network_mode: service:kafka
    assert "compose.network/compose-default" in labels(converted("monitoring"), "Deployment", "node-exporter")  # host
    assert "initContainers" not in pod(found, "Deployment", "nowhere")
    assert "nothing is waited for" in told(found, "services.nowhere.depends_on.kafka")


def test_what_an_init_container_can_not_have_of_its_own_is_told(tmp_path: Path) -> None:
    found = converted("cluster")
    assert told(found, "services.migrate") == "runs as an init container: again in every new pod of front"
    assert "is that of the pods of front" in told(found, "services.migrate.hostname")
    assert "is that of the pods of front" in told(found, "services.migrate.sysctls")
    text = (
        "x-x: &x {labels: {a: b}, dns: [192.0.2.1], restart: always}\nservices:\n"
        "  init: {<<: *x, image: x, user: '70', ports: ['80'], volumes: ['d:/d'], group_add: ['7']}\n"
        "  app: {<<: *x, image: x, depends_on: {init: {condition: service_completed_successfully}}}\nvolumes: {d: }\n"
    )
    keys = {name for name in losses(convert(tmp_path, text)) if name.startswith("services.")}
    assert keys == {f"services.init{key}" for key in ("", ".user", ".ports", ".group_add")}


def test_a_mounted_program_can_be_started(tmp_path: Path) -> None:
    for name, mode in (("entry.sh", 0o755), ("plain.conf", 0o644), ("d/run.sh", 0o755), ("d/x.conf", 0o644)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    rows = "entrypoint: /entry.sh\nvolumes: ['./entry.sh:/entry.sh', './plain.conf:/plain.conf', './d:/d:ro']\n"
    rows += "configs: [{source: tool, target: /tool}]"
    found = mounts(one_service(tmp_path, rows, "configs: {tool: {file: d/run.sh}}\n"))
    assert found["/entry.sh"]["configMap"] == {"name": "app-entry-sh", "defaultMode": 0o555}
    assert found["/plain.conf"]["configMap"] == {"name": "app-plain-conf"}
    items = {
        "name": "app-d",
        "items": [{"key": "run.sh", "path": "run.sh", "mode": 0o555}, {"key": "x.conf", "path": "x.conf"}],
    }
    assert found["/d"]["configMap"] == items
    assert found["/tool"]["configMap"] == {"name": "tool", "items": [{"key": "tool", "path": "tool", "mode": 0o555}]}


# ------------------------------------------------------------------------------------------- what meets under a name


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    found = converted("awkward")
    for path, text in (("/etc/a.yml", "part: a\n"), ("/etc/b.yml", "part: b\n")):
        shown = mounts(found, "StatefulSet", "web")[path]["configMap"]
        assert isinstance(shown, dict)
        assert one(found, "ConfigMap", shown["name"])["data"] == {"config.yml": text}
    (tmp_path / "db-init.sql").write_text("one")
    (tmp_path / "init.sql").write_text("two")
    services = "app: {image: x, volumes: ['./db-init.sql:/i']}, app-db: {image: x, volumes: ['./init.sql:/i']}"
    met = convert(tmp_path, f"services: {{{services}}}")
    assert [list(document["data"].values()) for document in met.documents if document["kind"] == "ConfigMap"] == [
        ["one"],
        ["two"],
    ]


def test_secrets_configs_volumes_and_networks_of_one_name_stay_apart() -> None:
    found = converted("awkward")
    secrets = {
        name: base64.b64decode(next(iter(one(found, "Secret", name)["data"].values())))
        for name in kinds(found)["Secret"]
    }
    assert secrets == {"web-env": b"change-me", "web-env-2": b"correct horse battery staple\n"}
    web = mounts(found, "StatefulSet", "web")
    assert web["/app_conf"]["name"] != web["/app-conf"]["name"]
    claims = {name: row["persistentVolumeClaim"] for name, row in web.items() if "persistentVolumeClaim" in row}
    assert claims == {"/a": {"claimName": "data"}, "/b": {"claimName": "data"}}  # the external one
    assert "/a is mounted twice: the last counts" in told(found, "services.web.volumes")
    assert kinds(found)["PersistentVolumeClaim"] == ["data-2"]
    worker = mounts(found, "Deployment", "customer-notification-service-worker")
    assert len({row["name"] for row in worker.values()}) == 2
    assert all(len(str(row["name"])) <= 63 for row in worker.values())
    policies = [
        document["spec"]
        for document in found.documents
        if document["kind"] == "NetworkPolicy" and document["metadata"]["name"].startswith("network-shop-a-inside")
    ]
    assert [policy["policyTypes"] for policy in policies] == [["Egress"], ["Ingress"]]


def test_services_of_one_name_stay_apart_and_a_shared_alias_is_told() -> None:
    found = converted("awkward")
    leads_to = {
        document["metadata"]["name"]: document["spec"]["selector"]["app.kubernetes.io/name"]
        for document in found.documents
        if document["kind"] == "Service"
    }
    assert leads_to == {
        **{name: name for name in ("web", "web-published", "web-ready")},
        **dict.fromkeys(("web-published-2", "web-ready-2", "search"), "web"),
    }
    assert "the name search leads to web alone" in told(found, "services.web-published")
    assert "the name web-published leads to the service that is called so alone" in told(found, "services.web")


def test_networks_are_named_as_all_stacks_see_them(tmp_path: Path) -> None:
    found = one_service(tmp_path, "networks: [default, ours]", "networks: {ours: {external: true, name: site_proxy}}\n")
    networks = {label for label in labels(found, "Deployment", "app") if label.startswith("compose.network/")}
    assert networks == {"compose.network/demo-default", "compose.network/site-proxy"}
    assert kinds(found)["NetworkPolicy"] == ["network-demo-default", "network-site-proxy"]


def test_files_in_a_folder_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "d/a").mkdir(parents=True)
    for path in ("d/a/b", "d/a__b", "d/a b", "d/a_b"):
        (tmp_path / path).write_text(path)
    found = one_service(tmp_path, "volumes: ['./d:/d:ro']")
    data = one(found, "ConfigMap", "app-d")["data"]
    shown = mounts(found)["/d"]["configMap"]
    assert isinstance(shown, dict)
    assert {item["path"]: data[item["key"]] for item in shown["items"]} == {
        "a/b": "d/a/b",
        "a__b": "d/a__b",
        "a b": "d/a b",
        "a_b": "d/a_b",
    }


# -------------------------------------------------------------------------------------------------- what is secret


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ConnectionStrings__Db", "Server=db;User=sa;Password=pass-word"),
        ("APP_KEY", "base64:pass-word"),
        ("RAILS_MASTER_KEY", "pass-word"),
        ("MYSQL_PWD", "pass-word"),
        ("NEO4J_AUTH", "neo4j/pass-word"),
        ("ERLANG_COOKIE", "pass-word"),
        ("DSN", "root:pass-word@tcp(db)/x"),
        ("BROKER", "amqp://guest:gu/pass-word@rabbit"),
        ("CACHE", "redis://:pass-word@cache"),
        ("DB_PASSWORD", "/pass-word"),
    ],
)
def test_a_variable_with_a_password_is_in_a_secret(tmp_path: Path, name: str, value: str) -> None:
    found = one_service(tmp_path, f"environment: {{{name}: '{value}'}}")
    assert base64.b64decode(one(found, "Secret", "app-env")["data"][name]).decode() == value
    assert "pass-word" not in str([document for document in found.documents if document["kind"] != "Secret"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASSWORD_FILE", "/run/secrets/db"),
        ("SECRETS", "/run/secrets"),
        ("TOKEN_PATH", "/var/token"),
        ("URL", "http://host:80/path"),
        ("GIT", "ssh://git@example.org/x"),
        ("LISTEN", "0.0.0.0:80"),
    ],
)
def test_a_path_or_an_address_stays_where_people_read_it(tmp_path: Path, name: str, value: str) -> None:
    found = one_service(tmp_path, f"environment: {{{name}: '{value}'}}")
    assert "Secret" not in kinds(found)


@pytest.mark.parametrize(
    ("rows", "key"),
    [
        ("command: redis-server --requirepass s3cret", "command"),
        ("command: [app, --dsn, 'postgres://a:b@db/x']", "command"),
        ("entrypoint: [app, --password=s3cret]", "entrypoint"),
        ("healthcheck: {test: mysqladmin ping -u root -ps3cret}", "healthcheck"),
        ("healthcheck: {test: [CMD, redis-cli, --pass, s3cret, ping]}", "healthcheck"),
        ("labels: {dsn: 'postgres://a:b@db/x'}", "labels"),
    ],
)
def test_what_looks_like_a_password_where_none_can_be_hidden_is_told(tmp_path: Path, rows: str, key: str) -> None:
    assert "looks like a password, in plain" in told(one_service(tmp_path, rows), f"services.app.{key}")


@pytest.mark.parametrize(
    "rows",
    [
        "command: redis-server --requirepass $$PASSWORD",
        "command: app --dsn postgres://app:$${PASSWORD}@db/app password=$$PASSWORD",
        "command: [app, --password-file, /run/secrets/x, --listen, 'http://0.0.0.0:80']",
        "healthcheck: {test: mysqladmin ping -u root -p$$MYSQL_ROOT_PASSWORD}",
        "healthcheck: {test: curl -f http://localhost:80/ || exit 1}",
    ],
)
def test_a_command_that_names_no_password_is_not_told(tmp_path: Path, rows: str) -> None:
    assert not one_service(tmp_path, rows).losses


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".env", "A=b"),
        (".pgpass", "x"),
        (".netrc", "x"),
        ("server.pem", "-----BEGIN EC PRIVATE KEY-----\n"),
        ("redis.conf", "port 1\nrequirepass s3cret\n"),
        ("source.yml", "db:\n  password: s3cret\n"),
    ],
)
def test_a_mounted_file_that_is_secret_is_in_a_secret(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = one_service(tmp_path, f"volumes: ['./{name}:/etc/{name}:ro']")
    assert "Secret" in kinds(found)
    assert "ConfigMap" not in kinds(found)


# ------------------------------------------------------------------------------------- what Kubernetes would refuse


def test_a_config_with_a_password_is_told(tmp_path: Path) -> None:
    more = "configs: {ours: {content: 'url = amqp://a:b@c'}, plain: {content: 'password_file = x'}}\n"
    found = one_service(tmp_path, "configs: [ours, plain]", more)
    assert list(losses(found)) == ["configs.ours"]


def test_a_secret_may_lie_in_a_folder_below_the_secrets(tmp_path: Path) -> None:
    rows = "secrets: [plain, {source: deep, target: /run/secrets/tls/key}]"
    found = one_service(tmp_path, rows, "secrets: {plain: {file: compose.yaml}, deep: {file: compose.yaml}}\n")
    shown = mounts(found)["/run/secrets"]["projected"]
    assert isinstance(shown, dict)
    assert [source["secret"]["items"][0]["path"] for source in shown["sources"]] == ["plain", "tls/key"]


def test_a_claim_is_mounted_below_its_top_but_one_of_others_as_it_is() -> None:
    found = mounts(converted("volumes"), "StatefulSet", "all")
    assert found["/named"]["subPath"] == "named"
    assert found["/shared"]["subPath"] == "shared/part"
    assert "subPath" not in found["/outside"]


@pytest.mark.parametrize(
    ("user", "group"), [("1000", 1000), ("1000:0", 0), ("1000:7", 7), ("root:7", 7), ("root", None), ("0:0", None)]
)
def test_volumes_belong_to_the_users_group(tmp_path: Path, user: str, group: int | None) -> None:
    found = pod(one_service(tmp_path, f"user: '{user}'"), "Deployment", "app")
    assert found.get("securityContext", {}).get("fsGroup") == group


@pytest.mark.parametrize(
    ("platform", "selected"),
    [
        ("linux/x86_64", {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}),
        ("linux/arm/v7", {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm"}),
        ("aarch64", {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}),
        ("windows", {"kubernetes.io/os": "windows"}),
    ],
)
def test_platforms_have_kubernetes_names(tmp_path: Path, platform: str, selected: dict[str, str]) -> None:
    assert pod(one_service(tmp_path, f"platform: {platform}"), "Deployment", "app")["nodeSelector"] == selected


def test_what_a_cluster_would_refuse_is_left_out_and_told() -> None:
    found = converted("awkward")
    web = pod(found, "StatefulSet", "web")
    assert web["securityContext"] == {"fsGroup": 0, "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "0"}]}
    assert web["dnsConfig"] == {"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"], "searches": ["example.org"]}
    assert web["hostAliases"] == [{"ip": "192.0.2.9", "hostnames": ["camera.local"]}]
    assert container(found, "StatefulSet", "web")["securityContext"]["capabilities"] == {"add": ["NET_BIND_SERVICE"]}
    for key, word in (
        ("sysctls", "somaxconn"),
        ("dns", "192.0.2.4"),
        ("dns_search", "'.'"),
        ("extra_hosts", "my_camera"),
    ):
        assert word in told(found, f"services.web.{key}")


def test_new_contents_of_a_secret_or_config_give_new_pods(tmp_path: Path) -> None:
    def digest(secret: str, config: str, count: int = 1) -> str:
        (tmp_path / "key").write_text(secret)
        (tmp_path / "app.env").write_text(f"A={config}\n")
        rows = f"secrets: [key]\nenv_file: app.env\nscale: {count}"
        found = one_service(tmp_path, rows, "secrets: {key: {file: ./key}}\n")
        notes: dict[str, str] = one(found, "Deployment", "app")["spec"]["template"]["metadata"]["annotations"]
        return notes["compose.content/sha256"]

    first = digest("a", "a")
    assert digest("a", "a", count=2) == first
    assert len({first, digest("b", "a"), digest("a", "b")}) == 3
    assert "annotations" not in str(one(one_service(tmp_path, ""), "Deployment", "app"))


def test_a_file_never_becomes_a_folder(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "outside.conf").write_text("x")
    (here / "large.bin").write_bytes(b"x" * (1 << 20))
    rows = (
        "volumes: ['../outside.conf:/etc/o.conf:ro', '/nowhere/x.sock:/x.sock', './gone.ini:/g.ini', './large.bin:/l']"
    )
    found = one_service(here, rows)
    assert not mounts(found)
    assert told(found, "services.app.volumes").count("nothing is mounted") == 4
    folders = one_service(here, "volumes: ['./conf.d:/etc/conf.d', './new:/new', '/nowhere/data:/data']")
    assert set(mounts(folders, "StatefulSet")) == {"/etc/conf.d", "/new", "/data"}


def test_a_folder_of_configuration_is_carried_along_also_where_it_could_be_written(tmp_path: Path) -> None:
    for name in ("initdb", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.sql").write_text("create table x;")
    found = one_service(tmp_path, "volumes: ['./initdb:/docker-entrypoint-initdb.d', './data:/var/lib/data']")
    shown = mounts(found, "StatefulSet")
    assert shown["/docker-entrypoint-initdb.d"]["configMap"]
    assert shown["/var/lib/data"]["persistentVolumeClaim"]
    assert "initdb is carried along, and can't be written in the pod" in told(found, "services.app.volumes")


# ----------------------------------------------------------------------------------------------------------- losses


def test_what_may_run_once_and_is_started_again_is_told(tmp_path: Path) -> None:
    text = "services: {once: {image: x}, server: {image: x, ports: ['80']}, kept: {image: x, restart: always}}"
    found = losses(convert(tmp_path, text))
    assert found == {"services.once": 'Kubernetes starts it again when it ends; restart: "no" makes it a Job'}


@pytest.mark.parametrize(
    ("rows", "key", "words"),
    [
        ("command: []", "command", "no way to leave out the image's own"),
        ("volumes: ['/srv:/srv:ro,rslave']", "volumes[0].rslave", "what the host mounts later"),
        ("healthcheck: {interval: 5s}", "healthcheck", "the image's own test is not known"),
        ("tmpfs: '/a:mode=700'", "tmpfs.mode", "no such thing"),
        ("deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}",
         "deploy.resources.reservations.devices[0].count", "a number of devices: one"),
        ("deploy: {mode: global, restart_policy: {condition: none}}", "restart", "starts it again"),
        ("annotations: {'Not a key!': x}", "annotations", "'Not a key!' can't be the key"),
        ("user: '99999999999'", "user", "takes a user's number"),
        ("group_add: ['99999999999']", "group_add", "takes a group's number"),
    ],
)  # fmt: skip
def test_what_is_lost_is_told(tmp_path: Path, rows: str, key: str, words: str) -> None:
    assert words in told(one_service(tmp_path, rows), f"services.app.{key}")


def test_a_port_that_is_published_twice_leads_to_the_first_and_that_is_told() -> None:
    found = converted("cluster")
    assert [port["targetPort"] for port in one(found, "Service", "front-published")["spec"]["ports"]] == [8080]
    assert "80 leads to 8080 already: 9090 is not published" in told(found, "services.front.ports")


def test_labels_of_a_deployment_and_annotations_become_annotations() -> None:
    assert one(converted("cluster"), "Job", "batch")["spec"]["template"]["metadata"]["annotations"] == {"team": "data"}
