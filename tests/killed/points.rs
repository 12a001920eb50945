//! Where the daemon is killed: before and after every effect.

use wechsler::machine::{Effect, Verb};

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $pattern:pat,)*) => {
        /// A kind of effect, orders taken apart. Made from the effect type: a new effect does not compile until it is here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point { $($(#[$doc])* $name,)* }
        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What kind an effect is of.
            pub const fn of(effect: &Effect) -> Self {
                match effect { $($pattern => Self::$name,)* }
            }
        }
    };
}

points! {
    Began = Effect::Began(_),
    Answer = Effect::Answer { .. },
    Ended = Effect::Ended { .. },
    HoldsChanged = Effect::HoldsChanged,
    Wake = Effect::Do { what: Verb::Wake, .. },
    StartUnit = Effect::Do { what: Verb::StartUnit(_), .. },
    StopUnit = Effect::Do { what: Verb::StopUnit(_), .. },
    KillUnit = Effect::Do { what: Verb::KillUnit(_), .. },
    SaveSlots = Effect::Do { what: Verb::SaveSlots(_), .. },
    RestoreSlots = Effect::Do { what: Verb::RestoreSlots(_), .. },
    PowerOff = Effect::Do { what: Verb::PowerOff, .. },
}

impl Point {
    /// It is an order to the world.
    pub const fn is_order(self) -> bool {
        !matches!(self, Self::Began | Self::Answer | Self::Ended | Self::HoldsChanged)
    }
}

/// On which side of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Before,
    After,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Before, Self::After];
}
