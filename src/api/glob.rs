//! stub
#[allow(missing_docs)]
#[derive(Debug)]
pub struct KeyFilter(Vec<u8>);
#[allow(missing_docs)]
impl KeyFilter { pub fn parse(q: &[u8]) -> Result<Self, ()> { Ok(Self(q.to_vec())) } pub fn matches(&self, key: &[u8]) -> bool { key.starts_with(&self.0) } }
