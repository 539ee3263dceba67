//! Who a caller is and what it may do.

use std::sync::Arc;

/// A permission. None includes another: who may write may not read for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To read keys and the state of the cluster.
    Read,
    /// To write and delete keys.
    Write,
    /// To control nodes.
    Admin,
}

impl Scope {
    /// All of them, in the order they are told.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// Its name in policies, tokens and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// Its name as a capability of the cache.
    pub fn capability(self) -> &'static str {
        match self {
            Self::Read => "cache.read",
            Self::Write => "cache.write",
            Self::Admin => "cache.admin",
        }
    }

    /// The scope of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope.
    pub const ALL: Self = Self(0b111);

    /// Adds one.
    pub fn insert(&mut self, scope: Scope) {
        self.0 |= 1 << scope as u8;
    }

    /// Whether it is among them.
    #[inline]
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & 1 << scope as u8 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them, in the order they are told.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL
            .into_iter()
            .filter(move |&scope| self.contains(scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut set = Self::default();
        for scope in scopes {
            set.insert(scope);
        }
        set
    }
}

/// A caller that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it is called in answers and logs.
    pub id: Arc<str>,
    /// What it may do.
    pub scopes: Scopes,
}

impl Identity {
    /// Whoever comes, where nothing is asked of anyone: may do everything.
    pub fn anonymous() -> Self {
        Self {
            id: Arc::from("anonymous"),
            scopes: Scopes::ALL,
        }
    }
}
