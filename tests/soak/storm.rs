//! The storm: the steps of a round, one after another, whatever comes of them.

use std::time::Duration;

use tokio::time::Instant;
use wechsler::{
    front::protocol::{CommandRequest, CommandWord, HoldRequest},
    virtual_server::{Foreign, Inhibitor, Login, Power, programs::Fault},
};

use super::{
    checker::Guest,
    plan::{Round, Step, Stranger, Trouble, unit},
    stage::Stage,
};

/// What [`Step::Ensure`] is given.
const ENSURED: Duration = Duration::from_secs(3);
/// Of a thousand connections so many go wrong in a storm: those over HTTP are many.
const FAULTY_WIRES: usize = 30;
/// By how much slow ones are late: longer than a question may take.
const SLOW_WIRE: Duration = Duration::from_millis(700);
/// How long faults of the server last.
const LASTS: Duration = Duration::from_millis(1200);

impl Stage {
    /// Does all that is planned.
    pub async fn storm(&mut self, round: &Round) {
        self.calm = false;
        for (_, wire) in &self.wires {
            wire.storm(FAULTY_WIRES, SLOW_WIRE);
        }
        for step in &round.storm {
            self.step(step).await;
            self.check().await;
        }
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Command(request) => drop(self.command(request).await),
            Step::Ensure(backend) => self.ensure(backend).await,
            Step::Hold(what) => {
                let lasts = Some("3s".to_owned());
                let request = HoldRequest { what: (*what).into(), lasts, reason: Some("soak".into()) };
                let made = self.client.hold(&request).await;
                self.note(format!("hold {what}: {made:?}"));
                self.ledger.count("commands", format!("hold: {}", if made.is_ok() { "done" } else { "refused" }));
            }
            Step::Ask(backend, tokens) => {
                self.note(format!("ask {backend}"));
                self.asks_beside(backend, format!("What is {} to you?", self.log.len()), *tokens);
            }
            Step::Wait(time) => self.wait(*time).await,
            Step::Settle(most) => self.settle(*most).await,
            Step::Mend(backend) => {
                if let Some(inside) = self.server.program_faults(&unit(backend)) {
                    inside.clear_all();
                }
            }
            Step::Fault(trouble) => self.trouble(trouble).await,
            Step::Stranger(stranger) => self.stranger(*stranger),
        }
    }

    /// Until no operation is under way.
    pub async fn settle(&mut self, most: Duration) {
        let until = Instant::now() + most;
        // An operation shows as soon as it is accepted.
        while Instant::now() < until {
            match self.status().await {
                Some(status) if status.operation.is_some() => self.wait(Duration::from_millis(40)).await,
                _ => return,
            }
        }
    }

    async fn ensure(&mut self, backend: &str) {
        let until = Instant::now() + ENSURED;
        let wish = CommandRequest {
            backend: Some(backend.into()),
            replace: true,
            no_drain: true,
            ..CommandRequest::new(CommandWord::Switch)
        };
        while Instant::now() < until {
            match self.command(&wish).await {
                Ok(None) => return,
                Ok(Some(id)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    let done = self.end_of(id, left).await.is_some_and(|record| record.end.as_deref() == Some("done"));
                    if done {
                        return;
                    }
                }
                Err(why) if why == "conflict" => {
                    let keep = CommandRequest { command: CommandWord::Resolve, ..wish.clone() };
                    let _ = self.command(&keep).await;
                    self.settle(ENSURED).await;
                }
                // These pass by themselves.
                Err(why) if ["control_unreachable", "unknown_state", "too_late"].contains(&why.as_str()) => {}
                Err(_) => return,
            }
            self.wait(Duration::from_millis(400)).await;
        }
    }

    async fn trouble(&mut self, trouble: &Trouble) {
        let name = trouble.name();
        self.note(format!("fault: {name}"));
        let (server, ledger) = (&self.server, &mut self.ledger);
        let faults = server.faults();
        match trouble {
            Trouble::Ssh(fault) => {
                // A session that stands meets none of these: it is cut.
                ledger.sets(server, "command", "command Cut".into());
                faults
                    .command
                    .times((wechsler::virtual_server::On::Any, wechsler::virtual_server::CommandFault::Cut), 1);
                ledger.sets(server, "ssh", name);
                faults.ssh.lasting(*fault, LASTS);
                self.slow = true;
            }
            Trouble::Command(on, fault) => {
                ledger.sets(server, "command", name);
                faults.command.times((*on, fault.clone()), 1);
                self.slow = true;
            }
            Trouble::Refusal(fault) => {
                ledger.sets(server, "refusal", name);
                faults.refusal.times(*fault, 1);
            }
            Trouble::Unit(fault) => {
                ledger.sets(server, "unit", name);
                faults.unit.lasting(fault.clone(), LASTS);
            }
            Trouble::Boot(fault) => {
                ledger.sets(server, "boot", name);
                faults.boot.times(*fault, 1);
            }
            Trouble::Packets => {
                ledger.sets(server, "packets", name);
                faults.packets.times((), 2);
            }
            Trouble::Disarmed => {
                ledger.sets(server, "disarmed", name);
                faults.disarmed.always(());
            }
            Trouble::Clock(seconds) => {
                ledger.sets(server, "clock", name);
                faults.clock.lasting(*seconds, LASTS * 2);
            }
            Trouble::Gpu(fault) => {
                ledger.sets(server, "gpu", name);
                faults.gpu.lasting(fault.clone(), LASTS);
                self.slow = true;
            }
            Trouble::Folder(fault) => {
                ledger.sets(server, "folder", name);
                faults.folder.lasting(*fault, LASTS * 2);
            }
            Trouble::Program(backend, fault, times) => {
                if let Some(inside) = server.program_faults(&unit(backend)) {
                    match times {
                        None => inside.set(fault.clone()),
                        Some(times) => inside.set_times(fault.clone(), *times),
                    }
                }
                self.slow |= matches!(fault, Fault::HealthHangs | Fault::HealthEndless | Fault::SaveHangs);
            }
            Trouble::Crash(backend, exit) => {
                if let Some(inside) = server.program_faults(&unit(backend)) {
                    inside.crash(*exit);
                }
            }
            Trouble::PowerCut => {
                ledger.add("faults", name, u64::from(server.power() != Power::Off));
                server.power_cut();
                self.guests.clear();
            }
            Trouble::Reboot => {
                ledger.add("faults", name, u64::from(server.power() == Power::On));
                server.reboot();
            }
            Trouble::SlotsHidden => {
                ledger.count("faults", name);
                server.hide_slots(true);
            }
            Trouble::DaemonKilled(policies) => {
                ledger.count("faults", name);
                self.kill_daemon().await;
                self.start_daemon(*policies).await;
            }
        }
    }

    fn stranger(&mut self, stranger: Stranger) {
        self.note(format!("{stranger:?}"));
        self.ledger.count("strangers", format!("{stranger:?}"));
        let since = self.server.age();
        let server = &self.server;
        let on = server.power() == Power::On;
        let guest = match stranger {
            Stranger::Starts(backend) if on => {
                server.start_unit(&unit(backend));
                None
            }
            Stranger::Stops(backend) if on => {
                server.stop_unit(&unit(backend));
                None
            }
            Stranger::LogsIn if on => {
                server.log_in(Login { user: "guest".into(), tty: "pts/7".into(), from: "192.0.2.7".into() });
                Some("a login")
            }
            Stranger::Inhibits if on => {
                server.inhibit(Inhibitor { who: "backup".into(), why: "it runs".into() });
                Some("an inhibitor")
            }
            Stranger::Occupies if on => {
                let name = "/usr/bin/blender".into();
                server.occupy(Foreign { pid: 999_983, user: "guest".into(), name, mib: 1500 });
                Some("a foreign GPU process")
            }
            Stranger::Presses => {
                server.press();
                None
            }
            _ => None,
        };
        self.guests.extend(guest.map(|what| Guest { what, since }));
    }
}
