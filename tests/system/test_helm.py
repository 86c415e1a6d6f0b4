"""The charts: what helm 3 and helm 4 render of them, what they refuse, and whether Kubernetes would take it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from coordinator.config import parse_config
from participant.config import load_unpinned_config
from participant.identity import OwnPki
from participant.policy_file import load_policy
from tests.charts import (
    CHARTS,
    COORDINATOR,
    HELMS,
    PARTICIPANT,
    call,
    documented,
    kubectl,
    manifests,
    of_kind,
    pods,
    refusal,
    render,
    settings,
)
from tests.programs import ROOT, tool

VALUES = sorted(CHARTS.glob("*/ci/*-values.yaml"))
NEEDED = ("federation=hospitals", "participants.publicAddress=accord.example.org:8443")
REPLICATED = COORDINATOR / "ci" / "replicated-values.yaml"
EVERYTHING = COORDINATOR / "ci" / "everything-values.yaml"
# Oldest of Chart.yaml, and newest there is a schema of.
KUBERNETES = ("1.28", "1.37")
VOLUMES = {"name", "configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"}


def names(values: Path) -> str:
    return f"{values.parents[1].name}-{values.name.removesuffix('-values.yaml')}"


def chart_of(values: Path) -> Path:
    return values.parents[1]


@pytest.fixture(scope="module")
def default():
    return manifests(render("4", COORDINATOR, *NEEDED))


@pytest.fixture(scope="module")
def replicated():
    return manifests(render("4", COORDINATOR, files=[REPLICATED]))


@pytest.fixture(scope="module")
def everything():
    return manifests(render("4", COORDINATOR, files=[EVERYTHING]))


@pytest.mark.parametrize("values", VALUES, ids=names)
def test_chart_has_no_finding_and_both_helms_render_the_same(values):
    rendered = []
    for major in HELMS:
        found = call(major, "lint", "--strict", chart_of(values), *settings([values], ()))
        assert found.returncode == 0, found.stdout + found.stderr
        rendered.append(manifests(render(major, chart_of(values), files=[values])))
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("values", VALUES, ids=names)
def test_manifests_fit_the_schemas_of_kubernetes(values, tmp_path):
    file = tmp_path / "rendered.yaml"
    file.write_text(render("4", chart_of(values), files=[values]))
    for version in KUBERNETES:
        command = [tool("kubernetes", "kubernetes-validate"), "--strict", "-k", version, file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", VALUES, ids=names)
def test_every_pod_fits_the_restricted_pod_security_standard(values):
    found = pods(manifests(render("4", chart_of(values), files=[values])))
    assert found
    for pod in found:
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert {kind for volume in pod.get("volumes", ()) for kind in volume} <= VOLUMES
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("values", VALUES, ids=names)
def test_the_services_take_the_configuration_that_is_rendered(values, tmp_path):
    maps = of_kind(manifests(render("4", chart_of(values), files=[values])), "ConfigMap")
    texts = [found["data"] for found in maps]
    assert texts
    for data in texts:
        if "coordinator.toml" in data:
            config = parse_config(data["coordinator.toml"], folder=Path("/etc/accord"))
            assert config.data_folder == Path("/var/lib/accord")
        else:
            for name, text in data.items():
                (tmp_path / name).write_text(text)
            assert load_unpinned_config(tmp_path / "participant.toml").charter.mode.value == "pinned"
            load_policy(tmp_path / "policy.toml")


def test_by_default_there_is_one_coordinator_on_a_volume(default):
    (stateful,) = of_kind(default, "StatefulSet")
    assert stateful["spec"]["replicas"] == 1
    assert stateful["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    assert {found["kind"] for found in default} == {
        "ConfigMap", "NetworkPolicy", "Pod", "Service", "ServiceAccount", "StatefulSet",
    }  # fmt: skip
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "health"
    }


def test_by_default_operators_are_reached_through_the_pod_alone(default, everything):
    def listens(found):
        return tomllib.loads(of_kind(found, "ConfigMap")[0]["data"]["coordinator.toml"])["admin"]["listen"]

    def ports(found):
        return {port["name"] for service in of_kind(found, "Service") for port in service["spec"]["ports"]}

    def allowed(found):
        return {
            port["port"]
            for policy in of_kind(found, "NetworkPolicy")
            for rule in policy["spec"]["ingress"]
            for port in rule["ports"]
        }

    assert listens(default) == "127.0.0.1:8445"
    assert not {"admin", "web"} & (ports(default) | allowed(default))
    assert listens(everything) == "[::]:8445"
    assert {"admin", "web"} <= ports(everything) & allowed(everything)


def test_replicas_keep_nothing_and_are_spread_and_drained_one_by_one(replicated):
    (deployment,) = of_kind(replicated, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 3
    assert not of_kind(replicated, "StatefulSet")
    assert not any("persistentVolumeClaim" in volume for volume in pod["volumes"])
    assert pod["affinity"]["podAntiAffinity"]
    assert pod["topologySpreadConstraints"]
    assert of_kind(replicated, "PodDisruptionBudget")[0]["spec"]["maxUnavailable"] == 1


def test_passwords_and_keys_are_files_and_never_in_a_configmap_or_the_environment(replicated):
    configs = [tomllib.loads(found["data"]["coordinator.toml"]) for found in of_kind(replicated, "ConfigMap")]
    assert [config["database"]["url_file"] for config in configs] == ["/run/accord/database/url"] * 2
    assert [config["blobs"]["credentials_file"] for config in configs] == ["/run/accord/blobs/credentials"] * 2
    assert not any("url" in config["database"] for config in configs)
    for pod in (of_kind(replicated, kind)[0]["spec"]["template"]["spec"] for kind in ("Deployment", "Job")):
        secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
        assert {"accord-database", "accord-bucket"} <= secrets
        (container,) = pod["containers"]
        assert "env" not in container


def test_replicas_share_their_keys_by_a_secret_that_is_read_only(replicated):
    (deployment,) = of_kind(replicated, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    config = tomllib.loads(of_kind(replicated, "ConfigMap")[0]["data"]["coordinator.toml"])
    assert config["keys"]["folder"] == mounts["keys"]["mountPath"]
    assert mounts["keys"]["readOnly"] is True
    # No pod makes keys of its own.
    assert "initContainers" not in pod


@pytest.mark.parametrize(("policy", "limit"), [("Local", 256), ("Cluster", 0)])
def test_connections_are_limited_by_address_where_addresses_are_the_callers_own(policy, limit):
    pairs = (*NEEDED, "service.type=LoadBalancer", f"service.externalTrafficPolicy={policy}")
    (found,) = of_kind(manifests(render("4", COORDINATOR, *pairs)), "ConfigMap")
    config = parse_config(found["data"]["coordinator.toml"], folder=Path("/etc/accord"))
    assert config.limits.connections_per_address == limit


def test_the_schema_goes_forward_before_replicas_of_a_new_version_start(replicated):
    (job,) = of_kind(replicated, "Job")
    hooks = [found for found in replicated if "helm.sh/hook" in found["metadata"].get("annotations", {})]
    before = [found for found in hooks if "pre-upgrade" in found["metadata"]["annotations"]["helm.sh/hook"]]
    assert {found["kind"] for found in before} == {"ConfigMap", "NetworkPolicy", "Job"}
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][0] == "migrate"
    configs = [tomllib.loads(found["data"]["coordinator.toml"]) for found in of_kind(replicated, "ConfigMap")]
    assert [config["database"]["migrate_on_start"] for config in configs] == [False, False]


def test_the_migrations_job_reaches_the_database_where_all_is_forbidden_that_nobody_allows(replicated):
    (job,) = of_kind(replicated, "Job")
    policies = of_kind(replicated, "NetworkPolicy")
    (own,) = (found for found in policies if "helm.sh/hook" in found["metadata"].get("annotations", {}))
    (of_pods,) = (found for found in policies if found is not own)
    assert own["spec"]["podSelector"]["matchLabels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    weights = [int(found["metadata"]["annotations"]["helm.sh/hook-weight"]) for found in (own, job)]
    assert weights[0] < weights[1]
    assert own["spec"]["egress"] == of_pods["spec"]["egress"]
    assert {port["port"] for rule in own["spec"]["egress"] for port in rule["ports"]} == {53, 443, 5432}


def test_autoscaling_takes_the_number_of_replicas_over(everything):
    (scaler,) = of_kind(everything, "HorizontalPodAutoscaler")
    (deployment,) = of_kind(everything, "Deployment")
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_cert_manager_is_asked_for_every_name_by_which_the_coordinator_is_dialled():
    found = manifests(render("4", COORDINATOR, files=[COORDINATOR / "ci" / "cert-manager-values.yaml"]))
    (certificate,) = of_kind(found, "Certificate")
    assert {"accord.example.org", "accord.federation.svc", "localhost"} <= set(certificate["spec"]["dnsNames"])
    assert certificate["spec"]["ipAddresses"] == ["127.0.0.1"]
    pod = of_kind(found, "StatefulSet")[0]["spec"]["template"]["spec"]
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {certificate["spec"]["secretName"]}
    public = manifests(
        render(
            "4",
            COORDINATOR,
            "certificates.certManager.internalNames=false",
            files=[COORDINATOR / "ci" / "cert-manager-values.yaml"],
        )
    )
    (asked,) = of_kind(public, "Certificate")
    assert asked["spec"]["dnsNames"] == ["accord.example.org"]
    assert "ipAddresses" not in asked["spec"]
    # Where an organisation's PKI issues certificates, nobody enrols.
    assert [port["name"] for port in of_kind(found, "Service")[0]["spec"]["ports"]] == ["participants"]


def test_monitoring_is_behind_switches_and_carries_the_rules_of_the_repository(default, everything):
    kinds = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    assert not kinds & {found["kind"] for found in default}
    site = manifests(render("4", PARTICIPANT, files=[PARTICIPANT / "ci" / "gpu-values.yaml"]))
    named: set[str] = set()
    for rendered, name in ((everything, "coordinator"), (site, "participant")):
        (rules,) = of_kind(rendered, "PrometheusRule")
        source = yaml.safe_load((ROOT / "deploy" / "prometheus" / f"{name}.rules.yml").read_text())
        assert rules["spec"] == source, "make chart copies them"
        # The targets are named as the rules' queries name them.
        named |= set(re.findall(r'job=~?"([a-z-]+)', json.dumps(source).replace('\\"', '"')))
    coordinator, participant = of_kind(everything, "PodMonitor"), of_kind(site, "PodMonitor")
    jobs = {
        relabeling["replacement"]
        for monitor in (*coordinator, *participant)
        for relabeling in monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
        if relabeling["targetLabel"] == "job"
    }
    assert named
    assert named <= jobs


def test_a_service_monitor_finds_the_internal_service_and_names_its_targets_as_a_pod_monitor_does(everything):
    found = manifests(render("4", COORDINATOR, *NEEDED, "serviceMonitor.enabled=true"))
    (monitor,) = of_kind(found, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = (one for one in of_kind(found, "Service") if wanted <= one["metadata"]["labels"].items())
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    (of_pods,) = of_kind(everything, "PodMonitor")[0]["spec"]["podMetricsEndpoints"]
    assert [one["targetLabel"] for one in endpoint["relabelings"]] == [
        one["targetLabel"] for one in of_pods["relabelings"]
    ]
    assert endpoint["path"] == of_pods["path"]


def test_readmes_of_the_charts_say_what_their_values_are():
    done = subprocess.run(
        [sys.executable, CHARTS / "chart_files.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("major", HELMS)
@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ((), "federation is empty"),
        (("federation=hospitals",), "participants.publicAddress is empty"),
        ((*NEEDED, "replicas=many"), "replicas"),
        ((*NEEDED, "colour=red"), "colour"),
        ((*NEEDED, "service.type=Ingress"), "service"),
        ((*NEEDED, "database.url=mysql://db/accord"), "database"),
        ((*NEEDED, "database.url=postgresql://a@db/accord"), "blobs.url is not"),
        ((*NEEDED, "database.url=postgresql://a:b@db/accord", "blobs.url=s3://b"), "has a password in it"),
        ((*NEEDED, "database.url=postgresql://a@db/accord", "blobs.url=s3://b"), "identity.existingSecret"),
        ((*NEEDED, "certificates.mode=files"), "certificates.existingSecret"),
        ((*NEEDED, "config.admin.listen=0.0.0.0:1"), "config.admin.listen is set by the chart itself"),
        ((*NEEDED, "config.metrics.listen=0.0.0.0:1"), "know the health port alone"),
        ((*NEEDED, "config.federation=other"), "config.federation"),
        ((*NEEDED, "serviceMonitor.enabled=true", "podMonitor.enabled=true"), "count everything twice"),
        ((*NEEDED, "preStopSeconds=60"), "terminationGracePeriodSeconds"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(major, pairs, said):
    assert said in refusal(major, COORDINATOR, *pairs)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("policy=", "policy is empty"),
        ("joinToken.existingSecret=", "joinToken.existingSecret is empty"),
        ("certificates.existingSecret=bank-tls", "a site enrols, or has certificates of its own PKI"),
        ("data.existingClaim=", "data.existingClaim is empty"),
        ("charter.digest=abc", "charter"),
        ("config.data.train_file=x", "config.data.train_file is set by the chart itself"),
    ],
)
def test_a_site_without_what_it_needs_is_refused_with_the_reason(pair, said):
    assert said in refusal("4", PARTICIPANT, pair, files=[PARTICIPANT / "ci" / "default-values.yaml"])


OWN_PKI = PARTICIPANT / "ci" / "own-pki-values.yaml"


def test_a_site_with_its_own_pki_reads_mounted_files_and_has_no_token(tmp_path):
    found = manifests(render("4", PARTICIPANT, files=[OWN_PKI]))
    pod = of_kind(found, "StatefulSet")[0]["spec"]["template"]["spec"]
    (mounted,) = (volume["projected"] for volume in pod["volumes"] if volume["name"] == "certificates")
    files = {item["path"] for source in mounted["sources"] for kind in source.values() for item in kind["items"]}
    for name, text in of_kind(found, "ConfigMap")[0]["data"].items():
        (tmp_path / name).write_text(text)
    identity = load_unpinned_config(tmp_path / "participant.toml").identity
    assert isinstance(identity, OwnPki)
    named = [identity.certificate_file, identity.key_file, identity.trust_file]
    assert {path.name for path in named} == files == {"tls.crt", "tls.key", "ca.crt"}
    (first,) = pod["initContainers"]
    for container in (first, *pod["containers"]):
        assert str(named[0].parent) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert "enroll --config" not in first["args"][0]
    assert "charter pin" in first["args"][0]
    assert "join" not in {volume["name"] for volume in pod["volumes"]}

    unreached = refusal("4", PARTICIPANT, "config.coordinator.address=", files=[OWN_PKI])
    assert "nothing says whom to dial" in unreached


def test_a_site_trains_only_under_an_agreed_charter():
    def command(*pairs):
        found = manifests(render("4", PARTICIPANT, *pairs, files=[PARTICIPANT / "ci" / "default-values.yaml"]))
        (container,) = of_kind(found, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"]
        return container.get("args", [])

    assert "run" not in command()
    assert command("charter.digest=" + "ab" * 32)[0] == "run"


def test_gpus_are_asked_for_by_the_name_of_the_nodes_plugin():
    found = manifests(render("4", PARTICIPANT, files=[PARTICIPANT / "ci" / "gpu-values.yaml"]))
    pod = of_kind(found, "StatefulSet")[0]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["runtimeClassName"] == "nvidia"


@pytest.mark.parametrize("block", ["install", "replicas", "cert-manager", "site", "pinned", "site-own-pki"])
def test_installations_render_as_the_guide_types_them(block, tmp_path):
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    (tmp_path / "policy.toml").write_bytes((ROOT / "deploy" / "examples" / "policy.toml").read_bytes())
    lines = documented(block).replace("\\\n", " ").splitlines()
    (command,) = [shlex.split(line) for line in lines if line.startswith("helm ")]
    words = ["template", *command[2:]]
    if "--reuse-values" in words:
        earlier = PARTICIPANT / "ci" / "default-values.yaml"
        words = [word for word in words if word != "--reuse-values"] + ["--values", str(earlier)]
    words = [word for word in words if word != "--create-namespace"]
    done = call("4", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pods(manifests(done.stdout))


def test_the_guide_makes_the_secret_that_replicas_take_their_keys_from(tmp_path):
    (tmp_path / "s3.ini").write_text("[default]\n")
    shim = tmp_path / "bin" / "kubectl"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {kubectl()} --kubeconfig=/dev/null "$@" --dry-run=client --output=yaml\n')
    shim.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euc", documented("identity").replace("kubectl", "echo ---; kubectl")],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {found["metadata"]["name"]: set(found["data"]) for found in manifests(done.stdout.partition("---")[2])}
    assert made == {
        "accord-identity": {"signing-key.pem", "ca.pem", "ca.key"},
        "accord-database": {"url"},
        "accord-bucket": {"credentials"},
    }
    # What lies in such a folder is all that a replica needs to serve.
    assert {path.name for path in (tmp_path / "federation" / "data" / "pki").iterdir()} >= {"ca.pem", "ca.key"}
