//! The runtime module on glommio. To be written.
