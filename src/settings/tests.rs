use super::*;

fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Invocation, SettingsError> {
    let env = env
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Settings::from(args.iter().map(OsString::from), env, "host-1")
}

fn settings(args: &[&str], env: &[(&str, &str)]) -> Settings {
    match read(args, env).unwrap() {
        Invocation::Run(settings) => *settings,
        other => panic!("{other:?}"),
    }
}

fn refusal(args: &[&str], env: &[(&str, &str)]) -> String {
    read(args, env).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_accepted() {
    let settings = settings(&[], &[]);
    assert_eq!(settings.node_id, "host-1");
    assert_eq!(settings.api_addr.to_string(), ":8080");
    assert_eq!(settings.capacity, 100_000);
    assert_eq!(settings.idle_timeout, Duration::from_secs(60));
    assert_eq!(settings.body_limit, ByteSize(4 << 20));
}

#[test]
fn a_flag_wins_over_a_variable() {
    let env = [
        ("HYPERCACHE_CAPACITY", "1"),
        ("HYPERCACHE_LOG_LEVEL", "warn"),
    ];
    assert_eq!(settings(&["--capacity", "2"], &env).capacity, 2);
    assert_eq!(settings(&["--capacity=3"], &env).capacity, 3);
    assert_eq!(settings(&[], &env).log_level, tracing::Level::WARN);
}

#[test]
fn help_names_every_setting() {
    let Invocation::Help(text) = read(&["--help"], &[]).unwrap() else {
        panic!("no help")
    };
    for setting in TABLE {
        assert!(
            text.contains(setting.variable) && text.contains(&setting.flag()),
            "{setting:?}"
        );
    }
}

/// One value each setting must refuse; what takes any text has none.
fn bad_value(variable: &str) -> Option<&'static str> {
    Some(match variable {
        "HYPERCACHE_NODE_ID" => "a,b",
        "HYPERCACHE_API_ADDR" | "HYPERCACHE_MGMT_ADDR" | "HYPERCACHE_DIST_ADDR" => "8080",
        "HYPERCACHE_SEEDS" => "node-without-port",
        "HYPERCACHE_CAPACITY" => "-1",
        "HYPERCACHE_MEMORY_LIMIT" => "1MiB",
        "HYPERCACHE_VALUE_LIMIT" | "HYPERCACHE_BODY_LIMIT" => "0",
        "HYPERCACHE_AUTH_CONFIG"
        | "HYPERCACHE_API_TLS_CERT"
        | "HYPERCACHE_API_TLS_KEY"
        | "HYPERCACHE_API_TLS_CLIENT_CA"
        | "HYPERCACHE_MGMT_TLS_CERT"
        | "HYPERCACHE_MGMT_TLS_KEY"
        | "HYPERCACHE_MGMT_TLS_CLIENT_CA"
        | "HYPERCACHE_PEER_TLS_CERT"
        | "HYPERCACHE_PEER_TLS_KEY"
        | "HYPERCACHE_PEER_TLS_CA"
        | "HYPERCACHE_AUTH_TOKEN_FILE"
        | "HYPERCACHE_PEER_TOKEN_FILE"
        | "HYPERCACHE_OIDC_CA"
        | "HYPERCACHE_OIDC_AUDIENCE" => return None,
        "HYPERCACHE_OIDC_IDENTITY_CLAIM" | "HYPERCACHE_OIDC_SCOPE_CLAIM" => "",
        "HYPERCACHE_OIDC_ISSUER" => "http://issuer.example",
        "HYPERCACHE_AUTH_TOKEN" | "HYPERCACHE_PEER_TOKEN" => "two words",
        "HYPERCACHE_PEER_TLS_SERVER_NAME" => "two words",
        _ => "nonsense",
    })
}

#[test]
fn reference_defect_21_invalid_settings_stop_the_start() {
    for setting in TABLE {
        let Some(bad) = bad_value(setting.variable) else {
            continue;
        };
        let error = refusal(&[], &[(setting.variable, bad)]);
        for part in [setting.variable, setting.expected] {
            assert!(error.contains(part), "{error:?} does not name {part:?}");
        }
        let shows = !bad.is_empty() && error.contains(bad);
        assert_eq!(shows, !setting.secret && !bad.is_empty(), "{error:?}");
        assert!(!error.contains('\n'), "{error:?}");
        let by_flag = refusal(&[&setting.flag(), bad], &[]);
        assert!(by_flag.contains(&setting.flag()), "{by_flag:?}");
    }
}

#[test]
fn what_does_not_exist_is_refused_with_the_nearest_name() {
    let error = refusal(&[], &[("HYPERCACHE_CAPACTIY", "5")]);
    assert!(error.contains("HYPERCACHE_CAPACTIY") && error.contains("HYPERCACHE_CAPACITY?"));
    assert!(refusal(&["--nope"], &[]).contains("--nope"));
    assert!(refusal(&["--capacity"], &[]).contains("missing"));
    assert!(!refusal(&["--auth-token", "", "sesame"], &[]).contains("sesame"));
}

#[test]
fn variables_a_kubelet_injects_are_ignored() {
    let injected = [
        "HYPERCACHE_SERVICE_HOST",
        "HYPERCACHE_SERVICE_PORT",
        "HYPERCACHE_SERVICE_PORT_API",
        "HYPERCACHE_PORT",
        "HYPERCACHE_PORT_8080_TCP",
        "HYPERCACHE_PORT_8080_TCP_ADDR",
        "HYPERCACHE_MGMT_SERVICE_HOST",
        "HYPERCACHE_MGMT_PORT_8081_TCP_PROTO",
    ];
    for name in injected {
        settings(&[], &[(name, "tcp://10.0.0.1:8080")]);
    }
    refusal(&[], &[("HYPERCACHE_SUPPORT", "x")]);
}

#[test]
fn settings_that_belong_together_are_checked_together() {
    assert!(refusal(&[], &[("HYPERCACHE_API_TLS_CERT", "c")]).contains("HYPERCACHE_API_TLS_KEY"));
    assert!(refusal(&[], &[("HYPERCACHE_API_TLS_KEY", "k")]).contains("HYPERCACHE_API_TLS_CERT"));
    assert!(
        refusal(&[], &[("HYPERCACHE_OIDC_ISSUER", "https://i")])
            .contains("HYPERCACHE_OIDC_AUDIENCE")
    );
    let both = [
        ("HYPERCACHE_AUTH_TOKEN", "sesame"),
        ("HYPERCACHE_AUTH_CONFIG", "f"),
    ];
    let error = refusal(&[], &both);
    assert!(error.contains("HYPERCACHE_AUTH_CONFIG") && !error.contains("sesame"));
    let short = [("HYPERCACHE_TOMBSTONE_TTL", "30s")];
    assert!(refusal(&[], &short).contains("HYPERCACHE_HINT_TTL"));
}

#[test]
fn files_that_belong_together_are_all_named_or_none_is() {
    for (set, missing) in [
        ("HYPERCACHE_MGMT_TLS_KEY", "HYPERCACHE_MGMT_TLS_CERT"),
        ("HYPERCACHE_API_TLS_CLIENT_CA", "HYPERCACHE_API_TLS_CERT"),
        ("HYPERCACHE_PEER_TLS_CERT", "HYPERCACHE_PEER_TLS_KEY"),
        (
            "HYPERCACHE_PEER_TLS_SERVER_NAME",
            "HYPERCACHE_PEER_TLS_CERT",
        ),
        ("HYPERCACHE_OIDC_CA", "HYPERCACHE_OIDC_ISSUER"),
        ("HYPERCACHE_PEER_TLS_MODE", "HYPERCACHE_PEER_TLS_CERT"),
        (
            "HYPERCACHE_MGMT_TLS_CLIENT_AUTH",
            "HYPERCACHE_MGMT_TLS_CLIENT_CA",
        ),
    ] {
        let value = match set {
            "HYPERCACHE_PEER_TLS_MODE" | "HYPERCACHE_MGMT_TLS_CLIENT_AUTH" => "require",
            _ => "f",
        };
        let error = refusal(&[], &[(set, value)]);
        assert!(error.contains(missing) && error.contains(set), "{error}");
    }
    let peer = |name| (name, "f");
    let settings = settings(
        &[],
        &[
            peer("HYPERCACHE_PEER_TLS_CERT"),
            peer("HYPERCACHE_PEER_TLS_KEY"),
            peer("HYPERCACHE_PEER_TLS_CA"),
        ],
    );
    let tls = settings.security.peer_tls.unwrap();
    assert_eq!(tls.ca.to_string(), "HYPERCACHE_PEER_TLS_CA=f");
}

#[test]
fn a_secret_is_given_in_one_way_only() {
    for (one, other) in [
        ("HYPERCACHE_AUTH_TOKEN", "HYPERCACHE_AUTH_TOKEN_FILE"),
        ("HYPERCACHE_AUTH_TOKEN_FILE", "HYPERCACHE_AUTH_CONFIG"),
        ("HYPERCACHE_PEER_TOKEN", "HYPERCACHE_PEER_TOKEN_FILE"),
    ] {
        let error = refusal(&[], &[(one, "sesame"), (other, "f")]);
        assert!(error.contains(one) && error.contains(other), "{error}");
        assert!(!error.contains("sesame"), "{error}");
    }
}

#[test]
fn settings_do_not_show_secrets() {
    let env = [
        ("HYPERCACHE_AUTH_TOKEN", "sesame"),
        ("HYPERCACHE_PEER_TOKEN", "open"),
    ];
    let text = format!("{:?}", settings(&[], &env));
    assert!(
        !text.contains("sesame") && !text.contains("\"open\""),
        "{text}"
    );
}

#[test]
fn sizes_take_binary_units() {
    for (text, bytes) in [
        ("512MiB", 512 << 20),
        ("1Gi", 1 << 30),
        ("33554432", 33_554_432),
    ] {
        let read = settings(&["--memory-limit", text], &[]);
        assert_eq!(
            read.memory_limit,
            MemoryLimit::Bytes(ByteSize(bytes)),
            "{text}"
        );
    }
}

#[test]
fn the_memory_limit_may_be_a_share_of_what_there_is() {
    let process = 1000 << 20;
    for (text, mib) in [
        ("auto", 700),
        ("70%", 700),
        ("10%", 100),
        ("50% of 4Gi", 2048),
        ("70% of 104857600", 70),
        ("512MiB", 512),
    ] {
        let read = settings(&["--memory-limit", text], &[]);
        let bytes = read.memory_limit.bytes_of(process);
        assert!(bytes.abs_diff(mib << 20) < 100, "{text}: {bytes}");
    }
    for text in [
        "9%",
        "91%",
        "%",
        "70 %",
        "70%of 4Gi",
        "70% of",
        "70% of 4Gi x",
        "70% of 16Mi",
    ] {
        assert!(
            refusal(&["--memory-limit", text], &[]).starts_with("--memory-limit"),
            "{text}"
        );
    }
}

#[test]
fn a_refusal_is_one_line_whatever_was_given() {
    for args in [["--node-id", "a\nb\u{1b}[2J"], ["--capacity", "1\r\n2"]] {
        let line = refusal(&args, &[]);
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    assert!(refusal(&["--no\nsuch"], &[]).starts_with("--no\\nsuch: "));
}

#[test]
fn a_flag_without_a_value_does_not_swallow_and_show_the_next() {
    let line = refusal(&["--api-addr", "--auth-token=hunter2"], &[]);
    assert!(
        line.starts_with("--api-addr: the value is missing"),
        "{line}"
    );
    assert!(!line.contains("hunter2"));
    assert_eq!(settings(&["--node-id=--a"], &[]).node_id, "--a");
}
