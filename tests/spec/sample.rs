//! Sample servers for the specification: one to three backends, short round times.

use std::time::Duration;

use wechsler::machine::{
    BackendId, BackendKind, BackendPolicy, BootId, Instant, Invocation, Look, OnStartTimeout, Policy, RestorePolicy,
    Seen, Server, Use, WakeCheck,
};

/// llama.cpp, with slots.
pub const LLAMA: BackendId = BackendId(0);
/// vLLM.
pub const VLLM: BackendId = BackendId(1);
/// Any other, where there is one.
pub const WHISPER: BackendId = BackendId(2);

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Seconds after the daemon's start.
pub const fn at(seconds: u64) -> Instant {
    Instant::after_start(s(seconds))
}

fn backend(name: &str, kind: BackendKind, slots: bool) -> BackendPolicy {
    BackendPolicy {
        name: name.into(),
        kind,
        start_timeout: s(120),
        on_start_timeout: OnStartTimeout::Leave,
        drain_timeout: s(60),
        stop_timeout: s(90),
        kill_timeout: s(15),
        slots,
        restore: RestorePolicy::Offer,
        save_timeout: s(60),
        restore_timeout: s(60),
        checkpoint_tokens: None,
        checkpoint_quiet: None,
    }
}

/// Nothing happens by itself.
pub fn quiet() -> Policy {
    Policy {
        backends: vec![backend("llama-cpp", BackendKind::LlamaCpp, true), backend("vllm", BackendKind::Vllm, false)],
        default_backend: LLAMA,
        can_wake: true,
        wake_check: WakeCheck::Warn,
        wake_resend: s(3),
        boot_timeout: s(300),
        power_off_timeout: s(180),
        command_timeout: s(10),
        silence: s(30),
        misses: 2,
        conflict_after: s(3),
        idle_stop_after: None,
        idle_power_off_after: None,
        policy_backoff: s(60),
        gpu_baseline_mib: None,
    }
}

/// Everything that can happen by itself does.
pub fn eager() -> Policy {
    let mut policy = quiet();
    policy.idle_stop_after = Some(s(1200));
    policy.idle_power_off_after = Some(s(600));
    policy.backends[0].restore = RestorePolicy::Auto;
    policy.backends[0].checkpoint_quiet = Some(s(300));
    policy.backends[1].on_start_timeout = OnStartTimeout::Stop;
    policy
}

/// The same server with llama.cpp alone.
pub fn alone(mut policy: Policy) -> Policy {
    policy.backends.truncate(1);
    policy
}

/// ... without slots to save.
pub fn slotless(mut policy: Policy) -> Policy {
    policy.backends[0].slots = false;
    policy
}

/// ... with a third backend.
pub fn three(mut policy: Policy) -> Policy {
    policy.backends.push(backend("whisper", BackendKind::Generic, false));
    policy
}

/// A look at a server that is on (first boot, first session), nobody else there, armed for the next wake.
pub fn on(now: Instant, llama: Seen, vllm: Seen) -> Look {
    shows(now, &[llama, vllm])
}

/// ... with any number of backends.
pub fn shows(now: Instant, backends: &[Seen]) -> Look {
    let mut look = Look::nothing(backends.len());
    look.at = now;
    look.server = Server::On { boot: BootId(1), session: 1 };
    (look.people, look.foreign_gpu) = (Some(false), Some(false));
    look.wake_armed = Some(true);
    (look.gpu_at, look.people_at, look.wake_armed_at) = (now, now, now);
    for (i, seen) in backends.iter().enumerate() {
        let b = &mut look.backends[i];
        b.seen = *seen;
        b.use_at = now;
        let has_run = !matches!(seen, Seen::Stopped | Seen::Missing | Seen::Stranger | Seen::Unknown);
        b.invocation = has_run.then_some(Invocation(i as u128 + 1));
        if matches!(seen, Seen::Running | Seen::Stopped | Seen::Missing | Seen::CrashLoop) {
            b.use_ = Use::Idle;
        }
        if *seen == Seen::Running {
            b.mark = Some(0);
            b.holds_tokens = i == 0;
        }
    }
    look
}

/// A look that found nothing that is up.
pub fn off(now: Instant, server: Server) -> Look {
    let mut look = Look::nothing(2);
    look.at = now;
    look.server = server;
    look
}
