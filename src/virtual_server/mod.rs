//! A GPU server that exists only in memory: its programs answer over real sockets.

pub mod programs;
