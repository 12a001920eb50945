//! Small names for things, so that none can be taken for another.

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A configured backend: its place in [`super::Policy::backends`].
    BackendId(u8)
);
id!(
    /// An operation; counts up from 1 in each life of the daemon.
    OpId(u64)
);
id!(
    /// One order to the world; its answer carries it.
    VerbId(u64)
);
id!(
    /// A command somebody waits for; minted by the driver.
    RequestId(u64)
);
id!(
    /// A hold; counts up from 1.
    HoldId(u64)
);

/// One boot of the server (`/proc/sys/kernel/random/boot_id`, 128 bits, hex in JSON).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub u128);

/// One run of a unit (systemd's `InvocationID`, 128 bits, hex in JSON).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Invocation(pub u128);

macro_rules! hex128 {
    ($name:ident) => {
        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            /// Reads 32 hexadecimal digits; hyphens as in a UUID are skipped.
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let digits: String = s.trim().chars().filter(|c| *c != '-').collect();
                u128::from_str_radix(&digits, 16).map(Self)
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
hex128!(BootId);
hex128!(Invocation);
