//! How many cores to run, on which CPUs, and whether to pin them.
//!
//! Reading the machine ([`read_facts`]) is apart from deciding ([`plan`]), which is pure.
//! The rule: where the CPUs in the affinity mask are ours (no CPU quota, or a quota as
//! large as the mask, which is what a Guaranteed pod gets from the static CPU manager),
//! one pinned thread per CPU. Where a quota, or the limit an orchestrator tells where it
//! enforces none, is smaller than the mask we share a pool:
//! as many threads as the quota has whole CPUs, not pinned, since a kubelet rewrites
//! such masks at will, and with a warning that says what to change.
//!
//! Never: more than [`CORES_MAX`] cores, or none. What cannot be read counts as absent,
//! except the affinity mask, without which nothing can be decided.

use std::fmt;
use std::io;

use super::cgroup;

/// The most cores one process runs.
pub const CORES_MAX: usize = 1024;

/// A quota this close to the size of the mask is equal to it.
const QUOTA_TOLERANCE_CORES: f64 = 0.01;

/// What the plan is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CoreFacts {
    /// The CPUs this process may run on (`sched_getaffinity`).
    pub mask: Vec<usize>,
    /// The CPUs its cgroup may run on (`cpuset.cpus.effective`), if readable.
    pub cpuset_effective: Option<Vec<usize>>,
    /// The tightest CPU quota over its cgroup and the ancestors, in CPUs.
    pub quota_cores: Option<f64>,
    /// How many CPUs an orchestrator says this process may use: where a quota is lifted or not
    /// enforced, nothing else tells a share of a pool from CPUs of its own.
    pub cpu_limit: Option<f64>,
    /// The number of cores an operator asked for.
    pub override_cores: Option<usize>,
    /// Whether to refuse CPUs that are shared with others.
    pub exclusive_required: bool,
}

/// Reads mask, cpuset and quota of this process; the operator's wishes are left empty.
pub fn read_facts() -> io::Result<CoreFacts> {
    Ok(CoreFacts {
        mask: affinity_mask()?,
        cpuset_effective: cgroup::cpuset_effective(&cgroup::real_files),
        quota_cores: cgroup::quota_cores(&cgroup::real_files),
        ..CoreFacts::default()
    })
}

impl CoreFacts {
    /// How many CPUs may be used at once: the quota or the limit, whichever is less.
    fn allowed_cores(&self) -> Option<f64> {
        match (self.quota_cores, self.cpu_limit) {
            (Some(quota), Some(limit)) => Some(quota.min(limit)),
            (quota, limit) => quota.or(limit),
        }
    }
}

/// Which threads to run where, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct CorePlan {
    /// One entry per core: the CPU it is pinned to, if it is.
    pub cpus: Vec<Option<usize>>,
    /// Whether the cores are pinned.
    pub pinned: bool,
    /// Why this number and this pinning.
    pub reason: PlanReason,
    /// What is not as it should be, and what to change.
    pub warning: Option<String>,
    /// The CPUs that were counted: the mask within the cpuset.
    pub mask: Vec<usize>,
    /// The CPU quota, if any.
    pub quota_cores: Option<f64>,
}

impl CorePlan {
    /// The CPUs that were counted, as the kernel writes them: `0-3,8`.
    pub fn cpu_list(&self) -> String {
        let mut list = String::new();
        let ranges = self.mask.chunk_by(|cpu, next| cpu + 1 == *next);
        for (first, last) in ranges.filter_map(|range| range.first().zip(range.last())) {
            let comma = if list.is_empty() { "" } else { "," };
            let range = match first == last {
                true => format!("{comma}{first}"),
                false => format!("{comma}{first}-{last}"),
            };
            list.push_str(&range);
        }
        list
    }
}

/// Why a plan is as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PlanReason {
    /// No limit: the CPUs in the mask are ours.
    NoLimit {
        /// CPUs in the mask.
        cpus: usize,
    },
    /// The limit covers the mask exactly: exclusive CPUs.
    LimitEqualsMask {
        /// CPUs in the mask.
        cpus: usize,
    },
    /// The limit is larger than the mask and never binds.
    LimitAboveMask {
        /// The quota or the limit.
        limit_cores: f64,
        /// CPUs in the mask.
        cpus: usize,
    },
    /// The limit is smaller than the mask: a share of a pool.
    SharedPool {
        /// The quota or the limit.
        limit_cores: f64,
        /// CPUs in the mask.
        cpus: usize,
    },
    /// The operator said how many.
    Override {
        /// Cores asked for.
        cores: usize,
        /// CPUs in the mask.
        cpus: usize,
        /// Whether each has a CPU of its own.
        pinned: bool,
    },
}

impl fmt::Display for PlanReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoLimit { cpus } => {
                write!(f, "no CPU limit: one pinned core for each of {cpus} CPUs")
            }
            Self::LimitEqualsMask { cpus } => {
                write!(
                    f,
                    "the CPU limit equals the mask: one pinned core for each of {cpus} CPUs"
                )
            }
            Self::LimitAboveMask { limit_cores, cpus } => write!(
                f,
                "the CPU limit of {limit_cores} exceeds the mask: one pinned core for each of {cpus} CPUs"
            ),
            Self::SharedPool { limit_cores, cpus } => write!(
                f,
                "the CPU limit of {limit_cores} is less than {cpus} CPUs: its whole CPUs, not pinned"
            ),
            Self::Override {
                cores,
                cpus,
                pinned,
            } => write!(
                f,
                "{cores} cores were asked for on {cpus} CPUs: {}",
                if pinned { "pinned" } else { "not pinned" }
            ),
        }
    }
}

/// Why no plan could be made.
#[derive(Clone, Debug, PartialEq)]
pub enum CorePlanError {
    /// The affinity mask is empty.
    NoCpus,
    /// The number asked for is not within 1..=[`CORES_MAX`].
    OverrideOutOfRange {
        /// Cores asked for.
        cores: usize,
    },
    /// Exclusive CPUs were demanded, and these are shared.
    NotExclusive {
        /// What would have been run.
        reason: PlanReason,
    },
}

impl fmt::Display for CorePlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCpus => f.write_str("the affinity mask has no CPU"),
            Self::OverrideOutOfRange { cores } => {
                write!(
                    f,
                    "{cores} cores were asked for; it must be 1 to {CORES_MAX}"
                )
            }
            Self::NotExclusive { reason } => write!(
                f,
                "exclusive CPUs are required, but {reason}; {EXCLUSIVE_ADVICE}"
            ),
        }
    }
}

impl std::error::Error for CorePlanError {}

const EXCLUSIVE_ADVICE: &str = "give it whole CPUs of its own (a Guaranteed pod with integer CPU \
                                requests on a node with the static CPU manager policy) or remove \
                                the CPU limit";

/// Decides how many cores run, and where. Pure.
pub fn plan(facts: &CoreFacts) -> Result<CorePlan, CorePlanError> {
    let (mask, mask_warning) = counted_cpus(facts);
    if mask.is_empty() {
        return Err(CorePlanError::NoCpus);
    }
    let cpus = mask.len();
    let (reason, count, pinned) = decide(facts, cpus)?;
    if facts.exclusive_required && !is_exclusive(reason, facts.allowed_cores()) {
        return Err(CorePlanError::NotExclusive { reason });
    }
    let count = count.min(CORES_MAX);
    let chosen = if pinned {
        mask.iter().copied().take(count).map(Some).collect()
    } else {
        vec![None; count]
    };
    Ok(CorePlan {
        cpus: chosen,
        pinned,
        reason,
        warning: warning(reason, facts.allowed_cores()).or(mask_warning),
        mask,
        quota_cores: facts.quota_cores,
    })
}

/// The mask within the cpuset; the mask alone when the two have nothing in common, which
/// happens while an orchestrator moves us.
fn counted_cpus(facts: &CoreFacts) -> (Vec<usize>, Option<String>) {
    let Some(cpuset) = &facts.cpuset_effective else {
        return (facts.mask.clone(), None);
    };
    let both: Vec<usize> = facts
        .mask
        .iter()
        .copied()
        .filter(|cpu| cpuset.contains(cpu))
        .collect();
    if both.is_empty() {
        let warning = "the affinity mask and the cgroup's cpuset have no CPU in common";
        return (facts.mask.clone(), Some(warning.to_owned()));
    }
    (both, None)
}

fn decide(facts: &CoreFacts, cpus: usize) -> Result<(PlanReason, usize, bool), CorePlanError> {
    let allowed = facts.allowed_cores();
    let binding = allowed.filter(|&quota| quota < cpus as f64 - QUOTA_TOLERANCE_CORES);
    if let Some(cores) = facts.override_cores {
        if !(1..=CORES_MAX).contains(&cores) {
            return Err(CorePlanError::OverrideOutOfRange { cores });
        }
        let pinned = binding.is_none() && cores <= cpus;
        return Ok((
            PlanReason::Override {
                cores,
                cpus,
                pinned,
            },
            cores,
            pinned,
        ));
    }
    Ok(match (binding, allowed) {
        (Some(limit_cores), _) => {
            let whole = (limit_cores + QUOTA_TOLERANCE_CORES).floor().max(1.0);
            (
                PlanReason::SharedPool { limit_cores, cpus },
                whole as usize,
                false,
            )
        }
        (None, Some(limit_cores)) if limit_cores > cpus as f64 + QUOTA_TOLERANCE_CORES => {
            (PlanReason::LimitAboveMask { limit_cores, cpus }, cpus, true)
        }
        (None, Some(_)) => (PlanReason::LimitEqualsMask { cpus }, cpus, true),
        (None, None) => (PlanReason::NoLimit { cpus }, cpus, true),
    })
}

/// A mask that is smaller than the limit was not made by a CPU manager, so others may
/// run on it. Without a limit nothing can be known, and bare metal is assumed.
fn is_exclusive(reason: PlanReason, limit_cores: Option<f64>) -> bool {
    match reason {
        PlanReason::NoLimit { .. } | PlanReason::LimitEqualsMask { .. } => true,
        PlanReason::LimitAboveMask { .. } | PlanReason::SharedPool { .. } => false,
        PlanReason::Override { pinned, cpus, .. } => {
            let above = |quota: f64| quota > cpus as f64 + QUOTA_TOLERANCE_CORES;
            pinned && !limit_cores.is_some_and(above)
        }
    }
}

fn warning(reason: PlanReason, limit_cores: Option<f64>) -> Option<String> {
    match reason {
        PlanReason::SharedPool { .. } => Some(format!(
            "{reason}; expect throttling under load: {EXCLUSIVE_ADVICE}"
        )),
        PlanReason::Override { cores, cpus, .. } if cores > cpus => Some(format!(
            "{cores} cores share {cpus} CPUs and are not pinned: ask for at most {cpus}"
        )),
        PlanReason::Override {
            cores,
            cpus,
            pinned: false,
        } => {
            let limit = limit_cores.unwrap_or(cpus as f64);
            Some(format!(
                "{cores} cores run unpinned under a CPU limit of {limit}: {EXCLUSIVE_ADVICE}"
            ))
        }
        _ => None,
    }
}

/// A CPU set as the kernel takes it: one bit per CPU.
type CpuWord = libc::c_ulong;
const WORD_BITS: usize = CpuWord::BITS as usize;
/// Room for 2^17 CPUs: kernels are built for at most 8192.
const CPU_WORDS_MAX: usize = (1 << 17) / WORD_BITS;

/// The affinity mask of this thread, however many CPUs the machine has.
fn affinity_mask() -> io::Result<Vec<usize>> {
    let mut words: Vec<CpuWord> = vec![0; 1024 / WORD_BITS];
    loop {
        // SAFETY: the kernel writes at most the given number of bytes into `words`, which
        // is exactly as large, aligned as a word, and not read meanwhile.
        let result = unsafe {
            libc::sched_getaffinity(0, size_of_val(&words[..]), words.as_mut_ptr().cast())
        };
        if result == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        // EINVAL: this kernel's masks are larger than our room.
        if error.raw_os_error() != Some(libc::EINVAL) || words.len() >= CPU_WORDS_MAX {
            return Err(error);
        }
        words.resize(words.len() * 2, 0);
    }
    let bits = words.len() * WORD_BITS;
    Ok((0..bits)
        .filter(|cpu| words[cpu / WORD_BITS] >> (cpu % WORD_BITS) & 1 == 1)
        .collect())
}

/// Pins the calling thread to `cpu`.
pub(super) fn pin_this_thread(cpu: usize) -> io::Result<()> {
    // The crate's fixed set ends at CPU_SETSIZE, where it would panic.
    if cpu >= libc::CPU_SETSIZE as usize {
        return pin_beyond_fixed_set(cpu);
    }
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(
        error.kind(),
        format!("cannot pin a core to CPU {cpu}: {error}"),
    ))
}

fn pin_beyond_fixed_set(cpu: usize) -> io::Result<()> {
    let mut words: Vec<CpuWord> = vec![0; cpu / WORD_BITS + 1];
    words[cpu / WORD_BITS] |= 1 << (cpu % WORD_BITS);
    // SAFETY: the kernel reads the given number of bytes from `words`, which has them.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of_val(&words[..]), words.as_ptr().cast()) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(
        error.kind(),
        format!("cannot pin a core to CPU {cpu}: {error}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(cpus: usize, quota_cores: Option<f64>) -> CoreFacts {
        CoreFacts {
            mask: (0..cpus).collect(),
            quota_cores,
            ..CoreFacts::default()
        }
    }

    #[test]
    fn cpus_are_listed_as_the_kernel_lists_them() {
        for list in ["0", "0-3", "1,3", "0-3,8,10-11"] {
            let mask = cgroup::cpu_list(list).unwrap();
            let facts = CoreFacts {
                mask,
                ..CoreFacts::default()
            };
            assert_eq!(plan(&facts).unwrap().cpu_list(), list);
        }
    }

    #[test]
    fn the_quota_decides_between_our_cpus_and_a_shared_pool() {
        // CPUs in the mask, quota, cores, pinned, warned.
        let table = [
            (4, None, 4, true, false),
            (4, Some(4.0), 4, true, false),
            (4, Some(3.995), 4, true, false),
            (4, Some(8.0), 4, true, false),
            (4, Some(3.9), 3, false, true),
            (4, Some(3.0), 3, false, true),
            (4, Some(2.995), 3, false, true),
            (4, Some(1.5), 1, false, true),
            (4, Some(0.25), 1, false, true),
            (1, Some(0.5), 1, false, true),
            (1, Some(1.0), 1, true, false),
            (2000, None, CORES_MAX, true, false),
        ];
        for (cpus, quota, cores, pinned, warned) in table {
            let plan = plan(&facts(cpus, quota)).unwrap();
            let case = format!("{cpus} CPUs, quota {quota:?}: {plan:?}");
            assert_eq!(plan.cpus.len(), cores, "{case}");
            assert_eq!(plan.pinned, pinned, "{case}");
            assert_eq!(plan.warning.is_some(), warned, "{case}");
            assert_eq!(plan.quota_cores, quota);
            for (core, cpu) in plan.cpus.iter().enumerate() {
                assert_eq!(*cpu, pinned.then_some(core), "{case}");
            }
        }
    }

    #[test]
    fn a_limit_tells_a_pool_from_exclusive_cpus_where_there_is_no_quota() {
        // CPUs in the mask, quota, limit, cores, exclusive.
        let table = [
            (64, None, 6.0, 6, false),
            (6, None, 6.0, 6, true),
            (6, Some(6.0), 6.0, 6, true),
            (64, Some(6.0), 6.0, 6, false),
            (6, Some(3.0), 6.0, 3, false),
            (4, None, 6.0, 4, false),
        ];
        for (cpus, quota, limit, cores, exclusive) in table {
            let mut facts = facts(cpus, quota);
            facts.cpu_limit = Some(limit);
            let free = plan(&facts).unwrap();
            assert_eq!(free.cpus.len(), cores, "{free:?}");
            assert_eq!(free.quota_cores, quota);
            facts.exclusive_required = true;
            assert_eq!(plan(&facts).is_ok(), exclusive, "{free:?}");
        }
    }

    #[test]
    fn an_operator_may_say_how_many() {
        // CPUs in the mask, quota, cores asked for, pinned, warned.
        let table = [
            (4, None, 2, true, false),
            (4, None, 4, true, false),
            (4, None, 5, false, true),
            (4, Some(4.0), 3, true, false),
            (4, Some(2.0), 2, false, true),
            (4, Some(2.0), 4, false, true),
        ];
        for (cpus, quota, asked, pinned, warned) in table {
            let facts = CoreFacts {
                override_cores: Some(asked),
                ..facts(cpus, quota)
            };
            let plan = plan(&facts).unwrap();
            assert_eq!(plan.cpus.len(), asked, "{plan:?}");
            assert_eq!(plan.pinned, pinned, "{plan:?}");
            assert_eq!(plan.warning.is_some(), warned, "{plan:?}");
        }
        for asked in [0, CORES_MAX + 1] {
            let facts = CoreFacts {
                override_cores: Some(asked),
                ..facts(4, None)
            };
            assert_eq!(
                plan(&facts),
                Err(CorePlanError::OverrideOutOfRange { cores: asked })
            );
        }
    }

    #[test]
    fn shared_cpus_are_refused_when_exclusive_ones_are_required() {
        // CPUs in the mask, quota, cores asked for, granted.
        let table = [
            (4, None, None, true),
            (4, Some(4.0), None, true),
            (4, Some(4.0), Some(2), true),
            (4, Some(2.0), None, false),
            (4, Some(8.0), None, false),
            (4, Some(8.0), Some(2), false),
            (4, Some(2.0), Some(2), false),
            (4, None, Some(5), false),
        ];
        for (cpus, quota, override_cores, granted) in table {
            let facts = CoreFacts {
                override_cores,
                exclusive_required: true,
                ..facts(cpus, quota)
            };
            match plan(&facts) {
                Ok(plan) => assert!(granted && plan.pinned, "{plan:?}"),
                Err(CorePlanError::NotExclusive { reason }) => assert!(!granted, "{reason}"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn only_cpus_in_mask_and_cpuset_count() {
        let mut facts = CoreFacts {
            mask: vec![1, 3, 5],
            ..CoreFacts::default()
        };
        facts.cpuset_effective = Some(vec![3, 4, 5]);
        let within = plan(&facts).unwrap();
        assert_eq!(within.mask, [3, 5]);
        assert_eq!(within.cpus, [Some(3), Some(5)]);
        facts.cpuset_effective = Some(vec![7]);
        let apart = plan(&facts).unwrap();
        assert_eq!(apart.mask, [1, 3, 5]);
        assert!(apart.warning.unwrap().contains("in common"));
        assert_eq!(plan(&CoreFacts::default()), Err(CorePlanError::NoCpus));
    }

    #[test]
    fn a_reason_is_one_sentence_with_its_figures() {
        let reason = plan(&facts(8, Some(2.5))).unwrap().reason;
        assert_eq!(
            reason.to_string(),
            "the CPU limit of 2.5 is less than 8 CPUs: its whole CPUs, not pinned"
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = read_facts().unwrap();
        assert!(!facts.mask.is_empty());
        plan(&facts).unwrap();
    }
}
