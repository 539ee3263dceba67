"""The chart, rendered by real Helm: what is in it, what it refuses, and that the node takes it.

    HELM=… NODE=… python -m unittest check
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import trustme

import helm
import pod
import readme
import schemas
from helm import CHART, Refused, template

NODE = os.environ["NODE"]
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
TOKEN = ["--set", "auth.token.value=bXktdG9rZW4/+w=="]
TLS = [
    "--set", "tls.client.existingSecret=client-tls,tls.client.caKey=ca.crt",
    "--set", "tls.mgmt.existingSecret=mgmt-tls,tls.mgmt.caKey=ca.crt",
    "--set", "tls.peer.existingSecret=peer-tls",
]

# Every option, and what users have in their values files already.
SCENARIOS = {
    "defaults": [],
    "an inline token": TOKEN,
    "a token of one's own": ["--set", "auth.token.existingSecret=hyc-token",
                             "--set", "auth.token.existingSecretKey=token"],
    "three nodes, two copies": ["--set", "replicaCount=3", "--set", "cluster.replicationFactor=2",
                                "--set", "podDisruptionBudget.minAvailable=2"],
    "a load balancer": ["--set", "service.client.type=LoadBalancer"],
    "one node": ["--set", "replicaCount=1"],
    "the token as a variable": [*TOKEN, "--set", "auth.token.from=environment"],
    "TLS": TLS,
    "a name for peers": [*TLS, "--set", "tls.peer.mode=prefer,tls.peer.serverName=peers.hyc"],
    "certificates that clients may show": [*TLS, "--set", "tls.client.clientAuth=request"],
    "a policy and a token of peers": ["--set", "auth.policy.existingSecret=hyc-policy",
                                      "--set", "auth.peerToken.existingSecret=hyc-peers"],
    "an issuer of identities": ["--set", "auth.oidc.issuer=https://id.example",
                                "--set", "auth.oidc.audience=hyc",
                                "--set", "auth.peerToken.existingSecret=hyc-peers"],
    "a policy alone": ["--set", "auth.policy.existingSecret=hyc-policy",
                       "--set", "tls.peer.existingSecret=peer-tls",
                       "--set", "podMonitor.enabled=true,podMonitor.authorization.credentials.name=m",
                       "--set", "tests.token.existingSecret=hyc-tester"],
    "two tokens": ["--set", "auth.token.value=bmV3\nb2xk\n", "--set", "serviceMonitor.enabled=true"],
    "an image by digest": ["--set", f"image.digest=sha256:{'a' * 64}", "--set", "image.tag=v1-"],
    "what is nothing": ["--set", "podLabels=null,podAnnotations=null,podSecurityContext=null",
                        "--set", "containerSecurityContext=null,affinity=null,tolerations=null",
                        "--set", "nodeSelector=null,settings=null,extraEnv=null,extraVolumes=null",
                        "--set", "auth.token.value=null,nameOverride=null,topologySpreadConstraints=null",
                        "--set", "service.client.annotations=null,serviceAccount.annotations=null"],
    "a share of the machine": ["--set", "cpuPinning.enabled=false,resources.limits.memory=null",
                               "--set", "cluster.memoryShare=40"],
    "all monitoring": [*TOKEN, *TLS, "--set", "serviceMonitor.enabled=true",
                       "--set", "prometheusRule.enabled=true,grafanaDashboard.enabled=true",
                       "--set", "serviceMonitor.interval=10s,serviceMonitor.tlsConfig.serverName=hyc",
                       "--set", "otlp.endpoint=http://collector:4318"],
    "a network policy": ["--set", "networkPolicy.enabled=true",
                         "--set-json", 'networkPolicy.clients=[{"podSelector":{}}]',
                         "--set-json", 'networkPolicy.monitoring=[{"namespaceSelector":{}}]'],
    "io_uring": ["--set", "ioUring.enabled=true"],
    "exclusive CPUs": ["--set", "cpuPinning.requireExclusive=true,resources.limits.cpu=4"],
    "shared CPUs": ["--set", "cpuPinning.enabled=false,resources.limits.cpu=null",
                    "--set", "resources.limits.memory=null,resources.requests.cpu=100m"],
    "other settings": ["--set", "settings.HYPERCACHE_EVICTION=sieve",
                       "--set", "settings.HYPERCACHE_CONNECTIONS=1000000"],
    "dual stack": ["--set", "service.ipFamilyPolicy=RequireDualStack",
                   "--set", "service.ipFamilies={IPv6,IPv4}"],
    "another domain": ["--set", "clusterDomain=k8s.example", "--set", "nameOverride=cache"],
    "every port moved": ["--set", "ports.api=9000,ports.mgmt=9001,ports.dist=9002",
                         "--set", "service.client.port=80,service.mgmt.port=81"],
    "a node port": ["--set", "service.client.type=NodePort,service.client.nodePort=30080",
                    "--set", "service.mgmt.type=NodePort,service.mgmt.nodePort=30081",
                    "--set", "service.client.externalTrafficPolicy=Local"],
    "pods that may be away": ["--set", "podDisruptionBudget.maxUnavailable=1"],
    "a percentage that stays": ["--set", "podDisruptionBudget.minAvailable=60%"],
    "no budget": ["--set", "podDisruptionBudget.enabled=false"],
    "long goodbyes": ["--set", "terminationGracePeriodSeconds=300,preStopSleepSeconds=0"],
    "volumes besides": ["--set-json", 'extraVolumes=[{"name":"ca","configMap":{"name":"ca"}}]',
                        "--set-json", 'extraEnv=[{"name":"OTEL_SDK_DISABLED","value":"true"}]'],
    "what values files have": [
        "--set", "replicaCount=7,image.repository=r.example/hyc,image.tag=v9,image.pullPolicy=Always",
        "--set-json", 'image.pullSecrets=[{"name":"pull"}]',
        "--set", "serviceAccount.create=false,serviceAccount.name=mine",
        "--set", "serviceAccount.annotations.a=b",
        "--set", "ports.api=8080,ports.mgmt=8081,ports.dist=7946",
        "--set", "cluster.replicationFactor=3,cluster.capacity=2000000,cluster.heartbeat=500ms",
        "--set", "cluster.indirectProbeK=0,cluster.hintTTL=1m,cluster.hintReplay=100ms",
        "--set", "cluster.rebalanceInterval=1s,cluster.logLevel=debug",
        "--set", "service.client.annotations.a=b,service.mgmt.type=LoadBalancer",
        "--set", "service.mgmt.annotations.a=b,service.mgmt.port=8081",
        "--set", "resources.limits.cpu=4,resources.limits.memory=8Gi",
        "--set", "resources.requests.cpu=4000m,resources.requests.memory=8192Mi",
        *(argument for probe in ("liveness", "readiness") for argument in (
            "--set", f"probes.{probe}.initialDelaySeconds=1,probes.{probe}.periodSeconds=3",
            "--set", f"probes.{probe}.timeoutSeconds=4,probes.{probe}.failureThreshold=5")),
        "--set", "podDisruptionBudget.enabled=true,podDisruptionBudget.minAvailable=5",
        "--set-json", 'affinity={"nodeAffinity":{}}', "--set", "nodeSelector.pool=hyc",
        "--set-json", 'tolerations=[{"key":"hyc","operator":"Exists"}]',
        "--set-json", 'topologySpreadConstraints=[{"topologyKey":"zone","maxSkew":1,'
                      '"whenUnsatisfiable":"DoNotSchedule"}]',
        "--set", "podAnnotations.a=b,podLabels.team=shop,podSecurityContext.runAsUser=1000",
        "--set", "containerSecurityContext.readOnlyRootFilesystem=true",
        "--set", "terminationGracePeriodSeconds=60,priorityClassName=high",
    ],
} | {f"examples/{example.name}": ["--values", str(example)] for example in EXAMPLES}

# What must not render, and what the refusal must say: the value, and what to set.
REFUSED = {
    "resources.limits.cpu=500m": ["resources.limits.cpu=500m", "whole number"],
    "resources.limits.cpu=1500m": ["resources.limits.cpu=1500m", "whole number"],
    "resources.limits.cpu=2.5": ["resources.limits.cpu=2.5", "whole number"],
    "resources.limits.cpu=0": ["cpu"],
    "resources.limits.cpu=null": ["resources.limits.cpu is not set", "cpuPinning.enabled=false"],
    "resources.limits.memory=null": ["resources.limits.memory is not set", "4Gi"],
    "resources.limits.memory=1Mi": ["resources.limits.memory=1Mi", "64Mi"],
    "resources.requests.cpu=1": ["resources.requests.cpu=1", "resources.limits.cpu=2", "same"],
    "resources.requests.memory=1Gi": ["resources.requests.memory=1Gi", "limits.memory=2Gi", "same"],
    "cpuPinning.enabled=false,cpuPinning.requireExclusive=true": ["cpuPinning.enabled=true"],
    "podDisruptionBudget.minAvailable=5": ["minAvailable=5 of 5 pods", "set at most 4"],
    "podDisruptionBudget.minAvailable=100%": ["minAvailable=100% of 5 pods", "set at most 4"],
    "podDisruptionBudget.minAvailable=81%": ["minAvailable=81% of 5 pods", "set at most 4"],
    "replicaCount=3,podDisruptionBudget.minAvailable=4": ["minAvailable=4 of 3 pods", "at most 2"],
    "podDisruptionBudget.maxUnavailable=0": ["maxUnavailable=0", "at least 1"],
    "podDisruptionBudget.maxUnavailable=0%": ["maxUnavailable=0%", "at least 1"],
    "podDisruptionBudget.maxUnavailable=1,podDisruptionBudget.minAvailable=1": ["one of them"],
    "terminationGracePeriodSeconds=15": ["terminationGracePeriodSeconds=15", "at least 20"],
    "auth.token.value=two words": ["auth.token.value", "without spaces"],
    "auth.oidc.issuer=https://id.example": ["auth.oidc.audience", "both or neither"],
    "auth.policy.existingSecret=hyc-policy": ["auth.peerToken.existingSecret", "tls.peer"],
    "auth.token.value=a\nb,auth.token.from=environment": ["several tokens", "auth.token.from=file"],
    "ports.dist=8080": ["ports.dist=8080", "three"],
    "service.client.nodePort=30080": ["service.client.nodePort", "service.client.type"],
    "service.mgmt.nodePort=30080": ["service.mgmt.nodePort", "service.mgmt.type"],
    "service.client.type=NodePort,service.client.loadBalancerClass=x": ["type=LoadBalancer"],
    "serviceMonitor.enabled=true,podMonitor.enabled=true": ["twice", "one of them"],
    "auth.token.value=x,extraVolumes[0].name=token": ["extraVolumes has token", "another name"],
    "resources.limits.cpu=2.0005": ["resources.limits.cpu=2.0005", "whole number"],
    "resources.limits.memory=64Mi,cluster.memoryShare=10": ["memoryShare=10", "16Mi"],
    "extraEnv[0].name=HYPERCACHE_LOG_LEVEL,extraEnv[0].value=debug": ["HYPERCACHE_LOG_LEVEL", "settings"],
    # By the schema.
    "replicas=5": ["replicas", "not allowed"],
    "cluster.replication=3": ["replication", "not allowed"],
    "resources.limit.cpu=2": ["limit", "not allowed"],
    "replicaCount=five": ["replicaCount", "integer"],
    "replicaCount=0": ["replicaCount", "minimum"],
    "cluster.heartbeat=1": ["heartbeat"],
    "cluster.heartbeat=soon": ["heartbeat", "pattern"],
    "cluster.logLevel=trace": ["logLevel", "one of"],
    "cluster.memoryShare=95": ["memoryShare", "maximum"],
    "ports.api=70000": ["ports", "maximum"],
    "service.client.type=ExternalName": ["type", "one of"],
    "settings.HYPERCACHE_EVICTON=lfu": ["HYPERCACHE_EVICTON"],
    "settings.HYPERCACHE_SEEDS=a:1": ["HYPERCACHE_SEEDS"],
    "auth.token.existingSecret=No Name": ["existingSecret", "pattern"],
    "resources.limits.memory=4GB": ["memory"],
    "auth.token.from=nowhere": ["from", "one of"],
    "podDisruptionBudget.maxUnavailable=500%": ["maxUnavailable"],
    "nameOverride=a.b": ["nameOverride", "pattern"],
    "ioUring.localhostProfile=/etc/x.json": ["localhostProfile", "pattern"],
    "cluster.hintTTL=0s": ["hintTTL", "pattern"],
    "cluster.heartbeat=10ns": ["heartbeat", "pattern"],
    "extraEnv[0].name=A,extraEnv[0].value=1": ["value", "string"],
    "topologySpreadConstraints[0].topologyKey=zone": ["maxSkew"],
    "image.digest=latest": ["digest", "pattern"],
    # What is nulled is gone.
    "tls=null": ["tls"],
    "probes.readiness=null": ["readiness"],
    "cluster.heartbeat=null": ["heartbeat"],
    "replicaCount=null": ["replicaCount"],
}

# Settings that no value may set: these go by a Secret, and kubelets have no certificate to show.
NO_VALUES = {
    "HYPERCACHE_AUTH_TOKEN", "HYPERCACHE_PEER_TOKEN", "HYPERCACHE_MGMT_TLS_CLIENT_AUTH",
}


def settings():
    """Every setting of the node with its default, as its help gives them."""
    text = subprocess.run([NODE, "--help"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^  --\S+, (HYPERCACHE_\w+)\n.*\n.*; default (.*)$", text, re.MULTILINE)
    assert len(found) > 50, text
    return {name: "" if default == "empty" else default for name, default in found}


def certificates():
    """A Secret of type kubernetes.io/tls with authorities."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    return {
        "tls.crt": b"".join(it.bytes() for it in issued.cert_chain_pems),
        "tls.key": issued.private_key_pem.bytes(),
        "ca.crt": authority.cert_pem.bytes(),
    }


def selectors(rendered):
    """Every selector of pods in a release, with what has it."""
    stateful = rendered.one("StatefulSet")
    yield "StatefulSet", stateful["spec"]["selector"]["matchLabels"]
    for it in rendered.all("Service"):
        yield f"Service {it['metadata']['name']}", it["spec"]["selector"]
    for it in rendered.all("PodDisruptionBudget"):
        yield "PodDisruptionBudget", it["spec"]["selector"]["matchLabels"]
    for it in rendered.all("NetworkPolicy"):
        yield "NetworkPolicy", it["spec"]["podSelector"]["matchLabels"]
    for it in rendered.all("PodMonitor"):
        yield "PodMonitor", it["spec"]["selector"]["matchLabels"]
    for it in rendered.pod["topologySpreadConstraints"]:
        yield "topologySpreadConstraints", it["labelSelector"]["matchLabels"]


def pod_labels(rendered):
    return rendered.one("StatefulSet")["spec"]["template"]["metadata"]["labels"]


def selects(selector, labels):
    return selector.items() <= labels.items()


class Chart(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.rendered = {name: template(arguments) for name, arguments in SCENARIOS.items()}
        cls.defaults = cls.rendered["defaults"]

    def each(self):
        """Every scenario; a failure names the one it is of."""
        for self.scenario, rendered in self.rendered.items():
            yield rendered
        del self.scenario

    def _formatMessage(self, msg, standardMsg):
        scenario = getattr(self, "scenario", None)
        text = super()._formatMessage(msg, standardMsg)
        return f"{scenario}: {text}" if scenario else text

    def test_strict_lint_finds_nothing(self):
        for name, arguments in SCENARIOS.items():
            with self.subTest(name):
                self.assertEqual([], helm.lint(arguments))

    def test_six_objects_by_default_and_seven_with_an_inline_token(self):
        six = [
            ("PodDisruptionBudget", "hyc-hypercache"),
            ("Service", "hyc-hypercache"),
            ("Service", "hyc-hypercache-headless"),
            ("Service", "hyc-hypercache-mgmt"),
            ("ServiceAccount", "hyc-hypercache"),
            ("StatefulSet", "hyc-hypercache"),
        ]
        self.assertEqual(six, self.defaults.names())
        seven = sorted([*six, ("Secret", "hyc-hypercache-auth")])
        self.assertEqual(seven, self.rendered["an inline token"].names())
        self.assertEqual(six, self.rendered["a token of one's own"].names())

    def test_every_object_is_one_that_kubernetes_knows(self):
        foreign = set()
        for rendered in self.each():
            for it in rendered.objects + rendered.tests:
                self.assertEqual("hyc-prod", it["metadata"]["namespace"])
                if it["kind"] in schemas.FOREIGN:
                    foreign.add(it["kind"])
                    continue
                for version in schemas.VERSIONS:
                    self.assertEqual([], schemas.problems(version, it), (version, it["kind"]))
        self.assertEqual(schemas.FOREIGN, foreign)

    def test_what_kubernetes_does_not_know_would_be_found(self):
        broken = json.loads(json.dumps(self.defaults.one("StatefulSet")))
        broken["spec"]["replicaCount"] = 5
        for version in schemas.VERSIONS:
            self.assertTrue(schemas.problems(version, broken))

    def test_values_that_break_a_promise_are_refused_with_what_to_set(self):
        for value, words in REFUSED.items():
            with self.subTest(value), self.assertRaises(Refused) as refusal:
                template(["--set", value])
            # The engine breaks long messages into lines.
            said = " ".join(str(refusal.exception).split())
            for word in words:
                self.assertIn(word, said)

    def test_the_token_may_be_what_openssl_prints(self):
        secret = self.rendered["an inline token"].one("Secret")
        self.assertEqual("YlhrdGRHOXJaVzQvK3c9PQ==", secret["data"]["token"])
        self.assertEqual(secret["data"]["token"], secret["data"]["single"])

    def test_of_two_tokens_one_is_for_what_reads_no_lists(self):
        secrets = pod.secrets_of(self.rendered["two tokens"])["hyc-hypercache-auth"]
        self.assertEqual({"token": b"bmV3\nb2xk", "single": b"bmV3"}, secrets)
        (endpoint,) = self.rendered["two tokens"].one("ServiceMonitor")["spec"]["endpoints"]
        self.assertEqual("single", endpoint["authorization"]["credentials"]["key"])

    def test_an_image_may_be_named_by_its_digest(self):
        rendered = self.rendered["an image by digest"]
        self.assertEqual(f"hypercache@sha256:{'a' * 64}", rendered.container["image"])
        version = rendered.one("StatefulSet")["metadata"]["labels"]["app.kubernetes.io/version"]
        self.assertEqual("v1", version)

    def test_a_chart_of_others_may_have_it_and_turn_it_off(self):
        for enabled in (True, False):
            with tempfile.TemporaryDirectory() as work:
                values = {"hypercache": {"enabled": enabled}, "global": {"region": "a"}}
                chart = helm.umbrella(pathlib.Path(work) / "shop", values)
                rendered = template(chart=chart)
                self.assertEqual(6 if enabled else 0, len(rendered.objects))

    def test_every_pod_is_guaranteed_whole_cores(self):
        for rendered in self.each():
            resources = rendered.container["resources"]
            if self.scenario in ("shared CPUs", "a share of the machine", "examples/trial.yaml"):
                continue
            requests, limits = resources["requests"], resources["limits"]
            self.assertEqual({"cpu", "memory"}, set(limits))
            self.assertEqual(pod.bytes_of(requests["memory"]), pod.bytes_of(limits["memory"]))
            cores = [pod.cores_of(it["cpu"]) for it in (requests, limits)]
            self.assertEqual(cores[0], cores[1])
            self.assertEqual(cores[0], int(cores[0]))
            self.assertNotIn("initContainers", rendered.pod)

    def test_the_limit_of_memory_comes_from_the_container_with_headroom(self):
        variables = pod.variables(self.defaults, "hyc-hypercache-0")
        self.assertEqual(f"70% of {2 << 30}", variables["HYPERCACHE_MEMORY_LIMIT"])
        self.assertEqual("2", variables["HYPERCACHE_CPU_LIMIT"])
        unlimited = self.rendered["a share of the machine"].variables
        self.assertEqual("40%", unlimited["HYPERCACHE_MEMORY_LIMIT"])

    def test_the_pods_have_what_the_restricted_standard_asks_for(self):
        for rendered in self.each():
            if self.scenario == "what is nothing":
                continue
            for spec in [rendered.pod, *(it["spec"] for it in rendered.tests)]:
                security = spec["securityContext"]
                self.assertTrue(security["runAsNonRoot"])
                self.assertIn(security["seccompProfile"]["type"], ("RuntimeDefault", "Localhost"))
                self.assertFalse(spec["automountServiceAccountToken"])
                for container in spec["containers"]:
                    inner = container["securityContext"]
                    self.assertFalse(inner["allowPrivilegeEscalation"])
                    self.assertTrue(inner["readOnlyRootFilesystem"])
                    self.assertEqual(["ALL"], inner["capabilities"]["drop"])
        self.assertEqual(65532, self.defaults.pod["securityContext"]["runAsUser"])

    def test_io_uring_takes_the_profile_of_the_machine(self):
        rendered = self.rendered["io_uring"]
        profile = rendered.pod["securityContext"]["seccompProfile"]
        expected = {"type": "Localhost", "localhostProfile": "hypercache/io-uring.json"}
        self.assertEqual(expected, profile)
        self.assertEqual("io_uring", rendered.variables["HYPERCACHE_IO_DRIVER"])
        for test in rendered.tests:
            self.assertEqual("RuntimeDefault", test["spec"]["securityContext"]["seccompProfile"]["type"])

    def test_every_pod_is_told_of_the_same_first_ones(self):
        seeds = self.defaults.variables["HYPERCACHE_SEEDS"].split(",")
        domain = "hyc-hypercache-headless.hyc-prod.svc.cluster.local"
        names = [f"hyc-hypercache-{ordinal}" for ordinal in range(5)]
        self.assertEqual([f"{name}@{name}.{domain}:7946" for name in names], seeds)
        self.assertEqual(
            f"$(HYPERCACHE_NODE_ID).{domain}:7946", self.defaults.variables["HYPERCACHE_DIST_ADDR"]
        )
        moved = self.rendered["another domain"].variables["HYPERCACHE_SEEDS"]
        self.assertIn("hyc-cache-0@hyc-cache-0.hyc-cache-headless.hyc-prod.svc.k8s.example:7946", moved)

    def test_reference_defect_18_scaling_beyond_the_seeds_changes_no_pod(self):
        pods = [
            template(["--set", f"replicaCount={count}"]).one("StatefulSet")["spec"]["template"]
            for count in (5, 6, 40)
        ]
        self.assertEqual(pods[0], pods[1])
        self.assertEqual(pods[0], pods[2])

    def test_pods_have_names_before_they_are_ready_and_start_together(self):
        headless = self.defaults.one("Service", "hyc-hypercache-headless")["spec"]
        self.assertEqual("None", headless["clusterIP"])
        self.assertTrue(headless["publishNotReadyAddresses"])
        stateful = self.defaults.one("StatefulSet")["spec"]
        self.assertEqual("hyc-hypercache-headless", stateful["serviceName"])
        self.assertEqual("Parallel", stateful["podManagementPolicy"])
        self.assertEqual(10, stateful["minReadySeconds"])

    def test_of_few_pods_all_are_seeds(self):
        seeds = self.rendered["three nodes, two copies"].variables["HYPERCACHE_SEEDS"]
        self.assertEqual(3, len(seeds.split(",")))

    def test_reference_defect_17_no_probe_shows_credentials(self):
        for rendered in self.each():
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = rendered.container[kind]["httpGet"]
                self.assertEqual({"path", "port", "scheme"}, set(asked))

    def test_probes_go_where_a_kubelet_gets_an_answer(self):
        def asked(scenario, kind):
            probe = self.rendered[scenario].container[kind]["httpGet"]
            return probe["scheme"], probe["port"], probe["path"]

        live, ready, start = "livenessProbe", "readinessProbe", "startupProbe"
        self.assertEqual(("HTTP", "api", "/healthz"), asked("defaults", live))
        self.assertEqual(("HTTP", "api", "/healthz"), asked("defaults", start))
        self.assertEqual(("HTTP", "dist", "/health"), asked("defaults", ready))
        # Where a certificate is demanded, a kubelet has none.
        self.assertEqual(("HTTPS", "mgmt", "/healthz"), asked("TLS", live))
        self.assertEqual(("HTTPS", "mgmt", "/health"), asked("TLS", ready))
        self.assertEqual(("HTTPS", "api", "/healthz"), asked("certificates that clients may show", live))
        self.assertEqual(("HTTP", "dist", "/health"), asked("a name for peers", ready))
        self.assertEqual(("HTTPS", "api", "/healthz"), asked("examples/secured.yaml", live))

    def test_reference_defect_19_a_long_start_is_not_taken_for_a_hang(self):
        probe = self.defaults.container["startupProbe"]
        self.assertGreaterEqual(probe["periodSeconds"] * probe["failureThreshold"], 120)

    def test_the_grace_period_covers_all_that_happens_in_it(self):
        for rendered in self.each():
            grace = rendered.pod["terminationGracePeriodSeconds"]
            timeout = int(rendered.variables["HYPERCACHE_SHUTDOWN_TIMEOUT"].removesuffix("s"))
            hook = rendered.container.get("lifecycle", {}).get("preStop", {})
            self.assertEqual(grace - 10, timeout + hook.get("sleep", {}).get("seconds", 0))
        self.assertEqual(45, self.defaults.pod["terminationGracePeriodSeconds"])
        self.assertEqual("30s", self.defaults.variables["HYPERCACHE_SHUTDOWN_TIMEOUT"])

    def test_the_budget_lets_one_pod_go(self):
        for scenario, expected in {
            "defaults": ("minAvailable", 4),
            "three nodes, two copies": ("minAvailable", 2),
            "one node": ("minAvailable", 0),
            "pods that may be away": ("maxUnavailable", 1),
            "a percentage that stays": ("minAvailable", "60%"),
        }.items():
            spec = self.rendered[scenario].one("PodDisruptionBudget")["spec"]
            self.assertEqual("AlwaysAllow", spec["unhealthyPodEvictionPolicy"])
            self.assertEqual(expected, next(it for it in spec.items() if it[0].startswith(("min", "max"))))
        self.assertEqual([], self.rendered["no budget"].all("PodDisruptionBudget"))

    def test_selectors_select_the_pods_of_their_release_alone(self):
        everything = template([*SCENARIOS["all monitoring"], *SCENARIOS["a network policy"]])
        other = template(release="other")
        beside = template(["--set", "nameOverride=session"])
        for rendered in (everything, other, beside, self.rendered["another domain"]):
            for what, selector in selectors(rendered):
                self.assertTrue(selects(selector, pod_labels(rendered)), what)
                for test in rendered.tests:
                    self.assertFalse(selects(selector, test["metadata"]["labels"]), what)
        for what, selector in selectors(everything):
            self.assertFalse(selects(selector, pod_labels(other)), what)
            self.assertFalse(selects(selector, pod_labels(beside)), what)
        monitored = everything.one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
        services = [it for it in everything.all("Service") if selects(monitored, it["metadata"]["labels"])]
        self.assertEqual(["hyc-hypercache-mgmt"], [it["metadata"]["name"] for it in services])

    def test_releases_in_one_namespace_share_no_name(self):
        everything = [*TOKEN, *SCENARIOS["all monitoring"], *SCENARIOS["a network policy"]]
        long = "a-release-with-a-name-as-long-as-helm-takes-in-all-"
        releases = ["hyc", "hyc-2", "hypercache", "shop-hypercache", long + "1x", long + "2x"]
        seen = {}
        for release in releases:
            rendered = template(everything, release=release)
            for name in rendered.names():
                self.assertNotIn(name, seen, release)
                seen[name] = release
            # The names of pods and the labels that carry them.
            name = rendered.one("StatefulSet")["metadata"]["name"]
            self.assertLessEqual(len(name), 52)
            for kind, name in rendered.names():
                self.assertRegex(name, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
                self.assertLessEqual(len(name), 63, kind)
        self.assertIn(("StatefulSet", "hypercache"), seen)
        self.assertIn(("StatefulSet", "shop-hypercache"), seen)
        named = template(["--set", "fullnameOverride=mine"])
        self.assertEqual({"mine", "mine-headless", "mine-mgmt"}, {name for _, name in named.names()})

    def test_the_token_is_a_file_unless_told_otherwise(self):
        rendered = self.rendered["an inline token"]
        self.assertEqual("/etc/hypercache/token/token", rendered.variables["HYPERCACHE_AUTH_TOKEN_FILE"])
        self.assertNotIn("HYPERCACHE_AUTH_TOKEN", [it["name"] for it in rendered.container["env"]])
        rendered = self.rendered["the token as a variable"]
        self.assertNotIn("HYPERCACHE_AUTH_TOKEN_FILE", rendered.variables)
        reference = {"name": "hyc-hypercache-auth", "key": "token"}
        variables = {it["name"]: it for it in rendered.container["env"]}
        self.assertEqual(reference, variables["HYPERCACHE_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"])

    def test_the_policy_of_the_network_lets_in_those_it_names(self):
        spec = self.rendered["a network policy"].one("NetworkPolicy")["spec"]
        ports = {rule["ports"][0]["port"]: rule.get("from") for rule in spec["ingress"]}
        self.assertEqual({"api", "mgmt", "dist"}, set(ports))
        (peers,) = ports["dist"]
        self.assertTrue(selects(peers["podSelector"]["matchLabels"], pod_labels(self.defaults)))
        (test,) = self.rendered["a network policy"].tests
        own, given = ports["api"]
        self.assertTrue(selects(own["podSelector"]["matchLabels"], test["metadata"]["labels"]))
        self.assertEqual({"podSelector": {}}, given)

    def test_every_series_of_an_alert_is_of_this_release(self):
        rules = self.rendered["all monitoring"].one("PrometheusRule")["spec"]["groups"]
        source = helm.yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
        alerts = [it["alert"] for group in source for it in group["rules"]]
        self.assertEqual(alerts, [it["alert"] for group in rules for it in group["rules"]])
        for rule in (it for group in rules for it in group["rules"]):
            chosen = re.findall(r"\b(?:hypercache_\w+|process_\w+|up)\b(\{.*?\})?", rule["expr"])
            self.assertTrue(chosen, rule)
            for selector in chosen:
                self.assertIn('namespace="hyc-prod",job="hyc-hypercache"', selector, rule)
                self.assertEqual(1, len(re.findall(r"\bjob=", selector)), rule)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump({"groups": rules}, file)
            file.flush()
            done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
            self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        (service,) = self.rendered["all monitoring"].one("ServiceMonitor")["spec"]["endpoints"]
        (pods,) = self.rendered["a policy alone"].one("PodMonitor")["spec"]["podMetricsEndpoints"]
        for endpoint in (service, pods):
            self.assertIn({"targetLabel": "job", "replacement": "hyc-hypercache"}, endpoint["relabelings"])
        self.assertEqual("https", service["scheme"])
        credentials = {"name": "hyc-hypercache-auth", "key": "single"}
        self.assertEqual(credentials, service["authorization"]["credentials"])
        self.assertEqual({"name": "m"}, pods["authorization"]["credentials"])

    def test_the_dashboard_is_the_one_of_the_project(self):
        data = self.rendered["all monitoring"].one("ConfigMap")["data"]
        (text,) = data.values()
        self.assertEqual(json.loads((CHART / "files" / "dashboard.json").read_text()), json.loads(text))

    def test_notes_name_what_this_release_has(self):
        for rendered in self.each():
            names = {name for _, name in rendered.names()} | {"hyc-token"}
            for kind, name in re.findall(r"\b(service|statefulset|secret)(?:/| --namespace hyc-prod )(\S+)",
                                         rendered.notes):
                self.assertIn(name, names, kind)
            self.assertIn("helm test --namespace hyc-prod hyc", rendered.notes)
            self.assertNotIn("<no value>", rendered.notes)
        self.assertIn("Everybody who reaches the client port", self.defaults.notes)
        self.assertNotIn("MIND", self.rendered["examples/secured.yaml"].notes)
        self.assertIn("Authorization", self.rendered["an inline token"].notes)
        few = template(["--set", "replicaCount=2"]).notes
        self.assertIn("2 nodes cannot keep 3 copies", few)
        loose = template(["--set", "podDisruptionBudget.minAvailable=2"]).notes
        self.assertIn("lets 3 pods go at once", loose)
        loose = template(["--set", "podDisruptionBudget.maxUnavailable=4"]).notes
        self.assertIn("lets 4 pods go at once", loose)
        self.assertIn("--cert client.crt", self.rendered["TLS"].notes)
        self.assertIn("tests.tls.existingSecret", self.rendered["TLS"].notes)
        bare = template(["--set", "auth.policy.existingSecret=p,tls.peer.existingSecret=t",
                         "--set", "tls.mgmt.existingSecret=m,serviceMonitor.enabled=true"]).notes
        for value in ("tests.token.existingSecret", "set authorization", "set tlsConfig"):
            self.assertIn(value, bare)
        self.assertNotIn("helm test has", self.rendered["a policy alone"].notes)

    def test_the_node_takes_every_environment(self):
        secret = certificates() | {"token": b"a-token", "policy.yaml": b"allow_anonymous: true"}
        names = ["client-tls", "mgmt-tls", "peer-tls", "hyc-policy", "hyc-peers", "hyc-client-tls",
                 "hyc-mgmt-tls", "hyc-peer-tls"]
        secrets = dict.fromkeys(names, secret)
        for rendered in self.each():
            with tempfile.TemporaryDirectory() as root:
                pod.mount(rendered, root, secrets)
                variables = pod.below(root, pod.variables(rendered, "hyc-hypercache-1", secrets))
                done = subprocess.run([NODE, "--check-config"], env=variables, capture_output=True, text=True)
                self.assertEqual((0, ""), (done.returncode, done.stderr))
        done = subprocess.run(
            [NODE, "--check-config"], env=variables | {"HYPERCACHE_NO_SUCH": "1"}, capture_output=True
        )
        self.assertEqual(2, done.returncode)

    def test_settings_are_those_of_the_node_but_for_what_has_a_value(self):
        offered = readme.schema()["properties"]["settings"]["propertyNames"]["enum"]
        owned = {it["name"] for rendered in self.rendered.values() for it in rendered.container["env"]}
        given = {"HYPERCACHE_EVICTION", "HYPERCACHE_CONNECTIONS", "HYPERCACHE_BUFFER_LIMIT",
                 "HYPERCACHE_HINT_BYTES"}
        self.assertLessEqual(given, owned)
        expected = set(settings()) - (owned - given) - NO_VALUES
        self.assertEqual(sorted(expected), offered)

    def test_defaults_are_those_of_the_node(self):
        defaults = settings()
        alike = ("CAPACITY", "REPLICATION", "HEARTBEAT", "INDIRECT_PROBE_K", "HINT_TTL", "HINT_REPLAY",
                 "REBALANCE_INTERVAL", "LOG_LEVEL", "API_ADDR", "MGMT_ADDR", "SHUTDOWN_TIMEOUT")
        for name in (f"HYPERCACHE_{it}" for it in alike):
            self.assertEqual(defaults[name], self.defaults.variables[name], name)
        self.assertTrue(self.defaults.variables["HYPERCACHE_DIST_ADDR"].endswith(defaults["HYPERCACHE_DIST_ADDR"]))

    def test_values_schema_comments_and_readme_are_of_the_same_values(self):
        def paths(schema, path=()):
            for key, inner in schema.get("properties", {}).items():
                if "properties" in inner:
                    yield from paths(inner, (*path, key))
                else:
                    yield (*path, key)

        schema = readme.schema()
        values = dict(readme.leaves(readme.values(), schema))
        # What has a meaning when it is given, and needs no default.
        silent = {("resources", "requests", "cpu"), ("resources", "requests", "memory"), ("global",),
                  ("enabled",)}
        self.assertEqual(set(values) | silent, set(paths(schema)))
        comments = readme.described()
        for path in values:
            self.assertTrue(comments.get(path), f"{'.'.join(path)} has no comment in values.yaml")
        self.assertEqual(readme.table(), readme.parts()[1], "run tests/chart/run --write-readme")

    def test_the_version_is_that_of_the_node(self):
        version = subprocess.run([NODE, "--version"], capture_output=True, text=True).stdout.split()[-1]
        chart = helm.yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual(version, chart["appVersion"])
        self.assertTrue(self.defaults.container["image"].endswith(f":{version}"))
