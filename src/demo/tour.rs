//! The tour, step by step. Each says what happens and why, lets it happen, and looks whether it did.

use super::{
    Broken,
    stage::{Stage, say},
};
use crate::virtual_server::{Power, UnitTruth, VirtualServer, programs::Signal};

const LLAMA: &str = "llama-cpp.service";
const VLLM: &str = "vllm.service";

/// The whole tour.
pub(super) async fn all(stage: &mut Stage) -> Result<(), Broken> {
    steps(stage).await.inspect_err(|_| {
        say("");
        say("That did not come out as told. The last words of the daemon:");
    })
}

async fn steps(stage: &mut Stage) -> Result<(), Broken> {
    stage
        .remark(
            "Wechsler looks after a shared GPU server: it wakes it, runs one of several inference backends on it, switches \
             between them without losing conversations, and lets it sleep. Here the server is virtual and lives in this \
             process; the daemon, the commands and the protocols are the real ones.",
        )
        .await;
    stage.start_daemon(None).await?;
    stage.until_state("gpu-offline").await?;
    stage.types("status").await?;
    cold_start(stage).await?;
    conversation(stage).await?;
    to_vllm(stage).await?;
    back(stage).await?;
    crash(stage).await?;
    conflict(stage).await?;
    idle(stage).await?;
    let violations = stage.server.violations();
    check(violations.is_empty(), || format!("the daemon asked for what it must not: {violations:?}"))?;
    say("");
    say("That was all of it, and everything came out as told.");
    say("config.toml.example says how to go on with a real server.");
    Ok(())
}

async fn cold_start(stage: &Stage) -> Result<(), Broken> {
    stage
        .tell(
            "1. Cold start",
            "The server is off. One command sends the wake packet, waits for the boot, starts llama.cpp and waits until it \
             has loaded its model.",
        )
        .await;
    stage.types("start").await?;
    check(is_ready(&stage.server, LLAMA), || "llama.cpp is not ready".into())?;
    stage.types("status").await
}

async fn conversation(stage: &mut Stage) -> Result<(), Broken> {
    stage
        .tell(
            "2. A conversation",
            "Somebody talks to the model (which is virtual, too, and babbles). What it has read stays in its slot, so that \
             each question costs only what is new.",
        )
        .await;
    stage
        .ask(LLAMA, "Please remember this for later: the cellar key hangs behind the third book from the left.")
        .await?;
    let second = stage.ask(LLAMA, "And the attic key lies in the blue teapot.").await?;
    check(second.reused > 0, || "the second question found nothing in the slot".into())
}

async fn to_vllm(stage: &Stage) -> Result<(), Broken> {
    stage
        .tell(
            "3. Another model",
            "The GPUs hold one backend at a time. Before llama.cpp stops, its slot is saved; vLLM starts only once the GPUs \
             have their memory back.",
        )
        .await;
    stage.types("switch vllm").await?;
    check(is_ready(&stage.server, VLLM), || "vLLM is not ready".into())?;
    check(!stage.server.truth().slot_files.is_empty(), || "no slot was saved".into())?;
    stage.types("slots").await
}

async fn back(stage: &mut Stage) -> Result<(), Broken> {
    stage.tell("4. Back again", "llama.cpp starts anew, and gets its slot back before anybody asks.").await;
    stage.types("switch llama-cpp").await?;
    reuse(stage, "Where is the cellar key?").await
}

async fn crash(stage: &mut Stage) -> Result<(), Broken> {
    stage
        .tell(
            "5. A crash",
            "What was said since the last save would be lost in a crash, so it is saved once more. Then llama.cpp is killed: \
             systemd starts it again, and the daemon, which sees that by itself, restores the slot.",
        )
        .await;
    stage.types("slots save").await?;
    let before = unit(&stage.server, LLAMA).and_then(|unit| unit.pid);
    let mut watch = stage.begin("watch").await?;
    say("(on the server: kill -9 of llama-server)");
    check(stage.server.signal(LLAMA, Signal::Kill), || "there was nothing to kill".into())?;
    let restored = stage.until("restarted and restored", |server| {
        let again = unit(server, LLAMA).filter(|unit| unit.pid != before);
        let slots = again.and_then(|unit| unit.inside).map_or_else(Vec::new, |inside| inside.slots);
        slots.iter().flatten().any(|tokens| *tokens > 0)
    });
    let seen = match restored.await {
        Ok(()) => stage.until_state("llama-cpp").await,
        never => never,
    };
    let _ = watch.kill().await;
    seen?;
    reuse(stage, "And where is the attic key?").await
}

async fn conflict(stage: &Stage) -> Result<(), Broken> {
    stage
        .tell(
            "6. A conflict",
            "Somebody logs in to the server and starts vLLM by hand. Two at a time is not what was wanted, but which of them \
             is worth more only people know: the daemon touches nothing and says so.",
        )
        .await;
    say("(on the server: systemctl start vllm)");
    stage.server.start_unit(VLLM);
    stage.until_state("conflict").await?;
    stage.types("status").await?;
    stage.types("resolve --keep llama-cpp").await?;
    check(is_ready(&stage.server, LLAMA), || "llama.cpp is not there any more".into())?;
    check(unit(&stage.server, VLLM).is_some_and(|unit| unit.pid.is_none()), || "vLLM is still there".into())
}

async fn idle(stage: &mut Stage) -> Result<(), Broken> {
    stage
        .tell(
            "7. Idle",
            "The daemon is killed, and started again with idle rules: stop after a moment without use, power off after one \
             more. It keeps nothing about the present in files: one look, and it knows. This is what it then does by itself.",
        )
        .await;
    stage.kill_daemon().await;
    let idle = stage.idle();
    stage.start_daemon(Some(idle)).await?;
    let mut watch = stage.begin("watch").await?;
    let off = stage.until("powered off", |server| server.power() == Power::Off).await;
    let seen = match off {
        Ok(()) => stage.until_state("gpu-offline").await,
        off => off,
    };
    let _ = watch.kill().await;
    seen?;
    stage.types("status").await
}

/// Goes on with the conversation, which must not begin anew.
async fn reuse(stage: &mut Stage, question: &str) -> Result<(), Broken> {
    let answer = stage.ask(LLAMA, question).await?;
    check(answer.reused > answer.prompt / 2, || {
        format!("only {} of {} tokens were in the slot", answer.reused, answer.prompt)
    })
}

/// Everything stays for whoever wants to try it.
pub(super) async fn linger(stage: &mut Stage) -> Result<(), Broken> {
    stage.stop_daemon().await;
    stage.start_daemon(None).await?;
    stage.until_state("gpu-offline").await?;
    let address = |unit| stage.server.unit_address(unit).map_or_else(String::new, |at| at.to_string());
    say("");
    say("The server and its daemon stay until you press Ctrl-C. In another terminal:");
    say(&format!("  export WECHSLER_SOCKET={}", stage.socket().display()));
    say("  wechsler status");
    say("  wechsler start");
    say(&format!("llama.cpp will be at http://{}, vLLM at http://{}.", address(LLAMA), address(VLLM)));
    std::future::pending().await
}

fn unit(server: &VirtualServer, name: &str) -> Option<UnitTruth> {
    server.truth().units.into_iter().find(|unit| unit.name == name)
}

fn is_ready(server: &VirtualServer, name: &str) -> bool {
    unit(server, name).and_then(|unit| unit.inside).is_some_and(|inside| inside.ready)
}

fn check(so: bool, why: impl FnOnce() -> String) -> Result<(), Broken> {
    if so { Ok(()) } else { Err(Broken::NotAsTold(why())) }
}
