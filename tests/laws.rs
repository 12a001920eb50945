//! Every reachable state of the machine is visited, every law holds on every edge, and what comes of every event is what is
//! committed.

mod spec;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    hash::BuildHasher,
    ops::ControlFlow,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use spec::{
    alphabet::Topic,
    explore::{Edge, Graph, Set, WORLDS, World, explore, of_each_world, way_to},
    laws::{Breaks, LAWS, Law},
    matrix::{Cell, Committed, EVENTS, MEANT, is_updated, settle, settle_matrix},
};
use wechsler::machine::{Event, Kind, Place};

/// What the exploration of a world showed.
struct Explored {
    graph: Graph,
    /// How large it is, and the sum of all that comes of all its edges, as it stands in the matrix.
    figures: String,
    /// On how many edges the premise of each law was true.
    premises: Vec<usize>,
    cells: Set<Cell>,
    /// What should not be; the exploration ended there.
    wrong: Option<String>,
}

/// Every broken machine, with its law and what that says of it.
fn broken_machines() -> impl Iterator<Item = (&'static Law, &'static (&'static str, Breaks))> {
    LAWS.iter().flat_map(|law| law.broken.iter().map(move |broken| (law, broken)))
}

/// Which of them were caught, in whatever world.
static CAUGHT: LazyLock<Vec<AtomicBool>> =
    LazyLock::new(|| broken_machines().map(|_| AtomicBool::new(false)).collect());

/// All worlds. The first thing that is wrong ends them all.
static EXPLORED: LazyLock<Vec<Explored>> = LazyLock::new(|| {
    let (committed, enough) = (Committed::read(), AtomicBool::new(false));
    of_each_world(|world| go_through(world, &committed, &enough))
});

fn go_through(world: &World, committed: &Committed, enough: &AtomicBool) -> Explored {
    let (mut cells, mut sum) = (Set::<Cell>::default(), 0_u64);
    let mut premises = vec![0; LAWS.len()];
    let mut wrong = None;
    let mut at_large: Vec<_> = broken_machines().zip(&*CAUGHT).collect();
    let graph = explore(world, |e: &Edge| {
        let cell = Cell::of(e);
        sum = sum.wrapping_add(cells.hasher().hash_one((e.keys(), e.act, cell)));
        let new = cell.filter(|cell| cells.insert(*cell));
        if let Some(cell) = new
            && !committed.has(&cell)
            && !is_updated()
        {
            wrong = Some(told(&format!("this is not in tests/spec/matrix.txt. {MEANT}"), world, e));
        }
        for (i, law) in LAWS.iter().enumerate() {
            let speaks = (law.premise)(e);
            premises[i] += usize::from(speaks);
            if speaks
                && wrong.is_none()
                && let Err(why) = (law.holds)(e)
            {
                wrong = Some(told(&format!("law broken: {}: {why}", law.name), world, e));
            }
        }
        at_large.retain(|((law, (says, broken)), caught)| {
            let is_caught = caught.load(Ordering::Relaxed)
                || broken(e).is_some_and(|step| {
                    let edge = step.edge(e);
                    (law.premise)(&edge) && (law.holds)(&edge).is_err_and(|why| why.contains(says))
                });
            caught.fetch_or(is_caught, Ordering::Relaxed);
            !is_caught
        });
        if wrong.is_some() {
            enough.store(true, Ordering::Relaxed);
        }
        if enough.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let figures = format!("{}: {} states, {} edges, sum {sum:016x}", world.name, graph.states.len(), graph.edges);
    let known = committed.figures(world.name).unwrap_or("nothing of it");
    if !enough.load(Ordering::Relaxed) && known != figures && !is_updated() {
        wrong = Some(format!("tests/spec/matrix.txt says {known}; now {figures}. {MEANT}"));
        enough.store(true, Ordering::Relaxed);
    }
    Explored { graph, figures, premises, cells, wrong }
}

/// What is wrong with the edge, and the shortest way there.
fn told(what: &str, world: &World, e: &Edge) -> String {
    let mut way = String::new();
    for (act, at) in way_to(world, e.before) {
        let _ = write!(way, "\n    {at} {act}");
    }
    format!(
        "{what}\nin the world \"{}\", after{way}\nby\n    {} {}\nin {:?}, {:?}, held {:?}\neffects {:?}\nto {:?}, {:?}",
        world.name,
        e.now,
        e.act,
        e.before.place(),
        e.before.operation().map(|o| (o.goal, o.cause)),
        e.was().holds.iter().map(|hold| hold.what).collect::<Vec<_>>(),
        e.effects,
        e.after.place(),
        e.after.ignored(),
    )
}

/// What was explored, with nothing wrong.
fn explored() -> &'static [Explored] {
    let wrong = EXPLORED.iter().any(|world| world.wrong.is_some());
    assert!(!wrong, "see `every_law_holds_on_every_edge`");
    &EXPLORED
}

#[test]
fn every_law_holds_on_every_edge() {
    let wrong: Vec<&str> = EXPLORED.iter().filter_map(|world| world.wrong.as_deref()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (states, edges) = explored()
        .iter()
        .fold((0, 0), |(states, edges), world| (states + world.graph.states.len(), edges + world.graph.edges));
    println!("{} worlds, {states} states, {edges} edges, {} laws", WORLDS.len(), LAWS.len());
}

#[test]
fn every_law_speaks_of_some_edges() {
    let mut list = String::from(
        "# The laws\n\nEach holds on every edge that is explored, on every step of every storm, and in fuzzing. It speaks of so many of the\n\
         explored edges, and each of its demands catches a machine made to break it. Generated: `UPDATE_MATRIX=1 cargo test\n\
         --test laws`.\n\n\
         | law | edges |\n| --- | ---: |\n",
    );
    for (i, law) in LAWS.iter().enumerate() {
        let edges: usize = explored().iter().map(|world| world.premises[i]).sum();
        let _ = writeln!(list, "| {} | {edges} |", law.name);
        assert!(edges > 0, "nothing that is explored has to do with it: {}", law.name);
    }
    settle("laws.md", &list);
}

#[test]
fn every_law_catches_the_machines_that_break_it() {
    explored();
    let mut missed = vec![];
    for (i, ((law, (says, _)), caught)) in broken_machines().zip(&*CAUGHT).enumerate() {
        if !caught.load(Ordering::Relaxed) {
            missed.push(format!("\"{}\" does not catch its machine \"{says}\" ({i})", law.name));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn every_demand_of_a_law_has_a_machine_that_breaks_it() {
    // What each says when it is not met: the text, and what stands in it between values.
    let demands = include_str!("spec/laws.rs").split(" ensure(").skip(1).filter_map(|demand| demand.split('"').nth(1));
    for demand in demands {
        let mut words = demand.split(['{', '}']).step_by(2).filter(|words| words.len() > 5);
        let is_broken =
            words.any(|words| broken_machines().any(|(_, (says, _))| words.contains(says) || says.contains(words)));
        assert!(is_broken, "no machine of spec/broken.rs is caught by \"{demand}\"");
    }
}

#[test]
fn every_leaf_is_reached() {
    let reached: BTreeSet<Kind> = explored().iter().flat_map(|world| world.graph.states.iter().copied()).collect();
    assert_eq!(reached, Kind::ALL.into_iter().collect());
}

#[test]
fn every_kind_of_event_is_explored() {
    let explored: BTreeSet<&str> =
        explored().iter().flat_map(|world| world.cells.iter().map(|cell| cell.event)).collect();
    assert_eq!(explored, EVENTS.iter().copied().collect());
}

#[test]
fn every_topic_is_explored_and_every_backend_runs_where_there_is_one() {
    let topics: Vec<Topic> = WORLDS.iter().flat_map(|world| world.topics).copied().collect();
    assert!(Topic::ALL.iter().all(|topic| topics.contains(topic)), "explored are only {topics:?}");
    for (world, explored) in WORLDS.iter().zip(explored()) {
        for id in (world.policy)().ids() {
            let runs = Place { kind: Kind::Running, backend: Some(id) };
            assert!(explored.cells.iter().any(|cell| cell.to == runs), "{id} never runs in \"{}\"", world.name);
        }
    }
}

#[test]
fn what_the_matrix_does_not_tell_of_is_not_explored() {
    let said =
        |outcome| Committed::of(&format!("== {}\ntick\n{outcome}", Kind::Idle)).is_explored(Kind::Idle, &Event::Tick);
    assert!(said("    begins power-off by policy"));
    assert!(!said("    not reached"));
    assert!(!said(""));
}

#[test]
fn what_comes_of_every_event_in_every_leaf_is_what_is_committed() {
    let mut figures = String::new();
    for world in explored() {
        let _ = writeln!(figures, "{}", world.figures);
    }
    let cells: Set<Cell> = explored().iter().flat_map(|world| world.cells.iter().copied()).collect();
    settle_matrix(&figures, &cells);
}
