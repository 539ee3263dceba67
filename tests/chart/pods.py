"""The pods of a release as processes: each in a network of its own, under its pod's name.

    HELM=… NODE=… unshare --user --map-root-user --net --mount python -m unittest pods

A bridge takes the place of the network of a Kubernetes cluster and /etc/hosts that of its DNS: the
names of the pods as the headless Service gives them, and that of the client Service. Variables,
files, probes and the pod of `helm test` are what Helm rendered. Nothing is left when this ends.
"""

import contextlib
import http.client
import os
import pathlib
import re
import signal
import ssl
import subprocess
import tempfile
import time
import unittest

import trustme

import pod
from helm import template
from nodes import dies_with_us

NODE = os.environ["NODE"]
NAMESPACE, HERE = "hyc-prod", 254
GUARD_S = 60
# One core each: several nodes share this machine.
BESIDES = {"HYPERCACHE_CORES": "1"}


def ip(*arguments):
    subprocess.run(["ip", *map(str, arguments)], check=True)


def address(number, family):
    return f"10.78.0.{number}" if family == 4 else f"fd78::{number}"


def add_addresses(number, device, enter=()):
    for family, width in ((4, 24), (6, 64)):
        added = [*enter, "ip", f"-{family}", "addr", "add", f"{address(number, family)}/{width}", "dev", device]
        subprocess.run([*added, *(["nodad"] if family == 6 else [])], check=True)
    for up in (device, "lo"):
        subprocess.run([*enter, "ip", "link", "set", up, "up"], check=True)


def setUpModule():
    ip("link", "add", "bridge", "type", "bridge", "forward_delay", 0)
    add_addresses(HERE, "bridge")


class Release:
    """Pods of one rendered release."""

    def __init__(self, work, rendered, family, secrets=None):
        self.work, self.rendered, self.family = pathlib.Path(work), rendered, family
        self.secrets = pod.secrets_of(rendered) | (secrets or {})
        self.name = rendered.one("StatefulSet")["metadata"]["name"]
        self.ports = {it["name"]: it["containerPort"] for it in rendered.container["ports"]}
        self.processes = {}
        self.published = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for ordinal, process in self.processes.items():
            process.kill()
            process.wait()
            self.unplug(ordinal)
        if self.published:
            subprocess.run(["umount", "/etc/hosts"], check=True)

    def log(self, ordinal):
        return self.work / f"{self.name}-{ordinal}.log"

    def address(self, ordinal):
        return address(ordinal + 1, self.family)

    def publish(self, count, domain):
        """Gives the names of the first pods addresses, and the client Service the first one's."""
        names = [(f"{self.name}-{it}.{self.name}-headless.{domain}", self.address(it)) for it in range(count)]
        names.append((f"{self.name}.{domain}", self.address(0)))
        hosts = self.work / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{at} {name}\n" for name, at in names))
        subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
        self.published = True

    def start(self, ordinal):
        """Starts a pod, as the kubelet of its machine does."""
        name = f"{self.name}-{ordinal}"
        root = self.work / name
        pod.mount(self.rendered, root, self.secrets)
        variables = pod.variables(self.rendered, name, self.secrets) | BESIDES
        with open(self.log(ordinal), "ab") as log:
            process = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", 'read -r go && exec "$0"', NODE],
                env=pod.below(root, variables) | {"PATH": os.environ["PATH"]},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_us,
            )
        self.processes[ordinal] = process
        ours = os.readlink("/proc/self/ns/net")
        self.wait(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != ours, "a network of its own")
        ip("link", "add", f"pod{ordinal}", "type", "veth", "peer", "name", "eth0", "netns", process.pid)
        ip("link", "set", f"pod{ordinal}", "master", "bridge", "up")
        add_addresses(ordinal + 1, "eth0", ["nsenter", "--target", str(process.pid), "--net"])
        process.stdin.write(b"go\n")
        process.stdin.close()

    def wait(self, until, what):
        deadline = time.monotonic() + GUARD_S
        while not until():
            logs = "\n".join(self.log(it).read_text()[-1500:] for it in self.processes)
            assert time.monotonic() < deadline, f"in vain: {what}\n{logs}"
            time.sleep(0.05)

    def ask(self, ordinal, port, scheme, path, method="GET", headers=(), body=None):
        """The status and the body; 0 when there is no answer."""
        to = (self.address(ordinal), self.ports[port])
        if scheme == "HTTPS":
            # A kubelet takes any certificate.
            anything = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(*to, timeout=5, context=anything)
        else:
            connection = http.client.HTTPConnection(*to, timeout=5)
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body, dict(headers))
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except OSError:
                return 0, ""

    def probe(self, ordinal, kind):
        """What a kubelet finds: whether the probe succeeds."""
        asked = self.rendered.container[kind]["httpGet"]
        status, _ = self.ask(ordinal, asked["port"], asked["scheme"], asked["path"])
        return 200 <= status < 400

    def await_ready(self, ordinals):
        for ordinal in ordinals:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                self.wait(lambda: self.probe(ordinal, kind), f"{kind} of pod {ordinal}")

    def terminate(self, ordinal):
        """Sends SIGTERM, and gives the exit code."""
        process = self.processes.pop(ordinal)
        process.send_signal(signal.SIGTERM)
        code = process.wait(self.rendered.pod["terminationGracePeriodSeconds"])
        self.unplug(ordinal)
        return code

    def unplug(self, ordinal):
        """Takes the device of a pod that ended out of the bridge."""
        device = f"pod{ordinal}"
        # The kernel removes it with the pod's network: now, or when connections that are still
        # being closed no longer keep that, which may be before us.
        subprocess.run(["ip", "link", "delete", device], capture_output=True)

        def gone():
            return subprocess.run(["ip", "link", "show", device], capture_output=True).returncode

        self.wait(gone, "the pod's device to go")

    def helm_test(self):
        """Runs the container of the pod of `helm test`."""
        (test,) = self.rendered.tests
        (container,) = test["spec"]["containers"]
        *shell, script = container["command"]
        variables = {"PATH": os.environ["PATH"], "HOSTNAME": test["metadata"]["name"]}
        for it in container.get("env", []):
            reference = it["valueFrom"]["secretKeyRef"]
            variables[it["name"]] = self.secrets[reference["name"]][reference["key"]].decode()
        for volume in test["spec"].get("volumes", []):
            files = self.work / "test-tls"
            files.mkdir()
            for name, content in self.secrets[volume["secret"]["secretName"]].items():
                (files / name).write_bytes(content)
            script = script.replace("/tls/", f"{files}/")
        return subprocess.run([*shell, script], env=variables, capture_output=True, text=True)


class Pods(unittest.TestCase):
    def test_a_release_finds_itself_grows_and_restarts_without_loss(self):
        token = "bXktdG9rZW4/+w=="
        arguments = ["--set", f"auth.token.value={token}"]
        rendered = template(arguments)
        bearer = {"Authorization": f"Bearer {token}"}.items()
        with tempfile.TemporaryDirectory() as work, Release(work, rendered, 4) as release:
            release.publish(6, f"{NAMESPACE}.svc.cluster.local")
            for ordinal in range(5):
                release.start(ordinal)
            release.await_ready(range(5))

            def members(of, count):
                status, body = release.ask(of, "mgmt", "HTTP", "/cluster/members", headers=bearer)
                return status == 200 and len(re.findall('"alive"', body)) >= count

            for ordinal in range(5):
                release.wait(lambda: members(ordinal, 5), f"pod {ordinal} to see all five")
            _, listed = release.ask(0, "mgmt", "HTTP", "/cluster/members", headers=bearer)
            for ordinal in range(5):
                name = f"hyc-hypercache-{ordinal}"
                self.assertIn(f'"{name}"', listed)
                self.assertIn(f"{name}.hyc-hypercache-headless.hyc-prod.svc.cluster.local:7946", listed)
            self.assertEqual(401, release.ask(0, "api", "HTTP", "/v1/cache/k")[0])

            done = release.helm_test()
            self.assertEqual(0, done.returncode, done.stdout + done.stderr)
            self.assertIn("a value went through hyc-hypercache.hyc-prod.svc.cluster.local:8080", done.stdout)

            # Beyond the seeds: what it is told does not name it.
            release.rendered = template([*arguments, "--set", "replicaCount=6"])
            release.start(5)
            release.await_ready([5])
            release.wait(lambda: members(0, 6), "the sixth pod to be known")

            # A rolling update of one pod, whose data the others have meanwhile.
            keys = [f"/v1/cache/kept-{number}" for number in range(50)]
            for key in keys:
                status, body = release.ask(3, "api", "HTTP", key, "PUT", bearer, key)
                self.assertEqual(200, status, body)
            self.assertEqual(0, release.terminate(1))
            release.start(1)
            release.await_ready([1])
            for key in keys:
                self.assertEqual((200, key), release.ask(1, "api", "HTTP", key, headers=bearer))

    def test_with_certificates_everywhere_probes_and_the_test_succeed(self):
        """Over IPv6 alone, in a cluster of another domain, with clients that must show one."""
        arguments = [
            "--set", "replicaCount=3,nameOverride=cache,clusterDomain=k8s.example",
            "--set", "auth.token.existingSecret=hyc-token",
            "--set", "tls.client.existingSecret=hyc-tls,tls.client.caKey=ca.crt",
            "--set", "tls.mgmt.existingSecret=hyc-tls",
            "--set", "tls.peer.existingSecret=hyc-tls,tests.tls.existingSecret=hyc-tls",
        ]
        domain = f"{NAMESPACE}.svc.k8s.example"
        authority = trustme.CA()
        issued = authority.issue_cert(f"hyc-cache.{domain}", f"*.hyc-cache-headless.{domain}")
        tls = {
            "tls.crt": b"".join(it.bytes() for it in issued.cert_chain_pems),
            "tls.key": issued.private_key_pem.bytes(),
            "ca.crt": authority.cert_pem.bytes(),
        }
        secrets = {"hyc-tls": tls, "hyc-token": {"token": b"a-token"}}
        rendered = template(arguments)
        with tempfile.TemporaryDirectory() as work, Release(work, rendered, 6, secrets) as release:
            release.publish(3, domain)
            for ordinal in range(3):
                release.start(ordinal)
            release.await_ready(range(3))
            # A client without a certificate is not let in, whatever its token.
            self.assertEqual(0, release.ask(0, "api", "HTTPS", "/healthz")[0])
            done = release.helm_test()
            self.assertEqual(0, done.returncode, done.stdout + done.stderr)
            for ordinal in range(3):
                self.assertEqual(0, release.terminate(ordinal))
