//! Power: what comes and goes with it, and the magic packets that bring it.

use std::{io, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    faults::BootFault,
    people::People,
    ports::Port,
    shared::Shared,
    truth::{By, Power, What},
    units::{self, Answer},
};
use crate::machine::BootId;

/// Somebody presses the button, or a packet does.
pub(super) fn press(shared: &Arc<Shared>) {
    if shared.power() != Power::Off {
        return;
    }
    let turn = next_turn(shared);
    shared.power.send_replace(Power::PoweringUp);
    shared.did(What::PowerOn);
    let server = Arc::clone(shared);
    shared.spawn(async move { boot(&server, turn).await });
}

/// The power goes, and with it everything.
pub(super) fn cut(shared: &Arc<Shared>) {
    if shared.power() != Power::Off {
        shared.did(What::PowerCut);
        lose(shared);
    }
}

/// Everything is stopped in good order; then the power goes, and comes `again` at once.
pub(super) fn go_down(shared: &Arc<Shared>, again: bool) {
    if shared.power() != Power::On {
        return;
    }
    let turn = next_turn(shared);
    shared.power.send_replace(Power::GoingDown);
    let server = Arc::clone(shared);
    shared.spawn(async move {
        let begun = Instant::now();
        let takes = server.setup.times.power_off;
        let over = begun + takes;
        let names: Vec<String> = server.state().units.iter().map(|u| u.setup.name.clone()).collect();
        for answer in names.iter().map(|name| units::stop(&server, name, By::Systemd)).collect::<Vec<_>>() {
            if let Answer::Later(ended) = answer {
                let _ = timeout_at(over, ended).await;
            }
        }
        // sshd has long ended when the network goes down, and the power goes last.
        sleep_until(begun + takes / 2).await;
        silence(&server).await;
        if !halt(&server, turn) {
            return;
        }
        sleep_until(over).await;
        if server.state().turn != turn {
            return;
        }
        server.did(What::Off);
        if server.faults.disarmed.now().is_some() {
            server.state().armed = false;
        }
        lose(&server);
        if again {
            press(&server);
        }
    });
}

fn halt(shared: &Shared, turn: u64) -> bool {
    let state = shared.state();
    let same = state.turn == turn;
    if same {
        shared.power.send_replace(Power::Halting);
    }
    same
}

/// Puts a server that is on from the beginning into that state.
pub(super) async fn be_on(shared: &Arc<Shared>) {
    let turn = next_turn(shared);
    come_up(shared, turn).await;
    finish(shared, turn);
}

fn next_turn(shared: &Shared) -> u64 {
    let mut state = shared.state();
    state.turn += 1;
    state.turn
}

async fn boot(shared: &Arc<Shared>, turn: u64) {
    let slower = match shared.faults.boot.strike() {
        None => 1,
        Some(BootFault::Slow(times)) => times,
        Some(BootFault::Never) => return,
    };
    let half = shared.setup.times.boot.saturating_mul(slower) / 2;
    sleep(half).await;
    if come_up(shared, turn).await {
        sleep(half).await;
        finish(shared, turn);
    }
}

/// The network comes up: what was silent refuses now.
async fn come_up(shared: &Arc<Shared>, turn: u64) -> bool {
    let mut silent = shared.silent.lock().await;
    {
        let mut state = shared.state();
        if state.turn != turn {
            return false;
        }
        state.boot = BootId(state.id());
        state.boots += 1;
        state.armed = true;
        shared.power.send_replace(Power::Booting);
    }
    silent.clear();
    true
}

/// SSH is there, and what is enabled starts.
fn finish(shared: &Arc<Shared>, turn: u64) {
    let boot = {
        let state = shared.state();
        if state.turn != turn {
            return;
        }
        shared.power.send_replace(Power::On);
        state.boot
    };
    shared.did(What::Booted(boot));
    units::start_enabled(shared);
}

fn lose(shared: &Arc<Shared>) {
    {
        let mut state = shared.state();
        shared.collect_slot_deeds(&state);
        state.turn += 1;
        for unit in &mut state.units {
            unit.lose_power();
        }
        state.lingering.clear();
        state.people = People::default();
        shared.power.send_replace(Power::Off);
    }
    let server = Arc::clone(shared);
    shared.spawn(async move { silence(&server).await });
}

/// Makes the ports of the units silent for as long as there is no network. The SSH port's is made so by its own task.
pub(super) async fn silence(shared: &Shared) {
    let mut silent = shared.silent.lock().await;
    if silent.is_empty() && !matches!(shared.power(), Power::Booting | Power::On) {
        let all = join_all(shared.ports.iter().map(Port::silence)).await;
        silent.extend(all.into_iter().flatten());
    }
}

/// The network card: hears magic packets for as long as the server exists.
pub(super) async fn hear(shared: Arc<Shared>, socket: UdpSocket) {
    /// After an error of the socket, so that it cannot spin.
    const REST: Duration = Duration::from_millis(20);
    let wanted: Vec<u8> = [0xff; 6].into_iter().chain(shared.setup.mac.repeat(16)).collect();
    let mut buffer = [0; 1024];
    loop {
        let got: io::Result<usize> = socket.recv(&mut buffer).await;
        let Ok(length) = got else {
            sleep(REST).await;
            continue;
        };
        if !buffer[..length].windows(wanted.len()).any(|part| part == wanted) {
            continue;
        }
        let off = shared.power() == Power::Off;
        let deaf = off && !shared.state().armed;
        if deaf {
            shared.faults.disarmed.count();
        }
        let heard = off && !deaf && shared.faults.packets.strike().is_none();
        shared.did(What::Packet { heard });
        if heard {
            press(&shared);
        }
    }
}
