//! What a node counts about handing on its own telemetry.

use super::security::Shared;

/// See the module's comment.
#[derive(Debug, Default)]
pub struct ExportCounters {
    /// Requests to a collector that it has taken.
    pub exports: Shared,
    /// Those that it has not taken, or not in time.
    pub export_failures: Shared,
    /// Spans that a collector has taken.
    pub spans_exported: Shared,
    /// Spans that were given up: too many waited, or no collector took them.
    pub spans_dropped: Shared,
}
