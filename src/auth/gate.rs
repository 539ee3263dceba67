//! One core's door: finds out who a request comes from and whether it may pass.
//!
//! ```text
//!                 known credentials            scope held
//! request ──────────────────────────► identity ──────────► Granted
//!    │ │ nothing that counts                └── not held ─► Refused(Forbidden)
//!    │ └───────────────────────────────────────────────────► Refused(Unauthorized)
//!    └── a password or an identity token not seen before ──► Unverified
//!            the shell carries the Check out, notes its Outcome, and asks again
//! ```
//!
//! A connection's [`Caller`] remembers the last credentials and who they were, so that
//! the usual request costs one comparison. Verdicts on passwords and identity tokens are
//! remembered per core beyond that, because connections come and go. Both are void when
//! the policy's number changes.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use super::credentials::Credentials;
use super::identity::{Identity, Scope};
use super::policy::Policy;
use super::secret::{Tag, same};

/// Good credentials that are remembered beyond their connection.
const GRANTED_MAX: usize = 4096;
/// The same for bad ones.
const REFUSED_MAX: usize = 1024;

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Granted,
    /// It may not.
    Refused(Refusal),
    /// That takes a [`Check`] first.
    Unverified,
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It shows nothing that counts.
    Unauthorized {
        /// Whether a password was shown that is only taken over TLS.
        in_the_clear: bool,
        /// Whether a password would do.
        takes_passwords: bool,
    },
    /// Whoever it comes from lacks the scope.
    Forbidden(Scope),
    /// Its credentials cannot be checked now.
    Busy,
}

/// Something to be found out about credentials, off the cores.
pub enum Check {
    /// Whether a password is the one behind a hash.
    Password {
        /// The name it was shown with.
        username: String,
        /// What was shown.
        password: Vec<u8>,
        /// The bcrypt hash.
        hash: Arc<str>,
        /// Who it is if so; nobody when there is no such user.
        identity: Option<Arc<Identity>>,
    },
    /// Whom an identity token stands for.
    Token(String),
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::Token(_) => "Token(…)",
        })
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Who it is, until this second.
    Granted(Arc<Identity>, u64),
    /// Nobody, until this second at least.
    Refused(u64),
    /// There was no room to find out.
    Busy,
}

/// One connection, as far as who it is goes.
#[derive(Debug, Default)]
pub struct Caller {
    /// Whether nobody can listen in.
    encrypted: bool,
    /// The subject of a certificate that was verified.
    common_name: Option<String>,
    standing: RefCell<Standing>,
}

/// Who a connection was found to be, by which credentials, under which policy.
#[derive(Debug, Default)]
struct Standing {
    policy: u64,
    authorization: Vec<u8>,
    identity: Option<Arc<Identity>>,
    in_the_clear: bool,
    until_s: u64,
    busy: bool,
}

impl Caller {
    /// A connection in the clear, or one with the common name of its certificate.
    pub fn new(encrypted: bool, common_name: Option<String>) -> Self {
        Self {
            encrypted,
            common_name,
            standing: RefCell::default(),
        }
    }

    /// Who the last admitted request came from.
    pub fn identity(&self) -> Option<Ref<'_, Arc<Identity>>> {
        Ref::filter_map(self.standing.borrow(), |standing| {
            standing.identity.as_ref()
        })
        .ok()
    }
}

/// What is remembered of credentials that took a check.
#[derive(Debug, Default)]
struct Verdicts {
    granted: HashMap<Tag, (Arc<Identity>, u64)>,
    refused: HashMap<Tag, u64>,
}

impl Verdicts {
    fn of(&self, tag: &Tag, now_s: u64) -> Option<Option<Arc<Identity>>> {
        if let Some((identity, until_s)) = self.granted.get(tag)
            && now_s < *until_s
        {
            return Some(Some(Arc::clone(identity)));
        }
        let until_s = self.refused.get(tag)?;
        (now_s < *until_s).then_some(None)
    }

    fn until(&self, tag: &Tag) -> u64 {
        self.granted.get(tag).map_or(0, |(_, until_s)| *until_s)
    }

    fn note(&mut self, tag: Tag, outcome: Outcome, now_s: u64) {
        match outcome {
            Outcome::Granted(identity, until_s) => {
                if self.granted.len() >= GRANTED_MAX {
                    self.granted.retain(|_, (_, until_s)| now_s < *until_s);
                    if self.granted.len() >= GRANTED_MAX {
                        self.granted.clear();
                    }
                }
                self.granted.insert(tag, (identity, until_s));
            }
            Outcome::Refused(until_s) => {
                if self.refused.len() >= REFUSED_MAX {
                    self.refused.clear();
                }
                self.refused.insert(tag, until_s);
            }
            Outcome::Busy => {}
        }
    }
}

/// What the credentials of a request come to.
enum Resolved {
    /// Who it is, until this second.
    Known(Arc<Identity>, u64),
    /// Nobody.
    Nobody { in_the_clear: bool },
    /// That takes a check.
    Unverified,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Gate {
    policy: RefCell<Arc<Policy>>,
    /// The policy's number.
    number: Cell<u64>,
    open: Cell<bool>,
    verdicts: RefCell<Verdicts>,
    now_s: Cell<u64>,
}

impl Gate {
    /// A gate by a policy with this number, which is not 0, at this time.
    pub fn new(policy: Arc<Policy>, number: u64, now_s: u64) -> Self {
        let gate = Self {
            number: Cell::new(number),
            open: Cell::new(policy.is_open()),
            policy: RefCell::new(policy),
            verdicts: RefCell::default(),
            now_s: Cell::new(now_s),
        };
        debug_assert_ne!(number, 0, "0 is the number of no policy");
        gate
    }

    /// Goes by another policy from now on: nothing is known of anyone.
    pub fn set_policy(&self, policy: Arc<Policy>, number: u64) {
        self.open.set(policy.is_open());
        self.policy.replace(policy);
        self.number.set(number);
        self.verdicts.take();
    }

    /// Moves the time on; in whole seconds since 1970.
    pub fn set_now(&self, now_s: u64) {
        self.now_s.set(now_s);
    }

    /// The policy it goes by.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Whether a request with this `Authorization` may do what takes `scope`, if
    /// anything.
    #[inline]
    pub fn admit(
        &self,
        caller: &Caller,
        authorization: Option<&[u8]>,
        scope: Option<Scope>,
    ) -> Admission {
        let Some(scope) = scope else {
            return Admission::Granted;
        };
        let shown = authorization.unwrap_or_default();
        let mut standing = caller.standing.borrow_mut();
        let known = standing.policy == self.number.get()
            && self.now_s.get() < standing.until_s
            && (self.open.get() || same(&standing.authorization, shown));
        if !known && !self.find(caller, authorization, &mut standing) {
            if std::mem::take(&mut standing.busy) {
                return Admission::Refused(Refusal::Busy);
            }
            return Admission::Unverified;
        }
        match &standing.identity {
            Some(identity) if identity.scopes.contains(scope) => Admission::Granted,
            Some(_) => Admission::Refused(Refusal::Forbidden(scope)),
            None => Admission::Refused(Refusal::Unauthorized {
                in_the_clear: standing.in_the_clear,
                takes_passwords: self.policy.borrow().has_users(),
            }),
        }
    }

    /// Whether the last request of this caller would be granted this scope now, without a
    /// check: for answers that go on.
    pub fn still_admits(&self, caller: &Caller, scope: Option<Scope>) -> bool {
        let shown = caller.standing.borrow().authorization.clone();
        let shown = (!shown.is_empty()).then_some(&*shown);
        self.admit(caller, shown, scope) == Admission::Granted
    }

    /// Finds out who it is anew; false when that takes a check.
    #[cold]
    fn find(&self, caller: &Caller, authorization: Option<&[u8]>, standing: &mut Standing) -> bool {
        let (identity, in_the_clear, until_s) = match self.resolve(caller, authorization) {
            Resolved::Unverified => return false,
            Resolved::Known(identity, until_s) => (Some(identity), false, until_s),
            // A verdict against it may lapse; until then nothing is asked again.
            Resolved::Nobody { in_the_clear } => (None, in_the_clear, self.now_s.get() + 1),
        };
        let shown = authorization.unwrap_or_default();
        standing.authorization.clear();
        standing.authorization.extend_from_slice(shown);
        standing.policy = self.number.get();
        standing.identity = identity;
        standing.in_the_clear = in_the_clear;
        standing.until_s = until_s;
        standing.busy = false;
        true
    }

    /// The contract's order: bearer token, HTTP Basic, client certificate, identity
    /// token, and at last anybody.
    fn resolve(&self, caller: &Caller, authorization: Option<&[u8]>) -> Resolved {
        let policy = self.policy.borrow();
        let credentials = Credentials::read(authorization);
        let verdict = || {
            let tag = policy.tag(authorization.unwrap_or_default());
            let verdicts = self.verdicts.borrow();
            let verdict = verdicts.of(&tag, self.now_s.get());
            verdict.map(|identity| identity.map(|identity| (identity, verdicts.until(&tag))))
        };
        let mut in_the_clear = false;
        match &credentials {
            Credentials::Bearer(token) => {
                if let Some(identity) = policy.token(token) {
                    return Resolved::Known(Arc::clone(identity), u64::MAX);
                }
            }
            Credentials::Basic { .. } if policy.has_users() => {
                if policy.basic_needs_tls() && !caller.encrypted {
                    in_the_clear = true;
                } else {
                    match verdict() {
                        Some(Some((identity, until_s))) => {
                            return Resolved::Known(identity, until_s);
                        }
                        Some(None) => {}
                        None => return Resolved::Unverified,
                    }
                }
            }
            _ => {}
        }
        let by_certificate = caller.common_name.as_deref();
        if let Some(identity) = by_certificate.and_then(|name| policy.certificate(name)) {
            return Resolved::Known(Arc::clone(identity), u64::MAX);
        }
        if matches!(credentials, Credentials::Bearer(_)) && policy.takes_identity_tokens() {
            match verdict() {
                Some(Some((identity, until_s))) => return Resolved::Known(identity, until_s),
                Some(None) => {}
                None => return Resolved::Unverified,
            }
        }
        match policy.anonymous() {
            Some(identity) => Resolved::Known(Arc::clone(identity), u64::MAX),
            None => Resolved::Nobody { in_the_clear },
        }
    }

    /// What has to be found out about credentials that are [`Admission::Unverified`],
    /// and the tag to note the outcome under. Without a check they can be nobody's.
    pub fn check(&self, authorization: &[u8]) -> (Tag, Option<Check>) {
        let policy = self.policy.borrow();
        let check = match Credentials::read(Some(authorization)) {
            Credentials::Basic { username, password } => {
                let found = match policy.user(&username) {
                    Ok(user) => Some((&user.hash, Some(&user.identity))),
                    Err(decoy) => decoy.map(|hash| (hash, None)),
                };
                found.map(|(hash, identity)| Check::Password {
                    password,
                    hash: Arc::clone(hash),
                    identity: identity.map(Arc::clone),
                    username,
                })
            }
            Credentials::Bearer(token) => String::from_utf8(token.to_vec()).ok().map(Check::Token),
            Credentials::None | Credentials::Unknown => None,
        };
        (policy.tag(authorization), check)
    }

    /// The number of the policy it goes by.
    pub fn number(&self) -> u64 {
        self.number.get()
    }

    /// Remembers what a check has found that was handed out under the policy with this
    /// number; not, if that policy is gone.
    pub fn note(&self, caller: &Caller, number: u64, tag: Tag, outcome: Outcome) {
        match outcome {
            Outcome::Busy => caller.standing.borrow_mut().busy = true,
            outcome if number == self.number.get() => {
                let now_s = self.now_s.get();
                self.verdicts.borrow_mut().note(tag, outcome, now_s);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::super::secret::Sealer;
    use super::*;

    const NOW_S: u64 = 1_000;
    const HASH: &str = "$2b$04$hUcCMElUiUYuOyO1dVJ7iuWzHGpXQJ4GvPnF6v0gYO4V4nT8hZ1q2";
    const NOT_FOUND_OUT: Admission = Admission::Unverified;
    const UNAUTHORIZED: Admission = Admission::Refused(Refusal::Unauthorized {
        in_the_clear: false,
        takes_passwords: true,
    });

    fn policy(more: &str) -> Arc<Policy> {
        let text = format!(
            "tokens: [{{id: reader, token: r, scopes: [read]}},\
                      {{id: writer, token: w, scopes: [write]}}]\n\
             users: [{{id: olga, username: olga, password_bcrypt: '{HASH}', scopes: [admin]}}]\n\
             cert_identities: [{{subject_cn: batch, scopes: [read]}}]\n{more}"
        );
        Arc::new(Policy::parse(&text, &Sealer::new().unwrap()).unwrap())
    }

    fn gate(more: &str) -> Gate {
        Gate::new(policy(more), 1, NOW_S)
    }

    fn tls() -> Caller {
        Caller::new(true, None)
    }

    fn basic(pair: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(pair)).into_bytes()
    }

    fn id(caller: &Caller) -> String {
        caller.identity().unwrap().id.to_string()
    }

    /// Asks for the scope; carries out the check there may be with this outcome.
    fn after(
        gate: &Gate,
        caller: &Caller,
        shown: &[u8],
        scope: Scope,
        found: impl FnOnce(Check) -> Outcome,
    ) -> Admission {
        assert_eq!(gate.admit(caller, Some(shown), Some(scope)), NOT_FOUND_OUT);
        let number = gate.number();
        let (tag, check) = gate.check(shown);
        let outcome = check.map_or(Outcome::Refused(u64::MAX), found);
        gate.note(caller, number, tag, outcome);
        gate.admit(caller, Some(shown), Some(scope))
    }

    fn is_olga(check: Check) -> Outcome {
        match check {
            Check::Password {
                password,
                identity: Some(identity),
                ..
            } if password == b"pw" => Outcome::Granted(identity, u64::MAX),
            _ => Outcome::Refused(u64::MAX),
        }
    }

    #[test]
    fn a_token_passes_with_its_scope_only_and_none_includes_another() {
        let (gate, caller) = (gate(""), Caller::default());
        let admit = |shown: &str, scope| gate.admit(&caller, Some(shown.as_bytes()), Some(scope));
        assert_eq!(admit("Bearer r", Scope::Read), Admission::Granted);
        assert_eq!(id(&caller), "reader");
        let forbidden = Admission::Refused(Refusal::Forbidden(Scope::Write));
        assert_eq!(admit("Bearer r", Scope::Write), forbidden);
        assert_eq!(admit("Bearer w", Scope::Write), Admission::Granted);
        let forbidden = Admission::Refused(Refusal::Forbidden(Scope::Read));
        assert_eq!(admit("Bearer w", Scope::Read), forbidden);
        assert_eq!(admit("Bearer x", Scope::Read), UNAUTHORIZED);
        assert_eq!(gate.admit(&caller, None, Some(Scope::Read)), UNAUTHORIZED);
    }

    #[test]
    fn what_needs_no_scope_passes_whatever_is_shown() {
        let gate = gate("");
        for shown in [None, Some(&b"Bearer x"[..]), Some(&basic("olga:no")[..])] {
            assert_eq!(gate.admit(&tls(), shown, None), Admission::Granted);
        }
    }

    #[test]
    fn a_password_is_checked_once_and_then_known_on_every_connection() {
        let (gate, shown) = (gate(""), basic("olga:pw"));
        let first = after(&gate, &tls(), &shown, Scope::Admin, is_olga);
        assert_eq!(first, Admission::Granted);
        let other = tls();
        let admitted = gate.admit(&other, Some(&shown), Some(Scope::Admin));
        assert_eq!(
            (admitted, id(&other)),
            (Admission::Granted, "olga".to_owned())
        );
    }

    #[test]
    fn a_wrong_password_and_a_wrong_name_are_checked_alike_and_refused() {
        let gate = gate("");
        for pair in ["olga:wrong", "nobody:pw"] {
            let caller = tls();
            let found = after(&gate, &caller, &basic(pair), Scope::Read, |check| {
                assert!(matches!(&check, Check::Password { hash, .. } if &**hash == HASH));
                is_olga(check)
            });
            assert_eq!(found, UNAUTHORIZED, "{pair}");
        }
    }

    #[test]
    fn a_password_in_the_clear_is_refused_unless_the_policy_says_otherwise() {
        let (caller, shown) = (Caller::default(), basic("olga:pw"));
        let refused = Admission::Refused(Refusal::Unauthorized {
            in_the_clear: true,
            takes_passwords: true,
        });
        let admitted = gate("").admit(&caller, Some(&shown), Some(Scope::Admin));
        assert_eq!(admitted, refused);
        let lax = gate("allow_basic_without_tls: true");
        let caller = Caller::default();
        assert_eq!(
            after(&lax, &caller, &shown, Scope::Admin, is_olga),
            Admission::Granted
        );
    }

    #[test]
    fn the_first_that_matches_wins() {
        let gate = Gate::new(policy(""), 1, NOW_S);
        let batch = Caller::new(true, Some("batch".to_owned()));
        let admit = |shown| gate.admit(&batch, shown, Some(Scope::Read));
        assert_eq!(
            (admit(None), id(&batch)),
            (Admission::Granted, "batch".to_owned())
        );
        assert_eq!(admit(Some(b"Bearer r")), Admission::Granted);
        assert_eq!(id(&batch), "reader", "a token goes before a certificate");
        assert_eq!(admit(Some(b"Bearer x")), Admission::Granted);
        assert_eq!(
            id(&batch),
            "batch",
            "a wrong token does not stand in its way"
        );
        let found = after(&gate, &batch, &basic("olga:wrong"), Scope::Read, is_olga);
        assert_eq!(
            (found, id(&batch)),
            (Admission::Granted, "batch".to_owned())
        );
        let stranger = Caller::new(true, Some("stranger".to_owned()));
        assert_eq!(gate.admit(&stranger, None, Some(Scope::Read)), UNAUTHORIZED);
    }

    #[test]
    fn an_identity_token_is_checked_after_everything_else_and_lapses() {
        let known = Policy::closed(&Sealer::new().unwrap()).with_identity_tokens();
        let gate = Gate::new(Arc::new(known), 1, NOW_S);
        let caller = Caller::default();
        let someone = Arc::new(Identity {
            id: Arc::from("someone"),
            scopes: [Scope::Read].into_iter().collect(),
        });
        let found = after(&gate, &caller, b"Bearer a.b.c", Scope::Read, |check| {
            assert!(matches!(check, Check::Token(token) if token == "a.b.c"));
            Outcome::Granted(someone, NOW_S + 10)
        });
        assert_eq!(
            (found, id(&caller)),
            (Admission::Granted, "someone".to_owned())
        );
        let again = || gate.admit(&caller, Some(b"Bearer a.b.c"), Some(Scope::Read));
        gate.set_now(NOW_S + 9);
        assert_eq!(again(), Admission::Granted);
        gate.set_now(NOW_S + 10);
        assert_eq!(again(), NOT_FOUND_OUT);
        let unreadable = after(&gate, &caller, b"Bearer \xff", Scope::Read, |_| {
            panic!("there is nothing to check")
        });
        assert!(matches!(unreadable, Admission::Refused(_)));
    }

    #[test]
    fn a_new_policy_ends_what_was_known_at_once() {
        let (gate, caller) = (gate(""), tls());
        let shown = basic("olga:pw");
        after(&gate, &caller, &shown, Scope::Admin, is_olga);
        let (tag, _) = gate.check(&shown);
        let other = Policy::of_tokens(&["t"], &Sealer::new().unwrap());
        gate.set_policy(Arc::new(other), 2);
        let admitted = gate.admit(&caller, Some(&shown), Some(Scope::Admin));
        assert!(matches!(
            admitted,
            Admission::Refused(Refusal::Unauthorized { .. })
        ));
        let admitted = gate.admit(&caller, Some(b"Bearer r"), Some(Scope::Read));
        assert!(matches!(admitted, Admission::Refused(_)));

        // An outcome that comes late, from the time before, counts for nothing.
        gate.set_policy(policy(""), 3);
        let olga = Arc::clone(&policy("").user("olga").unwrap().identity);
        gate.note(&caller, 1, tag, Outcome::Granted(olga, u64::MAX));
        let admitted = gate.admit(&caller, Some(&shown), Some(Scope::Admin));
        assert_eq!(admitted, NOT_FOUND_OUT);
    }

    #[test]
    fn an_answer_that_goes_on_ends_with_what_admitted_it() {
        let (gate, caller) = (gate(""), Caller::default());
        let read = Some(Scope::Read);
        assert!(!gate.still_admits(&caller, read));
        gate.admit(&caller, Some(b"Bearer r"), read);
        assert!(gate.still_admits(&caller, read));
        assert!(!gate.still_admits(&caller, Some(Scope::Admin)));
        gate.set_policy(policy(""), 2);
        assert!(
            gate.still_admits(&caller, read),
            "the new policy knows it as well"
        );
        let other = Policy::of_tokens(&["t"], &Sealer::new().unwrap());
        gate.set_policy(Arc::new(other), 3);
        assert!(!gate.still_admits(&caller, read));
    }

    #[test]
    fn anybody_passes_where_the_policy_lets_them_and_credentials_still_count() {
        let (gate, caller) = (gate("allow_anonymous: true"), Caller::default());
        let admit = |shown| gate.admit(&caller, shown, Some(Scope::Write));
        assert_eq!(
            (admit(None), id(&caller)),
            (Admission::Granted, "anonymous".to_owned())
        );
        let forbidden = Admission::Refused(Refusal::Forbidden(Scope::Write));
        assert_eq!(admit(Some(b"Bearer r")), forbidden);
        assert_eq!(admit(Some(b"Bearer x")), Admission::Granted);
    }

    #[test]
    fn a_check_without_room_refuses_one_request_and_is_tried_again() {
        let (gate, caller, shown) = (gate(""), tls(), basic("olga:pw"));
        let busy = after(&gate, &caller, &shown, Scope::Admin, |_| Outcome::Busy);
        assert_eq!(busy, Admission::Refused(Refusal::Busy));
        let found = after(&gate, &caller, &shown, Scope::Admin, is_olga);
        assert_eq!(found, Admission::Granted);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let gate = gate("");
        let identity = Arc::new(Identity::anonymous());
        for number in 0..GRANTED_MAX + REFUSED_MAX {
            let (tag, _) = gate.check(format!("Bearer {number}").as_bytes());
            let granted = Outcome::Granted(Arc::clone(&identity), u64::MAX);
            gate.note(&tls(), 1, tag, granted);
            gate.note(&tls(), 1, tag, Outcome::Refused(u64::MAX));
        }
        let verdicts = gate.verdicts.borrow();
        assert!(verdicts.granted.len() <= GRANTED_MAX);
        assert!(verdicts.refused.len() <= REFUSED_MAX);
    }
}
