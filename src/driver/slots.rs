//! Slots by name: what the machine knows as numbers, and what it need not know at all.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use super::world::{NamedSlot, SlotChoice, SlotTask, Tended};
use crate::machine::{BackendId, Goal, Selection, Verb};

/// Names that are remembered: far more than commands can wait.
const MOST_NAMES: usize = 128;
/// So much of it at once: each may hold a file open for long.
pub(super) const MOST_TENDED: usize = 4;

/// Something to be done about saved slots, on its way to the driver.
#[derive(Debug)]
pub struct Tend {
    /// Whose.
    pub backend: BackendId,
    /// What.
    pub task: SlotTask,
    /// Where the one answer goes.
    pub answer: oneshot::Sender<Tended>,
}

/// The names behind [`Selection::Named`]. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Selections(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    next: u32,
    known: VecDeque<(u32, NamedSlot)>,
}

impl Selections {
    /// What the machine calls it. The same wish has the same number, so that it joins one under way.
    #[must_use]
    pub fn number(&self, wish: NamedSlot) -> Selection {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, _)) = names.known.iter().find(|(_, known)| *known == wish) {
            return Selection::Named(*number);
        }
        let number = names.next;
        names.next = number.wrapping_add(1);
        if names.known.len() == MOST_NAMES {
            names.known.pop_front();
        }
        names.known.push_back((number, wish));
        Selection::Named(number)
    }

    /// What an order of an operation with that goal is to save or restore; `None` if its name was forgotten. To other orders
    /// that makes no difference.
    pub(super) fn choice(&self, verb: Verb, goal: Option<Goal>) -> Option<SlotChoice> {
        let goal = goal.filter(|_| matches!(verb, Verb::SaveSlots(_) | Verb::RestoreSlots(_)));
        let number = match goal {
            Some(Goal::Save(_, Selection::All)) => return Some(SlotChoice::Asked),
            Some(Goal::Save(_, Selection::Checkpoint)) => return Some(SlotChoice::Checkpoint),
            Some(Goal::Save(_, Selection::Named(number)) | Goal::Restore(_, Selection::Named(number))) => number,
            _ => return Some(SlotChoice::All),
        };
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.known.iter().find(|(known, _)| *known == number);
        known.map(|(_, wish)| SlotChoice::Named(wish.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVE: Verb = Verb::SaveSlots(BackendId(0));

    fn named(name: &str) -> NamedSlot {
        NamedSlot { name: name.into(), ..NamedSlot::default() }
    }

    #[test]
    fn the_same_wish_has_the_same_number_and_another_has_another() {
        let selections = Selections::default();
        let (a, b) = (selections.number(named("a")), selections.number(named("b")));
        assert_ne!(a, b);
        assert_eq!(selections.clone().number(named("a")), a);
        let generation = NamedSlot { generation: Some(3), ..named("a") };
        assert_ne!(selections.number(generation), a);
        let choice = selections.choice(SAVE, Some(Goal::Save(BackendId(0), b)));
        assert_eq!(choice, Some(SlotChoice::Named(named("b"))));
    }

    #[test]
    fn a_save_on_the_way_to_something_else_is_of_all_slots() {
        let selections = Selections::default();
        for goal in [None, Some(Goal::Stop), Some(Goal::Run(BackendId(1)))] {
            assert_eq!(selections.choice(SAVE, goal), Some(SlotChoice::All));
        }
        let asked = Goal::Save(BackendId(0), Selection::All);
        assert_eq!(selections.choice(SAVE, Some(asked)), Some(SlotChoice::Asked));
        let checkpoint = Goal::Save(BackendId(0), Selection::Checkpoint);
        assert_eq!(selections.choice(SAVE, Some(checkpoint)), Some(SlotChoice::Checkpoint));
    }

    #[test]
    fn names_do_not_pile_up_and_one_that_is_forgotten_is_not_taken_for_another() {
        let selections = Selections::default();
        let first = selections.number(named("first"));
        for n in 0..MOST_NAMES {
            let _ = selections.number(named(&n.to_string()));
        }
        let goal = Some(Goal::Restore(BackendId(0), first));
        assert_eq!(selections.choice(Verb::RestoreSlots(BackendId(0)), goal), None);
        assert_eq!(selections.choice(Verb::StopUnit(BackendId(0)), goal), Some(SlotChoice::All), "it needs no name");
        assert_ne!(selections.number(named("first")), first);
    }
}
