//! stub
use std::time::Duration;
#[allow(missing_docs)]
#[derive(Debug, Clone)] pub struct ListenAddr { pub host: Option<String>, pub port: u16 }
impl std::fmt::Display for ListenAddr { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{}:{}", self.host.as_deref().unwrap_or(""), self.port) } }
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy)] pub struct ByteSize(pub u64);
#[allow(missing_docs)]
#[derive(Debug, Clone)]
pub struct Settings { pub node_id: String, pub api_addr: ListenAddr, pub mgmt_addr: ListenAddr, pub dist_addr: ListenAddr, pub replication: u32, pub capacity: usize, pub cores: Option<usize>, pub require_exclusive_cpus: bool, pub io_driver: crate::runtime::DriverChoice, pub memory_limit: Option<ByteSize>, pub eviction: crate::store::EvictionPolicy, pub value_limit: ByteSize, pub body_limit: ByteSize, pub head_limit: ByteSize, pub target_limit: ByteSize, pub headers_limit: usize, pub connections: usize, pub read_timeout: Duration, pub write_timeout: Duration, pub idle_timeout: Duration, pub shutdown_timeout: Duration, pub mailbox_depth: usize, pub pipeline_depth: usize, pub tombstone_ttl: Duration, pub tombstones: usize, pub batch_limit: usize, pub log_level: tracing::Level }
#[allow(missing_docs)]
pub enum Invocation { Run(Settings), Help(String), Version(String), CheckConfig(Settings) }
#[allow(missing_docs)]
impl Settings {
    pub fn from(_args: impl Iterator<Item = std::ffi::OsString>, env: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>, hostname: &str) -> Result<Invocation, String> {
        let env: std::collections::HashMap<String, String> = env.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        let addr = |n: &str, d: &str| { let s = env.get(n).cloned().unwrap_or(d.into()); let (h, p) = s.rsplit_once(':').unwrap(); ListenAddr { host: (!h.is_empty()).then(|| h.to_string()), port: p.parse().unwrap() } };
        let num = |n: &str, d: usize| env.get(n).map_or(d, |v| v.parse().unwrap());
        let ms = |n: &str, d: u64| Duration::from_millis(num(n, d as usize) as u64);
        let kb = |n: usize| ByteSize(n as u64);
        Ok(Invocation::Run(Settings { node_id: env.get("HYPERCACHE_NODE_ID").cloned().unwrap_or(hostname.into()), api_addr: addr("HYPERCACHE_API_ADDR", ":8080"), mgmt_addr: addr("HYPERCACHE_MGMT_ADDR", ":8081"), dist_addr: addr("HYPERCACHE_DIST_ADDR", ":7946"), replication: 3, capacity: num("HYPERCACHE_CAPACITY", 100000), cores: env.get("HYPERCACHE_CORES").map(|v| v.parse().unwrap()), require_exclusive_cpus: false, io_driver: match env.get("HYPERCACHE_IO_DRIVER").map(String::as_str) { Some("epoll") => crate::runtime::DriverChoice::Epoll, Some("io_uring") => crate::runtime::DriverChoice::IoUring, _ => crate::runtime::DriverChoice::Auto }, memory_limit: None, eviction: Default::default(), value_limit: kb(4 << 20), body_limit: kb(4 << 20), head_limit: kb(16 << 10), target_limit: kb(8 << 10), headers_limit: 64, connections: num("HYPERCACHE_CONNECTIONS", 20000), read_timeout: ms("X", 5000), write_timeout: ms("X", 5000), idle_timeout: ms("X", 60000), shutdown_timeout: ms("X", 30000), mailbox_depth: 1024, pipeline_depth: 128, tombstone_ttl: ms("X", 300000), tombstones: 100000, batch_limit: 10000, log_level: tracing::Level::INFO }))
    }
    pub fn unsupported(&self) -> Option<String> { None }
}
