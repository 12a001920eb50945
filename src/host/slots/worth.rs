//! What a restore was worth. It promises nothing: models with a sliding window or recurrent state take a file and may still
//! compute the prompt anew. Where that was seen often enough, restores are no longer paid for.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Fit, Note, Reason, Said, Seen, SlotStore, now};
use crate::machine::{Invocation, reading::Reuse};

/// After so many restores in a row that had no effect, the next one is not tried by itself.
const IN_A_ROW: u32 = 2;
/// So many models, builds and layouts are remembered; the oldest give way.
const MOST: usize = 32;

/// Models, builds and layouts for which the last restore had no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Useless(Vec<Verdict>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    #[serde(flatten)]
    fit: Fit,
    /// So many restores in a row had none.
    in_a_row: u32,
    /// What was found of the last prompt.
    last: Reuse,
    /// Seconds since the epoch, by this machine's clock.
    at: u64,
    /// The run of the server it was found in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<Invocation>,
}

/// A restore that nobody has judged yet.
#[derive(Clone, Debug)]
pub(super) struct Unproven {
    pub(super) file: String,
    /// The save it is of.
    pub(super) round: u64,
    pub(super) fit: Fit,
    /// Came back.
    pub(super) tokens: u64,
    /// Into this run of the server, where it was known.
    pub(super) run: Option<Invocation>,
}

impl Unproven {
    pub(super) fn new(note: &Note, tokens: u64, run: Option<Invocation>) -> Self {
        Self { file: note.file.clone(), round: note.round, fit: note.fit.clone(), tokens, run }
    }
}

impl Seen {
    /// Forgets what was restored into an earlier run of the server: it is gone with it.
    pub(super) fn forget_earlier_runs(&mut self) {
        let now = self.run;
        self.unproven.retain(|_, restore| restore.run.is_none() || now.is_none() || restore.run == now);
    }
}

impl Useless {
    /// Takes a verdict in. One restore that had effect is enough to forget what was before; several slots of one run count as
    /// one.
    fn judge(&mut self, fit: &Fit, reuse: Reuse, at: u64, run: Option<Invocation>) {
        let is_same = |verdict: &Verdict| verdict.fit.differences(fit).is_empty();
        let before = self.0.iter().position(is_same).map(|place| self.0.remove(place));
        if !reuse.is_effective() {
            let in_a_row = match before {
                Some(before) if run.is_some() && before.run == run => before.in_a_row,
                before => before.map_or(0, |verdict| verdict.in_a_row).saturating_add(1),
            };
            self.0.push(Verdict { fit: fit.clone(), in_a_row, last: reuse, at, run });
            let surplus = self.0.len().saturating_sub(MOST);
            self.0.drain(..surplus);
        }
    }

    /// Why restores for `fit` are not worth their time; `None` if they may be.
    pub(super) fn why(&self, fit: &Fit) -> Option<String> {
        let verdict = self.0.iter().find(|verdict| verdict.fit.differences(fit).is_empty())?;
        let Verdict { in_a_row, last, .. } = verdict;
        (*in_a_row >= IN_A_ROW).then(|| {
            let (found, all) = (last.reused, last.reused.saturating_add(last.computed));
            format!(
                "the last {in_a_row} restores had no effect with this model and build: of the last prompt {found} of {all} \
                 tokens were found"
            )
        })
    }
}

impl SlotStore {
    /// Writes down what the last restore into these slots was worth, each restore once. Says of whom.
    ///
    /// To be called by whoever has the turn.
    pub(super) async fn prove(&self, slots: &[u32], reuse: Reuse) -> Vec<(Unproven, Said)> {
        let proven: Vec<(u32, Unproven)> = {
            let mut seen = self.seen();
            seen.forget_earlier_runs();
            let slots: BTreeSet<u32> = slots.iter().copied().collect();
            slots.into_iter().filter_map(|slot| Some((slot, seen.unproven.remove(&slot)?))).collect()
        };
        let mut useless = self.notes().await.useless.clone();
        let before = useless.clone();
        let mut judged: Vec<&Fit> = vec![];
        let mut told = vec![];
        for (slot, restore) in &proven {
            let noted = self.amend(&restore.file, |note| {
                if let Some(last) = &mut note.last_restore {
                    last.reuse = Some(reuse);
                }
            });
            if let Err(error) = noted.await {
                // To be judged again, if nothing else was restored meanwhile.
                self.seen().unproven.entry(*slot).or_insert_with(|| restore.clone());
                told.push((restore.clone(), Reason::NoteFailed.say(error.to_string())));
                continue;
            }
            // What the prompts of several slots found is one sum: one verdict.
            let all = reuse.reused.saturating_add(reuse.computed);
            if judged.iter().all(|fit| !fit.differences(&restore.fit).is_empty()) {
                let beside = proven.iter().filter(|(_, other)| other.fit.differences(&restore.fit).is_empty());
                let restored: u64 = beside.map(|(_, other)| other.tokens).fold(0, u64::saturating_add);
                // Whoever goes on with a conversation sends all of it; a short prompt was about something else.
                if reuse.is_effective() || all >= restored / 2 {
                    useless.judge(&restore.fit, reuse, now(), restore.run);
                }
                judged.push(&restore.fit);
            }
            let reason = if reuse.is_effective() { Reason::RestoreEffective } else { Reason::RestoreIneffective };
            told.push((restore.clone(), reason.say(format!("{} of {all} tokens were found", reuse.reused))));
        }
        if useless != before
            && let Err(error) = self.shelf.write_useless(useless).await
        {
            tracing::warn!(%error, "what restores do nothing for could not be written down");
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::fit, *};

    const NONE: Reuse = Reuse { reused: 0, computed: 900 };
    const MOST_OF_IT: Reuse = Reuse { reused: 800, computed: 100 };

    #[test]
    fn two_restores_in_a_row_without_effect_are_enough_and_one_with_effect_clears_it() {
        let mut useless = Useless::default();
        useless.judge(&fit(), NONE, 1, None);
        assert_eq!(useless.why(&fit()), None, "one may have been another conversation");
        useless.judge(&fit(), NONE, 2, None);
        assert!(useless.why(&fit()).is_some_and(|why| why.contains("0 of 900 tokens")));
        useless.judge(&fit(), MOST_OF_IT, 3, None);
        useless.judge(&fit(), NONE, 4, None);
        assert_eq!(useless.why(&fit()), None, "they were not in a row");
    }

    #[test]
    fn slots_of_one_run_count_as_one_restore() {
        let mut useless = Useless::default();
        for (run, is_enough) in [(1, false), (1, false), (2, true)] {
            useless.judge(&fit(), NONE, 1, Some(Invocation(run)));
            assert_eq!(useless.why(&fit()).is_some(), is_enough);
        }
    }

    #[test]
    fn another_model_or_build_has_its_own_verdict_and_only_so_many_are_remembered() {
        let mut useless = Useless::default();
        let of_build = |number: usize| Fit { build: Some(format!("b{number}")), ..fit() };
        for number in 0..=MOST {
            for at in 1..=2 {
                useless.judge(&of_build(number), NONE, at, None);
            }
        }
        assert_eq!(useless.why(&fit()), None);
        assert_eq!(useless.why(&of_build(0)), None, "the oldest gave way");
        assert!((1..=MOST).all(|number| useless.why(&of_build(number)).is_some()));
        let text = serde_json::to_string(&useless).expect("it is JSON");
        assert_eq!(serde_json::from_str::<Useless>(&text).expect("it reads"), useless);
    }
}
