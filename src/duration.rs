//! stub
#[allow(missing_docs)]
pub struct GoDuration(i64);
#[allow(missing_docs)]
impl GoDuration { pub fn parse(s: &str) -> Result<Self, ()> { if let Some(ms)=s.strip_suffix("ms") { return ms.parse::<i64>().map(|n| Self(n*1_000_000)).map_err(|_|()); } s.strip_suffix('s').and_then(|n| n.parse::<i64>().ok()).map(|n| Self(n*1_000_000_000)).ok_or(()) } pub fn as_nanos(&self) -> i64 { self.0 } }
