"""Real nodes to look at: clusters on loopback addresses of their own, killed when done with."""

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

API, MANAGEMENT, PEERS = 18080, 18081, 17946
READY_S_MAX = 60
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

# Found dead in about a second, as the other tests of clusters have it.
PACE = {
    "HYPERCACHE_HEARTBEAT": "200ms",
    "HYPERCACHE_GOSSIP_INTERVAL": "200ms",
    "HYPERCACHE_SYNC_INTERVAL": "500ms",
    "HYPERCACHE_JOIN_TIMEOUT": "1m",
    "HYPERCACHE_PEER_TIMEOUT": "1s",
    "HYPERCACHE_MEMORY_LIMIT": "64MiB",
}


def dies_with_us():
    """Has the kernel end a child when this process is gone, however it goes."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def claim_network():
    """The first three bytes of addresses that nobody else has, and the claim: a listener on the
    last of them, as the Rust tests and the measuring tools claim theirs."""
    for step in range(60_000):
        number = os.getpid() * 7 + step
        network = f"127.{1 + (number >> 8) % 250}.{number % 256}"
        claim = socket.socket()
        try:
            claim.bind((f"{network}.254", 7000))
            claim.listen()
            return network, claim
        except OSError:
            claim.close()
    raise OSError("no loopback addresses are free")


class Cluster:
    """Nodes `n1`, `n2`, …, each with as many cores as `cores` says."""

    def __init__(self, binary, work, cores, **settings):
        self.binary, self.work, self.cores = binary, work, cores
        self.settings = settings
        self.network, self.claim = claim_network()
        self.processes = {}

    def __enter__(self):
        try:
            for number in range(1, len(self.cores) + 1):
                self.start(number)
            for number in self.processes:
                self.await_ready(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for number in list(self.processes):
            self.kill(number)
        self.claim.close()

    def address(self, number, port):
        return f"{self.network}.{number}:{port}"

    def page(self, number=1):
        return f"http://{self.address(number, MANAGEMENT)}/"

    def start(self, number):
        seeds = (f"n{seed}@{self.address(seed, PEERS)}" for seed in range(1, len(self.cores) + 1))
        environment = PACE | self.settings | {
            "HYPERCACHE_NODE_ID": f"n{number}",
            "HYPERCACHE_CORES": str(self.cores[number - 1]),
            "HYPERCACHE_API_ADDR": self.address(number, API),
            "HYPERCACHE_MGMT_ADDR": self.address(number, MANAGEMENT),
            "HYPERCACHE_DIST_ADDR": self.address(number, PEERS),
            "HYPERCACHE_SEEDS": ",".join(seeds),
        }
        with open(self.log(number), "ab") as log:
            self.processes[number] = subprocess.Popen(
                [self.binary],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_us,
            )

    def log(self, number):
        return Path(self.work) / f"{self.network}-n{number}.log"

    def kill(self, number):
        """Ends a node as a crash would."""
        process = self.processes.pop(number)
        process.kill()
        process.wait()

    def await_ready(self, number):
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            if self.processes[number].poll() is not None:
                break
            try:
                connection = http.client.HTTPConnection(self.address(number, MANAGEMENT), timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"n{number} did not become ready: {self.log(number).read_text()[-2000:]}")


class Traffic:
    """Puts keys and gets them, and others that are not there, until it is stopped."""

    def __init__(self, address):
        self.address = address
        self.ends = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()

    def run(self):
        connection = http.client.HTTPConnection(self.address, timeout=10)
        turn = 0
        while not self.ends.is_set():
            turn += 1
            key = f"/v1/cache/k{turn % 500}"
            try:
                for method, path in (("PUT", key), ("GET", key), ("GET", key), ("GET", f"/v1/cache/none{turn}")):
                    connection.request(method, path, body=b"value" if method == "PUT" else None)
                    connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
            # Enough to be seen, and most of the machine is left to the page.
            self.ends.wait(0.01)
