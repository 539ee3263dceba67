"""Lets a real Prometheus scrape a real node, and asks it what it found.

    check.py NODE

Fails with one line for each thing that is wrong. Everything runs on loopback, on ports that
are free, and ends with this script.
"""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from nodes import API, MANAGEMENT, Cluster, dies_with_us

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
TOKEN = "of-the-scraper"
# How long is waited for what should come at once.
GUARD_S = 60
# How many keys are written and read before the scrape.
KEYS = 50


def fail(what):
    sys.exit(f"prometheus: FAILED: {what}")


@contextlib.contextmanager
def running(command, **options):
    process = subprocess.Popen(command, preexec_fn=dies_with_us, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def fetch(address, target, method="GET", body=None, headers=()):
    request = urllib.request.Request(
        f"http://{address}{target}", data=body, method=method, headers=dict(headers)
    )
    with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
        return answer.headers, answer.read()


def wait_for(what, ask):
    """Asks until there is an answer."""
    until = time.monotonic() + GUARD_S
    problem = "no answer"
    while time.monotonic() < until:
        try:
            answer = ask()
            if answer:
                return answer
            problem = f"last: {answer!r}"
        except (OSError, urllib.error.URLError) as error:
            problem = str(error)
        time.sleep(0.05)
    fail(f"in vain: {what} ({problem})")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_exposition(mgmt):
    """What promtool says of each format; it reads the older one."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    headers, text = fetch(mgmt, "/metrics", headers=bearer)
    if not headers["Content-Type"].startswith("text/plain; version=0.0.4"):
        fail(f"/metrics is {headers['Content-Type']}")
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    complaints = (found.stdout + found.stderr).decode().strip()
    if found.returncode or complaints:
        fail(f"promtool says of /metrics: {complaints}")


def start_prometheus(stack, mgmt, folder):
    (folder / "token").write_text(TOKEN)
    (folder / "prometheus.yaml").write_text(
        f"""
global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}}
rule_files: [{json.dumps(str(DEPLOY / "prometheus" / "alerts.yaml"))}]
scrape_configs:
  - job_name: hypercache
    authorization: {{credentials_file: {json.dumps(str(folder / "token"))}}}
    static_configs: [{{targets: [{json.dumps(mgmt)}]}}]
"""
    )
    address = f"127.0.0.1:{free_port()}"
    log = stack.enter_context(open(folder / "log", "w"))
    stack.enter_context(
        running(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    )
    return address


def query(prometheus, expression):
    quoted = urllib.parse.urlencode({"query": expression})
    try:
        _, body = fetch(prometheus, f"/api/v1/query?{quoted}")
    except urllib.error.HTTPError as error:
        fail(f"{expression}: {error.read().decode()}")
    return json.loads(body)["data"]["result"]


def value(prometheus, expression):
    result = query(prometheus, expression)
    return float(result[0]["value"][1]) if result else None


def panels(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, text in [
                ("$job", "hypercache"),
                ("$instance", ".*"),
                ("$__rate_interval", "1m"),
            ]:
                expression = expression.replace(name, text)
            if "$" in expression:
                fail(f"a variable that is not known: {expression}")
            yield panel["title"], expression


def main(binary):
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {"HYPERCACHE_AUTH_TOKEN": TOKEN}
        node = stack.enter_context(Cluster(binary, folder, [2], **settings))
        api, mgmt = node.address(1, API), node.address(1, MANAGEMENT)
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        for key in range(KEYS):
            fetch(api, f"/v1/cache/{key}", "PUT", b"value", bearer)
            fetch(api, f"/v1/cache/{key}", headers=bearer)
        check_exposition(mgmt)

        prometheus = start_prometheus(stack, mgmt, folder)
        wait_for("the node to be scraped", lambda: value(prometheus, "up") == 1)
        # Twice at least, so that rates have something to go by.
        wait_for(
            "a second scrape",
            lambda: value(prometheus, "count_over_time(up[1m])") not in (None, 1.0),
        )
        for expression, expected in [
            ("sum(hypercache_sets_total)", KEYS),
            ("sum(hypercache_request_duration_seconds_count)", 2 * KEYS),
            ('sum(hypercache_request_duration_seconds_bucket{le="+Inf"})', 2 * KEYS),
            ("hypercache_dist_members_alive", 1),
            ("count(hypercache_requests_total)", 2),
        ]:
            wait_for(
                f"{expression} to be {expected}",
                lambda: value(prometheus, expression) == expected,
            )
        quantile = "histogram_quantile(0.99, sum by (le) (hypercache_request_duration_seconds_bucket))"
        if not 0 < value(prometheus, quantile) < GUARD_S:
            fail(f"{quantile} is {value(prometheus, quantile)}")
        kinds = json.loads(fetch(prometheus, "/api/v1/metadata")[1])["data"]
        if kinds["hypercache_requests"][0]["type"] != "counter":
            fail("Prometheus did not take OpenMetrics")

        def evaluated():
            groups = json.loads(fetch(prometheus, "/api/v1/rules")[1])["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            for rule in rules:
                if rule["health"] == "err":
                    fail(f"{rule['name']}: {rule['lastError']}")
            return rules and all(rule["health"] == "ok" for rule in rules) and rules

        rules = wait_for("all rules to be evaluated", evaluated)
        firing = [rule["name"] for rule in rules if rule["state"] != "inactive"]
        if firing:
            fail(f"a node in good health has alerts: {firing}")

        dashboard = json.loads((DEPLOY / "grafana" / "hypercache.json").read_text())
        shown = list(panels(dashboard))
        for title, expression in shown:
            if not query(prometheus, expression):
                fail(f"the panel {title!r} shows nothing: {expression}")
    print(f"prometheus: {len(rules)} rules and {len(shown)} queries of panels on a real scrape")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
