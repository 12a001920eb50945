//! Why an event changed nothing: a closed list, so that nothing falls through by accident.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $sentence:literal;)*) => {
        /// Why an event led to no move, no effect and no refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Ignored { $(#[doc = $sentence] $variant,)* }
        impl Ignored {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The reason, a sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str { match self { $(Self::$variant => $sentence,)* } }
        }
    };
}

reasons! {
    NothingNew = "The look says what the one before said.";
    Noted = "It is noted; nothing follows from it in this state yet.";
    Awaited = "What is seen belongs to what is under way; its end is waited for.";
    SilenceProvesNothing = "Nothing answered; only enough of that in a row counts.";
    OlderOrder = "The answer belongs to an order that has ended already.";
    NothingDue = "Nothing was due.";
}
