//! Which saved generations may go.

use std::collections::BTreeSet;

use super::{Note, name};
use crate::config;

const MIB: u64 = 1024 * 1024;

/// A name is saved by so many different servers (models, builds, context sizes) at most; what the one last used the longest ago
/// has saved gives way.
const MOST_FITS: usize = 4;

/// The notes that may go, given all of them newest first: those superseded, those too old, and what is beyond the quota.
///
/// A slot file is the transcript of a conversation. So `keep_for` is meant: when it is over even the last one goes. The quota
/// takes those put aside first, then what has a newer and a larger one beside it, then what fits another server than the newest
/// does, that of the oldest first; but never the newest good one under a slot's own name. What is `missing` from the folder
/// takes no room in it.
pub(super) fn surplus<'a>(
    notes: &'a [Note],
    slots: &config::Slots,
    missing: &BTreeSet<String>,
    now: u64,
) -> Vec<&'a Note> {
    let names: BTreeSet<&str> = notes.iter().map(|note| note.name.as_str()).collect();
    let superseded: BTreeSet<&str> = names
        .iter()
        .flat_map(|name| superseded(notes, name, slots.keep, missing))
        .map(|note| note.file.as_str())
        .collect();
    let goes = |note: &&Note| superseded.contains(note.file.as_str()) || is_too_old(note, slots, now);
    let (mut surplus, stay): (Vec<&Note>, Vec<&Note>) = notes.iter().partition(goes);
    if let Some(most_mib) = slots.most_mib {
        let stay: Vec<&Note> = stay.into_iter().filter(|note| !missing.contains(&note.file)).collect();
        surplus.extend(beyond_quota(&stay, &slots.name, most_mib.saturating_mul(MIB)));
    }
    surplus
}

/// Kept for longer than it may be.
pub(super) fn is_too_old(note: &Note, slots: &config::Slots, now: u64) -> bool {
    slots.keep_for.is_some_and(|keep_for| now.saturating_sub(note.saved_at) > keep_for.as_secs())
}

/// Of the notes `stay`, newest first, those that must go to come down to `most` bytes.
fn beyond_quota<'a>(stay: &[&'a Note], base: &str, most: u64) -> Vec<&'a Note> {
    let mut bytes = stay.iter().fold(0_u64, |sum, note| sum.saturating_add(note.bytes));
    let names: BTreeSet<&str> = stay.iter().map(|note| note.name.as_str()).collect();
    let of_name =
        |name: &str| stay.iter().copied().filter(|note| note.is_good() && note.name == name).collect::<Vec<_>>();
    let mut never: BTreeSet<&str> = BTreeSet::new();
    let mut late: BTreeSet<&str> = BTreeSet::new();
    for name in names {
        let good = of_name(name);
        never.extend(good.first().filter(|_| name::slot_of(base, name).is_some()).map(|note| note.file.as_str()));
        let last = by_fit(good).into_iter().flat_map(|good| [good.first().copied(), largest(&good)]);
        late.extend(last.flatten().map(|note| note.file.as_str()));
    }
    let fits = by_fit(stay.to_vec());
    let age = |note: &Note| fits.iter().position(|notes| notes[0].fit == note.fit);
    let mut may_go: Vec<&Note> = stay.iter().copied().filter(|note| !never.contains(note.file.as_str())).collect();
    // Newest first, so that the last is the next to go.
    may_go.sort_by_cached_key(|note| (!note.is_good(), !late.contains(note.file.as_str()), age(note)));
    let mut gone = vec![];
    while bytes > most
        && let Some(note) = may_go.pop()
    {
        bytes = bytes.saturating_sub(note.bytes);
        gone.push(note);
    }
    gone
}

/// The notes of `name` that may go, given all notes newest first. Of each server that they fit the newest `keep` good ones stay
/// (at least one), and the one with the most tokens beside them: a few small saves never push out the long conversation, nor
/// what another model has saved that may be back tomorrow. What is `missing` from the folder may be back, too: it keeps its own
/// place, but takes nobody else's. Of those put aside the newest `keep` stay, for people to look at.
pub(super) fn superseded<'a>(notes: &'a [Note], name: &str, keep: u32, missing: &BTreeSet<String>) -> Vec<&'a Note> {
    let keep = usize::try_from(keep.max(1)).unwrap_or(usize::MAX);
    let of_name = notes.iter().filter(|n| n.name == name);
    let (good, aside): (Vec<_>, Vec<_>) = of_name.partition(|n| n.is_good());
    let mut gone = vec![];
    for (number, good) in by_fit(good).into_iter().enumerate() {
        let there: Vec<&Note> = good.iter().copied().filter(|note| !missing.contains(&note.file)).collect();
        let stay = |some: &[&'a Note]| some.iter().copied().take(keep).chain(largest(some)).collect::<Vec<_>>();
        let stays = if number < MOST_FITS { [stay(&good), stay(&there)].concat() } else { vec![] };
        gone.extend(good.into_iter().filter(|note| stays.iter().all(|stays| stays.file != note.file)));
    }
    gone.extend(aside.into_iter().skip(keep));
    gone
}

/// The notes that fit the same server together, all in the order they came in. What could not be read of one of them makes it
/// another: too much is kept rather than too little.
fn by_fit(notes: Vec<&Note>) -> Vec<Vec<&Note>> {
    let mut fits: Vec<Vec<&Note>> = vec![];
    for note in notes {
        match fits.iter_mut().find(|fit| fit[0].fit == note.fit) {
            Some(fit) => fit.push(note),
            None => fits.push(vec![note]),
        }
    }
    fits
}

/// The newest of those with the most tokens, given the newest first.
fn largest<'a>(notes: &[&'a Note]) -> Option<&'a Note> {
    notes.iter().copied().reduce(|a, b| if b.tokens > a.tokens { b } else { a })
}
