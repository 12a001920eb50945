use super::*;
use crate::{
    driver::{
        PostMortem, tests_policy, tests_saved_slot,
        world::{SlotTold, Tended},
    },
    machine::{
        Machine, Outcome, Verb, Warning,
        reading::{Ask, LastRestore, SlotReading},
    },
};

const LLAMA: BackendId = BackendId(0);

fn at(seconds: u64) -> Instant {
    Instant::after_start(Duration::from_secs(seconds))
}

/// llama.cpp with two slots, as it counts and shows what people do with it.
struct Scene {
    policy: Policy,
    view: View,
    reading: Reading,
    proofs: Proofs,
    second: u64,
    tasks: i64,
    prompts: Prompts,
}

impl Scene {
    /// A run in which nothing was asked yet, and a restore that has ended.
    fn restored() -> Self {
        let mut scene = Self::running();
        scene.restore();
        scene
    }

    fn running() -> Self {
        let policy = tests_policy();
        let mut scene = Self {
            view: Machine::new(policy.clone(), vec![]).view(),
            policy,
            reading: Reading { backends: vec![BackendReading::default(); 2], ..Reading::default() },
            proofs: Proofs::default(),
            second: 10,
            tasks: 0,
            prompts: Prompts::default(),
        };
        scene.runs();
        scene
    }

    /// Another run is seen.
    fn runs(&mut self) {
        self.second += 1;
        let value = Invocation(u128::from(self.second));
        self.view.look.backends[0].invocation = Some(value);
        self.reading.backends[0].run = Some(Dated { at: at(self.second), value });
        self.prompts = Prompts::default();
    }

    fn restore(&mut self) {
        self.proofs.ordered(LLAMA, &self.reading, &self.view);
        self.second += 1;
        self.proofs.ended(LLAMA, at(self.second));
    }

    /// A request begins in a slot, and so many tokens of its prompt are found.
    fn begins(&mut self, slot: u32, reused: u64) {
        self.tasks += 7;
        self.prompts.reused += reused;
        let progress = Progress { reused, ..Progress::default() };
        self.prompts.requests.retain(|request| request.slot != slot);
        self.prompts.requests.push(SlotRequest { slot, task: self.tasks, held: reused, under_way: Some(progress) });
    }

    fn request(&mut self, slot: u32) -> &mut SlotRequest {
        self.prompts.requests.iter_mut().find(|request| request.slot == slot).expect("it has begun")
    }

    /// So many tokens of its prompt are computed, which is not done.
    fn computes(&mut self, slot: u32, computed: u64) {
        let request = self.request(slot);
        request.held += computed;
        request.under_way.as_mut().expect("it is under way").computed += computed;
    }

    /// Its prompt is done, and this is generated so far.
    fn generates(&mut self, slot: u32, generated: u64) {
        let request = self.request(slot);
        request.held += generated - 1;
        let progress = request.under_way.as_mut().expect("it is under way");
        progress.generated = generated;
        let computed = progress.computed;
        self.prompts.computed += computed;
    }

    fn ends(&mut self, slot: u32) {
        let progress = self.request(slot).under_way.take().expect("it is under way");
        self.prompts.generated += progress.generated;
    }

    /// A whole request.
    fn asks(&mut self, slot: u32, reused: u64, computed: u64) {
        self.begins(slot, reused);
        self.computes(slot, computed);
        self.generates(slot, 24);
        self.ends(slot);
    }

    /// What a look shows two seconds later.
    fn look(&mut self) -> Vec<(u32, u64, u64)> {
        let slot = |id| {
            let request = self.prompts.requests.iter().find(|request| request.slot == id);
            SlotReading {
                id,
                n_ctx: 4096,
                is_processing: request.is_some_and(|request| request.under_way.is_some()),
                tokens: request.map(|request| request.held),
            }
        };
        let activity =
            Activity { slots: vec![slot(0), slot(1)], prompts: Some(self.prompts.clone()), ..Activity::default() };
        self.shows(activity)
    }

    fn shows(&mut self, value: Activity) -> Vec<(u32, u64, u64)> {
        self.second += 2;
        self.reading.backends[0].activity = Some(Dated { at: at(self.second), value });
        let told = self.proofs.told(&self.reading, &self.view, &self.policy);
        let verdict = |(_, task)| match task {
            SlotTask::Proved { slots, reuse } => (slots[0], reuse.reused, reuse.computed),
            other => panic!("{other:?}"),
        };
        told.into_iter().map(verdict).collect()
    }

    /// On record is one restore, into this run or another, and what it was worth.
    fn record(&mut self, into_this_run: bool, reuse: Option<Reuse>) {
        self.second += 1;
        let last_restore = Some(LastRestore { at: 1_000_000, tokens: 900, reuse });
        let restored_into = if into_this_run { self.view.look.backends[0].invocation } else { Some(Invocation(1)) };
        let value = vec![SavedSlot { last_restore, restored_into, ..tests_saved_slot() }];
        self.reading.backends[0].saved = Some(Dated { at: at(self.second), value });
    }

    fn is_awaited(&self) -> bool {
        self.proofs.are_awaited(at(self.second))
    }
}

#[test]
fn the_first_request_after_a_restore_tells_and_no_other_does() {
    let mut scene = Scene::restored();
    assert!(scene.is_awaited());
    assert_eq!(scene.look(), [], "nobody has asked it anything");
    scene.asks(0, 901, 1);
    assert_eq!(scene.look(), [(0, 901, 1)]);
    scene.asks(0, 0, 900);
    assert_eq!(scene.look(), []);
}

#[test]
fn a_request_that_is_seen_under_way_is_judged_as_soon_as_its_prompt_is_done() {
    let mut scene = Scene::restored();
    scene.begins(0, 2);
    scene.computes(0, 500);
    assert_eq!(scene.look(), []);
    scene.computes(0, 400);
    scene.generates(0, 5);
    assert_eq!(scene.look(), [(0, 2, 900)]);
    scene.ends(0);
    assert_eq!(scene.look(), []);
}

#[test]
fn a_busy_client_whose_first_request_found_nothing_does_not_make_the_restore_effective() {
    let mut scene = Scene::restored();
    scene.begins(0, 0);
    scene.computes(0, 902);
    scene.generates(0, 20);
    assert_eq!(scene.look(), [(0, 0, 902)]);
    for turn in 1..5 {
        scene.ends(0);
        scene.begins(0, 900 * turn);
        scene.computes(0, 20);
        scene.generates(0, 20);
        assert_eq!(scene.look(), []);
    }
}

#[test]
fn requests_back_to_back_between_two_looks_tell_nothing_ended_or_under_way() {
    for ended in [true, false] {
        let mut scene = Scene::restored();
        scene.asks(0, 0, 902);
        scene.begins(0, 925);
        scene.computes(0, 5);
        scene.generates(0, 24);
        if ended {
            scene.ends(0);
        }
        assert_eq!(scene.look(), []);
        scene.asks(0, 950, 5);
        assert_eq!(scene.look(), [], "it was not the first");
    }
}

#[test]
fn a_first_request_that_was_seen_to_find_nothing_is_judged_by_that_whatever_came_after_it() {
    let mut scene = Scene::restored();
    scene.begins(0, 0);
    scene.computes(0, 700);
    assert_eq!(scene.look(), []);
    scene.computes(0, 202);
    scene.generates(0, 24);
    scene.ends(0);
    scene.asks(0, 925, 5);
    assert_eq!(scene.look(), [(0, 0, 700)]);
}

#[test]
fn a_prompt_that_is_broken_off_tells_nothing() {
    let mut scene = Scene::restored();
    scene.begins(0, 300);
    scene.computes(0, 200);
    // As llama.cpp counts it then.
    scene.prompts.computed += 200;
    scene.ends(0);
    assert_eq!(scene.look(), []);
    scene.asks(0, 500, 400);
    assert_eq!(scene.look(), []);
}

#[test]
fn a_request_in_a_slot_that_was_not_restored_says_nothing_of_one_that_was() {
    let mut scene = Scene::restored();
    scene.asks(1, 0, 900);
    assert_eq!(scene.look(), [(1, 0, 900)], "whoever keeps the notes knows that nothing was restored into it");
    scene.asks(1, 900, 30);
    assert_eq!(scene.look(), []);
    assert!(scene.is_awaited());
    scene.asks(0, 901, 1);
    assert_eq!(scene.look(), [(0, 901, 1)]);
    assert!(!scene.is_awaited());
}

#[test]
fn each_of_two_slots_has_its_own_verdict_one_after_the_other_or_both_at_once() {
    let mut scene = Scene::restored();
    scene.asks(1, 0, 900);
    assert_eq!(scene.look(), [(1, 0, 900)]);
    scene.asks(0, 901, 1);
    assert_eq!(scene.look(), [(0, 901, 1)]);

    let mut scene = Scene::restored();
    scene.begins(0, 901);
    scene.computes(0, 1);
    scene.generates(0, 3);
    scene.begins(1, 0);
    scene.computes(1, 100);
    assert_eq!(scene.look(), [(0, 901, 1)]);
    scene.ends(0);
    scene.computes(1, 800);
    scene.generates(1, 1);
    assert_eq!(scene.look(), [(1, 0, 900)]);

    let mut scene = Scene::restored();
    scene.begins(0, 901);
    scene.computes(0, 1);
    scene.generates(0, 3);
    scene.ends(0);
    scene.begins(1, 700);
    scene.computes(1, 200);
    scene.generates(1, 1);
    assert_eq!(scene.look(), [(0, 901, 1), (1, 700, 200)], "one has ended, one has not");
}

#[test]
fn of_two_slots_used_between_two_looks_nobody_can_say_which_found_what() {
    let mut scene = Scene::restored();
    scene.asks(0, 901, 1);
    scene.asks(1, 0, 900);
    assert_eq!(scene.look(), []);
    assert!(!scene.is_awaited());
}

#[test]
fn numbers_that_fit_by_chance_tell_nothing_of_one_of_two_or_of_one_that_generated_nothing() {
    let ended = |slot, held| SlotRequest { slot, task: 7, held, under_way: None };
    let told = |generated, requests: &[SlotRequest]| {
        let now = Prompts { reused: 100, computed: 20, generated, requests: requests.to_vec() };
        requests_between(&Prompts::default(), &now)
    };
    let reuse = Reuse { reused: 100, computed: 20 };
    assert_eq!(told(30, &[ended(1, 149)]), Some(BTreeMap::from([(1, reuse)])));
    assert_eq!(told(30, &[ended(0, 60), ended(1, 149)]), None);
    assert_eq!(told(0, &[ended(1, 119)]), None);
}

#[test]
fn a_request_under_way_since_before_the_restore_is_not_taken_for_one_of_the_restored_slot() {
    let mut scene = Scene::running();
    scene.begins(1, 40);
    scene.computes(1, 300);
    scene.look();
    scene.restore();
    scene.computes(1, 300);
    scene.generates(1, 10);
    scene.begins(0, 901);
    scene.computes(0, 1);
    scene.generates(0, 2);
    assert_eq!(scene.look(), [(0, 901, 1)]);
    scene.ends(1);
    scene.ends(0);
    assert_eq!(scene.look(), []);

    let mut scene = Scene::running();
    scene.begins(1, 40);
    scene.computes(1, 300);
    scene.generates(1, 10);
    scene.look();
    scene.restore();
    scene.ends(1);
    assert_eq!(scene.look(), []);
    scene.asks(0, 0, 902);
    assert_eq!(scene.look(), [(0, 0, 902)]);
}

#[test]
fn a_greeting_closes_the_question_and_what_it_left_in_the_slot_is_not_taken_for_the_restore() {
    let mut scene = Scene::restored();
    scene.asks(0, 0, LEAST_PROMPT - 1);
    assert_eq!(scene.look(), []);
    scene.asks(0, LEAST_PROMPT, 20);
    assert_eq!(scene.look(), []);
}

#[test]
fn slots_are_asked_before_the_counters_and_what_comes_between_is_told_by_the_next_look() {
    let mut scene = Scene::restored();
    let counted = |reused, computed, generated| Prompts { computed, reused, generated, ..Prompts::default() };
    let unused = |prompts| Activity {
        slots: vec![SlotReading { id: 0, n_ctx: 9, is_processing: false, tokens: None }],
        prompts: Some(prompts),
        ..Activity::default()
    };
    assert_eq!(scene.shows(unused(counted(901, 1, 24))), []);
    scene.asks(0, 901, 1);
    assert_eq!(scene.look(), [(0, 901, 1)]);

    let mut scene = Scene::restored();
    scene.begins(0, 0);
    scene.computes(0, 800);
    scene.prompts.computed += 902;
    assert_eq!(scene.look(), [], "counted, and not shown");
    scene.prompts.computed -= 902;
    scene.computes(0, 102);
    scene.generates(0, 24);
    scene.ends(0);
    assert_eq!(scene.look(), [(0, 0, 902)]);
}

#[test]
fn what_the_run_before_or_after_counted_says_nothing_of_a_restore() {
    let mut scene = Scene::running();
    scene.asks(0, 0, 5000);
    scene.look();
    scene.runs();
    scene.restore();
    scene.asks(0, 901, 1);
    assert_eq!(scene.look(), [(0, 901, 1)]);

    let mut scene = Scene::restored();
    scene.runs();
    scene.asks(0, 0, 900);
    assert_eq!(scene.look(), []);
    assert!(!scene.is_awaited());
}

#[test]
fn what_was_asked_before_the_restore_is_taken_out() {
    let mut scene = Scene::running();
    scene.asks(1, 0, 1000);
    scene.look();
    scene.restore();
    scene.asks(0, 500, 3);
    assert_eq!(scene.look(), [(0, 500, 3)]);
}

#[test]
fn a_slot_restored_later_is_awaited_with_those_before() {
    let mut scene = Scene::restored();
    scene.asks(1, 0, 900);
    scene.look();
    scene.restore();
    scene.asks(0, 901, 1);
    assert_eq!(scene.look(), [(0, 901, 1)]);
}

#[test]
fn nothing_is_awaited_where_nothing_came_back_or_all_of_it_is_judged() {
    let judged = Some(Reuse { reused: 900, computed: 1 });
    for (into_this_run, reuse, awaited) in [(true, None, true), (true, judged, false), (false, None, false)] {
        let mut scene = Scene::restored();
        scene.record(into_this_run, reuse);
        scene.look();
        assert_eq!(scene.is_awaited(), awaited, "{into_this_run} {reuse:?}");
    }
}

#[test]
fn nothing_is_awaited_of_a_server_that_does_not_count_or_has_lost_it_in_its_sleep() {
    for sleeping in [false, true] {
        let mut scene = Scene::restored();
        assert_eq!(scene.shows(Activity { sleeping, ..Activity::default() }), []);
        assert!(!scene.is_awaited());
    }
}

#[test]
fn a_slot_that_nobody_uses_is_not_asked_about_eagerly_for_ever_and_judged_all_the_same() {
    let mut scene = Scene::restored();
    scene.second += EAGER.as_secs();
    scene.look();
    assert!(!scene.is_awaited());
    scene.begins(0, 0);
    scene.computes(0, 500);
    scene.look();
    assert!(scene.is_awaited(), "a request is under way");
    scene.computes(0, 400);
    scene.generates(0, 5);
    scene.ends(0);
    assert_eq!(scene.look(), [(0, 0, 900)]);
}

/// Notes can be written from the given try on.
struct Disk(u32, std::sync::atomic::AtomicU32);

impl World for Disk {
    async fn look(&self, _: Ask, _: Instant) -> Reading {
        Reading::default()
    }

    async fn carry_out(&self, _: Verb, _: Duration) -> Outcome {
        Outcome::Succeeded(vec![])
    }

    async fn tend_slots(&self, _: BackendId, _: SlotTask) -> Tended {
        let told = |code: &str| {
            vec![SlotTold { name: "localbot".into(), generation: 1, code: code.into(), message: String::new() }]
        };
        match self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 {
            now if now >= self.0 => Ok(told("restore_effective")),
            1 => Err(Warning::new("slots_in_use", "a save or restore is under way")),
            _ => Ok(told("note_failed")),
        }
    }

    async fn post_mortem(&self, _: BackendId) -> PostMortem {
        PostMortem::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_could_not_be_written_down_is_tried_again_until_it_is_or_for_minutes() {
    for (works_at, tries) in [(1, 1), (2, 2), (4, 4), (u32::MAX, WRITES)] {
        let disk = Arc::new(Disk(works_at, 0.into()));
        write_down(Arc::clone(&disk), LLAMA, SlotTask::Proved { slots: vec![0], reuse: Reuse::default() }).await;
        assert_eq!(disk.1.load(std::sync::atomic::Ordering::Relaxed), tries);
    }
}

#[test]
fn the_first_request_is_waited_for_eagerly_only_for_a_while() {
    let scene = Scene::restored();
    let ended = at(scene.second);
    assert!(scene.proofs.are_awaited(ended + EAGER.saturating_sub(Duration::from_millis(1))));
    assert!(!scene.proofs.are_awaited(ended + EAGER));
}

#[test]
fn what_was_asked_at_the_moment_a_restore_ended_is_of_before() {
    let mut scene = Scene::restored();
    let ended = at(scene.second);
    let counted = Activity { prompts: Some(Prompts { reused: 900, ..Prompts::default() }), ..Activity::default() };
    scene.reading.backends[0].activity = Some(Dated { at: ended, value: counted });
    scene.reading.backends[0].saved = Some(Dated { at: ended, value: vec![] });
    assert_eq!(scene.proofs.told(&scene.reading, &scene.view, &scene.policy), []);
    scene.asks(0, 901, 1);
    assert_eq!(scene.look(), [(0, 901, 1)]);
}

#[test]
fn a_prompt_that_is_just_long_enough_tells() {
    for (computed, told) in [(LEAST_PROMPT - 1, vec![]), (LEAST_PROMPT, vec![(0, 0, LEAST_PROMPT)])] {
        let mut scene = Scene::restored();
        scene.asks(0, 0, computed);
        assert_eq!(scene.look(), told, "{computed}");
    }
}

#[test]
fn what_is_asked_between_two_restores_into_a_run_is_judged_after_the_second() {
    let mut scene = Scene::running();
    scene.proofs.ordered(LLAMA, &scene.reading, &scene.view);
    scene.asks(1, 800, 200);
    assert_eq!(scene.look(), [], "the first is not over");
    scene.restore();
    assert_eq!(scene.look(), [(1, 800, 200)]);
}
