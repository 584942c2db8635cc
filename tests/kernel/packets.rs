//! Packets made by hand, for what no well-behaved sender sends.
pub(crate) mod frame;
