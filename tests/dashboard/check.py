"""What ./run does in a browser: check.py NODE CHROMIUM SCREENSHOTS"""

import json
import re
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from nodes import API, Cluster, Traffic
from playwright.sync_api import expect, sync_playwright

BINARY, CHROMIUM, SHOTS = sys.argv[1], sys.argv[2], Path(sys.argv[3])
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 20_000
CONTRAST_MIN = 4.5
GOOD = "good-token-7f3a"
# What the browser writes to the console of an answer that is an error, or of none.
REFUSED = r"Failed to load resource: .*status of (401|403)"
FAILED = r"Failed to load resource: .*status of (404|503)"
UNREACHED = r"Failed to load resource: net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE)"
# Of our own look at the chart.
READ_BACK = r"Canvas2D: Multiple readback"
CUT = r"Failed to load resource: net::ERR_(INCOMPLETE_CHUNKED_ENCODING|CONNECTION_RESET)"

TOLD_OF_VIOLATIONS = """addEventListener("securitypolicyviolation",
    event => console.error("against the policy: " + event.violatedDirective));"""


class Visit:
    """A page, and all that it asked for and complained of."""

    def __init__(self, browser, url, expected=(), prepare=None, **options):
        self.url, self.expected = url, list(expected)
        self.requests, self.complaints = [], []
        self.context = browser.new_context(**({"viewport": {"width": 1440, "height": 900}} | options))
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.add_init_script(TOLD_OF_VIOLATIONS)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self.heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        if prepare:
            prepare(self.page)
        self.page.goto(url)

    def heard(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def close(self):
        """Ends the visit: nothing was asked of others, and nothing complained of but the expected."""
        self.context.close()
        strange = [url for url in self.requests if not url.startswith((self.url, "data:"))]
        assert not strange, f"asked elsewhere: {strange}"
        unexpected = [
            words for words in self.complaints if not any(re.search(known, words) for known in self.expected)
        ]
        assert not unexpected, f"the console says: {unexpected}"


@contextmanager
def visit(*args, **options):
    here = Visit(*args, **options)
    try:
        yield here.page, here
    except BaseException:
        try:
            here.page.screenshot(path=SHOTS / "failed.png", full_page=True)
        finally:
            here.context.close()
        raise
    here.close()


def headline(page):
    return page.locator("#word")


def row(page, region, name):
    """The row of a table that a header cell names."""
    cell = page.get_by_role("rowheader", name=name)
    return page.get_by_role("region", name=region, exact=True).get_by_role("row").filter(has=cell)


def tile(page, label):
    return page.locator(".tile", has=page.get_by_role("heading", name=label, exact=True)).locator(".big")


def number_of(locator):
    found = re.search(r"[\d.,]+", locator.inner_text())
    return float(found[0].replace(",", "")) if found else None


def until(page, what, holds):
    """Waits for what no locator can express."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        page.wait_for_timeout(50)


# What is seen.


def shows_the_cluster(page):
    expect(headline(page)).to_have_text("Healthy")
    for name in ("n1", "n2", "n3"):
        expect(row(page, "Members", name)).to_contain_text("alive")
        expect(row(page, "Members", name)).to_contain_text(":17946")
    expect(row(page, "Members", "n1")).to_contain_text("this node")
    expect(page).to_have_title(re.compile("Healthy"))
    expect(page.locator("#fresh")).to_have_text("Live")
    # The events say so, not only the polls.
    page.get_by_text("Where this comes from").click()
    events = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="/cluster/events"))
    expect(events).to_contain_text(re.compile(r"[0-3]\u202fs ago\s*none"))
    page.get_by_text("Where this comes from").click()
    page.get_by_text("Configuration", exact=True).click()
    expect(page.locator("#config")).to_contain_text("evictionAlgorithm")
    page.get_by_text("Configuration", exact=True).click()


def shows_the_partitions(page):
    region = "Partitions and their owners"
    primaries = []
    for name in ("n1", "n2", "n3"):
        line = row(page, region, name)
        expect(line).to_contain_text("owner")
        primaries.append(int(re.search(r"\d[\d,]*", line.get_by_role("cell").first.inner_text())[0].replace(",", "")))
    assert sum(primaries) == 4096, primaries
    strip = page.get_by_role("img", name=re.compile(r"4,096 partitions by primary: n1 [\d,]+, n2"))
    expect(strip).to_be_visible()
    colours = """canvas => {
        const { width, height } = canvas;
        const seen = new Set(), data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) seen.add(data.slice(at, at + 3).join());
        return seen.size;
    }"""
    assert strip.evaluate(colours) == 3, "one colour for each member"
    page.get_by_role("button", name="n2").click()
    expect(page.get_by_role("button", name="n2")).to_have_attribute("aria-pressed", "true")
    until(page, "all but one member's partitions are dimmed", lambda: strip.evaluate(colours) == 2)
    page.get_by_role("button", name="n2").click()


def shows_the_load(page):
    for label in ("Requests", "Hit ratio", "Get latency, p99", "Item memory"):
        until(page, f"{label} is above zero", lambda: number_of(tile(page, label)))
    # Two of three gets find something.
    until(page, "the hit ratio is that of the traffic", lambda: 55 < number_of(tile(page, "Hit ratio")) < 75)
    gets = page.get_by_role("region", name="Latency").get_by_role("row").filter(
        has=page.get_by_role("rowheader", name="get"))
    expect(gets.first).to_be_visible()
    rows = [[cell.inner_text() for cell in line.get_by_role("cell").all()] for line in gets.all()]
    busy = [cells for cells in rows if not cells[1].startswith("0") and cells[1] != "–"]
    assert busy, rows
    for cells in busy:
        assert all(re.match(r"[\d.]+\s*(ns|µs|ms|s)", cell) for cell in cells[2:7]), cells
    loads = [number_of(row(page, "Cores", name).get_by_role("cell").first) for name in ("0", "1", "All")]
    assert loads[2] > 0 and loads[2] >= max(loads[:2]), loads
    chart = page.get_by_role("img", name=re.compile(r"Requests, last .+: lowest .+, highest .+, now"))
    expect(chart).to_be_visible()
    until(page, "the chart has a line", lambda: "L" in chart.locator("path").last.get_attribute("d"))


# How it is seen.

CONTRASTS = """() => {
    const parts = colour => { const all = colour.match(/[\\d.]+/g).map(Number); return all.length < 4 ? [...all, 1] : all; };
    const light = colour => {
        const [r, g, b] = colour.map(part => (part /= 255) <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const worst = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
        if (!element.checkVisibility() || element.closest(".unseen, .skip")) continue;
        let behind = element;
        while (behind && parts(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
        const back = light(parts(getComputedStyle(behind || document.documentElement).backgroundColor));
        const front = light(parts(getComputedStyle(element).color));
        const contrast = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
        worst.push([contrast, texts.currentNode.data.trim().slice(0, 40)]);
    }
    return worst.sort((one, other) => one[0] - other[0]);
}"""


def is_legible(page, name):
    """In both colour schemes, wide, at 200 % and at 320 px."""
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 5, contrasts
        assert contrasts[0][0] >= CONTRAST_MIN, f"{name}, {scheme}: {contrasts[:5]}"
        backgrounds.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
        for width in (1440, 720, 320):
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=SHOTS / f"{name}-{scheme}-{width}.png", full_page=True)
            across = page.evaluate("document.documentElement.scrollWidth")
            assert across <= width, f"{name} is {across} px wide where {width} are"
    assert len(backgrounds) == 2, "dark is not light"
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1440, "height": 900})


def is_understood_by_readers(page):
    """Landmarks, headings, tables, what changes: by their roles and names."""
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("banner")).to_have_count(1)
    expect(page.get_by_role("contentinfo")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("hypercache"))
    regions = ["Healthy", "Members", "Partitions and their owners", "Latency", "Cores", "Change of owners",
               "Hints, quorums and repair", "Memory and heartbeat"]
    for region in regions:
        expect(page.get_by_role("region", name=region, exact=True)).to_have_count(1)
        expect(page.get_by_role("heading", name=region, exact=True, level=2)).to_have_count(1)
    for table in page.get_by_role("table").all():
        assert table.locator("caption").inner_text().strip()
        assert table.locator("thead th:not([scope=col])").count() == 0
        assert table.locator("tbody tr").count() == table.locator("tbody th[scope=row]").count() > 0
    for chart in page.locator("svg:not([aria-hidden]), canvas").all():
        assert chart.get_attribute("role") == "img" and chart.get_attribute("aria-label"), chart
    live = page.locator("[aria-live], [role=status], [role=alert], [role=log]")
    assert [each.get_attribute("id") for each in live.all()] == ["wrong", "said"]
    assert page.locator("html").get_attribute("lang") == "en"


def stays_quiet(page):
    """Readers are not told of each tick."""
    page.evaluate("""() => {
        window.told = 0;
        new MutationObserver(() => { window.told += 1; }).observe(document.getElementById("said"),
            { childList: true, characterData: true, subtree: true });
    }""")
    before = page.locator("#about").inner_text()
    expect(page.locator("#about")).not_to_have_text(before)
    beats = page.get_by_text("Heartbeats answered").locator("xpath=../dd")
    before = beats.inner_text()
    expect(beats).not_to_have_text(before)
    assert page.evaluate("window.told") == 0


FOCUSED = """() => {
    const at = document.activeElement, style = getComputedStyle(at);
    return { name: at.getAttribute("aria-label") || at.innerText || at.id, tag: at.tagName,
             outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
}"""


def tab_through(page, count_max=40):
    """What the tab key reaches from the start of the page, in order."""
    # A click on nothing, so that the next tab starts from there.
    page.mouse.click(2, 2)
    reached = []
    for _ in range(count_max):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at["tag"] == "BODY" or (reached and at["name"] == reached[0]):
            break
        assert at["outlined"], f"the focus on {at['name']} is not seen"
        reached.append(at["name"])
    return reached


def works_by_keyboard(page):
    page.reload()
    expect(page.get_by_role("button", name="n3")).to_be_visible()
    reached = tab_through(page)
    wanted = ["Skip to the state of the cluster", "Pause", "n1", "n2", "n3", "Configuration", "Where this comes from"]
    assert reached == wanted, reached
    page.get_by_role("link", name="Skip to").focus()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("button", name="n1").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="n1")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#fresh")).to_have_text(re.compile("Paused, data from"))
    page.keyboard.press("Enter")
    expect(page.locator("#fresh")).to_have_text("Live")
    # Tables that are wider than the screen can be scrolled.
    page.set_viewport_size({"width": 320, "height": 900})
    cores = page.get_by_role("region", name="Load of each core")
    expect(cores).to_be_visible()
    assert "Load of each core" in " ".join(tab_through(page))
    cores.focus()
    page.keyboard.press("ArrowRight")
    until(page, "the table is scrolled", lambda: cores.evaluate("node => node.scrollLeft") > 0)
    page.set_viewport_size({"width": 1440, "height": 900})


def is_held_by_its_policy(page):
    """The policy is in force: what is injected does not run."""
    headers = page.reload().all_headers()
    assert headers["content-type"] == "text/html; charset=utf-8", headers
    assert headers["x-content-type-options"] == "nosniff", headers
    assert headers["referrer-policy"] == "no-referrer", headers
    assert headers["cache-control"] == "no-cache", headers
    assert "default-src 'none'" in headers["content-security-policy"], headers
    expect(row(page, "Members", "n2")).to_be_visible()
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.injected = true";
        document.body.append(script);
        document.body.setAttribute("style", "outline: 9px solid red");
    }""")
    assert page.evaluate("window.injected") is None
    assert page.evaluate("getComputedStyle(document.body).outlineStyle") == "none"
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 1, () => 0)") == 0


# What happens to nodes.


def sees_a_node_die(page, cluster):
    page.evaluate("window.same = true")
    cluster.kill(3)
    expect(row(page, "Members", "n3")).to_contain_text(re.compile("suspect|dead"))
    expect(headline(page)).to_have_text(re.compile("Degraded|Critical"))
    expect(row(page, "Members", "n3")).to_contain_text("dead")
    expect(page.locator("#reasons")).to_contain_text("n3 is dead (1 of 3 members)")
    expect(page.get_by_role("status")).to_contain_text("n3 is dead")
    expect(page.locator("#changes")).to_contain_text(re.compile("n3 was (alive|suspect) and is"))
    expect(page).to_have_title(re.compile("Degraded|Critical"))
    is_legible(page, "degraded")
    assert page.evaluate("window.same"), "the page was loaded anew"


def sees_its_own_node_go_and_return(page, cluster):
    cluster.kill(1)
    expect(headline(page)).to_have_text("No answer from n1")
    expect(page.locator("#reasons")).to_contain_text(re.compile(r"What follows is from \d+\u202fs ago"))
    expect(page.locator("#fresh")).to_have_text(re.compile(r"No answer, data from \d+\u202fs ago"))
    # Old data stays, and is marked as old.
    expect(row(page, "Members", "n2")).to_be_visible()
    page.screenshot(path=SHOTS / "lost-light-1440.png", full_page=True)
    cluster.start(1)
    expect(page.locator("#fresh")).to_have_text("Live")
    expect(page.locator("#changes")).to_contain_text("n1 has restarted")
    expect(headline(page)).to_have_text(re.compile("Degraded|Critical"))
    # No counter ran backwards.
    assert "-" not in "".join(page.locator(".tile .big").all_inner_texts())
    assert page.evaluate("window.same"), "the page was loaded anew"


def bears_with_bad_answers(browser, url):
    """Routes that are not there or fail, and names that would be markup."""
    hostile = "<img src=x onerror=alert(1)>"
    named = {"replication": 3, "virtualNodes": 64, "members": [
        {"ID": hostile, "Address": "<b>address</b>", "State": "alive", "Incarnation": 1},
        {"ID": "n9", "Address": "10.0.0.9:7946", "State": "suspect", "Incarnation": 2}]}

    def prepare(page):
        answer = {"content_type": "application/json"}
        missing = json.dumps({"error": "no such route", "code": "NOT_FOUND"})
        page.route("**/cluster/events", lambda route: route.fulfill(status=404, body=missing, **answer))
        page.route("**/stats/cores", lambda route: route.fulfill(status=503, body="busy"))
        page.route("**/cluster/partitions", lambda route: route.fulfill(status=404, body=missing, **answer))
        page.route("**/config", lambda route: route.fulfill(status=403, body='{"error": "this identity lacks the scope admin"}', **answer))
        page.route("**/cluster/rebalance", lambda route: route.fulfill(status=200, body="{", **answer))
        page.route("**/cluster/members", lambda route: route.fulfill(status=200, body=json.dumps(named), **answer))

    with visit(browser, url, expected=[FAILED, REFUSED], prepare=prepare) as (page, _):
        expect(row(page, "Members", hostile)).to_contain_text("<b>address</b>")
        assert page.locator("main img, main b").count() == 0
        expect(headline(page)).to_have_text("Degraded")
        expect(page.locator("#reasons")).to_contain_text("n9 does not answer")
        expect(page.locator("#ring-none")).to_have_text("Not known: status 404: no such route.")
        expect(page.locator("#latency-none")).to_have_text("Not known: status 503.")
        expect(page.locator("#fresh")).to_have_text("Live")
        page.get_by_text("Where this comes from").click()
        sources = page.get_by_role("table", name="Routes this page asks")
        expect(sources).to_contain_text("status 403: this identity lacks the scope admin")
        expect(sources).to_contain_text("an answer that is no JSON")


def reads_events_in_any_pieces(page):
    """Lines ended in each of the three ways, cut anywhere."""
    told = page.evaluate("""() => {
        const parse = text => {
            const whole = [], single = [];
            eventReader((name, data) => whole.push(name + "=" + data))(text);
            const read = eventReader((name, data) => single.push(name + "=" + data));
            for (const piece of text) read(piece);
            return [whole, single];
        };
        return parse(": ignored\\r\\nretry: 70\\r\\nevent: a\\r\\ndata: 1\\r\\ndata:2\\r\\n\\r\\n" +
            "data: x: y\\rdata\\r\\rretry: no\\nid: 4\\nevent: b\\n\\ndata:  3\\n\\n");
    }""")
    assert told[0] == told[1] == ["retry=70", "a=1\n2", "message=x: y\n", "message= 3"], told


# Who may see it.


def asks_for_a_token(browser, url):
    with visit(browser, url, expected=[REFUSED]) as (page, here):
        field = page.get_by_label("Bearer token")
        expect(field).to_be_visible()
        expect(field).to_be_focused()
        expect(headline(page)).to_have_text("Sign in to see the cluster")
        expect(page.locator("#reasons")).to_contain_text("/health says: ok")
        expect(page.get_by_role("region", name="Members", exact=True)).to_have_count(0)
        wanted = ["Skip to the state of the cluster", "token", "Use this token"]
        reached = tab_through(page)
        assert reached[:3] == wanted, reached
        is_legible(page, "locked")

        field.fill("wrong-token")
        field.press("Enter")
        alert = page.get_by_role("alert")
        expect(alert).to_have_text("This token is not accepted: it is wrong or has expired.")
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")

        field.fill("two words")
        field.press("Enter")
        expect(alert).to_contain_text("no spaces")

        field.fill("writer-token")
        field.press("Enter")
        expect(alert).to_contain_text("lacks the scope read")

        # By keyboard alone.
        page.keyboard.type(GOOD)
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Use this token")).to_be_focused()
        page.keyboard.press("Space")
        expect(row(page, "Members", "n1")).to_contain_text("alive")
        expect(field).to_be_hidden()
        expect(page.locator("main")).to_be_focused()
        page.reload()
        expect(row(page, "Members", "n1")).to_contain_text("alive")
        kept = page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage).join()]")
        assert kept == [0, "", GOOD], kept
        assert not [asked for asked in here.requests if "token" in asked], "a token is in an address"
        assert GOOD not in page.url

        page.get_by_role("button", name="Forget token").click()
        expect(field).to_be_visible()
        expect(page.get_by_role("region", name="Members", exact=True)).to_have_count(0)
        assert page.evaluate("sessionStorage.length") == 0
        assert "n1" not in page.locator("main").inner_text()


POLICY = f"""tokens:
  - {{id: reader, token: {GOOD}, scopes: [read]}}
  - {{id: writer, token: writer-token, scopes: [write]}}
"""


def step(check, *args):
    began = time.monotonic()
    try:
        check(*args)
    except BaseException:
        print(f"dashboard: {check.__name__}:", file=sys.stderr)
        raise
    print(f"  {check.__name__.replace('_', ' ')}: {time.monotonic() - began:.1f} s")


def main(work, browser):
    with Cluster(BINARY, work, cores=[2, 1, 1]) as cluster:
        with visit(browser, cluster.page(), expected=[UNREACHED, CUT, READ_BACK]) as (page, _):
            step(shows_the_cluster, page)
            with Traffic(cluster.address(1, API)):
                step(shows_the_load, page)
                step(shows_the_partitions, page)
                step(is_legible, page, "healthy")
            step(is_understood_by_readers, page)
            step(stays_quiet, page)
            step(works_by_keyboard, page)
            step(reads_events_in_any_pieces, page)
            step(sees_a_node_die, page, cluster)
            step(sees_its_own_node_go_and_return, page, cluster)
        step(bears_with_bad_answers, browser, cluster.page(2))
        refused = [r"against the policy", r"Content Security Policy"]
        with visit(browser, cluster.page(2), expected=refused) as (page, _):
            step(is_held_by_its_policy, page)
    policy = Path(work) / "policy.yaml"
    policy.write_text(POLICY)
    guarded = {"HYPERCACHE_AUTH_CONFIG": str(policy), "HYPERCACHE_PEER_TOKEN": "peers"}
    with Cluster(BINARY, work, cores=[1], **guarded) as cluster:
        step(asks_for_a_token, browser, cluster.page())


# A signal unwinds, so that nodes and browser end with us.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
SHOTS.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
    chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    try:
        expect.set_options(timeout=PATIENCE_MS)
        main(scratch, chromium)
    finally:
        chromium.close()
