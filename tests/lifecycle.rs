//! Starting, stopping, being killed, and the drivers a kernel may refuse.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

#[path = "support/node.rs"]
mod node;

use std::net::TcpStream;
#[cfg(not(feature = "glommio"))]
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use node::{Client, Node, command};

#[test]
fn a_stop_finishes_what_is_in_flight_and_exits_clean() {
    let mut node = Node::start(&[]);
    let mut idle = node.connect();
    idle.get("/healthz");
    node.connect().put("/v1/cache/k", b"v");
    let mut busy = node.connect();
    busy.send("GET /v1/cache/k HTTP/1.1\r\nHost: x\r\n");
    let mut writing = node.connect();
    writing.send("PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst");
    // All are known to the node once a later request on another connection is answered.
    node.connect().get("/healthz");

    node.signal(libc::SIGTERM);
    idle.expect_closed();
    while TcpStream::connect(&node.api).is_ok() {}
    assert!(node.is_running(), "a request is still in flight");
    busy.send("\r\n");
    let answer = busy.answer();
    assert_eq!(
        (answer.status, answer.header("Connection")),
        (200, Some("close"))
    );
    busy.expect_closed();
    // What would be gone with this node is not taken in any more.
    writing.send("-last");
    let answer = writing.answer();
    answer.expect_error(503, "DRAINING");
    assert_eq!(answer.header("Connection"), Some("close"));
    writing.expect_closed();
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn the_deadline_ends_a_stop_that_a_client_holds_up() {
    let mut node = Node::start(&[
        ("HYPERCACHE_SHUTDOWN_TIMEOUT", "200ms"),
        ("HYPERCACHE_READ_TIMEOUT", "1h"),
    ]);
    let mut busy = node.connect();
    busy.send("PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    node.connect().get("/healthz");
    node.signal(libc::SIGINT);
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut node = Node::start(&[("HYPERCACHE_READ_TIMEOUT", "1h")]);
    let mut busy = node.connect();
    busy.send(
        "PUT /v1/cache/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    );
    assert_eq!(busy.answer().status, 100);
    node.signal(libc::SIGTERM);
    while TcpStream::connect(&node.api).is_ok() {}
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait().code(), Some(128 + libc::SIGTERM));
}

#[test]
fn a_killed_node_comes_back_on_the_same_port_at_once() {
    let node = Node::start(&[]);
    let (api, mgmt) = (node.api.clone(), node.mgmt.clone());
    let mut client = node.connect();
    client.put("/v1/cache/k", b"v");
    drop(node);
    let again = Node::start(&[
        ("HYPERCACHE_API_ADDR", &api),
        ("HYPERCACHE_MGMT_ADDR", &mgmt),
    ]);
    assert_eq!(again.api, api);
    again
        .connect()
        .get("/v1/cache/k")
        .expect_error(404, "NOT_FOUND");
}

/// Nobody reads what it logs any more: it loses lines, not requests, and still ends.
#[test]
fn a_log_reader_that_hangs_holds_nobody_up() {
    use std::io::{BufRead, BufReader};
    let mut child = command(&[
        ("HYPERCACHE_SLOW_REQUEST", "1ns"),
        ("HYPERCACHE_SLOW_REQUEST_LOGS", "1000"),
    ])
    .spawn()
    .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let serving = loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if line["message"] == "serving" {
            break line;
        }
    };
    let mut client = Client::connect(serving["api"].as_str().unwrap());
    let mut management = Client::connect(serving["mgmt"].as_str().unwrap());
    let begun = std::time::Instant::now();
    loop {
        for n in 0..100 {
            assert_eq!(client.put(&format!("/v1/cache/{n}"), b"v").status, 200);
        }
        let metrics = management.get("/metrics").text();
        if !metrics.contains("hypercache_log_lines_lost_total 0\n") {
            break;
        }
        assert!(begun.elapsed() < node::GUARD, "no line is lost");
    }
    drop((client, management));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(log);
}

/// The control thread opens its descriptors last: with just too few it has none.
#[test]
#[cfg(not(feature = "glommio"))] // Which panics where it lacks descriptors.
fn a_node_whose_control_thread_ends_ends_too() {
    let mut ended = 0;
    for descriptors in 8..64 {
        let mut command = command(&[("HYPERCACHE_CORES", "1")]);
        // SAFETY: between fork and exec only a system call on plain values.
        unsafe { command.pre_exec(move || limit_descriptors(descriptors)) };
        let Ok(mut node) = Node::try_spawn(command) else {
            continue;
        };
        let start = std::time::Instant::now();
        while node.is_running() {
            assert!(start.elapsed() < node::GUARD, "it goes on without");
            let full = node.has_logged("accept failed on the management listener");
            if full || answers(&node.mgmt) {
                assert!(ended > 0, "{descriptors} descriptors are enough at once");
                return;
            }
        }
        assert_eq!(node.wait().code(), Some(1));
        node.kill();
        assert!(node.has_logged("the control thread"));
        ended += 1;
    }
    panic!("it never serves");
}

#[cfg(not(feature = "glommio"))]
fn limit_descriptors(count: libc::rlim_t) -> std::io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: count,
    };
    // SAFETY: the kernel reads the limit during the call only.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Whether anything comes back from this listener.
#[cfg(not(feature = "glommio"))]
fn answers(address: &str) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let timeout = std::time::Duration::from_millis(100);
    stream.set_read_timeout(Some(timeout)).unwrap();
    let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    sent.is_ok() && stream.read(&mut [0]).is_ok_and(|count| count > 0)
}

fn output(mut command: Command) -> Output {
    command.output().expect("the program runs")
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!output.status.success());
    text
}

#[test]
fn a_taken_address_is_refused_and_not_shared() {
    let node = Node::start(&[]);
    let refused = one_line(&output(command(&[("HYPERCACHE_API_ADDR", &node.api)])));
    assert!(
        refused.contains("HYPERCACHE_API_ADDR") && refused.contains(&node.api),
        "{refused}"
    );
    let refused = one_line(&output(command(&[("HYPERCACHE_MGMT_ADDR", &node.mgmt)])));
    assert!(refused.contains("HYPERCACHE_MGMT_ADDR"), "{refused}");
}

#[test]
fn reference_defect_21_a_bad_setting_is_one_line() {
    for (name, value, expected) in [
        ("HYPERCACHE_CAPACITY", "many", "whole number"),
        ("HYPERCACHE_HINT_TTL", "30", "duration"),
        ("HYPERCACHE_EVICTION", "random", "sieve"),
        ("HYPERCACHE_NO_SUCH", "1", "did you mean"),
    ] {
        let line = one_line(&output(command(&[(name, value)])));
        assert!(line.contains(name) && line.contains(expected), "{line}");
    }
}

#[test]
fn a_node_never_falls_back_to_serving_everyone() {
    for (setting, value) in [
        ("HYPERCACHE_AUTH_TOKEN", "two words"),
        ("HYPERCACHE_AUTH_TOKEN_FILE", "/nowhere/token"),
        ("HYPERCACHE_AUTH_CONFIG", "/nowhere/policy.yaml"),
        ("HYPERCACHE_OIDC_ISSUER", "https://issuer.example"),
    ] {
        let line = one_line(&output(command(&[(setting, value)])));
        assert!(
            line.contains(setting) && !line.contains("two words"),
            "{line}"
        );
    }
}

#[test]
fn help_version_and_check_answer_without_serving() {
    for (flag, text) in [
        ("--help", "HYPERCACHE_API_ADDR"),
        ("--version", "hypercache "),
        ("--check-config", "configuration ok"),
    ] {
        let mut command = command(&[]);
        command.arg(flag);
        let output = output(command);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(text));
    }
}

/// The node serves, and says on which driver and why, in its log and in a metric.
#[cfg(not(feature = "glommio"))]
fn expect_driver(node: &Node, driver: &str, reason: &str) {
    assert_eq!(node.serving["driver"], driver, "{}", node.serving);
    let told = node.serving["driver_reason"].as_str().unwrap();
    assert!(told.contains(reason), "{told}");
    let metrics = Client::connect(&node.mgmt).get("/metrics").text();
    let metric = format!("hypercache_runtime_driver_info{{driver=\"{driver}\"");
    assert!(metrics.contains(&metric), "{metrics}");
    for core in 0..2 {
        let mut client = node.connect_to_core(core);
        client.put("/v1/cache/k", b"v");
        assert_eq!(client.get("/v1/cache/k").text(), "v");
    }
}

/// In its log, in metrics and in its statistics: what an operator looks for who gave it CPUs of
/// its own.
#[test]
fn a_node_tells_which_cpus_it_may_use_and_which_core_has_which() {
    let may_use = rustix::thread::sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..1024).filter(|&cpu| may_use.is_set(cpu)).collect();
    let [first, ..] = cpus[..] else {
        panic!("this test runs nowhere");
    };
    // More cores than CPUs are not pinned.
    for cores in [1, cpus.len() + 1] {
        let node = Node::start(&[("HYPERCACHE_CORES", &cores.to_string())]);
        let stats = Client::connect(&node.mgmt).get("/stats/cores").json();
        let metrics = Client::connect(&node.mgmt).get("/metrics").text();
        let info = metrics
            .lines()
            .find(|line| line.starts_with("hypercache_core_plan_info{"));
        let info = info.unwrap();
        let quota = node.serving["cpu_quota"].as_str().unwrap();
        let listed = node.serving["cpus"].as_str().unwrap();
        let mut bounds = listed.split([',', '-']).map(|cpu| cpu.parse().unwrap());
        assert!(bounds.all(|cpu: usize| cpus.contains(&cpu)), "{listed}");
        assert_eq!(stats["cpus"], listed);
        assert!(info.contains(&format!("cpus=\"{listed}\"")), "{info}");
        assert!(info.contains(&format!("cpu_quota=\"{quota}\"")), "{info}");
        match stats["cpu_quota"].as_f64() {
            Some(told) => assert_eq!(quota, told.to_string()),
            None => assert_eq!(quota, "none"),
        }
        let series = "hypercache_core_pinned_cpu{core=\"0\"}";
        if node.serving["pinned"] == true {
            assert_eq!(node.serving["core_cpus"], first.to_string());
            assert_eq!(stats["cores"][0]["pinned_cpu"], first);
            assert!(
                metrics.contains(&format!("{series} {first}\n")),
                "{metrics}"
            );
        } else {
            assert_eq!(node.serving["core_cpus"], vec!["any"; cores].join(","));
            assert!(stats["cores"][0]["pinned_cpu"].is_null(), "{stats}");
            assert!(!metrics.contains(series), "{metrics}");
        }
    }
}

#[test]
#[cfg(not(feature = "glommio"))]
fn epoll_can_be_asked_for() {
    let node = Node::start(&[("HYPERCACHE_IO_DRIVER", "epoll")]);
    expect_driver(&node, "epoll", "");
}

/// As containers' default profiles do: `io_uring_setup` answers EPERM.
#[test]
#[cfg(not(feature = "glommio"))]
fn where_seccomp_refuses_io_uring_the_node_runs_on_epoll() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let refused = SeccompFilter::new(
        [(libc::SYS_io_uring_setup, vec![])].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = refused.unwrap().try_into().unwrap();
    let mut command = command(&[]);
    // SAFETY: between fork and exec only system calls on memory prepared before.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program).map_err(|_| std::io::Error::last_os_error())
        });
    }
    expect_driver(&Node::spawn(command), "epoll", "Operation not permitted");
}

/// As an unprivileged container: no root, 64 KiB of locked memory. Which driver it
/// gets is the kernel's to say; it must serve on one.
#[test]
#[cfg(not(feature = "glommio"))]
fn without_privileges_and_with_little_locked_memory_the_node_serves() {
    let folder = std::env::temp_dir().join(format!("hypercache-lifecycle-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("hypercache");
    std::fs::copy(env!("CARGO_BIN_EXE_hypercache"), &program).unwrap();
    let template = command(&[]);
    let mut command = Command::new(&program);
    command.env_clear();
    for (name, value) in template.get_envs() {
        command.env(name, value.unwrap());
    }
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    // SAFETY: getuid has no preconditions.
    let root = unsafe { libc::getuid() } == 0;
    println!(
        "running {}",
        if root {
            "as user 65534"
        } else {
            "as the current user"
        }
    );
    // SAFETY: between fork and exec only system calls on plain values.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit {
                rlim_cur: 64 << 10,
                rlim_max: 64 << 10,
            };
            if libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            if root && (libc::setgid(65534) != 0 || libc::setuid(65534) != 0) {
                return Err(std::io::Error::last_os_error());
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let node = Node::spawn(command);
    let driver = node.serving["driver"].as_str().unwrap().to_owned();
    expect_driver(&node, &driver, "");
    drop(node);
    std::fs::remove_dir_all(&folder).unwrap();
}
