//! Every reachable state of the machine is visited, and every law holds on every edge.

mod spec;

use std::collections::{BTreeMap, BTreeSet};

use std::fmt::Write as _;

use spec::{
    explore::{Alphabet, Edge, Graph, explore},
    laws::LAWS,
    sample,
};
use std::time::Duration;
use wechsler::machine::{BootId, Command, Event, Kind, Machine, Options, Outcome, RequestId, Seen, Server};

fn check(policy: &wechsler::machine::Policy, acts: Alphabet) -> Graph {
    let mut broken: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let graph = explore(policy, acts, |e: &Edge| {
        for (name, law) in LAWS {
            if let Err(why) = law(e) {
                let seen = broken.entry(name).or_default();
                if seen.len() < 3 {
                    seen.push(format!(
                        "{why}\n    in {:?}, {:?}\n    by {:?} at {}\n    effects {:?}\n    to {:?}",
                        e.before.place(),
                        e.before.view().operation.map(|o| (o.goal, o.cause)),
                        e.act,
                        e.now,
                        e.effects,
                        e.after.place(),
                    ));
                }
            }
        }
    });
    eprintln!("{} states, {} edges, {} laws", graph.states.len(), graph.edges, LAWS.len());
    let mut report = String::new();
    for (law, cases) in &broken {
        let _ = writeln!(
            report,
            "law broken: {law}
  {}",
            cases.join(
                "
  "
            )
        );
    }
    assert!(report.is_empty(), "{report}");
    graph
}

#[test]
fn every_law_holds_on_every_edge_of_the_backends_lives() {
    check(&sample::quiet(), Alphabet::Life);
}

#[test]
fn every_law_holds_on_every_edge_among_obstacles() {
    check(&sample::quiet(), Alphabet::Obstacles);
}

#[test]
fn every_law_holds_on_every_edge_among_obstacles_when_everything_happens_by_itself() {
    check(&sample::eager(), Alphabet::Obstacles);
}

#[test]
fn every_law_holds_and_every_leaf_is_reached_when_everything_happens_by_itself() {
    let graph = check(&sample::eager(), Alphabet::Life);
    let reached: BTreeSet<Kind> = graph.states.iter().copied().collect();
    assert_eq!(reached, Kind::ALL.into_iter().collect(), "every leaf is reachable");
}

#[test]
fn from_every_state_a_stop_leads_to_idle_or_off_in_a_kind_world() {
    for acts in Alphabet::ALL {
        let mut seen = BTreeSet::new();
        explore(&sample::eager(), acts, |e: &Edge| {
            if seen.insert(e.after.key())
                && let Err(stuck) = stop_in_a_kind_world(e.after)
            {
                panic!("after {:?} in {:?}: {stuck}", e.act, e.before.place());
            }
        });
    }
}

/// Orders succeed, looks show what was ordered, nobody interferes.
fn stop_in_a_kind_world(machine: &Machine) -> Result<(), String> {
    let mut machine = machine.clone();
    let mut now = machine.view().now;
    let mut step = |machine: &mut Machine, event| {
        now = now + Duration::from_secs(20);
        let _ = machine.step(now, event);
        now
    };
    // What was held is let go first, and SSH is back.
    for hold in machine.view().holds {
        step(&mut machine, Event::Commanded { request: RequestId(8), command: Command::Release(hold.id) });
    }
    let mut ordered = false;
    for round in 0..24 {
        let view = machine.view();
        let now = view.now + Duration::from_secs(20);
        if let Some((verb, _)) = view.order {
            step(&mut machine, Event::Finished { verb, outcome: Outcome::Succeeded(vec![]) });
            continue;
        }
        let going = matches!(view.place.kind, Kind::PoweringOff);
        let look = if going || view.place.kind == Kind::Offline {
            sample::off(now, Server::Silent)
        } else {
            let mut look = sample::on(now, Seen::Stopped, Seen::Stopped);
            look.server = Server::On { boot: view.boot.unwrap_or(BootId(1)), session: 100 + round };
            look
        };
        step(&mut machine, Event::Looked(look));
        if !ordered {
            step(&mut machine, Event::Commanded { request: RequestId(9), command: Command::Stop(Options::default()) });
            ordered = true;
        }
    }
    let view = machine.view();
    let by_person = view.operation.as_ref().is_some_and(|o| !o.cause.is_policy());
    if by_person || !matches!(view.place.kind, Kind::Idle | Kind::Offline | Kind::PoweringOff) {
        return Err(format!("ends in {:?} with {:?}", view.place, view.operation));
    }
    Ok(())
}
