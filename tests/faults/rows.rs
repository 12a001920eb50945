//! The cases: what users of comparable systems reported, or what stands in the code of such systems.

/// One case.
pub struct Row {
    /// Its id, as in the names of its tests (in small letters).
    pub id: &'static str,
    /// What goes wrong.
    pub fault: &'static str,
    /// What Wechsler does.
    pub expected: &'static str,
}

const fn row(id: &'static str, fault: &'static str, expected: &'static str) -> Row {
    Row { id, fault, expected }
}

/// All cases.
pub const ROWS: &[Row] = &[
    // Swap, race, deadlock.
    row(
        "S1",
        "a request arrives while an idle stop is under way",
        "until the stop is ordered it gives way (`in_use`); after that it is stopped; nothing is wedged",
    ),
    row(
        "S2",
        "what was waited for never comes, because somebody else interfered",
        "every wait has a deadline and looks again: what was revived is stopped again, or `bound_exceeded`",
    ),
    row(
        "S3",
        "a backend never finishes a request",
        "the drain is bounded and ends with a warning; everybody else is answered at once meanwhile",
    ),
    row(
        "S4",
        "two starts at the same moment",
        "never two in flight: the other is refused (`busy`), the same joins; two started by hand are a `conflict`",
    ),
    row(
        "S5",
        "two clients switch back and forth",
        "one at a time, the other is refused as busy; the number of swaps is bounded",
    ),
    row("S7", "a unit stays `deactivating` for ever", "deadline, one kill, `stop_stuck`; a later command works"),
    row("S8", "the first start fails", "`start_failed` with the unit's words; the next start works"),
    row("S9", "a request lasts longer than the idle time", "in use is never idle"),
    row(
        "S10",
        "a start fails each time",
        "`crash_loop`, stopped, nothing tried by itself; a policy backs off and says when it tries again",
    ),
    row("S11", "a stop while a stream is open", "drained first, unless `--no-drain`"),
    row("S12", "a stop during a load", "taken at once, escalated to a kill where it must be"),
    row("S13", "monitoring", "its own questions never count as use"),
    row("S14", "a backend dies behind the daemon's back", "observation wins over memory"),
    row("S16", "slow questions", "the age of what is shown is part of it; nothing waits for one that hangs"),
    row("S17", "a start hangs half-way", "its phase is shown; `health_timeout`; a late word still counts"),
    row("S18", "health says 503 for ever", "`health_timeout`; it is left, or stopped as configured"),
    // Stop is not stop.
    row(
        "O1",
        "a worker outlives the stopped unit with GPU memory",
        "not stopped before it is gone: killed once, and nothing started meanwhile",
    ),
    row("O2", "a stop during warm-up leaves workers", "the same"),
    row("O3", "a foreign process holds the GPU", "no start into it; its pid and owner are named"),
    row(
        "O4",
        "GPU memory comes back late",
        "measured memory is waited for, then `gpu_not_freed`; nothing is started into it",
    ),
    row("O6", "the port is still in use", "`start_failed` with the program's words; the next one works"),
    row("O7", "a command's output stays open", "every command has a deadline, and a look says what became of it"),
    row(
        "O9",
        "a foreign GPU user arrives after the start check",
        "seen within a minute, named, blocks what comes after; clears itself",
    ),
    row("O10", "a start is killed for lack of memory", "result and exit status are told, not guessed"),
    row(
        "O11",
        "the unit's file is not the one that was meant",
        "status shows it; a failed start names it, and whether it is stale",
    ),
    // Health lies.
    row(
        "H1",
        "the GPU is missing at the start: silent fall-back to the processor",
        "said in attention (`gpu_unused`), where the GPU can be read",
    ),
    row(
        "H2",
        "the engine is dead, its API answers 200",
        "seen as soon as it says so; `no_progress` where requests are in flight and nothing moves; we ask it nothing",
    ),
    row("H3", "healthy and wrong text", "a wrong model is a stranger; wrong text is nobody's to judge"),
    row("H4", "health is silent during a long prompt", "busy is not dead: nothing is stopped for it"),
    row(
        "H5",
        "health is slower than the question's limit",
        "configurable, and one miss means nothing; a start says `http_unreachable`, and counts when it comes",
    ),
    row("H6", "the process is up and not ready", "phases: process, port, loading, ready"),
    row("H7", "asleep, and health says 200", "asked for, and never woken by us"),
    // Slots.
    row(
        "K1",
        "a restore says ok and does nothing",
        "nobody claims more than was said; the next requests' cache tells: `restore_ineffective` after two in vain",
    ),
    row(
        "K2",
        "a damaged file spoils the process",
        "checked before it is sent; after a rejection the backend is restarted",
    ),
    row("K4", "a small conversation would replace the large one", "generations: the largest is kept"),
    row("K5", "a request comes before the restore", "restored before it counts as ready; skipped once it was used"),
    row("K6", "a save hangs", "deadline; the switch goes on without it and says so"),
    row("K7", "model, context or build changed", "refused with the reason before it is sent"),
    row("K9", "the server saves into another folder", "the file is looked for, and missed"),
    row("K10", "the server cannot save", "found out, said, never in the way"),
    row(
        "K11",
        "a saved slot is a transcript",
        "what we keep is closed to strangers and holds nothing of it; the file is closed by its unit",
    ),
    row("K12", "the vLLM cache layer hangs the first request", "busy is not dead; its time to drain is bounded"),
    row("K13", "waking vLLM from sleep crashes it", "Wechsler stops and starts, it does not put to sleep"),
    row("K14", "the level of sleep is ignored", "the same"),
    row("K15", "sleep aborts requests", "the same"),
    // Wake and boot.
    row("W1", "the first packets are lost", "sent again until the first sign of life"),
    row("W2", "only one of several targets works", "all are sent to, and the end tells what could not be sent"),
    row("W3", "the card is not armed for the next wake", "no power-off, neither by a command nor by a policy"),
    row("W4", "it does not wake", "`wake_timeout`, what to check, and nothing more is sent"),
    row("W5", "a half-open connection", "a deadline ends it, the next is new"),
    row("W7", "it is up without being asked", "seen, and the idle policy applies with its whole time"),
    row(
        "W8",
        "it takes long to go down",
        "its deadline is the configuration's; off is proven, and a start waits for it",
    ),
    row("W9", "clocks jump", "idle time is counted on a clock that does not, and anew after a resume"),
    row("W10", "the initramfs answers with another key", "phase `preboot`, not an alarm"),
    row("W12", "the model store is not mounted at boot", "the start fails with the unit's own words"),
    row("W13", "the server's clock is wrong", "nothing depends on it"),
    // GPU.
    row(
        "G1",
        "CUDA does not start after a suspend",
        "the start fails once and is not repeated; Wechsler powers off, it does not suspend",
    ),
    row("G2", "a GPU fell off the bus", "attention `gpu_lost`, no restart loop"),
    row("G4", "driver and library differ after an upgrade", "attention `driver_mismatch`, with the reboot as its hint"),
    row("G5", "the GPU appears late at boot", "a start waits up to half a minute for a GPU that was there before"),
    // SSH and systemd.
    row("X2", "the kept session is dead", "a deadline of our own, then a new one"),
    row("X3", "a command never ends", "deadline on everything"),
    row("X4", "quoting", "fixed verbs, plain words"),
    row("X5", "the start limit is hit", "reset once, else the reason"),
    row("X7", "somebody inhibits the power-off", "respected, and named"),
    row("X8", "polkit would have to ask", "`not_permitted`, no retry"),
    row("X9", "systemd brings the other one back", "conflict, or stopped in favour of what is wanted"),
    row("X10", "another host key", "refused and named"),
    row("X11", "SSH is slow while booting", "it has the time of the boot, phase `booting`"),
];

/// Not applicable, and why.
pub const NOT_APPLICABLE: &[(&str, &str)] = &[
    ("K13", "the daemon never puts a vLLM to sleep or wakes one: it stops and starts units"),
    ("K14", "the daemon never puts a vLLM to sleep"),
    ("K15", "the daemon never puts a vLLM to sleep"),
];

/// Wait for another part of the program, and which.
pub const OWED: &[(&str, &str)] = &[];
