//! The list of settings, and what is derived from it.

use std::fmt::Write;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its environment variable.
    pub variable: &'static str,
    /// Its default, as one would write it.
    pub default: &'static str,
    /// What it accepts, to follow "expected".
    pub expected: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Whether its value must never be shown.
    pub secret: bool,
}

impl Setting {
    /// Its flag: `--api-addr` for `HYPERCACHE_API_ADDR`.
    pub fn flag(&self) -> String {
        let name = self.variable.trim_start_matches("HYPERCACHE_");
        format!("--{}", name.to_ascii_lowercase().replace('_', "-"))
    }
}

const fn setting(
    variable: &'static str,
    default: &'static str,
    expected: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        variable,
        default,
        expected,
        help,
        secret: false,
    }
}

const fn secret(variable: &'static str, expected: &'static str, help: &'static str) -> Setting {
    Setting {
        variable,
        default: "",
        expected,
        help,
        secret: true,
    }
}

const ADDRESS: &str = "host:port or :port";
const INTERVAL: &str = "a duration such as 250ms or 1m30s, from 1ms to 24h";
const LEVEL: &str = "ONE, QUORUM or ALL";
const PATH: &str = "the path of a file";
const TOKEN: &str = "visible characters without spaces";
const CLIENT_AUTH: &str = "require or request";

/// Every setting of a node.
pub const TABLE: &[Setting] = &[
    setting(
        "HYPERCACHE_NODE_ID",
        "",
        "1 to 253 visible characters without , @ and /",
        "identity of this node in its cluster; the host's name when empty",
    ),
    setting("HYPERCACHE_API_ADDR", ":8080", ADDRESS, "client listener"),
    setting(
        "HYPERCACHE_MGMT_ADDR",
        ":8081",
        ADDRESS,
        "management listener",
    ),
    setting(
        "HYPERCACHE_DIST_ADDR",
        ":7946",
        ADDRESS,
        "peer listener, and the address peers are told",
    ),
    setting(
        "HYPERCACHE_SEEDS",
        "",
        "a comma list of host:port or id@host:port",
        "nodes to join",
    ),
    setting(
        "HYPERCACHE_REPLICATION",
        "3",
        "a whole number from 1 to 16",
        "copies of each key",
    ),
    setting(
        "HYPERCACHE_CAPACITY",
        "100000",
        "a whole number, 0 for no bound",
        "items this node holds at most",
    ),
    setting(
        "HYPERCACHE_MEMORY_LIMIT",
        "auto",
        "auto, bytes such as 512MiB, a share such as 70%, or 70% of 4Gi; at least 16MiB, 10 to 90%",
        "what the items may take, overhead included; auto is 70% of the container's memory",
    ),
    setting(
        "HYPERCACHE_EVICTION",
        "s3fifo",
        "s3fifo, sieve, lru, lfu or clock",
        "which items go first when a bound is reached",
    ),
    setting(
        "HYPERCACHE_VALUE_LIMIT",
        "4MiB",
        "bytes such as 4MiB, at most 1GiB",
        "largest value",
    ),
    setting(
        "HYPERCACHE_TOMBSTONES",
        "100000",
        "a whole number of at least 1",
        "deletes this node remembers at most",
    ),
    setting(
        "HYPERCACHE_TOMBSTONE_TTL",
        "5m",
        INTERVAL,
        "how long a delete is remembered; longer than HYPERCACHE_HINT_TTL",
    ),
    setting(
        "HYPERCACHE_CORES",
        "auto",
        "auto, or a whole number from 1 to 1024",
        "data cores; auto follows the affinity mask, the CPU quota and the limit",
    ),
    setting(
        "HYPERCACHE_CPU_LIMIT",
        "auto",
        "auto, or a whole number from 1 to 1024",
        "CPUs this process may use, where no quota says so: a container's limit",
    ),
    setting(
        "HYPERCACHE_REQUIRE_EXCLUSIVE_CPUS",
        "false",
        "true or false",
        "refuse to start on CPUs that are shared with others",
    ),
    setting(
        "HYPERCACHE_IO_DRIVER",
        "auto",
        "auto, io_uring or epoll",
        "how cores do I/O; auto takes the best the kernel grants",
    ),
    setting(
        "HYPERCACHE_CONNECTIONS",
        "20000",
        "a whole number of at least 1",
        "client connections open at once",
    ),
    setting(
        "HYPERCACHE_READ_TIMEOUT",
        "5s",
        INTERVAL,
        "for a request to arrive whole",
    ),
    setting(
        "HYPERCACHE_WRITE_TIMEOUT",
        "5s",
        INTERVAL,
        "for a client to take its answer",
    ),
    setting(
        "HYPERCACHE_IDLE_TIMEOUT",
        "60s",
        INTERVAL,
        "for a connection without a request",
    ),
    setting(
        "HYPERCACHE_SHUTDOWN_TIMEOUT",
        "30s",
        INTERVAL,
        "for what is in flight when the node is told to stop",
    ),
    setting(
        "HYPERCACHE_BODY_LIMIT",
        "4MiB",
        "bytes such as 4MiB, at most 1GiB",
        "largest request body",
    ),
    setting(
        "HYPERCACHE_HEAD_LIMIT",
        "16KiB",
        "bytes from 1KiB to 1MiB",
        "largest request head",
    ),
    setting(
        "HYPERCACHE_TARGET_LIMIT",
        "8KiB",
        "bytes from 256 to 1MiB",
        "longest request target",
    ),
    setting(
        "HYPERCACHE_HEADERS_LIMIT",
        "64",
        "a whole number from 1 to 128",
        "header fields of a request",
    ),
    setting(
        "HYPERCACHE_BATCH_LIMIT",
        "10000",
        "a whole number from 1 to 1048576",
        "items of one batch request",
    ),
    setting(
        "HYPERCACHE_BUFFER_LIMIT",
        "256MiB",
        "bytes such as 256MiB, at least 1MiB",
        "what requests and answers of all connections may take while under way",
    ),
    setting(
        "HYPERCACHE_PIPELINE_DEPTH",
        "128",
        "a whole number from 1 to 4096",
        "pipelined requests answered in one write",
    ),
    setting(
        "HYPERCACHE_MAILBOX_DEPTH",
        "1024",
        "a whole number from 1 to 65536",
        "batches a core may have outstanding at another",
    ),
    setting(
        "HYPERCACHE_HOT_COPIES",
        "8MiB",
        "bytes such as 8MiB; 0 for none",
        "what a core's copies of other cores' hot items may take, at most a sixteenth of its memory",
    ),
    setting(
        "HYPERCACHE_LOG_LEVEL",
        "info",
        "debug, info, warn or error",
        "least severity that is logged",
    ),
    setting(
        "HYPERCACHE_HEARTBEAT",
        "1s",
        INTERVAL,
        "probe interval between nodes",
    ),
    setting(
        "HYPERCACHE_INDIRECT_PROBE_K",
        "2",
        "a whole number from 0 to 64",
        "relays of an indirect probe; 0 for none",
    ),
    setting(
        "HYPERCACHE_GOSSIP_INTERVAL",
        "1s",
        INTERVAL,
        "how often membership is passed on",
    ),
    setting("HYPERCACHE_HINT_TTL", "30s", INTERVAL, "life of a hint"),
    setting(
        "HYPERCACHE_HINT_REPLAY",
        "200ms",
        INTERVAL,
        "how often hints are replayed",
    ),
    setting(
        "HYPERCACHE_REBALANCE_INTERVAL",
        "250ms",
        INTERVAL,
        "how often replicas are compared while this node lacks what it owns",
    ),
    setting(
        "HYPERCACHE_READ_CONSISTENCY",
        "ONE",
        LEVEL,
        "owners that answer a read which does not say",
    ),
    setting(
        "HYPERCACHE_WRITE_CONSISTENCY",
        "QUORUM",
        LEVEL,
        "owners that take a write which does not say",
    ),
    setting(
        "HYPERCACHE_PEER_TIMEOUT",
        "1s",
        INTERVAL,
        "for a peer to answer what a client waits for; five times that for repair",
    ),
    secret(
        "HYPERCACHE_PEER_TOKEN",
        TOKEN,
        "secret that nodes show each other; HYPERCACHE_AUTH_TOKEN when empty",
    ),
    setting(
        "HYPERCACHE_PEER_TOKEN_FILE",
        "",
        PATH,
        "file of such secrets, one a line: the first is shown, all are taken",
    ),
    setting(
        "HYPERCACHE_CLOCK_SKEW",
        "10s",
        INTERVAL,
        "how far ahead of this node's clock the version of a write may lie",
    ),
    setting(
        "HYPERCACHE_DEAD_GRACE",
        "60s",
        INTERVAL,
        "how long a dead member keeps its partitions",
    ),
    setting(
        "HYPERCACHE_TRANSFER_RATE",
        "256MiB",
        "bytes such as 256MiB, at most 1TiB; 0 for no bound",
        "items this node hands over and takes over in a second",
    ),
    setting(
        "HYPERCACHE_DROP_GRACE",
        "30s",
        INTERVAL,
        "how long a node keeps partitions that have other owners now",
    ),
    setting(
        "HYPERCACHE_JOIN_TIMEOUT",
        "3s",
        INTERVAL,
        "how long a starting node looks for its seeds before it founds a cluster",
    ),
    setting(
        "HYPERCACHE_BOOTSTRAP_TIMEOUT",
        "30s",
        INTERVAL,
        "how long a starting node waits for the data of its partitions",
    ),
    setting(
        "HYPERCACHE_SYNC_INTERVAL",
        "10s",
        INTERVAL,
        "how often replicas are compared; up to eight times as long while nothing differs",
    ),
    setting(
        "HYPERCACHE_HINTS",
        "100000",
        "a whole number of at least 1",
        "writes kept for owners that are away",
    ),
    setting(
        "HYPERCACHE_HINTS_PER_NODE",
        "50000",
        "a whole number of at least 1",
        "the same for one of them",
    ),
    setting(
        "HYPERCACHE_HINT_BYTES",
        "128MiB",
        "bytes such as 128MiB, at most 1TiB",
        "what these writes may take",
    ),
    setting(
        "HYPERCACHE_HINT_BYTES_PER_NODE",
        "64MiB",
        "bytes such as 64MiB, at most 1TiB",
        "the same for one owner",
    ),
    setting(
        "HYPERCACHE_SLOW_REQUEST",
        "100ms",
        "a duration such as 100ms, at most 24h; 0 for none",
        "requests that take longer are counted as slow, and some are logged",
    ),
    setting(
        "HYPERCACHE_SLOW_REQUEST_LOGS",
        "5",
        "a whole number from 0 to 1000",
        "slow requests that each core logs in a second at most",
    ),
    secret(
        "HYPERCACHE_AUTH_TOKEN",
        TOKEN,
        "bearer token for all three listeners; its identity is default, with every scope",
    ),
    setting(
        "HYPERCACHE_AUTH_TOKEN_FILE",
        "",
        PATH,
        "file of such tokens, one a line: all are taken, peers show the first",
    ),
    setting(
        "HYPERCACHE_AUTH_CONFIG",
        "",
        PATH,
        "YAML policy for the client and management listeners",
    ),
    setting(
        "HYPERCACHE_API_TLS_CERT",
        "",
        PATH,
        "PEM certificate chain of the client listener; TLS when set",
    ),
    setting("HYPERCACHE_API_TLS_KEY", "", PATH, "its PEM key"),
    setting(
        "HYPERCACHE_API_TLS_CLIENT_CA",
        "",
        PATH,
        "PEM authorities of client certificates",
    ),
    setting(
        "HYPERCACHE_API_TLS_CLIENT_AUTH",
        "require",
        CLIENT_AUTH,
        "whether clients must show a certificate where they are verified",
    ),
    setting(
        "HYPERCACHE_MGMT_TLS_CERT",
        "",
        PATH,
        "PEM certificate chain of the management listener; TLS when set",
    ),
    setting("HYPERCACHE_MGMT_TLS_KEY", "", PATH, "its PEM key"),
    setting(
        "HYPERCACHE_MGMT_TLS_CLIENT_CA",
        "",
        PATH,
        "PEM authorities of client certificates there",
    ),
    setting(
        "HYPERCACHE_MGMT_TLS_CLIENT_AUTH",
        "request",
        CLIENT_AUTH,
        "the same there; kubelets show none",
    ),
    setting(
        "HYPERCACHE_PEER_TLS_CERT",
        "",
        PATH,
        "PEM certificate chain that nodes show each other; mutual TLS when set",
    ),
    setting("HYPERCACHE_PEER_TLS_KEY", "", PATH, "its PEM key"),
    setting(
        "HYPERCACHE_PEER_TLS_CA",
        "",
        PATH,
        "PEM authorities of the nodes' certificates",
    ),
    setting(
        "HYPERCACHE_PEER_TLS_MODE",
        "require",
        "require, prefer or accept",
        "accept and prefer serve peers in the clear too, accept also speaks to them so: steps to TLS",
    ),
    setting(
        "HYPERCACHE_PEER_TLS_SERVER_NAME",
        "",
        "a DNS name",
        "name that every node's certificate has; the host it is reached by when empty",
    ),
    setting(
        "HYPERCACHE_OIDC_ISSUER",
        "",
        "an https URL, or http to a loopback host",
        "issuer of identity tokens",
    ),
    setting(
        "HYPERCACHE_OIDC_AUDIENCE",
        "",
        "a name",
        "audience of identity tokens",
    ),
    setting(
        "HYPERCACHE_OIDC_IDENTITY_CLAIM",
        "sub",
        "the name of a claim",
        "claim that is the identity",
    ),
    setting(
        "HYPERCACHE_OIDC_SCOPE_CLAIM",
        "scope",
        "the name of a claim",
        "claim that holds the scopes",
    ),
    setting(
        "HYPERCACHE_OIDC_LEEWAY",
        "30s",
        "a duration such as 30s, at most 10m",
        "how far the issuer's clock may be off",
    ),
    setting(
        "HYPERCACHE_OIDC_REFRESH",
        "5m",
        INTERVAL,
        "how often the issuer's keys are fetched; an unknown key has them fetched at once",
    ),
    setting(
        "HYPERCACHE_OIDC_CA",
        "",
        PATH,
        "PEM authorities of the issuer's certificate; the public ones when empty",
    ),
    setting(
        "HYPERCACHE_RELOAD_INTERVAL",
        "1s",
        INTERVAL,
        "how often the files above are looked at for changes",
    ),
    setting(
        "HYPERCACHE_HANDSHAKES",
        "1024",
        "a whole number of at least 1",
        "TLS handshakes under way at once",
    ),
];

/// The setting of a variable that this program itself names.
pub(super) fn named(variable: &str) -> &'static Setting {
    TABLE
        .iter()
        .find(|setting| setting.variable == variable)
        .unwrap_or_else(|| unreachable!("{variable} is in the table; a test parses them all"))
}

/// Variables a kubelet injects for Services called `hypercache` or `hypercache-…`:
/// `HYPERCACHE_SERVICE_HOST`, `HYPERCACHE_MGMT_PORT_8081_TCP_ADDR` and the like.
pub(super) fn is_service_link(name: &str) -> bool {
    let name = name.trim_start_matches("HYPERCACHE_");
    let after = |word: &str| match name.find(word) {
        Some(0) => Some(&name[word.len()..]),
        Some(at) if name[..at].ends_with('_') => Some(&name[at + word.len()..]),
        _ => None,
    };
    let is_port = after("PORT").is_some_and(|rest| {
        rest.is_empty() || rest.starts_with('_') && (rest.contains("_TCP") || rest.contains("_UDP"))
    });
    let is_service =
        after("SERVICE_").is_some_and(|rest| rest == "HOST" || rest.starts_with("PORT"));
    is_port || is_service
}

/// The setting whose name takes the fewest edits.
pub(super) fn nearest(name: &str) -> &'static Setting {
    TABLE
        .iter()
        .min_by_key(|setting| edits(setting.variable, name))
        .unwrap_or(&TABLE[0])
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The text of `--help`.
pub(super) fn help() -> String {
    let mut text = String::from(
        "hypercache: a distributed in-memory cache node\n\n\
         Usage: hypercache [--flag value | --flag=value]...\n\n  \
         -h, --help          print this\n  \
         -V, --version       print the version\n  \
         --check-config      check the settings and exit\n\n\
         Settings, as a flag or an environment variable; a flag wins:\n",
    );
    text.push_str(
        "  OpenTelemetry is set up by the standard OTEL_ variables, see docs/observability.md.\n",
    );
    for setting in TABLE {
        let default = match setting.default {
            "" => "empty",
            default => default,
        };
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n  {}, {}\n      {}\n      {}; default {}\n",
            setting.flag(),
            setting.variable,
            setting.help,
            setting.expected,
            default
        );
    }
    text
}
