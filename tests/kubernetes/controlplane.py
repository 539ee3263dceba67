"""A Kubernetes control plane to ask: etcd, kube-apiserver and kube-controller-manager, which make
objects and pods as in any cluster. There is no scheduler and no kubelet, so pods stay pending.

Everything listens on loopback addresses of its own, with certificates and credentials that are
made for it, and ends with us.
"""

import contextlib
import http.client
import json
import secrets
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from nodes import claim_network, dies_with_us

# How long is waited for what should come at once.
GUARD_S = 60
STEP_S = 0.05
# Who holds a token, and the group that makes them somebody. The namespaced one has no rights
# but those that a case gives.
CONTROLLERS, OPERATOR, NAMESPACED = "system:kube-controller-manager", "operator", "namespaced"
USERS = {CONTROLLERS: "", OPERATOR: "system:masters", NAMESPACED: ""}


class Refused(Exception):
    """What the API server says no with."""


def wait_for(what, ask):
    """Asks until there is an answer."""
    until = time.monotonic() + GUARD_S
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"in vain: {what}")
        time.sleep(STEP_S)


def await_answer(what, check, ask):
    """Asks a program that may not listen yet; `check` fails when it has ended."""

    def answered():
        check()
        try:
            return ask()
        except (OSError, http.client.HTTPException, Refused):
            return False

    wait_for(what, answered)


class ControlPlane:
    def __init__(self, programs):
        self.programs = Path(programs)
        self.stack = contextlib.ExitStack()
        self.tokens = {user: secrets.token_hex(16) for user in USERS}

    def __enter__(self):
        with self.stack:
            self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
            network, claim = claim_network()
            self.stack.enter_context(claim)
            self.host = f"{network}.1"
            self.url = f"https://{self.host}:6443"
            self.make_credentials()
            self.tls = ssl.create_default_context(cafile=self.folder / "tls.crt")
            self.start_etcd()
            self.start_apiserver()
            self.start_controllers()
            self.version = self.get("/version")["gitVersion"]
            self.kinds = list(self.discover())
            # What is to be closed is closed by __exit__.
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def make_credentials(self):
        tls = ["-keyout", "tls.key", "-out", "tls.crt", "-days", "2", "-subj", "/CN=kube-apiserver"]
        for arguments in [
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", *tls]
            + ["-addext", f"subjectAltName=IP:{self.host}"],
            ["genrsa", "-out", "accounts.key", "2048"],
        ]:
            subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
        lines = (f'{self.tokens[user]},{user},{user},"{group}"\n' for user, group in USERS.items())
        (self.folder / "tokens.csv").write_text("".join(lines))
        for user in USERS:
            self.kubeconfig(user).touch(mode=0o600)
            self.kubeconfig(user).write_text(self.connection_of(user))

    def kubeconfig(self, user):
        return self.folder / f"{user.replace(':', '-')}.kubeconfig"

    def connection_of(self, user):
        # JSON is YAML.
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "tls.crt")}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "here", "cluster": cluster}],
                "users": [{"name": user, "user": {"token": self.tokens[user]}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": user}}],
                "current-context": "here",
            }
        )

    def start(self, program, *options):
        """Starts one of the programs, and returns what tells that it ended."""
        log = self.stack.enter_context(open(self.folder / f"{program}.log", "w"))
        process = subprocess.Popen(
            [self.programs / program, *options],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=dies_with_us,
        )

        def end():
            process.kill()
            process.wait()

        def check():
            if process.poll() is not None:
                said = (self.folder / f"{program}.log").read_text()[-3000:]
                raise AssertionError(f"{program} ended: {said}")

        self.stack.callback(end)
        return check

    def start_etcd(self):
        clients, peers = (f"http://{self.host}:{port}" for port in (2379, 2380))
        check = self.start(
            "etcd",
            "--data-dir=etcd",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
        )

        def healthy():
            with urllib.request.urlopen(f"{clients}/health", timeout=5) as answer:
                return json.load(answer)["health"] == "true"

        await_answer("etcd to be healthy", check, healthy)

    def start_apiserver(self):
        check = self.start(
            "kube-apiserver",
            f"--etcd-servers=http://{self.host}:2379",
            f"--bind-address={self.host}",
            f"--advertise-address={self.host}",
            "--secure-port=6443",
            # Pods could not reach a loopback address, so none is published to them.
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--tls-cert-file=tls.crt",
            "--tls-private-key-file=tls.key",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--anonymous-auth=false",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=accounts.key",
            "--service-account-signing-key-file=accounts.key",
            "--enable-admission-plugins=PodSecurity",
        )

        await_answer("kube-apiserver to be ready", check, lambda: self.ask("GET", "/readyz"))

    def start_controllers(self):
        check = self.start(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig(CONTROLLERS)}",
            f"--bind-address={self.host}",
            "--cert-dir=controllers",
            "--leader-elect=false",
            "--use-service-account-credentials",
            "--service-account-private-key-file=accounts.key",
            "--root-ca-file=tls.crt",
        )

        def working():
            check()
            return self.find("/api/v1/namespaces/default/serviceaccounts/default")

        wait_for("kube-controller-manager to make the default service account", working)

    def ask(self, method, path, body=None, media="application/json"):
        """What the API server answers, and what it warns of."""
        request = urllib.request.Request(
            self.url + path,
            data=body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {self.tokens[OPERATOR]}", "Content-Type": media},
        )
        try:
            with urllib.request.urlopen(request, context=self.tls, timeout=GUARD_S) as answer:
                return answer.read(), answer.headers.get_all("Warning", [])
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode()) from None

    def get(self, path):
        return json.loads(self.ask("GET", path)[0])

    def find(self, path):
        """The object there, or nothing."""
        try:
            return self.get(path)
        except Refused as refused:
            if refused.args[0] == http.client.NOT_FOUND:
                return None
            raise

    def post(self, path, body):
        return json.loads(self.ask("POST", path, body)[0])

    def delete(self, path):
        self.ask("DELETE", path)

    def discover(self):
        """Every kind of object that can be listed: its name in paths, its path, whether it is of
        a namespace, and what it is called."""
        paths = ["/api/v1"]
        for group in self.get("/apis")["groups"]:
            paths.append("/apis/" + group["preferredVersion"]["groupVersion"])
        for path in paths:
            for resource in self.get(path)["resources"]:
                if "list" in resource["verbs"]:
                    yield resource["name"], path, resource["namespaced"], resource["kind"]

    def list(self, plural, path, namespace=None, labels=""):
        within = f"/namespaces/{namespace}" if namespace else ""
        query = urllib.parse.urlencode({"labelSelector": labels})
        return self.get(f"{path}{within}/{plural}?{query}")["items"]

    def objects(self, namespace):
        """All objects of a namespace, and all that are of none, as (kind, namespace, name): object."""
        found = {}
        for plural, path, namespaced, kind in self.kinds:
            # The same events are found as of v1 and of events.k8s.io; they expire by themselves.
            if kind == "Event":
                continue
            for item in self.list(plural, path, namespace if namespaced else None):
                about = item["metadata"]
                found[kind, about.get("namespace"), about["name"]] = item
        return found

    def path_of(self, api, kind, namespace):
        path = f"/api/{api}" if "/" not in api else f"/apis/{api}"
        for plural, at, namespaced, known in self.kinds:
            if (at, known) == (path, kind):
                return f"{path}/namespaces/{namespace}/{plural}" if namespaced else f"{path}/{plural}"
        raise AssertionError(f"the API server has no {kind} of {api}")
