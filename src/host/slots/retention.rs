//! Which saved generations may go.

use std::collections::BTreeSet;

use super::{Note, name};
use crate::config;

const MIB: u64 = 1024 * 1024;

/// The notes that may go, given all of them newest first: those superseded, those too old, and what is beyond the quota.
///
/// A slot file is the transcript of a conversation. So `keep_for` is meant: when it is over even the last one goes. The quota
/// takes those put aside first, then the oldest, but never the newest good one under a slot's own name.
pub(super) fn surplus<'a>(notes: &'a [Note], slots: &config::Slots, now: u64) -> Vec<&'a Note> {
    let names: BTreeSet<&str> = notes.iter().map(|note| note.name.as_str()).collect();
    let superseded: BTreeSet<&str> =
        names.iter().flat_map(|name| superseded(notes, name, slots.keep)).map(|note| note.file.as_str()).collect();
    let goes = |note: &&Note| superseded.contains(note.file.as_str()) || is_too_old(note, slots, now);
    let (mut surplus, stay): (Vec<&Note>, Vec<&Note>) = notes.iter().partition(goes);
    if let Some(most_mib) = slots.most_mib {
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
    let mut own: BTreeSet<&str> = BTreeSet::new();
    let mut may_go: Vec<&Note> = vec![];
    for &note in stay {
        let is_own = note.is_good() && name::slot_of(base, &note.name).is_some();
        if !is_own || !own.insert(&note.name) {
            may_go.push(note);
        }
    }
    // Stable: within either kind the newest still come first.
    may_go.sort_by_key(|note| !note.is_good());
    let mut gone = vec![];
    while bytes > most
        && let Some(note) = may_go.pop()
    {
        bytes = bytes.saturating_sub(note.bytes);
        gone.push(note);
    }
    gone
}

/// The notes of `name` that may go, given all notes newest first. The newest `keep` good ones stay (at least one), and the one
/// with the most tokens beside them, so that a few small saves never push out the long conversation. Of those put aside the
/// newest `keep` stay, for people to look at.
pub(super) fn superseded<'a>(notes: &'a [Note], name: &str, keep: u32) -> Vec<&'a Note> {
    let keep = usize::try_from(keep.max(1)).unwrap_or(usize::MAX);
    let of_name = notes.iter().filter(|n| n.name == name);
    let (good, aside): (Vec<_>, Vec<_>) = of_name.partition(|n| n.is_good());
    // The first of the largest: the newest.
    let largest = good.iter().copied().reduce(|a, b| if b.tokens > a.tokens { b } else { a });
    let surplus = good.into_iter().skip(keep).filter(|n| largest.is_none_or(|l| l.file != n.file));
    surplus.chain(aside.into_iter().skip(keep)).collect()
}
