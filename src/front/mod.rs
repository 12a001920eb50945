//! The socket, and its clients.
