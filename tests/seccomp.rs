//! Real nodes under the chart's seccomp profile, which grants io_uring where the default
//! profiles of container runtimes refuse it, and refuses what a node never asks for.
//!
//! The profile is in the form of the OCI runtime specification (config-linux.md, Seccomp), and is
//! read here as runtimes read it: a call that this architecture does not have is passed over.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/files.rs"]
mod files;
#[path = "support/node.rs"]
mod node;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use certificates::{Authority, client_config};
use cluster::{Cluster, Loopback, Place, until};
use files::Folder;
use node::{Client, GUARD, Node};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConnection, StreamOwned};
use seccompiler::{BpfProgram, apply_filter, compile_from_json};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

const PROFILE: &str = include_str!("../chart/hypercache/files/seccomp-io-uring.json");

/// What a process that has broken out of the node would try first.
const DANGEROUS: &[&str] = &[
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_settime",
    "delete_module",
    "execveat",
    "finit_module",
    "fsopen",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "memfd_create",
    "mknod",
    "mknodat",
    "mount",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// What is needed where no test here comes to, or not on every machine, by who needs it.
const ELSEWHERE: &[(&str, &[&str])] = &[
    ("what DNS takes", &["recvmsg", "sendmmsg"]),
    ("process 1, and a thread that aborts", &["tgkill", "wait4"]),
    ("kernels before 6.2", &["getdents64"]),
    (
        "glommio",
        &["accept", "getpeername", "io_uring_register", "membarrier"],
    ),
    ("an epoll that writes in parts", &["writev"]),
    (
        "architectures without the older calls",
        &["epoll_pwait", "faccessat", "ppoll", "readlinkat"],
    ),
    ("musl", &["fstat", "open", "readlink", "stat", "tkill"]),
    (
        "runc and crun, between installing the profile and executing the node",
        &[
            "capget",
            "capset",
            "chdir",
            "close_range",
            "faccessat2",
            "fchown",
            "fstatfs",
            "getppid",
            "nanosleep",
            "openat2",
            "setgid",
            "setgroups",
            "setresgid",
            "setresuid",
            "setuid",
        ],
    ),
];

fn profile() -> Value {
    serde_json::from_str(PROFILE).unwrap()
}

fn rules() -> Vec<Value> {
    profile()["syscalls"].as_array().unwrap().clone()
}

fn names(rule: &Value) -> impl Iterator<Item = &str> {
    let names = rule["names"].as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap())
}

/// The calls that are allowed, whatever their arguments are.
fn allowed() -> BTreeSet<String> {
    let rules = rules().into_iter();
    rules
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule.get("args").is_none())
        .flat_map(|rule| names(&rule).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn compile(filter: &Value) -> Result<BpfProgram, seccompiler::Error> {
    let text = json!({ "profile": filter }).to_string();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    Ok(compile_from_json(text.as_bytes(), arch)?
        .remove("profile")
        .unwrap())
}

/// A rule of ours, or none when this architecture has no such call.
fn rule(name: &str, arguments: &Value) -> Option<Value> {
    let mut rule = json!({ "syscall": name });
    if let Some(arguments) = arguments.as_array() {
        let of = |argument: &Value| match argument["op"].as_str().unwrap() {
            "SCMP_CMP_EQ" => json!({
                "index": argument["index"], "type": "dword", "op": "eq", "val": argument["value"],
            }),
            "SCMP_CMP_MASKED_EQ" => json!({
                "index": argument["index"], "type": "qword",
                "op": {"masked_eq": argument["value"]}, "val": argument["valueTwo"],
            }),
            other => panic!("{other}"),
        };
        rule["args"] = arguments.iter().map(of).collect();
    }
    let alone = json!({"mismatch_action": "trap", "match_action": "allow", "filter": [rule]});
    compile(&alone).ok().map(|_| rule)
}

/// The profile as the kernel takes it. Of several programs the strictest decides, so what is
/// refused by a rule of its own, with an error of its own, is a program of its own. That comes
/// first: the other refuses that one more is installed.
fn programs(otherwise: &Value) -> Vec<BpfProgram> {
    let errno = |of: &Value| json!({"errno": of.as_u64().unwrap()});
    let (mut programs, mut filter) = (Vec::new(), Vec::new());
    for of in rules() {
        let rules: Vec<Value> = names(&of)
            .filter_map(|name| rule(name, &of["args"]))
            .collect();
        filter.extend(rules.clone());
        if of["action"] != "SCMP_ACT_ALLOW" {
            assert_eq!(of["action"], "SCMP_ACT_ERRNO");
            programs.push(json!({
                "mismatch_action": "allow", "match_action": errno(&of["errnoRet"]), "filter": rules,
            }));
        }
    }
    programs.push(json!({
        "mismatch_action": otherwise, "match_action": "allow", "filter": filter,
    }));
    programs
        .iter()
        .map(|filter| compile(filter).unwrap())
        .collect()
}

/// Has a command run under the profile from before its program is executed. Whatever the
/// profile does not name ends it at once: much that a runtime would answer with an error is
/// made up for where it is called, at a price, and no test would see that it is missing.
fn confine(command: &mut Command) {
    let programs = programs(&json!("kill_process"));
    // SAFETY: between fork and exec only system calls on memory prepared before.
    unsafe {
        command.pre_exec(move || {
            let mut programs = programs.iter();
            programs
                .try_for_each(|program| apply_filter(program))
                .map_err(|_| std::io::Error::last_os_error())
        });
    }
}

struct Confined(Loopback);

impl Place for Confined {
    fn network(&self) -> &str {
        self.0.network()
    }

    fn enter(&self, _: usize, command: &mut Command) {
        confine(command);
    }
}

/// A driver, and the one that a node reports which was asked for it and is not confined.
fn drivers() -> Vec<(&'static str, Value)> {
    let asked = match cfg!(feature = "glommio") {
        true => &["auto", "io_uring"][..],
        false => &["auto", "io_uring", "epoll"],
    };
    let reported = |driver: &str| {
        let node = Node::start(&[("HYPERCACHE_IO_DRIVER", driver)]);
        node.serving["driver"].clone()
    };
    let found = asked.iter().map(|&driver| (driver, reported(driver)));
    found.collect()
}

#[test]
fn a_confined_node_has_the_driver_that_it_would_have_and_serves_over_tls_until_it_is_told_to_stop()
{
    let folder = Folder::new();
    let authority = Authority::new("test authority");
    let identity = authority.server(&["localhost"]);
    let (cert, key) = (
        folder.file("cert.pem", &identity.cert),
        folder.file("key.pem", &identity.key),
    );
    let token = folder.file("token", "first");
    // Nobody listens there, and nobody else will: the node's client of HTTP gets as far as that.
    let collector = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    collector.bind(&loopback.into()).unwrap();
    let address = collector.local_addr().unwrap().as_socket().unwrap();
    let endpoint = format!("http://{address}");
    for (driver, reported) in drivers() {
        println!("asked for {driver}: {reported}");
        let mut command = node::command(&[
            // Looked up by the system's resolver.
            ("HYPERCACHE_API_ADDR", "localhost:0"),
            ("HYPERCACHE_IO_DRIVER", driver),
            ("HYPERCACHE_API_TLS_CERT", &cert),
            ("HYPERCACHE_API_TLS_KEY", &key),
            ("HYPERCACHE_AUTH_TOKEN_FILE", &token),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
        ]);
        confine(&mut command);
        let mut node = Node::spawn(command);
        assert_eq!(node.serving["driver"], reported, "{}", node.serving);
        assert_eq!(node.serving["pinned"], true, "{}", node.serving);

        let config = client_config(&authority, None, &TLS13);
        let stream = TcpStream::connect(&node.api).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut client = Client::over(StreamOwned::new(session, stream));
        let value = vec![7; 1 << 20];
        let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
        let first = bearer("first");
        for number in 0..16 {
            let target = format!("/v1/cache/{number}");
            let put = client.request("PUT", &target, &first, &value);
            assert_eq!(put.status, 200, "{put:?}");
            assert!(client.request("GET", &target, &first, b"").body == value);
        }
        folder.file("token", "second");
        node.signal(libc::SIGHUP);
        until("a changed token is taken over", || {
            client
                .request("GET", "/v1/me", &bearer("second"), b"")
                .status
                == 200
        });
        folder.file("token", "first");
        until("the collector is found to be gone", || {
            node.has_logged("Connection refused")
        });
        node.signal(libc::SIGTERM);
        assert_eq!(node.wait().code(), Some(0));
    }
}

#[test]
fn a_cluster_forms_of_confined_nodes_and_replicates() {
    let cluster = Cluster::start_in(Arc::new(Confined(Loopback::claim())), 3, &[]);
    let all = "X-Cache-Consistency: ALL\r\n";
    let put = cluster.connect(0).request("PUT", "/v1/cache/k", all, b"v");
    assert_eq!(put.status, 200, "{put:?}");
    for node in 0..3 {
        assert_eq!(cluster.connect(node).get("/v1/cache/k").text(), "v");
    }
    let mut cluster = cluster;
    let mut leaving = cluster.take(2);
    leaving.signal(libc::SIGTERM);
    assert_eq!(leaving.wait().code(), Some(0));
}

#[test]
fn what_no_test_here_comes_to_is_allowed_too() {
    let allowed = allowed();
    for (who, names) in ELSEWHERE {
        for name in *names {
            assert!(allowed.contains(*name), "{name}, for {who}");
        }
    }
}

#[test]
fn nothing_dangerous_is_allowed() {
    for rule in rules() {
        for name in names(&rule) {
            let is_dangerous = DANGEROUS.contains(&name) || name.contains("module");
            assert!(
                !is_dangerous || rule["action"] != "SCMP_ACT_ALLOW",
                "{name}"
            );
        }
    }
}

#[test]
fn every_name_is_of_a_call_and_stands_there_once() {
    let rules = rules();
    let unconditional = rules.iter().filter(|rule| rule.get("args").is_none());
    let all: Vec<&str> = unconditional.flat_map(names).collect();
    let once: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(once.len(), all.len());
    if cfg!(target_arch = "x86_64") {
        let unknown: Vec<_> = once
            .iter()
            .filter(|name| rule(name, &Value::Null).is_none())
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

#[test]
fn no_namespace_can_be_made_and_no_socket_but_of_these_families() {
    let clone = rules()
        .into_iter()
        .find(|rule| names(rule).eq(["clone"]))
        .unwrap();
    let refused = clone["args"][0]["value"].as_u64().unwrap();
    for flag in [
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWUTS,
    ] {
        assert_eq!(refused & flag as u64, flag as u64, "{flag:#x}");
    }
    let families = [
        (libc::AF_UNIX, true),
        (libc::AF_INET, true),
        (libc::AF_INET6, true),
        (libc::AF_NETLINK, true),
        (libc::AF_PACKET, false),
        (libc::AF_ALG, false),
        (libc::AF_VSOCK, false),
        (libc::AF_BLUETOOTH, false),
    ];
    assert_eq!(profile()["defaultAction"], "SCMP_ACT_ERRNO");
    let errno = json!({"errno": profile()["defaultErrnoRet"]});
    // A thread to be left behind: it is confined for good.
    let tried = std::thread::spawn(move || {
        programs(&errno)
            .iter()
            .try_for_each(|program| apply_filter(program))
            .unwrap();
        families.map(|(family, _)| {
            let opened = Socket::new(Domain::from(family), Type::DGRAM, None);
            opened.err().and_then(|error| error.raw_os_error()) != Some(libc::ENOSYS)
        })
    });
    let granted = tried.join().unwrap();
    assert_eq!(
        granted,
        families.map(|(_, granted)| granted),
        "{families:?}"
    );
}
