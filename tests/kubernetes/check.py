"""Installs the chart as an operator would, with each Helm, and looks at what comes of it.

    check.py PROGRAMS CHART

Prints a line for each case, and ends with how many passed and failed.
"""

import base64
import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from controlplane import NAMESPACED, OPERATOR, ControlPlane, Refused, wait_for
from nodes import dies_with_us

HELMS = ["helm3", "helm4"]
# What the chart makes by default, as the contract of the chart names it for a release "hyc".
DEFAULT = {
    ("StatefulSet", "hyc-hypercache"),
    ("Service", "hyc-hypercache-headless"),
    ("Service", "hyc-hypercache"),
    ("Service", "hyc-hypercache-mgmt"),
    ("PodDisruptionBudget", "hyc-hypercache"),
    ("ServiceAccount", "hyc-hypercache"),
}
# What Kubernetes puts into every namespace.
OF_EVERY_NAMESPACE = {("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")}
# What controllers make of other objects without saying whose it is.
DERIVED = {"Endpoints", "IPAddress"}
RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
}
# Objects of the Prometheus Operator. The API server does not have them, so they are not installed.
MONITORING = {
    "serviceMonitor": "ServiceMonitor",
    "podMonitor": "PodMonitor",
    "prometheusRule": "PrometheusRule",
}
# Has `helm template` render as for an API server that has them.
WITH_OPERATOR = ("--api-versions", "monitoring.coreos.com/v1")
# Everything that adds objects or fields, but for what needs the Prometheus Operator.
OPTIONAL = [
    "networkPolicy.enabled=true",
    "networkPolicy.clients[0].podSelector.matchLabels.tier=web",
    "networkPolicy.monitoring[0].namespaceSelector.matchLabels.team=monitoring",
    "grafanaDashboard.enabled=true",
    "auth.token.value=of-the-operator",
    "auth.peerToken.existingSecret=peers",
    "auth.policy.existingSecret=policy",
    "tls.client.existingSecret=client-tls",
    "tls.client.caKey=ca.crt",
    "tls.mgmt.existingSecret=mgmt-tls",
    "tls.peer.existingSecret=peer-tls",
    "ioUring.enabled=true",
    "otlp.endpoint=http://collector.monitoring:4318",
    "service.client.type=LoadBalancer",
    "service.client.externalTrafficPolicy=Local",
    "service.client.trafficDistribution=PreferSameZone",
    "service.client.loadBalancerClass=example.com/internal",
    "service.client.loadBalancerSourceRanges={10.0.0.0/8}",
    "service.ipFamilyPolicy=PreferDualStack",
    "podLabels.team=cache",
    "podAnnotations.note=of-the-operator",
    "image.pullSecrets[0].name=registry",
]
CASES = []


def case(function):
    """Has a function of a `Site` run once with each Helm; its docstring says what is tried."""
    CASES.append((function.__doc__.rstrip("."), function))
    return function


def expect(what, found, expected):
    if found != expected:
        raise AssertionError(f"{what}: {found!r}, not {expected!r}")


class Site:
    """A namespace, and one Helm as an operator has it who works there."""

    def __init__(self, server, helm, chart, namespace):
        self.server, self.program, self.chart = server, helm, chart
        # As an operator at the top of the tree writes it.
        self.folder = f"{chart.parent.name}/{chart.name}"
        self.namespace = namespace
        self.user = OPERATOR
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.home = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_):
        with self.stack:
            path = f"/api/v1/namespaces/{self.namespace}"
            if self.server.find(path):
                # A case that failed may have left what is of no namespace.
                self.user = OPERATOR
                for secret in self.server.list("secrets", "/api/v1", self.namespace, "owner=helm"):
                    release = secret["metadata"]["labels"]["name"]
                    self.attempt("uninstall", release, "--namespace", self.namespace)
                # Whether all of it can go is nothing a chart decides, and takes seconds.
                self.server.delete(path)

    def make_namespace(self, labels=None):
        about = {"name": self.namespace, "labels": labels or {}}
        self.server.post("/api/v1/namespaces", {"metadata": about})

    def attempt(self, *arguments):
        return subprocess.run(
            [self.program, *arguments],
            cwd=self.chart.parents[1],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "KUBECONFIG": str(self.server.kubeconfig(self.user)),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=dies_with_us,
        )

    def helm(self, *arguments):
        """What Helm prints. It must succeed, and it prints what it and the API server warn of to
        the other stream, which must stay empty."""
        done = self.attempt(*arguments)
        shown = f"helm {' '.join(arguments)}"
        if done.returncode:
            raise AssertionError(f"{shown}: exit code {done.returncode}: {done.stderr.strip()}")
        if done.stderr:
            raise AssertionError(f"{shown} warns: {done.stderr.strip()}")
        return done.stdout

    def install(self, *options, release="hyc"):
        return self.helm("install", release, self.folder, "--namespace", self.namespace, *options)

    def upgrade(self, *options, release="hyc"):
        return self.helm("upgrade", release, self.folder, "--namespace", self.namespace, *options)

    def template(self, *options):
        return self.helm("template", "hyc", self.folder, "--namespace", self.namespace, *options)

    def uninstall(self, release="hyc"):
        return self.helm("uninstall", release, "--namespace", self.namespace)

    def find(self, path):
        return self.server.find(path.format(f"namespaces/{self.namespace}"))

    def stateful_set(self, name="hyc-hypercache"):
        return self.find(f"/apis/apps/v1/{{}}/statefulsets/{name}")

    def budget(self, name="hyc-hypercache"):
        return self.find(f"/apis/policy/v1/{{}}/poddisruptionbudgets/{name}")

    def service(self, name="hyc-hypercache"):
        return self.find(f"/api/v1/{{}}/services/{name}")

    def pods(self, selector=None):
        """The pods by name, of all that a selector selects."""
        labels = ",".join(f"{name}={value}" for name, value in (selector or {}).items())
        found = self.server.list("pods", "/api/v1", self.namespace, labels)
        return {pod["metadata"]["name"]: pod for pod in found}

    def objects(self):
        return self.server.objects(self.namespace)

    def settled(self, count, name="hyc-hypercache"):
        """The StatefulSet once its controller has seen it as it is and made all its pods."""

        def seen():
            found = self.stateful_set(name)
            status = found["status"]
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            return current and status.get("replicas") == count and found

        try:
            return wait_for(f"{name} to have {count} pods", seen)
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.refused_pods()}") from None

    def refused_pods(self):
        """What controllers were told when they could not make a pod."""
        events = self.server.list("events", "/api/v1", self.namespace)
        return [event["message"] for event in events if event["reason"] == "FailedCreate"]

    def expect_pods(self, count, name="hyc-hypercache"):
        """That the pods of the StatefulSet are there, each Guaranteed and waiting for a machine."""
        found = self.settled(count, name)
        pods = self.pods(found["spec"]["selector"]["matchLabels"])
        expect("pods", set(pods), {f"{name}-{ordinal}" for ordinal in range(count)})
        for pod in pods.values():
            about = pod["metadata"]["name"]
            expect(f"QoS class of {about}", pod["status"]["qosClass"], "Guaranteed")
            expect(f"phase of {about}", pod["status"]["phase"], "Pending")
            # Why a pod is pending would be told here; a scheduler and a kubelet would be next.
            expect(f"machine of {about}", pod["spec"].get("nodeName"), None)
        return pods

    def expect_budget(self, expected, desired, name="hyc-hypercache"):
        """That the controller counts so many pods, and wants so many healthy."""
        wanted = {"expectedPods": expected, "desiredHealthy": desired}

        def counted():
            found = self.budget(name)
            status = found.get("status", {})
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            return current and status.get("expectedPods") == expected and status

        status = wait_for(f"the budget {name} to count {expected} pods", counted)
        expect(f"budget {name}", {field: status.get(field) for field in wanted}, wanted)

    def made(self, before):
        """What is there now and was not, but for what Kubernetes and Helm made of it themselves."""
        found = set()
        for (kind, namespace, name), item in self.objects().items():
            about = item["metadata"]
            ours = (kind, namespace, name) not in before and "ownerReferences" not in about
            recorded = item.get("type") == "helm.sh/release.v1"
            if ours and not recorded and kind not in DERIVED | {"Namespace"}:
                if (kind, name) not in OF_EVERY_NAMESPACE:
                    found.add((kind, name))
        return found

    def expect_made(self, before, expected):
        found = self.made(before)
        if found != expected:
            raise AssertionError(f"missing {expected - found}, unexpected {found - expected}")

    def expect_all_gone(self, before):
        """That, in the end, everything is as it was but for the namespace itself."""

        def left():
            return {
                (kind, name)
                for kind, namespace, name in self.objects()
                if (kind, namespace, name) not in before
                and (kind, name) not in OF_EVERY_NAMESPACE | {("Namespace", self.namespace)}
            }

        try:
            wait_for("nothing to be left", lambda: not left())
        except AssertionError as late:
            raise AssertionError(f"{late}: {left()}") from None


def expect_stayed(before, now):
    """That pods of these names are the same ones, as far as both have them."""
    for name in before.keys() & now.keys():
        identities = [pods[name]["metadata"]["uid"] for pods in (before, now)]
        expect(f"identity of {name}", identities[1], identities[0])


def manifests(stream):
    """The documents of a stream of manifests, with their apiVersion and kind."""
    for text in re.split(r"(?m)^---.*$", stream):
        kind = re.search(r"(?m)^kind: *(\S+)", text)
        if kind:
            yield re.search(r"(?m)^apiVersion: *(\S+)", text)[1], kind[1], text


def expect_strict(site, documents):
    """That the API server would make each of them, knows all their fields and warns of nothing."""
    for api, kind, text in documents:
        path = site.server.path_of(api, kind, site.namespace)
        query = "?dryRun=All&fieldValidation=Strict"
        _, warnings = site.server.ask("POST", path + query, text.encode(), "application/yaml")
        expect(f"warnings of {kind}", warnings, [])


def files_of_values(chart):
    return sorted(path for folder in ("ci", "examples") for path in (chart / folder).glob("*.yaml"))


def without_monitoring():
    return [word for name in MONITORING for word in ("--set", f"{name}.enabled=false")]


@case
def installs_by_default(site):
    """A default install makes six objects and five pods, and leaves nothing when uninstalled."""
    site.namespace = "hyc-prod"
    wait_for("the namespace of the other Helm to be gone", lambda: not site.find("/api/v1/{}"))
    before = site.objects()
    site.install("--create-namespace")
    site.expect_made(before, DEFAULT)
    site.expect_pods(5)
    site.expect_budget(5, 4)
    expect("type of the client Service", site.service()["spec"]["type"], "ClusterIP")
    site.uninstall()
    site.expect_all_gone(before)


@case
def is_admitted_where_pods_are_restricted(site):
    """Where Pod Security is restricted, all pods are admitted, and the test's pod would be."""
    site.make_namespace(RESTRICTED)
    site.install()
    site.expect_pods(5)
    hooks = list(manifests(site.helm("get", "hooks", "hyc", "--namespace", site.namespace)))
    expect("kinds of hooks", {kind for _, kind, _ in hooks}, {"Pod"})
    expect_strict(site, hooks)


@case
def has_no_unknown_fields(site):
    """With all that is optional, the API server knows every field, and makes the pods."""
    site.make_namespace(RESTRICTED)
    options = [word for value in OPTIONAL for word in ("--set", value)]
    documents = list(manifests(site.template(*options)))
    # The seven, the NetworkPolicy, the dashboard and the pod of `helm test`.
    expect("number of objects", len(documents), len(DEFAULT) + 4)
    expect_strict(site, documents)
    site.install(*options)
    site.expect_pods(5)


@case
def sees_what_pod_security_refuses(site):
    """A pod that Pod Security refuses is warned of and not made."""
    site.make_namespace(RESTRICTED)
    context = "containerSecurityContext.allowPrivilegeEscalation=true"
    done = site.attempt(
        *["install", "hyc", site.folder, "--namespace", site.namespace, "--set", context]
    )
    expect("exit code", done.returncode, 0)
    expect("warned of", "allowPrivilegeEscalation != false" in done.stderr, True)

    wait_for("pods to be refused", site.refused_pods)
    expect("pods", site.pods(), {})


@case
def takes_an_inline_token(site):
    """With an inline token there is a seventh object, a Secret that holds it."""
    site.make_namespace(RESTRICTED)
    before = site.objects()
    token = base64.b64encode(secrets.token_bytes(32)).decode()
    site.install("--set", f"auth.token.value={token}")
    site.expect_made(before, DEFAULT | {("Secret", "hyc-hypercache-auth")})
    held = site.find("/api/v1/{}/secrets/hyc-hypercache-auth")["data"]
    holds = {key: base64.b64decode(value).decode() for key, value in held.items()}
    expect("what it holds", holds, {"token": token, "single": token})
    site.expect_pods(5)
    site.uninstall()
    site.expect_all_gone(before)


@case
def takes_a_secret_that_is_there(site):
    """With a Secret that is there no other is made, and it stays when uninstalled."""
    site.make_namespace(RESTRICTED)
    site.server.post(
        f"/api/v1/namespaces/{site.namespace}/secrets",
        {"metadata": {"name": "hyc-token"}, "stringData": {"token": "of-the-operator"}},
    )
    before = site.objects()
    site.install(
        "--set", "auth.token.existingSecret=hyc-token", "--set", "auth.token.existingSecretKey=token"
    )
    site.expect_made(before, DEFAULT)
    site.expect_pods(5)
    site.uninstall()
    site.expect_all_gone(before)
    expect("the Secret is there", site.find("/api/v1/{}/secrets/hyc-token") is not None, True)


@case
def takes_three_nodes(site):
    """Three nodes with two copies and a budget of two are what the budget counts."""
    site.make_namespace(RESTRICTED)
    before = site.objects()
    site.install(
        *["--set", "replicaCount=3", "--set", "cluster.replicationFactor=2"],
        *["--set", "podDisruptionBudget.minAvailable=2"],
    )
    site.expect_made(before, DEFAULT)
    site.expect_pods(3)
    site.expect_budget(3, 2)


@case
def takes_a_load_balancer(site):
    """A client Service of type LoadBalancer is one, and the other Services are not."""
    site.make_namespace(RESTRICTED)
    before = site.objects()
    site.install("--set", "service.client.type=LoadBalancer")
    site.expect_made(before, DEFAULT)
    for name, expected in [("", "LoadBalancer"), ("-mgmt", "ClusterIP"), ("-headless", "ClusterIP")]:
        found = site.service(f"hyc-hypercache{name}")["spec"]["type"]
        expect(f"type of hyc-hypercache{name}", found, expected)
    site.expect_pods(5)


@case
def keeps_two_releases_apart(site):
    """Two releases in one namespace have pods, Services and budgets of their own."""
    site.make_namespace(RESTRICTED)
    before = site.objects()
    # The name of the second begins as the first and contains that of the chart.
    releases = {"hyc": "hyc-hypercache", "hyc-hypercache-2": "hyc-hypercache-2"}
    for release in releases:
        site.install(release=release)
    for name in releases.values():
        own = set(site.expect_pods(5, name))
        site.expect_budget(5, 4, name)
        for service in (name, f"{name}-mgmt", f"{name}-headless"):
            selector = site.service(service)["spec"]["selector"]
            expect(f"pods of {service}", set(site.pods(selector)), own)
    for release in releases:
        site.uninstall(release)
    site.expect_all_gone(before)


@case
def scales_without_a_restart(site):
    """From five nodes to seven and back, the pods that stay are not made anew."""
    site.make_namespace(RESTRICTED)
    site.install()
    pods = site.expect_pods(5)
    revision = site.stateful_set()["status"]["updateRevision"]
    for count in (7, 5):
        site.upgrade("--set", f"replicaCount={count}")
        now = site.expect_pods(count)
        site.expect_budget(count, count - 1)
        found = site.stateful_set()["status"]["updateRevision"]
        expect(f"revision with {count} nodes", found, revision)
        expect_stayed(pods, now)


@case
def upgrades_and_rolls_back(site):
    """An upgrade of a node's setting has its pods made anew, and a rollback takes it back."""
    site.make_namespace(RESTRICTED)
    before = site.objects()
    site.install()
    site.expect_pods(5)
    first = site.stateful_set()["status"]["updateRevision"]
    site.upgrade("--set", "cluster.capacity=50000")
    second = site.settled(5)["status"]["updateRevision"]
    expect("another revision", second != first, True)
    site.helm("rollback", "hyc", "1", "--namespace", site.namespace)
    expect("revision rolled back to", site.settled(5)["status"]["updateRevision"], first)
    site.expect_made(before, DEFAULT)
    site.uninstall()
    site.expect_all_gone(before)


@case
def tells_what_is_next(site):
    """The notes name this release's own Service, namespace and pods, and can be had again."""
    site.make_namespace()
    printed = site.install()
    notes = site.helm("get", "notes", "hyc", "--namespace", site.namespace)
    notes = notes.removeprefix("NOTES:\n").strip()
    expect("printed by the install", notes in printed, True)
    for wanted in ("hyc-hypercache", site.namespace):
        expect(f"{wanted} in the notes", wanted in notes, True)
    expect("what was left open", re.findall(r"%!|<no value>|<nil>|map\[", notes), [])


@case
def needs_no_rights_beyond_its_namespace(site):
    """Who administers the namespace, and nothing else, may install, upgrade and uninstall it."""
    site.make_namespace(RESTRICTED)
    rights = "rbac.authorization.k8s.io"
    site.server.post(
        f"/apis/{rights}/v1/namespaces/{site.namespace}/rolebindings",
        {
            "metadata": {"name": NAMESPACED},
            "roleRef": {"apiGroup": rights, "kind": "ClusterRole", "name": "admin"},
            "subjects": [{"apiGroup": rights, "kind": "User", "name": NAMESPACED}],
        },
    )
    before = site.objects()
    site.user = NAMESPACED
    site.install("--set", "networkPolicy.enabled=true")
    site.upgrade("--set", "networkPolicy.enabled=true", "--set", "replicaCount=6")
    site.expect_made(before, DEFAULT | {("NetworkPolicy", "hyc-hypercache")})
    site.expect_pods(6)
    site.uninstall()
    site.expect_all_gone(before)


@case
def refuses_pods_that_are_not_guaranteed(site):
    """Values by which pods would not be Guaranteed are refused with what to set."""
    site.make_namespace()
    before = site.objects()
    for path, value in [
        ("resources.limits.cpu", "1500m"),
        ("resources.requests.cpu", "1"),
        ("resources.limits.memory", "null"),
    ]:
        done = site.attempt(
            *["install", "hyc", site.folder, "--namespace", site.namespace],
            *["--set", f"{path}={value}"],
        )
        expect(f"{path}={value} is refused", done.returncode != 0, True)
        said = all(word in done.stderr for word in (path, "cpuPinning.enabled=false"))
        expect(f"{path}={value} is told with what to set ({done.stderr.strip()})", said, True)
    site.expect_made(before, set())


@case
def asks_older_kubernetes_for_what_it_knows(site):
    """The sleep before SIGTERM is for Kubernetes that has it, and none older than 1.27 is taken."""
    for version, known in [("1.27.0", False), ("1.29.9", False), ("1.30.0", True), ("1.37.2", True)]:
        done = site.attempt("template", "hyc", site.folder, "--kube-version", version)
        expect(f"the chart renders for {version} ({done.stderr.strip()})", done.returncode, 0)
        expect(f"{version} is asked to sleep", "preStop:" in done.stdout, known)
    done = site.attempt("template", "hyc", site.folder, "--kube-version", "1.26.9")
    expect("1.26 is refused", done.returncode != 0 and "kubeVersion" in done.stderr, True)


@case
def takes_shared_cpus_when_told(site):
    """Without pinning, requests below the limits are taken, and pods are Burstable."""
    site.make_namespace(RESTRICTED)
    site.install("--set", "cpuPinning.enabled=false", "--set", "resources.requests.cpu=1")
    site.settled(5)
    classes = {pod["status"]["qosClass"] for pod in site.pods().values()}
    expect("QoS classes", classes, {"Burstable"})


@case
def is_packaged_whole(site):
    """The packaged chart installs as the folder does, and lint has nothing to say."""
    site.make_namespace(RESTRICTED)
    before = site.objects()
    site.helm("lint", "--strict", site.folder)
    site.helm("package", site.folder, "--destination", str(site.home))
    (packed,) = site.home.glob("hypercache-*.tgz")
    site.helm("install", "hyc", str(packed), "--namespace", site.namespace)
    site.expect_made(before, DEFAULT)
    site.expect_pods(5)


@case
def has_monitoring_objects_that_the_operator_knows(site):
    """ServiceMonitor, PodMonitor and PrometheusRule have only fields that their types have."""
    common = ["--set", "auth.token.value=of-the-operator,tls.mgmt.existingSecret=mgmt-tls"]
    # One of the monitors at a time: both would have every pod scraped twice.
    for monitor in ("serviceMonitor", "podMonitor"):
        options = [f"{monitor}.enabled=true,{monitor}.interval=10s,{monitor}.labels.a=b"]
        options += [f"{monitor}.tlsConfig.serverName=hyc", "prometheusRule.enabled=true"]
        options = [word for option in options for word in ("--set", option)]
        expected = {f"{MONITORING[name]} hyc-hypercache" for name in (monitor, "prometheusRule")}
        expect("decoded", set(decoded(site, site.template(*common, *options, *WITH_OPERATOR))), expected)


def decoded(site, text):
    done = subprocess.run(
        [site.server.programs / "decode-monitoring"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"the operator's types do not have it: {done.stderr.strip()}")
    return done.stdout.splitlines()


def make_priority_class(server, name):
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    if not server.find(f"{path}/{name}"):
        server.post(path, {"metadata": {"name": name}, "value": 1000})


def installs_with(values):
    def installs(site):
        site.make_namespace(RESTRICTED)
        named = ("--values", str(values))
        text = site.template(*named, *WITH_OPERATOR)
        decoded(site, text)
        # Pods of a class that is not there are refused; values name one that operators have.
        for name in set(re.findall(r"(?m)^ *priorityClassName: *(\S+)", text)):
            make_priority_class(site.server, name)
        before = site.objects()
        named += tuple(without_monitoring())
        expect_strict(site, manifests(site.template(*named)))
        site.install(*named)
        (name,) = (name for kind, name in site.made(before) if kind == "StatefulSet")
        found = site.settled(site.stateful_set(name)["spec"]["replicas"], name)
        revision = found["status"]["updateRevision"]
        site.upgrade(*named)
        found = site.settled(found["spec"]["replicas"], name)
        expect("revision after an upgrade to the same", found["status"]["updateRevision"], revision)
        site.uninstall()
        site.expect_all_gone(before)

    return installs


def takes_over_from_helm_3(site):
    """Helm 4 upgrades and uninstalls what Helm 3 installed."""
    site.make_namespace(RESTRICTED)
    before = site.objects()
    newer, site.program = site.program, site.program.with_name("helm3")
    site.install()
    pods = site.expect_pods(5)
    site.program = newer
    site.upgrade("--set", "replicaCount=6")
    now = site.expect_pods(6)
    expect_stayed(pods, now)
    site.uninstall()
    site.expect_all_gone(before)


def cases_of(helm, chart):
    yield from CASES
    for values in files_of_values(chart):
        shown = f"{values.relative_to(chart)} installs, upgrades and uninstalls"
        yield shown, installs_with(values)
    if helm == "helm4":
        yield takes_over_from_helm_3.__doc__.rstrip("."), takes_over_from_helm_3


def main(programs, chart):
    # So that a request to end ends what we started and removes its data.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    passed = failed = 0
    with ControlPlane(programs) as server:
        for helm in HELMS:
            program = Path(programs) / helm
            version = subprocess.check_output([program, "version", "--short"], text=True).strip()
            print(f"kubernetes {server.version}, helm {version}", flush=True)
            for number, (shown, run) in enumerate(cases_of(helm, chart)):
                try:
                    with Site(server, program, chart, f"{helm}-{number}") as site:
                        run(site)
                except (AssertionError, Refused) as problem:
                    failed += 1
                    print(f"{helm}: FAILED: {shown}: {problem}", flush=True)
                else:
                    passed += 1
                    print(f"{helm}: passed: {shown}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
