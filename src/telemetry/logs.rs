//! stub
#[allow(missing_docs)]
pub fn start_error(line: &str) { eprintln!("{line}"); }
#[allow(missing_docs)]
pub fn init(level: tracing::Level) { tracing_subscriber::fmt().json().flatten_event(true).with_target(false).with_max_level(level).with_writer(std::io::stderr).init(); }
