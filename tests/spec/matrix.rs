//! The matrix: for every leaf and every kind of event, everything that can come of it, as explored. It is committed, so
//! that no change of it passes unseen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use wechsler::machine::{
    Answer, BootPhase, Command, Effect, End, Event, Goal, Ignored, Kind, Look, Outcome, Place, PowerChoice, Server,
    Verb,
};

use super::explore::{Edge, Set};

macro_rules! kinds {
    ($($kind:literal: $event:pat $(if $so:expr)?,)*) => {
        /// Every kind of event. `wechsler`'s journal of steps tells events, and from an event follows its kind.
        pub const EVENTS: &[&str] = &[$($kind),*];

        /// The kind of `event`, one of [`EVENTS`]; `None` for a look that asked nothing.
        pub fn kind_of(event: &Event) -> Option<&'static str> {
            Some(match event {
                Event::Looked(Look { server: Server::NotLooked, .. }) => return None,
                $($event $(if $so)? => $kind,)*
            })
        }
    };
}

kinds! {
    "look: silence": Event::Looked(Look { server: Server::Silent, .. }),
    "look: booting": Event::Looked(Look { server: Server::Booting(BootPhase::Booting), .. }),
    "look: waits for a passphrase": Event::Looked(Look { server: Server::Booting(BootPhase::Preboot), .. }),
    "look: wrong host key": Event::Looked(Look { server: Server::Booting(BootPhase::WrongHostKey), .. }),
    "look: login refused": Event::Looked(Look { server: Server::Booting(BootPhase::AuthRefused), .. }),
    "look: on, no backend up": Event::Looked(look @ Look { server: Server::On { .. }, .. }) if up(look) == 0,
    "look: on, one up": Event::Looked(look @ Look { server: Server::On { .. }, .. }) if up(look) == 1,
    "look: on, several up": Event::Looked(Look { server: Server::On { .. }, .. }),
    "look: no SSH, but a backend answers": Event::Looked(Look { server: Server::Uncontrolled, .. }),
    "answer: succeeded": Event::Finished { outcome: Outcome::Succeeded(_), .. },
    "answer: failed": Event::Finished { outcome: Outcome::Failed(_), .. },
    "answer: lost": Event::Finished { outcome: Outcome::Unknown(_), .. },
    "command: start": Event::Commanded { command: Command::Start(..), .. },
    "command: switch": Event::Commanded { command: Command::Switch(..), .. },
    "command: stop": Event::Commanded { command: Command::Stop(_), .. },
    "command: restart": Event::Commanded { command: Command::Restart(..), .. },
    "command: wake": Event::Commanded { command: Command::Wake(_), .. },
    "command: shutdown --power-off": Event::Commanded { command: Command::Shutdown(PowerChoice::PowerOff, _), .. },
    "command: shutdown --keep-on": Event::Commanded { command: Command::Shutdown(PowerChoice::KeepOn, _), .. },
    "command: resolve": Event::Commanded { command: Command::Resolve(..), .. },
    "command: cancel": Event::Commanded { command: Command::Cancel, .. },
    "command: hold": Event::Commanded { command: Command::Hold(_), .. },
    "command: release": Event::Commanded { command: Command::Release(_), .. },
    "command: slots save": Event::Commanded { command: Command::SaveSlots(..), .. },
    "command: slots restore": Event::Commanded { command: Command::RestoreSlots(..), .. },
    "tick": Event::Tick,
}

fn up(look: &Look) -> usize {
    look.backends.iter().filter(|b| b.seen.is_up()).count()
}

/// One thing that comes of an event: what is asked for, in this order, and the leaf then. The file leaves out which backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cell {
    from: Place,
    /// The kind of event.
    pub event: &'static str,
    effects: [Option<Deed>; MOST_EFFECTS],
    /// Where it leads.
    pub to: Place,
    ignored: Option<Ignored>,
}

/// Effects of one step at most.
const MOST_EFFECTS: usize = 6;

/// An effect by its kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Deed {
    Accepts { joined: bool },
    AlreadySo,
    Done,
    Refuses(wechsler::machine::Refusal),
    Orders(Verb),
    Begins(Goal, bool),
    Succeeds,
    Fails(wechsler::machine::Failure),
    Cancelled,
    Replaced,
    HoldsChange,
}

impl Cell {
    /// What the edge shows; `None` if its event is of no kind.
    pub fn of(e: &Edge) -> Option<Self> {
        let event = kind_of(e.event)?;
        assert!(e.effects.len() <= MOST_EFFECTS, "{:?}", e.effects);
        let mut effects = [None; MOST_EFFECTS];
        for (place, effect) in effects.iter_mut().zip(e.effects) {
            *place = Some(Deed::of(effect));
        }
        Some(Self { from: e.before.place(), event, effects, to: e.after.place(), ignored: e.after.ignored() })
    }

    /// As it stands in the file.
    fn line(&self) -> String {
        let mut words: Vec<String> = self.effects.iter().flatten().map(Deed::word).collect();
        if let Some(why) = self.ignored {
            words.push(format!("ignored({why:?})"));
        }
        let to = if self.to.kind == self.from.kind { String::new() } else { format!("→ {}", self.to.kind) };
        if words.is_empty() { to } else { format!("{} {to}", words.join(", ")).trim_end().to_owned() }
    }
}

impl Deed {
    fn of(effect: &Effect) -> Self {
        match effect {
            Effect::Answer { answer: Answer::Accepted { joined, .. }, .. } => Self::Accepts { joined: *joined },
            Effect::Answer { answer: Answer::AlreadySo, .. } => Self::AlreadySo,
            Effect::Answer { answer: Answer::Done { .. }, .. } => Self::Done,
            Effect::Answer { answer: Answer::Refused(why), .. } => Self::Refuses(*why),
            Effect::Do { what, .. } => Self::Orders(*what),
            Effect::Began(op) => Self::Begins(op.goal, op.cause.is_policy()),
            Effect::Ended { end: End::Done { .. }, .. } => Self::Succeeds,
            Effect::Ended { end: End::Failed { failure, .. }, .. } => Self::Fails(*failure),
            Effect::Ended { end: End::Cancelled, .. } => Self::Cancelled,
            Effect::Ended { end: End::Replaced { .. }, .. } => Self::Replaced,
            Effect::HoldsChanged => Self::HoldsChange,
        }
    }

    fn word(&self) -> String {
        match self {
            Self::Accepts { joined: false } => "accepted".into(),
            Self::Accepts { joined: true } => "joined".into(),
            Self::AlreadySo => "already so".into(),
            Self::Done => "done at once".into(),
            Self::Refuses(why) => format!("refused({why})"),
            Self::Orders(what) => word_of(*what).into(),
            Self::Begins(goal, false) => format!("begins {}", goal.kind()),
            Self::Begins(goal, true) => format!("begins {} by policy", goal.kind()),
            Self::Succeeds => "ends it done".into(),
            Self::Fails(why) => format!("ends it failed({why})"),
            Self::Cancelled => "ends it cancelled".into(),
            Self::Replaced => "ends it replaced".into(),
            Self::HoldsChange => "holds change".into(),
        }
    }
}

/// What an order is called.
pub const fn word_of(verb: Verb) -> &'static str {
    match verb {
        Verb::Wake => "wakes",
        Verb::StartUnit(_) => "starts",
        Verb::StopUnit(_) => "stops",
        Verb::KillUnit(_) => "kills",
        Verb::SaveSlots(_) => "saves",
        Verb::RestoreSlots(_) => "restores",
        Verb::PowerOff => "powers off",
    }
}

const FILE: &str = "matrix.txt";
const NOT_REACHED: &str = "not reached";

/// What to do when the machine is to do something else.
pub const MEANT: &str = "If that is meant: `UPDATE_MATRIX=1 cargo test --test laws`, and read the diff.";

/// Writes the file anew instead of comparing.
pub fn is_updated() -> bool {
    std::env::var_os("UPDATE_MATRIX").is_some()
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spec").join(file)
}

/// Compares a generated file with what it should be, or writes it.
pub fn settle(file: &str, new: &str) {
    if is_updated() {
        std::fs::write(path(file), new).expect("it can be written");
        return;
    }
    let old = std::fs::read_to_string(path(file)).unwrap_or_default();
    let only = |this: &str, that: &str| {
        let lines: Vec<&str> = this.lines().filter(|line| !that.lines().any(|other| other == *line)).take(9).collect();
        lines.join("\n    ")
    };
    assert!(
        old == new,
        "tests/spec/{file} is stale. {MEANT}\ngone:\n    {}\nnew:\n    {}",
        only(&old, new),
        only(new, &old)
    );
}

/// The matrix as it is committed.
pub struct Committed {
    /// How large each world is, and its sum, by its name.
    figures: HashMap<String, String>,
    /// Each line with the leaf and the event it stands under.
    lines: HashSet<(String, String, String)>,
    /// Each leaf and event that something stands under.
    pairs: HashSet<(String, String)>,
}

impl Committed {
    /// Reads it.
    pub fn read() -> Self {
        Self::of(&std::fs::read_to_string(path(FILE)).unwrap_or_default())
    }

    /// ... from its text.
    pub fn of(text: &str) -> Self {
        let (mut leaf, mut event, mut lines) = (String::new(), String::new(), HashSet::new());
        let head = text.lines().take_while(|line| !line.starts_with("== "));
        let figures = head.filter_map(|line| Some((line.split_once(": ")?.0.to_owned(), line.to_owned()))).collect();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("== ") {
                name.clone_into(&mut leaf);
            } else if let Some(outcome) = line.strip_prefix("    ") {
                lines.insert((leaf.clone(), event.clone(), outcome.to_owned()));
            } else {
                line.clone_into(&mut event);
            }
        }
        let reached = lines.iter().filter(|(_, _, outcome)| outcome != NOT_REACHED);
        let pairs = reached.map(|(leaf, event, _)| (leaf.clone(), event.clone())).collect();
        Self { figures, lines, pairs }
    }

    /// How large `world` is, and its sum.
    pub fn figures(&self, world: &str) -> Option<&str> {
        self.figures.get(world).map(String::as_str)
    }

    /// It has this cell.
    pub fn has(&self, cell: &Cell) -> bool {
        self.lines.contains(&(cell.from.kind.to_string(), cell.event.to_owned(), cell.line()))
    }

    /// Whether some explored edge leads out of this leaf by an event of this kind: what a journal of steps is held against.
    pub fn is_explored(&self, leaf: Kind, event: &Event) -> bool {
        kind_of(event).is_none_or(|kind| self.pairs.contains(&(leaf.to_string(), kind.to_owned())))
    }

    /// Every leaf with every kind of event that some explored edge leads out of it by.
    pub fn pairs(&self) -> impl Iterator<Item = (Kind, &'static str)> + '_ {
        let all = Kind::ALL.into_iter().flat_map(|leaf| EVENTS.iter().map(move |event| (leaf, *event)));
        all.filter(|(leaf, event)| self.pairs.contains(&(leaf.to_string(), (*event).to_owned())))
    }
}

/// Compares the committed matrix with what was explored, or writes that.
pub fn settle_matrix(figures: &str, cells: &Set<Cell>) {
    settle(FILE, &text(figures, cells));
}

fn text(figures: &str, cells: &Set<Cell>) -> String {
    let mut by_pair: BTreeMap<(Kind, &str), BTreeSet<String>> = BTreeMap::new();
    for cell in cells {
        by_pair.entry((cell.from.kind, cell.event)).or_default().insert(cell.line());
    }
    let mut out = format!(
        "Everything that can come of an event, by leaf: answers and what else is asked for, in this order, and the leaf then\n\
         if it is another. Generated: `UPDATE_MATRIX=1 cargo test --test laws`.\n\n{figures}"
    );
    for leaf in Kind::ALL {
        let _ = write!(out, "\n== {leaf}\n");
        for event in EVENTS {
            let _ = writeln!(out, "{event}");
            match by_pair.get(&(leaf, *event)) {
                Some(lines) => lines.iter().for_each(|line| {
                    let _ = writeln!(out, "    {line}");
                }),
                None => {
                    let _ = writeln!(out, "    {NOT_REACHED}");
                }
            }
        }
    }
    out
}
