//! What only the cores can do or tell: eviction and expiry on demand, the hottest keys,
//! keys and digests partition by partition.
//!
//! Each core gets its errand by its mailbox ([`Errand`]); whoever asked waits on the
//! control thread. At most [`ERRANDS_MAX`] are outstanding at once, beyond that the
//! answer is 503.

use std::cell::Cell;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::api::{ApiError, key_text};
use crate::clock::Version;
use crate::hash::{PARTITION_COUNT, PartitionId};
use crate::http::Query;
use crate::node::core::Message;
use crate::node::errand::{ERRANDS_MAX, Errand, Hottest, KeysFrom, PartitionDigest};
use crate::runtime::{self, Giver, Sender, Taker, handoff};
use crate::store::{HOT_KEYS_SAMPLE, HotKey};

/// So many of the errands at once may be of those who may only read: they cannot keep
/// others from controls.
const READERS_MAX: usize = ERRANDS_MAX / 2;

/// A page of keys ends behind the partition with which it has so many.
const KEYS_PER_PAGE: usize = 1000;

/// Partitions on one page of digests.
const DIGESTS_PER_PAGE: usize = 512;

/// How many of the hottest keys of all cores are told together.
const HOTTEST_OF_ALL: usize = 20;

/// The cores, as far as errands go.
pub struct Errands {
    mailboxes: Vec<Sender<Message>>,
    outstanding: Rc<Cell<usize>>,
}

/// An errand that every core has got.
struct Outstanding<T> {
    answers: Vec<Taker<T>>,
    counted: Counted,
}

/// One of those that may be outstanding.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn busy() -> ApiError {
    ApiError::unavailable("the cores have as many such requests as they may; try again")
}

impl Errands {
    /// The cores behind these mailboxes.
    pub fn new(mailboxes: Vec<Sender<Message>>) -> Self {
        Self {
            mailboxes,
            outstanding: Rc::default(),
        }
    }

    fn ask<T: Send>(
        &self,
        most: usize,
        errand: impl Fn(Giver<T>) -> Errand,
    ) -> Result<Outstanding<T>, ApiError> {
        if self.outstanding.get() >= most {
            return Err(busy());
        }
        self.outstanding.set(self.outstanding.get() + 1);
        let counted = Counted(Rc::clone(&self.outstanding));
        let mut answers = Vec::with_capacity(self.mailboxes.len());
        for mailbox in &self.mailboxes {
            let (giver, taker) = handoff();
            let message = Message::Errand(errand(giver));
            mailbox.try_send(message).map_err(|_| busy())?;
            answers.push(taker);
        }
        Ok(Outstanding { answers, counted })
    }

    /// Has every core do something, and does not wait for it.
    pub fn start(&self, errand: impl Fn(Giver<()>) -> Errand) -> Result<(), ApiError> {
        let outstanding = self.ask(ERRANDS_MAX, errand)?;
        runtime::spawn(async move {
            let _ = outstanding.all().await;
        });
        Ok(())
    }

    /// A version newer than all that this node knows of.
    pub async fn stamp(&self) -> Result<Version, ApiError> {
        let stamps = self.ask(ERRANDS_MAX, Errand::Stamp)?.all().await?;
        let newest = stamps.into_iter().max();
        newest.ok_or_else(|| ApiError::internal("there is no core"))
    }

    /// `/debug/hotkeys`.
    pub async fn hot_keys(&self) -> Result<HotKeys, ApiError> {
        let cores = self.ask(ERRANDS_MAX, Errand::HotKeys)?.all().await?;
        Ok(HotKeys::of(&cores))
    }

    /// A page of `/internal/keys`.
    pub async fn keys(&self, from: PartitionId) -> Result<KeysPage, ApiError> {
        // Each core has its share of the partitions, and so of a page.
        let wanted = KEYS_PER_PAGE.div_ceil(self.mailboxes.len().max(1));
        let errand = |told| Errand::Keys(from, wanted, told);
        Ok(KeysPage::of(self.ask(READERS_MAX, errand)?.all().await?))
    }

    /// A page of `/internal/merkle`.
    pub async fn digests(&self, from: PartitionId) -> Result<DigestsPage, ApiError> {
        let errand = |told| Errand::Digests(from, DIGESTS_PER_PAGE, told);
        let cores = self.ask(READERS_MAX, errand)?.all().await?;
        let mut partitions: Vec<PartitionDigest> = cores.into_iter().flatten().collect();
        partitions.sort_by_key(|digest| digest.partition);
        let next = from.index() + DIGESTS_PER_PAGE;
        Ok(DigestsPage {
            partitions: partitions.iter().map(DigestLine::of).collect(),
            next_cursor: (next < PARTITION_COUNT).then_some(next),
        })
    }
}

impl<T> Outstanding<T> {
    /// The answers in the order of the cores.
    async fn all(self) -> Result<Vec<T>, ApiError> {
        let _counted = self.counted;
        let mut answers = Vec::with_capacity(self.answers.len());
        for answer in self.answers {
            let gone = || ApiError::internal("a core did not answer");
            answers.push(answer.await.ok_or_else(gone)?);
        }
        Ok(answers)
    }
}

/// The partition that a page begins with.
///
/// # Errors
///
/// 400 when it is none.
pub fn cursor(query: Option<&[u8]>) -> Result<PartitionId, ApiError> {
    let Some(value) = Query::first(query, b"cursor") else {
        return Ok(PartitionId::FIRST);
    };
    let text = key_text(&value);
    let partition = text.parse().ok().and_then(PartitionId::new);
    partition.ok_or_else(|| {
        ApiError::bad_request(format!(
            "cursor {text:?} is no partition: a whole number below {PARTITION_COUNT}"
        ))
    })
}

/// `/debug/hotkeys`. Counts are of uses that were looked at, one in about `sample`; halved
/// every half minute.
#[derive(Serialize)]
pub struct HotKeys {
    sample: u64,
    keys: Vec<HotKeyLine>,
    cores: Vec<HotCore>,
}

#[derive(Serialize)]
struct HotCore {
    core: usize,
    looked_at: u64,
    keys: Vec<HotKeyLine>,
}

#[derive(Clone, Serialize)]
struct HotKeyLine {
    key: String,
    key_base64: String,
    core: usize,
    count: u64,
    /// By how much the count may be too high.
    error: u64,
    /// Of the uses of all keys on its core.
    share: f64,
}

impl HotKeys {
    fn of(cores: &[Hottest]) -> Self {
        let line = |core, looked_at: u64, hot: &HotKey| HotKeyLine {
            key: key_text(&hot.key).into_owned(),
            key_base64: STANDARD.encode(&hot.key),
            core,
            count: hot.count,
            error: hot.error,
            share: hot.count as f64 / looked_at.max(1) as f64,
        };
        let cores: Vec<HotCore> = cores
            .iter()
            .enumerate()
            .map(|(core, hottest)| HotCore {
                core,
                looked_at: hottest.looked_at,
                keys: hottest
                    .keys
                    .iter()
                    .map(|hot| line(core, hottest.looked_at, hot))
                    .collect(),
            })
            .collect();
        let mut keys: Vec<HotKeyLine> = cores.iter().flat_map(|core| core.keys.clone()).collect();
        keys.sort_by_key(|line| std::cmp::Reverse(line.count));
        keys.truncate(HOTTEST_OF_ALL);
        Self {
            sample: HOT_KEYS_SAMPLE,
            keys,
            cores,
        }
    }
}

/// A page of `/internal/keys`: the keys of whole partitions.
#[derive(Serialize)]
pub struct KeysPage {
    keys: Vec<String>,
    /// The partition that the next page begins with; none after the last.
    next_cursor: Option<usize>,
}

impl KeysPage {
    /// What the cores found, as far as all of them have looked.
    fn of(cores: Vec<KeysFrom>) -> Self {
        let next = cores.iter().filter_map(|found| found.next).min();
        let partitions = cores.into_iter().flat_map(|found| found.partitions);
        let mut partitions: Vec<_> = partitions
            .filter(|(partition, _)| next.is_none_or(|next| *partition < next))
            .collect();
        partitions.sort_by_key(|(partition, _)| *partition);
        let keys = partitions.iter().flat_map(|(_, keys)| keys);
        Self {
            keys: keys.map(|key| key_text(key).into_owned()).collect(),
            next_cursor: next.map(PartitionId::index),
        }
    }
}

/// A page of `/internal/merkle`.
#[derive(Serialize)]
pub struct DigestsPage {
    partitions: Vec<DigestLine>,
    next_cursor: Option<usize>,
}

#[derive(Serialize)]
struct DigestLine {
    partition: usize,
    /// In hexadecimal: JavaScript's numbers are too small for it.
    digest: String,
    items: usize,
}

impl DigestLine {
    fn of(digest: &PartitionDigest) -> Self {
        Self {
            partition: digest.partition.index(),
            digest: format!("{:016x}", digest.digest),
            items: digest.items,
        }
    }
}
