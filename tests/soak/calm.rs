//! The calm: nothing is wrong any more, and everything must work, and be as the daemon says.

use std::time::Duration;

use tokio::time::Instant;
use wechsler::{
    driver::{OperationRecord, status::Status},
    front::protocol::{CommandRequest, CommandWord},
    virtual_server::Power,
};

use super::{
    plan::{LLAMA, Round, VLLM, unit},
    stage::{LONG, SOON, Stage},
};

/// Twice what a connection of the daemon may take; an order may take as long.
const BEGUN: Duration = Duration::from_secs(1);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(200);

impl Stage {
    /// Ends what is wrong, and sees that all works.
    pub async fn calm(&mut self, round: &Round) {
        self.heal().await;
        // The first time whatever is left over may be in the way; from then on nothing.
        if !self.reach(VLLM, true, true).await {
            return;
        }
        // A backend that is up counts as reached also while SSH is still coming back.
        if !self.agrees("under control", |status, _, _| status.control.as_deref() == Some("ok")).await {
            return;
        }
        self.calm = true;
        if round.power && !self.power_cycle().await {
            return;
        }
        let mut known = 0;
        let mut prompt = String::from("Once upon a time there was a server.");
        for pair in 0..round.pairs {
            if !self.reach(LLAMA, false, true).await {
                return;
            }
            let answer = self.asks(LLAMA, &prompt, 30).await;
            let Some(answer) = answer else {
                self.checker.violated("llama.cpp is up and does not answer");
                return;
            };
            let reused = answer["timings"]["cache_n"].as_u64().unwrap_or(0);
            self.note(format!("asked llama.cpp: {reused} of {} tokens were there", prompt.len()));
            if reused < known {
                let text = format!("a conversation was lost: {reused} of {known} tokens are there; nothing was wrong");
                self.checker.violated(text);
            }
            self.ledger.count("conversations", if pair == 0 { "begun" } else { "gone on after a restore" });
            prompt += answer["choices"][0]["text"].as_str().unwrap_or_default();
            // The last token that was generated was never worked on.
            known = prompt.len() as u64 - 1;
            prompt += " And then it was told";
            // A drain is confirmed by looks two seconds apart: a few are enough.
            if !self.reach(VLLM, false, pair > 0 || !round.drains).await {
                return;
            }
        }
        let _ = self.reach(LLAMA, false, true).await;
    }

    /// Ends all faults; whoever came leaves.
    async fn heal(&mut self) {
        self.note("calm");
        // Whoever still tries to reach a server that was off would use the first backend that comes up.
        self.asking.shutdown().await;
        let server = &self.server;
        self.ledger.settle(server);
        let disarmed = server.faults().disarmed.now().is_some();
        server.faults().clear();
        for (_, wire) in &self.wires {
            wire.calm();
        }
        self.slow |= !self.wires.is_empty();
        for backend in [LLAMA, VLLM] {
            if let Some(inside) = server.program_faults(&unit(backend)) {
                inside.clear_all();
            }
        }
        server.log_out("guest");
        server.uninhibit();
        server.vacate(999_983);
        server.hide_slots(false);
        self.guests.clear();
        if std::mem::take(&mut self.slow) {
            // What was begun while it was wrong ends by its own deadlines: a connection, an order.
            self.wait(BEGUN).await;
        }
        let server = &self.server;
        // Nobody but a person can help with these.
        if server.power() == Power::PoweringUp && !server.until(Power::On, SOON).await {
            server.power_cut();
        }
        if disarmed {
            self.server.press();
        }
        let holds = self.client.holds().await;
        for hold in holds.map(|holds| holds.holds).unwrap_or_default() {
            let _ = self.client.release(hold.id).await;
        }
        self.check().await;
    }

    /// Switches to a backend, which must then be up alone. `patiently`: the first tries may fail.
    async fn reach(&mut self, backend: &str, patiently: bool, no_drain: bool) -> bool {
        let wish = CommandRequest {
            backend: Some(backend.into()),
            replace: patiently,
            no_drain,
            ..CommandRequest::new(CommandWord::Switch)
        };
        let until = Instant::now() + LONG;
        loop {
            let came = self.tried(&wish, until).await;
            match came {
                // By a look from before the storm ended; the next one will tell.
                Ok(None) if patiently && !self.is_truly_up(backend) && Instant::now() < until => {
                    self.ledger.count("tries after a storm", "already so, by an older look");
                    self.wait(AGAIN).await;
                }
                Ok(record) => {
                    let mut warnings = record.map(|record| record.warnings).unwrap_or_default();
                    // What a fault of the storm has put aside is said each time.
                    warnings.retain(|warning| warning.code != "restore_older");
                    if !patiently && !warnings.is_empty() && !self.policies {
                        self.checker
                            .violated(format!("a switch to {backend} has warnings; nothing was wrong: {warnings:?}"));
                    }
                    break;
                }
                Err(why) if patiently && Instant::now() < until => {
                    self.ledger.count("tries after a storm", why.clone());
                    if why == "conflict" {
                        let keep = CommandRequest { command: CommandWord::Resolve, ..wish.clone() };
                        let _ = self.command(&keep).await;
                    }
                    self.wait(AGAIN).await;
                }
                Err(why) => {
                    self.trouble_in_calm(&format!("a switch to {backend} failed: {why}")).await;
                    return false;
                }
            }
        }
        self.agrees(backend, |status, up, _| up == [unit(backend)] && status.state == backend).await
    }

    fn is_truly_up(&self, backend: &str) -> bool {
        let units = self.server.truth().units;
        units.iter().any(|u| u.name == unit(backend) && u.inside.as_ref().is_some_and(|inside| inside.ready))
    }

    /// One try: done or not.
    async fn tried(&mut self, wish: &CommandRequest, until: Instant) -> Result<Option<OperationRecord>, String> {
        let Some(id) = self.command(wish).await? else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        let Some(record) = self.end_of(id, left).await else { return Err("it does not end".into()) };
        self.note(format!("... {:?} {:?} {:?}", record.end, record.code, record.warnings));
        if record.end.as_deref() == Some("done") {
            return Ok(Some(record));
        }
        Err(format!("{} {}", record.end.unwrap_or_default(), record.code.unwrap_or_default()))
    }

    /// Off and on again.
    async fn power_cycle(&mut self) -> bool {
        let until = Instant::now() + LONG;
        loop {
            match self
                .tried(&CommandRequest { no_drain: true, ..CommandRequest::new(CommandWord::Shutdown) }, until)
                .await
            {
                Ok(_) => break,
                // Whoever has just left may not be known to have left.
                Err(why) if why.contains("blocked") && Instant::now() < until => {
                    self.ledger.count("tries after a storm", why);
                    self.wait(AGAIN).await;
                }
                Err(why) => {
                    self.trouble_in_calm(&format!("a power-off failed: {why}")).await;
                    return false;
                }
            }
        }
        if !self
            .agrees("off", |status, up, power| up.is_empty() && power == Power::Off && status.state == "gpu-offline")
            .await
        {
            return false;
        }
        match self.tried(&CommandRequest::new(CommandWord::Wake), Instant::now() + LONG).await {
            Ok(_) => true,
            Err(why) => {
                self.trouble_in_calm(&format!("a wake failed: {why}")).await;
                false
            }
        }
    }

    /// Waits until what the daemon says and what is true are so.
    async fn agrees(&mut self, what: &str, so: impl Fn(&Status, &[String], Power) -> bool) -> bool {
        let until = Instant::now() + SOON;
        loop {
            let Some(status) = self.status().await else { return false };
            let truth = self.server.truth();
            let up = truth.units.iter().filter(|u| u.inside.as_ref().is_some_and(|inside| inside.ready));
            let up: Vec<String> = up.map(|u| u.name.clone()).collect();
            // A policy may have moved on already.
            if so(&status, &up, truth.power) || self.policies {
                return true;
            }
            if Instant::now() > until {
                let text =
                    format!("it should be {what}; the daemon says {}, true is {up:?}, {:?}", status.state, truth.power);
                self.checker.violated(text);
                return false;
            }
            self.wait(Duration::from_millis(30)).await;
        }
    }

    async fn trouble_in_calm(&mut self, what: &str) {
        let status = self.status().await;
        let truth = self.server.truth();
        self.checker.violated(format!("{what}, though nothing is wrong\n{status:#?}\n{truth:#?}"));
    }
}
