# SPDX-License-Identifier: Apache-2.0
"""Compose files of all shapes become manifests that Kubernetes takes, and what is lost on the way is told."""

import base64
import functools
import tempfile
from pathlib import Path

import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from groundwork.errors import InputError
from tests.unit.virtual_waggle.compose import FOLDER, SHAPES, VARIABLES, shape
from tests.unit.virtual_waggle.manifests import container, convert, kinds, losses, one, pod
from virtual_waggle import compose, kubernetes, kubernetes_text
from virtual_waggle.compose_tree import parse
from virtual_waggle.kubernetes import Manifests

RELEASES = ("1.29", "1.33", "1.37")  # Kubernetes'; the schemas come with kubernetes-validate


schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)  # megabytes of JSON for each document


@pytest.fixture(autouse=True)
def schemas_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", schema_contents)


@functools.cache
def converted(name: str) -> Manifests:
    return kubernetes.convert(shape(name), profiles=["*"])


# ------------------------------------------------------------------------------------------------------- all shapes


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", SHAPES)
def test_kubernetes_takes_every_shape(name: str, release: str) -> None:
    for document in converted(name).documents:
        kubernetes_validate.validate(document, release, strict=True)


def test_a_wrong_manifest_would_be_noticed() -> None:
    document = one(converted("web-db-redis"), "Deployment", "web")
    spec = {**document["spec"], "replica": 1}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "spec": spec}, RELEASES[0], strict=True)


@pytest.mark.parametrize("name", SHAPES)
def test_names_are_unique_and_references_lead_somewhere(name: str) -> None:
    found = converted(name)
    names = [(document["kind"], document["metadata"]["name"]) for document in found.documents]
    assert len(set(names)) == len(names)
    allowed = {  # what is external
        *("their-volume", "signing-key", "data"),
    }
    for document in found.documents:
        spec = document.get("spec", {})
        template = spec.get("template")
        if not template:
            continue
        if "selector" in spec:
            assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
        for each in containers:
            for mount in each.get("volumeMounts", []):
                assert mount["name"] in volumes
            for source in each.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names
            for variable in each.get("env", []):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in one(found, "Secret", reference["name"])["data"]
        for volume in volumes.values():
            for kind, key, at in (
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName"),
            ):
                if key in volume:
                    assert volume[key][at] in allowed or (kind, volume[key][at]) in names


@pytest.mark.parametrize("name", SHAPES)
def test_the_yaml_is_read_back_as_it_was_meant_and_is_the_same_each_time(name: str) -> None:
    found = converted(name)
    text = kubernetes_text.to_yaml(found.documents)
    assert list(yaml.safe_load_all(text)) == list(found.documents)
    again = kubernetes.convert(shape(name), profiles=["*"])
    assert kubernetes_text.to_yaml(again.documents) == text


@pytest.mark.parametrize("name", SHAPES)
def test_all_of_it_on_one_machine_takes_no_storage_for_many_writers(name: str) -> None:
    found = kubernetes.convert(shape(name), profiles=["*"], one_machine=True)
    for document in found.documents:
        kubernetes_validate.validate(document, RELEASES[0], strict=True)
        if document["kind"] == "PersistentVolumeClaim":
            assert document["spec"]["accessModes"] == ["ReadWriteOnce"]
        template = document.get("spec", {}).get("template")
        if template and document["kind"] != "DaemonSet":
            (term,) = template["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            assert term["topologyKey"] == "kubernetes.io/hostname"
            # its own pods too, or the first one would wait for others for ever
            assert term["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert not any("many writers" in loss.why for loss in found.losses)


def test_what_runs_on_each_machine_is_not_held_on_one(tmp_path: Path) -> None:
    text = """
services:
  agent: {image: a, deploy: {mode: global}, volumes: ["data:/data"]}
  other: {image: a, volumes: ["data:/data"]}
volumes: {data: {}}
"""
    found = convert(tmp_path, text, one_machine=True)
    assert "affinity" not in pod(found, "DaemonSet", "agent")
    assert any("many writers" in loss.why for loss in found.losses)
    assert one(found, "PersistentVolumeClaim", "data")["spec"]["accessModes"] == ["ReadWriteMany"]


# -------------------------------------------------------------------------------------------------------- workloads


def test_what_has_a_volume_becomes_a_statefulset() -> None:
    assert kinds(converted("web-db-redis"))["StatefulSet"] == ["db"]
    assert kinds(converted("web-db-redis"))["Deployment"] == ["cache", "web"]
    mounts = container(converted("web-db-redis"), "StatefulSet", "db")["volumeMounts"]
    assert mounts == [
        # a new file system is not empty: databases want a folder
        {"name": "claim-db-data", "subPath": "db-data", "mountPath": "/var/lib/postgresql/data"}
    ]


def test_global_services_jobs_and_replicas() -> None:
    found = converted("worker")
    assert kinds(found)["DaemonSet"] == ["agent"]
    assert kinds(found)["Job"] == ["report", "batch"]
    assert one(found, "Job", "batch")["spec"]["completions"] == 3
    assert pod(found, "Job", "report")["restartPolicy"] == "Never"
    assert one(found, "Deployment", "worker")["spec"]["replicas"] == 6


def test_resources_placement_and_grace() -> None:
    found = converted("worker")
    worker = container(found, "Deployment", "worker")
    assert worker["resources"] == {
        "limits": {"cpu": "500m", "memory": "256Mi"},
        "requests": {"cpu": "250m", "memory": "128Mi"},
    }
    assert worker["command"] == ["/usr/bin/env", "python3"]
    assert worker["args"] == ["-m", "worker", "--queue", "high priority"]
    spec = pod(found, "Deployment", "worker")
    assert spec["nodeSelector"] == {
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "arm64",
        "disk": "ssd",
        "kubernetes.io/hostname": "edge-1",
    }
    assert pod(found, "Deployment", "queue")["terminationGracePeriodSeconds"] == 60
    assert container(converted("jupyter"), "StatefulSet", "notebook")["resources"] == {
        "limits": {"nvidia.com/gpu": "1"}
    }


def test_probes_come_from_the_healthcheck() -> None:
    db = container(converted("web-db-redis"), "StatefulSet", "db")
    probe = {
        "exec": {"command": ["/bin/sh", "-c", "pg_isready -U ${POSTGRES_USER} -d shop"]},
        "periodSeconds": 5,
        "timeoutSeconds": 3,
        "failureThreshold": 10,
    }
    assert db["readinessProbe"] == db["livenessProbe"] == probe
    assert db["startupProbe"] == {**probe, "failureThreshold": 60}  # 5 minutes
    assert "readinessProbe" not in container(converted("healthchecks"), "Deployment", "disabled")


def test_what_is_to_end_first_is_an_init_container_behind_what_it_waits_for() -> None:
    inits = pod(converted("web-db-redis"), "Deployment", "web")["initContainers"]
    assert [init["name"] for init in inits] == ["wait-for-db", "migrations"]
    assert inits[0]["command"][-1] == "db-ready"
    assert inits[1]["args"] == ["python", "manage.py", "migrate", "--noinput"]
    assert "migrations" not in kinds(converted("web-db-redis"))["Deployment"]
    assert "probe" not in str(inits[1]).lower()
    mqtt = pod(converted("mqtt-nodered"), "StatefulSet", "node-red")["initContainers"][0]
    assert mqtt["command"][-1] == "mosquitto-ready"
    assert "$$(date" in mqtt["command"][2]


def test_security_of_a_hardened_service() -> None:
    found = converted("hardened")
    assert container(found, "Deployment", "api")["securityContext"] == {
        "runAsUser": 10001,
        "runAsNonRoot": True,
        "runAsGroup": 10002,
        "readOnlyRootFilesystem": True,
        "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
        "allowPrivilegeEscalation": False,
        "seccompProfile": {"type": "Unconfined"},
    }
    spec = pod(found, "Deployment", "api")
    assert spec["securityContext"] == {"fsGroup": 10002}
    assert spec["shareProcessNamespace"]
    assert not spec["enableServiceLinks"]
    assert container(found, "Deployment", "api")["imagePullPolicy"] == "Always"


# ------------------------------------------------------------------------------------------------ secrets and configs


def test_what_looks_like_a_secret_is_in_a_secret_alone() -> None:
    found = converted("web-db-redis")
    env = {row["name"]: row for row in container(found, "Deployment", "web")["env"]}
    assert env["WORKERS"] == {"name": "WORKERS", "value": "4"}
    assert env["DATABASE_URL"]["valueFrom"]["secretKeyRef"] == {"name": "web-env", "key": "DATABASE_URL"}
    data = one(found, "Secret", "web-env")["data"]
    assert base64.b64decode(data["DATABASE_URL"]).decode() == "postgresql://shop:change-me@db:5432/shop"
    for name in SHAPES:
        for document in converted(name).documents:
            if document["kind"] != "Secret":
                assert not [word for word in ("change-me", "t0ps3cret", "horse", "p ss") if word in str(document)]


def test_env_files_become_configmaps_beneath_the_environment() -> None:
    found = converted("jupyter")
    notebook = container(found, "StatefulSet", "notebook")
    assert notebook["envFrom"] == [{"configMapRef": {"name": "notebook-env"}}]
    assert one(found, "ConfigMap", "notebook-env")["data"] == {
        "NB_USER": "jovyan",
        "NB_UID": "1000",
        "GREETING": "hello jovyan",
        "LITERAL": "${NB_USER}",
        "WITH-DASH": "1",
    }
    token = one(found, "Secret", "notebook-env")["data"]["JUPYTER_TOKEN"]
    assert base64.b64decode(token) == b"not-so-secret"


def test_secrets_stand_where_compose_puts_them() -> None:
    found = converted("hardened")
    mounts = {row["mountPath"]: row for row in container(found, "Deployment", "api")["volumeMounts"]}
    assert set(mounts) == {"/run/secrets", "/etc/api/signing.key", "/srv/logo.bin"}
    volumes = {volume["name"]: volume for volume in pod(found, "Deployment", "api")["volumes"]}
    sources = volumes[mounts["/run/secrets"]["name"]]["projected"]["sources"]
    assert [source["secret"]["items"][0]["path"] for source in sources] == ["tls-key", "token"]
    assert mounts["/etc/api/signing.key"]["subPath"] == "signing"
    assert one(found, "ConfigMap", "logo")["binaryData"] == {"logo": base64.b64encode(b"\x00\xff\xfe\x01").decode()}
    assert base64.b64decode(one(found, "Secret", "token")["data"]["token"]) == b"a token"


def test_files_beside_the_compose_file_are_carried_along() -> None:
    found = converted("monitoring")
    grafana = pod(found, "StatefulSet", "grafana")
    provisioning = next(volume for volume in grafana["volumes"] if "configMap" in volume)["configMap"]
    assert provisioning["items"] == [
        {"key": "datasources__prometheus.yml", "path": "datasources/prometheus.yml"},
    ]
    assert one(found, "ConfigMap", provisioning["name"])["data"]["datasources__prometheus.yml"] == "apiVersion: 1\n"
    mosquitto = container(converted("mqtt-nodered"), "StatefulSet", "mosquitto")["volumeMounts"][0]
    assert mosquitto["mountPath"] == "/mosquitto/config/mosquitto.conf"
    assert mosquitto["subPath"] == "mosquitto.conf"


# ----------------------------------------------------------------------------------------------- volumes and networks


def test_volumes() -> None:
    found = converted("volumes")
    modes = {
        document["metadata"]["name"]: document["spec"]["accessModes"]
        for document in found.documents
        if document["kind"] == "PersistentVolumeClaim"
    }
    assert modes == {
        "named": ["ReadWriteOnce"],
        "written": ["ReadWriteOnce"],
        "sibling": ["ReadWriteOnce"],
        "shared": ["ReadWriteMany"],
    }
    mounts = {row["mountPath"]: row for row in container(found, "StatefulSet", "all")["volumeMounts"]}
    assert mounts["/shared"]["subPath"] == "shared/part"
    assert mounts["/named-again"]["readOnly"]
    assert "/etc/localtime" not in mounts
    volumes = {volume["name"]: volume for volume in pod(found, "StatefulSet", "all")["volumes"]}
    in_memory = {"medium": "Memory", "sizeLimit": "64Mi"}
    assert volumes[mounts["/tmp"]["name"]]["emptyDir"] == in_memory  # noqa: S108
    assert volumes[mounts["/outside"]["name"]]["persistentVolumeClaim"]["claimName"] == "their-volume"
    claim = one(found, "PersistentVolumeClaim", "named")
    assert claim["metadata"]["annotations"] == {"keep": "true"}


def test_services_find_each_other_by_name_and_published_ports_are_open_outside() -> None:
    found = converted("web-db-redis")
    web = one(found, "Service", "web")["spec"]
    assert [port["port"] for port in web["ports"]] == [8000]
    outer = one(found, "Service", "web-published")["spec"]
    assert (outer["type"], outer["ports"][0]["port"], outer["ports"][0]["targetPort"]) == ("LoadBalancer", 8080, 8000)
    assert web["clusterIP"] == one(found, "Service", "db")["spec"]["clusterIP"] == "None"
    grafana = kinds(converted("monitoring"))["Service"]
    assert "grafana" in grafana
    assert "grafana-published" not in grafana  # on loopback alone
    assert {"dashboards"} < set(kinds(converted("elk"))["Service"])


def test_tcp_and_udp_of_one_number_are_two_ports() -> None:
    ports = one(converted("elk"), "Service", "logstash")["spec"]["ports"]
    assert [port["name"] for port in ports] == ["tcp-5044", "tcp-50000", "udp-50000"]


def test_networks_become_policies() -> None:
    found = converted("networks")
    labels = one(found, "Deployment", "back")["spec"]["template"]["metadata"]["labels"]
    assert {key for key in labels if key.startswith("compose.network/")} == {
        "compose.network/compose-inside",
        "compose.network/compose-vault",
    }
    vault = one(found, "NetworkPolicy", "network-compose-vault")["spec"]
    assert vault["ingress"] == [{"from": [{"podSelector": {"matchLabels": {"compose.network/compose-vault": "yes"}}}]}]
    inside = one(found, "NetworkPolicy", "network-compose-vault-inside")["spec"]
    assert inside["podSelector"]["matchLabels"]["compose.network/inside-only"] == "yes"
    assert inside["policyTypes"] == ["Egress"]
    members, names = inside["egress"]
    assert members == {"to": [{"podSelector": {"matchLabels": {"compose.network/compose-vault": "yes"}}}]}
    assert {port["port"] for port in names["ports"]} == {53}
    assert names["to"] == [  # not the name servers of anyone
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
        {"ipBlock": {"cidr": "169.254.0.0/16"}},
    ]
    nowhere = one(found, "NetworkPolicy", "batch")["spec"]
    assert nowhere["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in nowhere
    published = one(found, "NetworkPolicy", "front-published")["spec"]
    assert published["ingress"] == [{"ports": [{"port": 80, "protocol": "TCP"}]}]


def test_extra_hosts_and_name_servers() -> None:
    spec = pod(converted("networks"), "Deployment", "front")
    assert spec["hostAliases"] == [{"ip": "192.0.2.7", "hostnames": ["camera.local"]}]
    assert spec["dnsConfig"] == {"nameservers": ["192.0.2.53"], "searches": ["example.org"]}
    assert spec["securityContext"]["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]


def test_the_namespace_is_made_and_named_everywhere() -> None:
    found = kubernetes.convert(shape("elk"), namespace="logs")
    assert found.documents[0]["kind"] == "Namespace"
    assert {document["metadata"].get("namespace") for document in found.documents[1:]} == {"logs"}


# ----------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("web-db-redis", "services.web.build", "push the image as registry.example.org/shop/web:1.4"),
        ("web-db-redis", "services.web.depends_on.cache", "starts both at once"),
        ("web-db-redis", "volumes.db-data", "begins empty"),
        ("wordpress", "volumes.wordpress", "many writers"),
        ("elk", "services.elasticsearch.ulimits", "container runtime"),
        ("elk", "services.logstash.logging", "logs"),
        ("elk", "services.elasticsearch.ports", "port-forward"),
        ("traefik", "services.reverse_proxy.volumes", "begins empty"),
        ("traefik", "services.whoami.labels", "Ingress"),
        ("traefik", "networks.proxy", "who else is on it"),
        ("monitoring", "services.node-exporter.network_mode", "host"),
        ("monitoring", "services.node-exporter.pid", "processes of its host"),
        ("monitoring", "services.cadvisor.devices", "device plugin"),
        ("monitoring", "services.cadvisor.privileged", "may refuse"),
        ("mqtt-nodered", "services.mosquitto.hostname", "mosquitto-0"),
        ("mqtt-nodered", "services.mosquitto.volumes", "empty again"),
        ("mqtt-nodered", "services.node_red", "node-red: names of services have a-z, 0-9 and - alone; Telegraf must"),
        ("mqtt-nodered", "services.node_red.group_add", "dialout"),
        ("jupyter", "volumes.cache", "begins empty"),
        ("worker", "services.worker.deploy.update_config", "no such thing"),
        ("worker", "services.worker.stop_signal", "SIGTERM"),
        ("networks", "services.sidecar.network_mode", "service:front"),
        ("networks", "services.front.networks.inside.ipv4_address", "by its name"),
        ("networks", "services.front.extra_hosts", "host-gateway"),
        ("volumes", "volumes.outside", "their-volume must be there"),
        ("hardened", "secrets.signing", "signing-key"),
        ("hardened", "services.api.security_opt", "label=type"),
        ("hardened", "services.api.labels", "Not a key!"),
        ("hardened", "services.api.pids_limit", "nodes' settings"),
    ],
)
def test_what_is_not_carried_over_is_told_and_why(name: str, key: str, words: str) -> None:
    assert words in " / ".join(loss.why for loss in converted(name).losses if loss.name == key)


def test_losses_name_their_lines() -> None:
    found = {(loss.place.line, loss.name) for loss in converted("monitoring").losses}
    assert (40, "services.cadvisor.devices") in found
    assert (36, "services.node-exporter.volumes") in found


def test_what_of_another_profile_is_lost_is_not_told(tmp_path: Path) -> None:
    text = (
        "services:\n  a: {image: x, restart: always}\n"
        "  b: {image: x, restart: always, devices: [/dev/a], profiles: [more]}\n"
    )
    assert not convert(tmp_path, text).losses
    assert losses(convert(tmp_path, text, profiles=["more"])) == {
        "services.b.devices": "a device of the host takes a device plugin of the cluster"
    }


def test_a_secret_whose_file_is_not_there_is_told(tmp_path: Path) -> None:
    text = "services:\n  a: {image: x, secrets: [key]}\nsecrets:\n  key: {file: ./absent}\n"
    assert "make key with the key key by hand" in losses(convert(tmp_path, text))["secrets.key"]


# ------------------------------------------------------------------------------------------------------------- damage

NASTY = (
    *(
        "",
        "~",
        "[]",
        "{}",
        "-1",
        "99999999999",
        "1e400",
        ".inf",
        "${",
        "${A:?b}",
        "true",
        "[1, 2]",
        "{a: b}",
        "&a [*a]",
    ),
    *("!!binary aGk=", "<<", "a:b:c:d", "1:2:3", ":", "/", "../..", "-1s", "0.0000001", "[[]]", "[{}]", "[~]", "- x"),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(some.data())
def test_a_damaged_file_is_refused_or_gives_what_kubernetes_takes(data: some.DataObject) -> None:
    lines = (FOLDER / f"{data.draw(some.sampled_from(SHAPES))}.yaml").read_text().splitlines()
    for _ in range(data.draw(some.integers(1, 3))):
        number = data.draw(some.integers(0, len(lines) - 1))
        kept, separator, _ = lines[number].partition(data.draw(some.sampled_from([": ", "- "])))
        lines[number] = kept + separator + data.draw(some.sampled_from(NASTY))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "compose.yaml")
        path.write_text("\n".join(lines))
        try:
            found = kubernetes.convert(compose.load(path, VARIABLES), profiles=["*"])
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - it need not be raised
            return
    for document in found.documents:
        kubernetes_validate.validate(document, RELEASES[-1], strict=True)


# ------------------------------------------------------------------------------------------------------ names and text


def test_names_are_made_legal_and_stay_apart(tmp_path: Path) -> None:
    long = "a" * 80
    text = f"services: {{My_App: {{image: x}}, my-app: {{image: x}}, 1st: {{image: x}}, {long}: {{image: x}}}}\n"
    names = kinds(convert(tmp_path, text))["Deployment"]
    assert names[:3] == ["my-app", "my-app-2", "x-1st"]
    assert len(names[3]) <= 52


@given(some.text(max_size=80))
def test_any_text_gives_a_legal_name(wanted: str) -> None:
    name = kubernetes_text.legal(wanted)
    assert kubernetes_text.is_hostname(name)
    assert name[0].isalpha()
    assert len(name) <= 52


def kubernetes_reads(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a value: ``$(NAME)`` is filled in where known, ``$$`` is a ``$``."""
    result, at = "", 0
    while at < len(text):
        if text[at] == "$" and at + 1 < len(text):
            if text[at + 1] == "$":
                result, at = result + "$", at + 2
                continue
            end = text.find(")", at)
            if text[at + 1] == "(" and end > 0:
                reference = text[at + 2 : end]
                result += variables.get(reference, f"$({reference})")
                at = end + 1
                continue
        result, at = result + text[at], at + 1
    return result


@given(some.text(some.sampled_from("$()AB x"), max_size=20))
def test_kubernetes_finds_no_variable_in_a_value(text: str) -> None:
    assert kubernetes_reads(kubernetes_text.literal(text), {"A": "found", "B": "found", "AB": "found"}) == text


@settings(max_examples=40)
@given(some.text(some.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=20))
def test_texts_stay_texts_for_other_readers_of_yaml(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    text = kubernetes_text.to_yaml([{"value": value}])
    assert yaml.safe_load(text) == {"value": value}
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    path.write_text(text.replace("$", "$$"), encoding="utf-8", newline="")
    node = parse(path, {}).value
    assert isinstance(node, dict)
    assert node["value"].value == value


@pytest.mark.parametrize("value", ["1e3", "0o17", "y", "N", "012", "1_000", "yes", "null", "~", ".5", "-", "1:30", "="])
def test_what_could_be_read_as_a_number_or_truth_value_stands_in_quotes(value: str) -> None:
    row = kubernetes_text.to_yaml([{"value": value}]).splitlines()[1]
    assert row in (f'value: "{value}"', f"value: '{value}'")


@pytest.mark.parametrize(("count", "text"), [(1, "1"), (0.5, "500m"), (1.5, "1500m"), (0.0001, "1m")])
def test_processors(count: float, text: str) -> None:
    assert kubernetes_text.cpus(count) == text


@pytest.mark.parametrize(("count", "text"), [(1 << 30, "1Gi"), (256 << 20, "256Mi"), (1536, "1536"), (2048, "2Ki")])
def test_sizes(count: int, text: str) -> None:
    assert kubernetes_text.size(count) == text
