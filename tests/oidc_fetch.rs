//! The thread that fetches an issuer's keys, against a real issuer over https.

#![allow(clippy::expect_used, reason = "a failure in a helper is a failed test")]

#[path = "support/issuer.rs"]
mod issuer;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use hypercache::auth::oidc::fetch::{Counts, StartFault};
use hypercache::auth::oidc::{self, Config, Fetcher, KeySet, Refusal, Rules, Verified};
use issuer::{AUDIENCE, Issuer, Mood, Signer, now_unix_s};
use serde_json::json;

/// How long a test waits for what should come at once, before it fails.
const GUARD: Duration = Duration::from_secs(20);
/// Longer than any test runs.
const NEVER: Duration = Duration::from_secs(3600);

/// A fetcher, and the keys it publishes.
struct Fetching {
    fetcher: Fetcher,
    published: Receiver<Arc<KeySet>>,
    config: Config,
}

impl Fetching {
    fn start(issuer: &Issuer) -> Self {
        Self::with(config_for(issuer))
    }

    fn with(config: Config) -> Self {
        record_logs();
        let (publish, published) = channel();
        let fetcher = Fetcher::start(&config, move |keys| {
            let _ = publish.send(keys);
        });
        Self {
            fetcher: fetcher.expect("it starts"),
            published,
            config,
        }
    }

    fn keys(&self) -> Arc<KeySet> {
        self.published.recv_timeout(GUARD).expect("keys come")
    }

    fn verify(&self, keys: &KeySet, token: &str) -> Result<Verified, Refusal> {
        oidc::verify(keys, &Rules::of(&self.config), token, now_unix_s())
    }

    fn ask(&self) {
        self.fetcher.handle().ask();
    }

    fn wait_until(&self, so: impl Fn(&Counts) -> bool) -> Counts {
        let started = Instant::now();
        loop {
            let counts = self.fetcher.handle().counts();
            if so(&counts) {
                return counts;
            }
            assert!(started.elapsed() < GUARD, "still {counts:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn published_nothing(&self) -> bool {
        self.published.try_recv() == Err(TryRecvError::Empty)
    }
}

/// Keys are fetched only at start and when asked for; whoever hangs does so for a second.
fn config_for(issuer: &Issuer) -> Config {
    let url = oidc::Issuer::parse(&issuer.url).expect("an issuer");
    Config {
        refresh_interval: NEVER,
        fetch_timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(1),
        ca_pem: Some(issuer.ca_pem.clone().into_bytes()),
        ..Config::new(url, AUDIENCE)
    }
}

static LOGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Logs;

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGS.lock()
            .expect("no writer panics")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn record_logs() {
    static RECORDED: Once = Once::new();
    RECORDED.call_once(|| {
        tracing_subscriber::fmt()
            .with_writer(|| Logs)
            .with_ansi(false)
            .init()
    });
}

/// The lines logged of an issuer that have this text.
fn logged(issuer: &Issuer, text: &str) -> usize {
    let logs = LOGS.lock().expect("no writer panics");
    let logs = String::from_utf8_lossy(&logs);
    let of_it = |line: &&str| line.contains(&issuer.url) && line.contains(text);
    logs.lines().filter(of_it).count()
}

const FAILURE: &str = "the issuer's keys cannot be fetched";
const RECOVERY: &str = "the issuer's keys can be fetched again";

#[test]
fn keys_are_fetched_at_start_and_tokens_of_each_algorithm_accepted() {
    let signers = [Signer::rs256("r"), Signer::es256("p"), Signer::eddsa("e")];
    let issuer = Issuer::start(&signers.each_ref());
    let fetching = Fetching::start(&issuer);
    let keys = fetching.keys();
    for signer in &signers {
        let verified = fetching.verify(&keys, &signer.token(&issuer.claims()));
        assert_eq!(
            verified.map(|caller| caller.id.to_string()),
            Ok("alice".to_owned())
        );
    }
    let counts = fetching.wait_until(|counts| counts.fetches == 1);
    assert_eq!((counts.failures, counts.keys), (0, 3));
    assert!(counts.last_success_unix_s.abs_diff(now_unix_s()) < 60);
}

#[test]
fn keys_are_fetched_again_at_every_interval() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let issuer = Issuer::start(&[&old]);
    let fetching = Fetching::with(Config {
        refresh_interval: Duration::from_millis(20),
        ..config_for(&issuer)
    });
    assert!(fetching.keys().knows("old"));
    issuer.rotate(&[&new]);
    let keys = fetching.keys();
    assert!(keys.knows("new") && !keys.knows("old"));
}

#[test]
fn a_rotated_key_is_known_once_asked_for_and_the_old_one_is_no_more() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let issuer = Issuer::start(&[&old]);
    let fetching = Fetching::start(&issuer);
    let keys = fetching.keys();
    let (by_old, by_new) = (old.token(&issuer.claims()), new.token(&issuer.claims()));
    issuer.rotate(&[&new]);
    assert!(fetching.verify(&keys, &by_old).is_ok());
    assert_eq!(fetching.verify(&keys, &by_new), Err(Refusal::UnknownKey));
    fetching.ask();
    let keys = fetching.keys();
    assert!(fetching.verify(&keys, &by_new).is_ok());
    assert_eq!(fetching.verify(&keys, &by_old), Err(Refusal::UnknownKey));
}

#[test]
fn keys_that_have_not_changed_are_not_published_again() {
    let (a, b) = (Signer::es256("a"), Signer::eddsa("b"));
    let issuer = Issuer::start(&[&a, &b]);
    let fetching = Fetching::start(&issuer);
    fetching.keys();
    fetching.wait_until(|counts| counts.fetches == 1);
    issuer.rotate(&[&b, &a]);
    fetching.ask();
    fetching.wait_until(|counts| counts.fetches == 2);
    assert!(fetching.published_nothing());
}

#[test]
fn keys_that_an_issuer_takes_back_are_taken_back_though_none_is_left() {
    let issuer = Issuer::start(&[&Signer::es256("a")]);
    let fetching = Fetching::start(&issuer);
    assert!(!fetching.keys().is_empty());
    issuer.rotate(&[]);
    fetching.ask();
    assert!(fetching.keys().is_empty());
}

#[test]
fn a_flood_of_asks_costs_the_issuer_a_few_fetches() {
    let issuer = Issuer::start(&[&Signer::es256("a")]);
    let fetching = Fetching::start(&issuer);
    fetching.keys();
    fetching.wait_until(|counts| {
        fetching.ask();
        counts.fetches == 4
    });
    for _ in 0..10_000 {
        fetching.ask();
        thread::yield_now();
    }
    assert_eq!(issuer.asked().discovery, 4);
}

/// Plants a fault after the first keys have come: a fetch fails, the keys stay, and it is
/// logged once though it fails twice. Then the issuer recovers.
fn survives(fault: Mood) {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let issuer = Issuer::start(&[&old]);
    let fetching = Fetching::start(&issuer);
    fetching.keys();
    issuer.rotate(&[&new]);
    issuer.set_mood(fault);
    fetching.ask();
    let counts = fetching.wait_until(|counts| counts.fetches == 3);
    assert_eq!((counts.failures, counts.keys), (2, 1));
    assert!(fetching.published_nothing());
    assert_eq!(logged(&issuer, FAILURE), 1);
    assert_eq!(logged(&issuer, RECOVERY), 0);
    assert!(issuer.asked().endless_bytes < 64 << 20);
    issuer.set_mood(Mood::Well);
    let keys = fetching.keys();
    assert!(keys.knows("new") && !keys.knows("old"));
    assert_eq!(logged(&issuer, RECOVERY), 1);
}

#[test]
fn an_issuer_that_fails_is_survived() {
    survives(Mood::Status(500));
}

#[test]
fn an_issuer_that_accepts_connections_and_does_nothing_is_survived() {
    survives(Mood::Silent);
}

#[test]
fn an_issuer_that_hangs_is_survived() {
    survives(Mood::Hanging);
}

#[test]
fn an_issuer_that_does_not_speak_http_is_survived() {
    survives(Mood::Babbling);
}

#[test]
fn an_issuer_whose_answers_are_cut_off_is_survived() {
    survives(Mood::CutOff);
}

#[test]
fn an_issuer_whose_answers_do_not_end_is_survived() {
    survives(Mood::Endless);
}

#[test]
fn an_issuer_whose_heads_do_not_end_is_survived() {
    survives(Mood::EndlessHead);
}

#[test]
fn an_issuer_that_answers_with_something_else_is_survived() {
    survives(Mood::Lying("<html>".to_owned()));
}

#[test]
fn an_issuer_that_names_another_is_survived() {
    let other = json!({"issuer": "https://other", "jwks_uri": "https://other/keys"});
    survives(Mood::Lying(other.to_string()));
}

#[test]
fn a_redirect_is_not_followed() {
    survives(Mood::Redirecting);
}

#[test]
fn a_key_set_that_is_none_leaves_the_keys_in_use() {
    let issuer = Issuer::start(&[&Signer::es256("a")]);
    let fetching = Fetching::start(&issuer);
    fetching.keys();
    issuer.serve_keys(json!({"error": "overloaded"}));
    fetching.ask();
    let counts = fetching.wait_until(|counts| counts.fetches == 2);
    assert_eq!(counts.failures, 1);
    assert!(fetching.published_nothing());
}

#[test]
fn keys_in_the_clear_are_not_fetched_for_an_issuer_over_https() {
    let issuer = Issuer::start(&[&Signer::es256("a")]);
    let plain = Issuer::start_plain(&[&Signer::es256("b")]);
    let keys = format!("{}/keys", plain.url);
    issuer.serve_discovery(json!({"issuer": issuer.url, "jwks_uri": keys}));
    let fetching = Fetching::start(&issuer);
    fetching.wait_until(|counts| counts.fetches == 1);
    assert!(fetching.published_nothing());
    assert_eq!(plain.asked().keys, 0);
}

#[test]
fn an_issuer_without_a_certificate_that_is_vouched_for_is_not_believed() {
    let issuer = Issuer::start(&[&Signer::es256("a")]);
    let stranger = Issuer::start(&[]);
    for ca_pem in [Some(stranger.ca_pem.clone().into_bytes()), None] {
        let fetching = Fetching::with(Config {
            ca_pem,
            ..config_for(&issuer)
        });
        fetching.wait_until(|counts| counts.fetches == 1);
        assert!(fetching.published_nothing());
    }
    assert_eq!(logged(&issuer, "TLS: invalid peer certificate"), 2);
    assert_eq!(issuer.asked(), issuer::Asked::default());
}

#[test]
fn another_fault_than_before_is_logged_again() {
    let issuer = Issuer::start(&[&Signer::es256("a")]);
    issuer.set_mood(Mood::Status(503));
    let fetching = Fetching::start(&issuer);
    fetching.wait_until(|_| logged(&issuer, "answers 503") == 1);
    issuer.set_mood(Mood::CutOff);
    fetching.wait_until(|_| logged(&issuer, FAILURE) == 2);
    assert_eq!(logged(&issuer, "answers 503"), 1);
}

#[test]
fn an_issuer_on_loopback_may_speak_in_the_clear() {
    let signer = Signer::es256("a");
    let issuer = Issuer::start_plain(&[&signer]);
    let fetching = Fetching::start(&issuer);
    let keys = fetching.keys();
    assert!(
        fetching
            .verify(&keys, &signer.token(&issuer.claims()))
            .is_ok()
    );
}

#[test]
fn an_issuer_may_have_a_path_that_ends_with_a_slash() {
    let signer = Signer::es256("a");
    let issuer = Issuer::with_path("/realms/main/", true, &[&signer]);
    let fetching = Fetching::start(&issuer);
    let keys = fetching.keys();
    assert!(
        fetching
            .verify(&keys, &signer.token(&issuer.claims()))
            .is_ok()
    );
}

#[test]
fn to_end_it_does_not_wait_for_an_issuer_that_hangs_and_no_keys_come_after() {
    let issuer = Issuer::start(&[&Signer::es256("a")]);
    issuer.set_mood(Mood::Hanging);
    let Fetching {
        fetcher, published, ..
    } = Fetching::with(Config {
        fetch_timeout: NEVER,
        ..config_for(&issuer)
    });
    issuer.wait_until(|asked| asked.discovery == 1);
    drop(fetcher);
    issuer.set_mood(Mood::Well);
    let end = published.recv_timeout(GUARD);
    assert_eq!(end, Err(RecvTimeoutError::Disconnected));
}

#[test]
fn authorities_that_are_no_certificates_stop_the_start() {
    let issuer = Issuer::start(&[]);
    let good = issuer.ca_pem.clone();
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cut = &good[..good.len() / 2];
    for pem in ["", "no certificate", junk, cut, &format!("{good}{junk}")] {
        let config = Config {
            ca_pem: Some(pem.as_bytes().to_vec()),
            ..config_for(&issuer)
        };
        let started = Fetcher::start(&config, |_| {});
        assert!(matches!(started, Err(StartFault::Authorities)), "{pem}");
    }
}
